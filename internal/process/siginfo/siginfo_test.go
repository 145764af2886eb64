package siginfo

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	once sync.Once
	got  = make(chan Signal, 1000)
)

// listen makes the test process listen, once.
func listen(t *testing.T) {
	t.Helper()
	once.Do(func() {
		if err := Notify(func(s Signal) { got <- s }, syscall.SIGTERM, syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
	})
}

func next(t *testing.T) Signal {
	t.Helper()
	select {
	case s := <-got:
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("no signal")
		return Signal{}
	}
}

func TestSenderIsKnown(t *testing.T) {
	listen(t)
	me := Signal{Known: true, PID: os.Getpid(), UID: uint32(os.Getuid())}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		me = Signal{}
	}
	for _, number := range []syscall.Signal{syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGTERM} {
		syscall.Kill(os.Getpid(), number)
		me.Number = number
		if s := next(t); s != me || s.CodeText() != "kill" {
			t.Fatalf("from ourselves: %+v, want %+v", s, me)
		}
	}
	cmd := exec.Command("/bin/sh", "-c", "kill -TERM "+strconv.Itoa(os.Getpid())+"; exit 0")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if s := next(t); s.Known && s.PID != cmd.Process.Pid {
		t.Errorf("from a child, pid %d: %+v", cmd.Process.Pid, s)
	}
}

// Signals that hit threads at work, in Go code and in system calls, do no harm there.
func TestBusyThreads(t *testing.T) {
	listen(t)
	stop := make(chan bool)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { // ends when stop is closed
			pid := os.Getpid()
			for sum := 1; ; sum = sum*31 + syscall.Getppid() {
				select {
				case <-stop:
					return
				default:
					if b := make([]int, 100); b[sum&63] != 0 || os.Getpid() != pid {
						t.Error("memory or a result was changed")
					}
				}
			}
		})
	}
	const n = 2000
	for range n {
		syscall.Kill(os.Getpid(), syscall.SIGUSR1)
		if s := next(t); s.Number != syscall.SIGUSR1 {
			t.Fatalf("%+v", s)
		}
	}
	close(stop)
	wg.Wait()
}

// The pipe takes thousands of signals; those that do not fit are lost, and the process
// does not wait for them.
func TestFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("a flood of signals")
	}
	listen(t)
	for range 3000 {
		syscall.Kill(os.Getpid(), syscall.SIGUSR1)
	}
	next(t)
	for len(got) > 0 {
		<-got
	}
}
