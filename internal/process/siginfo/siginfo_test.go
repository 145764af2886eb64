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

// await returns the next one of its number: threads that handle signals at the same time
// write in any order.
func await(t *testing.T, number syscall.Signal) Signal {
	t.Helper()
	end := time.After(20 * time.Second)
	for {
		select {
		case s := <-got:
			if s.Number == number {
				return s
			}
		case <-end:
			t.Fatalf("no signal %d", number)
		}
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
		if s := await(t, number); s != me || s.CodeText() != "kill" {
			t.Fatalf("from ourselves: %+v, want %+v", s, me)
		}
	}
	cmd := exec.Command("/bin/sh", "-c", "kill -TERM "+strconv.Itoa(os.Getpid())+"; exit 0")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if s := await(t, syscall.SIGTERM); s.Known && s.PID != cmd.Process.Pid {
		t.Errorf("from a child, pid %d: %+v", cmd.Process.Pid, s)
	}
}

// Signals that hit threads at work, in Go code and in system calls, do no harm there.
func TestBusyThreads(t *testing.T) {
	listen(t)
	stop := make(chan bool)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { // ends when stop is closed
			pid := os.Getpid()
			for sum := 1; ; sum = sum*31 + syscall.Getppid() {
				select {
				case <-stop:
					return
				default:
					runtime.Gosched() // or the reader of the pipe hardly gets a turn
					if b := make([]int, 100); b[sum&63] != 0 || os.Getpid() != pid {
						t.Error("memory or a result was changed")
					}
				}
			}
		})
	}
	const n = 200
	for range n {
		syscall.Kill(os.Getpid(), syscall.SIGUSR1)
		await(t, syscall.SIGUSR1)
	}
	close(stop)
	wg.Wait()
}

// Many signals at once: some are lost, by the kernel or the pipe, and the next one still
// arrives.
func TestFlood(t *testing.T) {
	listen(t)
	for range 3000 {
		syscall.Kill(os.Getpid(), syscall.SIGUSR1)
	}
	syscall.Kill(os.Getpid(), syscall.SIGTERM)
	await(t, syscall.SIGTERM)
}
