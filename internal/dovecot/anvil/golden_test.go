package anvil

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/instance"
)

// To record testdata anew, as root: go test -run Real -record ./internal/dovecot/anvil
var recording = flag.Bool("record", false, "write what a private real Dovecot says to testdata")

// dialogs are sent to the real anvil, each on a connection of its own, in this order. The
// answers are in testdata/dialogs.golden, which package anvild is compared with.
var dialogs = []string{
	"", // no version
	"VERSION\tanvil\t1\t0\nCONNECT\t1\tx/y/end\n" + strings.Repeat("CONNECT\t1\tx/y/end\n", 76),
	"VERSION\tanvil\t1\t5\tmore\n",
	"VERSION\tanvil\t2\t0\nLOOKUP\ta\n",
	"VERSION\tauth\t1\t0\n",
	"LOOKUP\ta\n",
	"VERSION\tanvil\t1\t0\n\n\r\nLOOKUP\ta\r\nLOOKUP\t\nLOOKUP\ta\tb\n",
	"VERSION\tanvil\t1\t0\nLOOKUP\n",
	"VERSION\tanvil\t1\t0\nlookup\ta\n",
	"VERSION\tanvil\t1\t0\nKILL\t5\n",
	"VERSION\tanvil\t1\t0\nLOOKUP\ta\nFOO\nLOOKUP\ta\n",
	"VERSION\tanvil\t1\t0\nCONNECT\tx\ta\n",
	"VERSION\tanvil\t1\t0\nCONNECT\t-1\ta\n",
	"VERSION\tanvil\t1\t0\nCONNECT\t7\n",
	"VERSION\tanvil\t1\t0\nCONNECT\t0\tnull\nCONNECT\t2147483647\tmany\nLOOKUP\tnull\nLOOKUP\tmany\n",
	"VERSION\tanvil\t1\t0\nCONNECT\t2147483648\tmany\n",
	"VERSION\tanvil\t1\t0\nCONNECT\t7\tsubmission/192.0.2.7/alice\nCONNECT\t7\tsubmission/192.0.2.7/alice\nCONNECT\t8\tsubmission/192.0.2.7/alice\nCONNECT\t8\tb\x01tb\x01nc\tmore\nLOOKUP\tsubmission/192.0.2.7/alice\nLOOKUP\tb\x01tb\x01nc\nCONNECT-DUMP\n",
	"VERSION\tanvil\t1\t0\nDISCONNECT\t7\tsubmission/192.0.2.7/alice\nDISCONNECT\t9\tsubmission/192.0.2.7/alice\nDISCONNECT\t8\tb\x01tb\x01nc\nCONNECT-DUMP\tx\n",
	"VERSION\tanvil\t1\t0\nPENALTY-DUMP\nPENALTY-GET\t192.0.2.1\n",
	"VERSION\tanvil\t1\t0\nPENALTY-INC\t192.0.2.1\t77\t2\nPENALTY-GET\t192.0.2.1\nPENALTY-INC\t192.0.2.1\t77\t3\nPENALTY-GET\t192.0.2.1\nPENALTY-INC\t192.0.2.1\t78\t3\nPENALTY-GET\t192.0.2.1\nPENALTY-INC\t192.0.2.1\t77\t4\nPENALTY-GET\t192.0.2.1\nPENALTY-INC\t192.0.2.1\t79\t65535\nPENALTY-GET\t192.0.2.1\n",
	"VERSION\tanvil\t1\t0\nPENALTY-INC\t192.0.2.2\t0\t0\nPENALTY-GET\t192.0.2.2\nPENALTY-INC\t192.0.2.2\t0\t9\nPENALTY-INC\t192.0.2.2\t0\t9\nPENALTY-GET\t192.0.2.2\nPENALTY-DUMP\n",
	"VERSION\tanvil\t1\t0\n" + checksums("192.0.2.3", 12) + "PENALTY-DUMP\n",
	"VERSION\tanvil\t1\t0\nPENALTY-INC\t192.0.2.3\t1\t9\nPENALTY-GET\t192.0.2.3\nPENALTY-INC\t192.0.2.3\t4\t9\nPENALTY-GET\t192.0.2.3\nPENALTY-INC\t192.0.2.3\t3\t9\nPENALTY-GET\t192.0.2.3\n",
	"VERSION\tanvil\t1\t0\nPENALTY-INC\t192.0.2.1\t3\t0\n",
	"VERSION\tanvil\t1\t0\nPENALTY-INC\t192.0.2.1\t1\t65536\n",
	"VERSION\tanvil\t1\t0\nPENALTY-INC\t192.0.2.1\t1\n",
	"VERSION\tanvil\t1\t0\nPENALTY-GET\n",
	"VERSION\tanvil\t1\t0\nPENALTY-SET-EXPIRE-SECS\tx\n",
	"VERSION\tanvil\t1\t0\nPENALTY-SET-EXPIRE-SECS\t7200\nPENALTY-DUMP\n",
	"VERSION\tanvil\t1\t0\nLOOKUP\t" + strings.Repeat("x", MaxLine-8) + "\n",
	"VERSION\tanvil\t1\t0\nLOOKUP\t" + strings.Repeat("x", MaxLine-7) + "\n",
}

func checksums(ident string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "PENALTY-INC\t%s\t%d\t%d\nPENALTY-GET\t%s\n", ident, i+1, i+1, ident)
	}
	return b.String()
}

// TestRealAnvil records what the real one answers. The last question of a dialog that is
// not closed has the answer 77, which nothing else has.
func TestRealAnvil(t *testing.T) {
	i := instance.Start(t, "")
	var all strings.Builder
	for _, d := range dialogs {
		fmt.Fprintf(&all, "C: %q\n", d)
		conn, err := net.Dial("unix", i.Socket("anvil"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(conn, d)
		_, _ = io.WriteString(conn, "LOOKUP\tx/y/end\n")
		var got []byte
		closed := false
		for b := make([]byte, 4096); !closed && !strings.HasSuffix("\n"+string(got), "\n77\n"); {
			n, err := conn.Read(b)
			got = append(got, b[:n]...)
			closed = err != nil
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatalf("%q: %q, then nothing", d, got)
			}
		}
		conn.Close()
		for _, l := range strings.SplitAfter(strings.TrimSuffix(string(got), "77\n"), "\n") {
			if l != "" {
				fmt.Fprintf(&all, "S: %q\n", l)
			}
		}
		if closed {
			all.WriteString("closed\n")
		}
	}
	last := "Not enough parameters" // of PENALTY-GET: the log process lags behind
	i.Until("log is complete", func() bool { return strings.Count(i.Log(), last) >= 4 && strings.Contains(i.Log(), "too much data") })
	for _, l := range strings.Split(i.Log(), "\n") {
		if _, text, ok := strings.Cut(l, ": anvil: Error: "); ok {
			fmt.Fprintf(&all, "L: %q\n", text)
		} else if _, text, ok := strings.Cut(l, " anvil: Error: "); ok {
			fmt.Fprintf(&all, "L: %q\n", text)
		}
	}
	if *recording {
		for path, text := range map[string]string{"testdata/dialogs.golden": all.String(), "testdata/version": i.Version + "\n"} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}
