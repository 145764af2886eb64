package log

import (
	"bufio"
	"encoding/base64"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/need"
)

var record = flag.Bool("record", false, "write testdata anew, from a private instance of the installed Dovecot (as root)")

// TestRecord writes testdata: what the real submission-login writes to descriptor 2 for
// two clients, one that quits and one whose login fails.
func TestRecord(t *testing.T) {
	need.Asked(t, *record, "-record")
	dir, err := os.MkdirTemp("", "record")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	// tee passes on what it keeps, and ends with the login.
	script := fmt.Sprintf("#!/bin/sh\ntee -a %[1]s/log <%[1]s/fifo >&2 5>&- 6>&- &\nexec %[2]s/submission-login 2>%[1]s/fifo\n", dir, need.Dovecot(t).Libexec)
	if err := os.WriteFile(filepath.Join(dir, "login"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	i := instance.Start(t, "service submission-login {\n  executable = "+dir+"/login\n}\npassdb {\n  driver = static\n  args = password=other\n}\n")
	talk := func(lines ...string) {
		c, err := net.Dial("tcp", i.Addr("submission"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		r := bufio.NewReader(c)
		for _, l := range append(lines, "QUIT") {
			if _, err := r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "%s\r\n", l)
		}
		for err == nil {
			_, err = r.ReadString('\n')
		}
	}
	talk()
	i.WaitLog("(no auth attempts")
	talk("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00alüce\x00pass")))
	i.WaitLog("(auth failed, 1 attempts")
	b, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"login.bin": b, "version": []byte(strings.TrimSpace(i.Version) + "\n")} {
		if err := os.WriteFile("testdata/"+name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// The real log service makes the same of every line as a Reader.
func TestRealLogService(t *testing.T) {
	need.Root(t)
	dir, err := os.MkdirTemp("", "lines")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// What the log service reads together with the handshake it handles with the next
	// read.
	script := "#!/bin/sh\necho first >&2\nsleep 0.5\ncat " + dir + "/wire >&2\nexec sleep 60\n"
	want := "submission: Error: first\n"
	var wire string
	for n, c := range lines {
		if !c.ours {
			wire += strings.ReplaceAll(c.sent, "PID", fmt.Sprint(7000+n))
			want += c.want + "\n"
		}
	}
	want += "submission: Info: the end\n"
	wire += "\x01\x028000 the end\n"
	for name, text := range map[string]string{"wire": wire, "worker": script} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	i := instance.Start(t, "service submission {\n  executable = "+dir+"/worker\n  process_min_avail = 1\n}\n")
	i.WaitLog("the end")
	var got string
	for line := range strings.Lines(i.Log()) {
		const stamp = len("Nov 24 18:58:44 ")
		if text := line[min(stamp, len(line)):]; !strings.HasPrefix(text, "master: ") {
			got += text
		}
	}
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}
