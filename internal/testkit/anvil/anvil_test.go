package anvil

import (
	"bufio"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/system"
)

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }

// said looks up, connects twice, disconnects once, on the socket.
func said(t *testing.T, path string) (out []string) {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(waitTimeout))
	br := bufio.NewReader(nc)
	const who = "submission/192.0.2.1/alice"
	if _, err := io.WriteString(nc, "VERSION\tanvil\t1\t0\n"); err != nil {
		t.Fatal(err)
	}
	for _, change := range []string{"", "CONNECT\t11\t" + who, "CONNECT\t12\t" + who, "DISCONNECT\t11\t" + who} {
		if change != "" {
			change += "\n"
		}
		if _, err := io.WriteString(nc, change+"LOOKUP\t"+who+"\n"); err != nil {
			t.Fatal(err)
		}
		line, err := br.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.TrimSpace(line))
	}
	return out
}

// The fake counts as Dovecot does.
func TestLikeDovecot(t *testing.T) {
	r := system.Dovecot.Start(t, system.Setup{})
	want := strings.Join(said(t, r.Dir+"/run/anvil"), " ")
	if got := strings.Join(said(t, Start(t, t.TempDir()).Path), " "); got != want || got != "0 1 2 1" {
		t.Errorf("counts %s, Dovecot says %s", got, want)
	}
}

func TestPipeAndSet(t *testing.T) {
	leak.Check(t)
	s := Start(t, t.TempDir())
	const who = "submission/192.0.2.1/bob"
	if _, err := io.WriteString(s.Pipe, "CONNECT\t7\t"+who+"\n"); err != nil {
		t.Fatal(err)
	}
	if got := s.Wait("CONNECT\t7"); got != "CONNECT\t7\t"+who || s.Count(who) != 1 {
		t.Errorf("%q, count %d", got, s.Count(who))
	}
	s.Set("submission/192.0.2.1/alice", 9)
	if got := said(t, s.Path); got[0] != "9" {
		t.Errorf("%q", got)
	}
	s.Stop()
}
