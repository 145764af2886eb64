package rawio

import (
	"bytes"
	"syscall"
	"testing"
)

func TestPipe(t *testing.T) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	r, w := uintptr(p[0]), uintptr(p[1])
	defer syscall.Close(p[0])
	b := make([]byte, 10)
	if n, err := Read(r, b); n != 0 || err != syscall.EAGAIN {
		t.Errorf("nothing there: %d, %v", n, err)
	}
	if n, err := Write(w, []byte("hello")); n != 5 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	if n, err := Read(r, b); n != 5 || err != nil || !bytes.Equal(b[:5], []byte("hello")) {
		t.Errorf("read: %d, %v, %q", n, err, b[:n])
	}
	if n, err := Read(r, nil); n != 0 || err != nil {
		t.Errorf("read of nothing: %d, %v", n, err)
	}
	full := make([]byte, 1<<20)
	if n, err := Write(w, full); n <= 0 || n == len(full) || err != nil {
		t.Errorf("write of more than fits: %d, %v", n, err)
	}
	if n, err := Write(w, full); n != 0 || err != syscall.EAGAIN {
		t.Errorf("write to a full pipe: %d, %v", n, err)
	}
	syscall.Close(p[1])
	for {
		n, err := Read(r, full)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
	}
	if n, err := Read(9999, b); n != 0 || err != syscall.EBADF {
		t.Errorf("no descriptor: %d, %v", n, err)
	}
}
