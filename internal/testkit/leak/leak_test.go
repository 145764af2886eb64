package leak

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

var leaks = map[string]struct {
	do   func(t *testing.T)
	says string
}{
	"goroutine":  {func(t *testing.T) { go func() { select {} }() }, "goroutines:"},
	"descriptor": {func(t *testing.T) { _, _ = net.Listen("tcp", "127.0.0.1:0") }, "descriptor left: "},
	"process": {func(t *testing.T) {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		registered = cmd
	}, "child process left: "},
}

var registered *exec.Cmd

// What is left behind is found; each kind leaks in a child of this test.
func TestLeaksAreFound(t *testing.T) {
	if name := os.Getenv("LEAK_CHILD"); name != "" {
		t.Run("inner", func(t *testing.T) {
			Check(t)
			leaks[name].do(t)
		})
		if registered != nil {
			_ = registered.Process.Kill()
			_ = registered.Wait()
		}
		return
	}
	for name, c := range leaks { // each waits for what does not go away
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestLeaksAreFound$")
			cmd.Env = append(os.Environ(), "LEAK_CHILD="+name)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.says) {
				t.Errorf("%s: want a failure that says %q, got err %v and\n%s", name, c.says, err, out)
			}
		})
	}
}

func TestTidyTestPasses(t *testing.T) {
	Check(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends when l is closed
		defer close(done)
		_, _ = l.Accept()
	}()
	if err := exec.Command("true").Run(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	<-done
}
