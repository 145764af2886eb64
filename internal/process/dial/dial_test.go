package dial

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A socket that is made anew is waited for, if that is wanted.
func TestAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if _, err := Unix(t.Context(), path, 100*time.Millisecond, false); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no socket: %v", err)
	}
	old, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	old.Close()
	if _, err := Unix(t.Context(), path, 100*time.Millisecond, false); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	made := make(chan net.Listener, 1)
	go func() { // ends with the new socket
		time.Sleep(2 * pause)
		os.Remove(path)
		time.Sleep(2 * pause)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Error(err)
		}
		made <- l
	}()
	c, err := Unix(t.Context(), path, Patience, true)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	(<-made).Close()
}

// A full queue is waited for, until it has room or the context ends.
func TestFullQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := Unix(t.Context(), path, 100*time.Millisecond, false)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := Unix(t.Context(), path, 100*time.Millisecond, false); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("a full queue: %v", err)
	}
	gone, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	time.AfterFunc(2*pause, func() { cancel(stopped) })
	if _, err := Unix(gone, path, time.Minute, false); !errors.Is(err, stopped) {
		t.Errorf("stopped: %v", err)
	}
	time.AfterFunc(2*pause, func() {
		if n, _, err := syscall.Accept(fd); err == nil {
			syscall.Close(n)
		}
	})
	c, err := Unix(t.Context(), path, time.Minute, false)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
