// Package rawio reads and writes non-blocking descriptors without telling the Go scheduler
// that a system call is going on. Package syscall tells it, since a call may block; every
// such note from a process that was idle wakes the runtime's monitor thread, which then
// looks around every 20 µs for a millisecond. In a process that serves one session after
// the other that was a fifth of all CPU time.
//
// The descriptors must be non-blocking: a call that waits would stop a whole processor of
// the scheduler.
package rawio

import (
	"syscall"
	"unsafe"
)

// Read reads once, again after EINTR. n is 0 at the end of the file and with an error,
// which is a syscall.Errno, EAGAIN if nothing is there.
func Read(fd uintptr, b []byte) (n int, err error) {
	return transfer(syscall.SYS_READ, fd, b)
}

// Write writes once, again after EINTR. n may be less than len(b).
func Write(fd uintptr, b []byte) (n int, err error) {
	return transfer(syscall.SYS_WRITE, fd, b)
}

func transfer(call, fd uintptr, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, syscall.EAGAIN
		default:
			return 0, errno
		}
	}
}
