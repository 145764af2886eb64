package server

import (
	"syscall"
	"time"
	"unsafe"
)

// watchAfter is how long a wait lasts before it is worth watching the client: most end
// sooner.
const watchAfter = 20 * time.Millisecond

// Watch calls gone, once and from another goroutine, when the client closes its side while
// the owner waits for something else and does not read. stop ends the watch, and must be
// called before the owner reads again. It begins a moment later. Where nothing can be
// watched, gone is never called.
func (c *Conn) Watch(gone func()) (stop func()) {
	raw := c.bottom
	if raw == nil {
		return func() {}
	}
	done := make(chan struct{})
	timer := time.AfterFunc(watchAfter, func() { // ends by stop's deadline
		defer close(done)
		if raw.Read(hungUp) == nil {
			gone()
		}
	})
	return func() {
		if timer.Stop() {
			return
		}
		c.nc.SetReadDeadline(time.Unix(1, 0))
		<-done
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.endedLocked() == nil {
			c.nc.SetReadDeadline(time.Time{})
		}
	}
}

const pollRDHUP = 0x2000

// hungUp says whether the peer has closed; whether there is input does not matter. The
// poller calls it again when that may have changed.
func hungUp(fd uintptr) bool {
	p := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: pollRDHUP}
	now := syscall.Timespec{}
	n, _, _ := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return n == 1
}
