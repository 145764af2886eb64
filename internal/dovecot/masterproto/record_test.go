package masterproto

import (
	"bytes"
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
	"dovetail/internal/testkit/tlsfiles"
)

var record = flag.Bool("record", false, "write testdata anew, from a private instance of the installed Dovecot (as root)")

// recordConf has every kind of listener. Scripts, which copy what they are given, stand in
// for the programs; the login's goes on as the real one, with a file for the status pipe.
const recordConf = `
ssl = yes
ssl_cert = <%[1]s
ssl_key = <%[2]s
service submission-login {
  executable = %[3]s/login
  unix_listener login/extra-sock {
    mode = 0600
  }
  fifo_listener extra-fifo {
    mode = 0600
  }
  inet_listener submission {
    address = 127.0.0.1, 127.0.0.2
  }
  inet_listener submissions {
    port = @PORT:submissions@
    ssl = yes
  }
  inet_listener proxied {
    port = @PORT:proxied@
    haproxy = yes
    ssl = yes
  }
}
service submission {
  executable = %[3]s/worker
  process_min_avail = 1
}
`

// place stands for the instance's directory in what is recorded.
const place = "/srv/dovecot"

// TestRecord writes testdata: the environment of both services, and the status records of
// the real login for one client.
func TestRecord(t *testing.T) {
	need.Asked(t, *record, "-record")
	dir, err := os.MkdirTemp("", "record")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	script := func(name, then string) {
		text := fmt.Sprintf("#!/bin/sh\ncat /proc/$$/environ > %[1]s/%[2]s.new && mv %[1]s/%[2]s.new %[1]s/%[2]s.environ\n%[3]s\n", dir, name, then)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	// The real login insists on a pipe. The cat ends with it.
	script("login", fmt.Sprintf("cat %s >%s/status.new 5>&- 6>&- &\nexec %s/submission-login 5>%[1]s", fifo, dir, need.Dovecot(t).Libexec))
	script("worker", "exec sleep 60")
	cert, key := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "mx.example.org"}).Write(t, dir, "mx")
	i := instance.Start(t, fmt.Sprintf(recordConf, cert, key, dir))

	c, err := net.Dial("tcp", i.Addr("submission"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 1000)
	if _, err := c.Read(buf); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("QUIT\r\n")); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = c.Read(buf)
	}
	i.WaitLog("Aborted login by logging out")
	if err := os.Rename(filepath.Join(dir, "status.new"), filepath.Join(dir, "status")); err != nil {
		t.Fatal(err)
	}
	save := func(from, to string) {
		var b []byte
		i.Until(from+" is recorded", func() bool { b, err = os.ReadFile(filepath.Join(dir, from)); return err == nil })
		b = bytes.ReplaceAll(b, []byte(i.Dir), []byte(place))
		if err := os.WriteFile("testdata/"+to, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	save("login.environ", "login.environ")
	save("worker.environ", "submission.environ")
	save("status", "status-login.bin")
	if err := os.WriteFile("testdata/version", []byte(strings.TrimSpace(i.Version)+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}
