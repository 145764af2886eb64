package siginfo

import (
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"testing"
)

// The signal still arrives where it did, and its sender is known.
func TestSenderIsKnown(t *testing.T) {
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGTERM)
	defer signal.Stop(got)
	if _, ok := Last(); ok {
		t.Error("a sender before the first signal")
	}
	if !Watch(syscall.SIGTERM) {
		if runtime.GOOS == "linux" && (runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64") {
			t.Fatal("Watch does not work")
		}
		t.Skip("nobody is known on " + runtime.GOOS + "/" + runtime.GOARCH)
	}
	me := strconv.Itoa(os.Getpid())
	for range 100 {
		syscall.Kill(os.Getpid(), syscall.SIGTERM)
		<-got
		s, ok := Last()
		if !ok || s.PID != int32(os.Getpid()) || s.UID != uint32(os.Getuid()) || s.CodeText() != "kill" {
			t.Fatalf("from ourselves: %+v, %v", s, ok)
		}
	}
	cmd := exec.Command("/bin/sh", "-c", "kill -TERM "+me+"; exit 0")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	<-got
	if s, _ := Last(); int(s.PID) != cmd.Process.Pid {
		t.Errorf("from a child, pid %d: %+v", cmd.Process.Pid, s)
	}
}
