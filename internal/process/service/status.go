package service

import (
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/event"
	"dovetail/internal/process/rawio"
)

// Records that do not cross 0 are at least this far apart (clause P1.5.7).
var statusInterval = time.Second // a constant but for tests

// status tells the master how many clients fit (clause P1.5).
type status struct {
	fd   int
	log  func() *event.Log
	gone func() // called once, in its own goroutine, when nobody reads any more

	mu      sync.Mutex         // held for one write that does not block
	record  masterproto.Status // guarded by mu; with the count that the master should know
	sent    uint32             // guarded by mu; the count that it knows
	ever    bool               // guarded by mu; it knows one
	sentAt  time.Time          // guarded by mu
	timer   *time.Timer        // guarded by mu; set while a record is held back
	waiting bool               // guarded by mu; a goroutine waits for room in the pipe
	dead    bool               // guarded by mu
	buf     [masterproto.StatusSize]byte
}

func newStatus(fd int, record masterproto.Status, log func() *event.Log, gone func()) *status {
	return &status{fd: fd, record: record, log: log, gone: gone}
}

// set tells the master that available more clients fit, now or soon.
func (s *status) set(available uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record.Available = available
	s.sendLocked()
}

// sendLocked writes the record unless the master knows the count. A record that leaves or
// reaches 0, like the first one, must get through; others may wait, and be overtaken.
func (s *status) sendLocked() {
	n := s.record.Available
	if s.dead || s.waiting || s.ever && n == s.sent {
		return
	}
	important := !s.ever || n == 0 || s.sent == 0
	if wait := statusInterval - time.Since(s.sentAt); !important && wait > 0 {
		s.laterLocked(wait)
		return
	}
	b := s.record.Append(s.buf[:0])
	for {
		switch got, err := rawio.Write(uintptr(s.fd), b); {
		case err == syscall.EINTR:
			continue
		case err == nil && got == len(b):
			s.ever, s.sent, s.sentAt = true, n, time.Now()
		case err == syscall.EAGAIN && important:
			s.waiting = true
			go s.wait()
		case err == syscall.EAGAIN:
			s.laterLocked(statusInterval)
		default:
			s.dead = true
			if err != syscall.EPIPE { // EPIPE is how a reload looks
				s.log().Error("status record: wrote %d of %d bytes: %v", got, len(b), err)
			}
			go s.gone() // ends at once
		}
		return
	}
}

func (s *status) laterLocked(wait time.Duration) {
	if s.timer != nil {
		return
	}
	s.timer = time.AfterFunc(wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.timer = nil
		s.sendLocked()
	})
}

// wait sends the record when the pipe has room. It ends then, or with the process: the
// master reads, or the pipe breaks.
func (s *status) wait() {
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
	for {
		n, err := unix.Poll(fds, -1)
		if n > 0 || err != nil && err != unix.EINTR {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = false
	s.sendLocked()
}
