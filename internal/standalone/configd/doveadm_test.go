package configd

import (
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dovetail/internal/testkit/need"
)

// Dovecot's own client understands the answers: doveadm asks for the settings and then
// looks for a socket in the base_dir they give.
func TestDoveadmAsks(t *testing.T) {
	doveadm := need.Program(t, "doveadm")
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	s := New(load(t, write(t, dir, "dovecot.conf", "base_dir = "+base+"\nhostname = mx.example.org\nplugin {\n  a = b\n}\n")), nil)
	l, err := net.Listen("unix", filepath.Join(dir, "config"))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() { // ends when the listener is closed; connections end with doveadm
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case asked <- struct{}{}:
			default:
			}
			s.Serve(context.Background(), c)
		}
	}()
	defer func() { l.Close(); <-done }()
	out, _ := exec.Command(doveadm, "-c", l.Addr().String(), "who").CombinedOutput()
	if len(asked) == 0 {
		t.Fatalf("doveadm did not ask: %s", out)
	}
	if !strings.Contains(string(out), base+"/anvil") {
		t.Errorf("%s", out)
	}
}
