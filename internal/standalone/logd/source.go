package logd

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/log"
)

// A source is the read end of one service's log pipe, as a log.Reader wants it: Read waits
// for data, and while there is none it runs what others have asked for. That is how the
// notice of a process's death comes after everything the process has written, on the
// goroutine that the log.Reader belongs to.
type source struct {
	file    *os.File
	raw     syscall.RawConn
	pending []byte // to be read before the pipe
	first   bool   // nothing was read yet
	asked   bool   // there is something to do when the pipe is empty
	prefix  string // of the service, in case the handshake is gone

	mu     sync.Mutex
	todo   []func() // guarded by mu
	ending bool     // guarded by mu: EOF when the pipe is empty
}

// newSource takes fd, which must be non-blocking.
func newSource(fd int, prefix string) (*source, error) {
	f := os.NewFile(uintptr(fd), "log pipe")
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil { // it cannot be woken
		return nil, err
	}
	return &source{file: f, raw: raw, first: true, prefix: prefix}, nil
}

// do runs f where the source is read, when the pipe is empty. Any goroutine may call it.
// After the end of the source f does not run.
func (s *source) do(f func()) {
	s.mu.Lock()
	s.todo = append(s.todo, f)
	s.mu.Unlock()
	s.wake()
}

// end makes Read return EOF once the pipe is empty. Any goroutine may call it.
func (s *source) end() {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.wake()
}

// wake ends the wait of Read.
func (s *source) wake() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) }

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if s.first {
		s.begin()
	}
	if len(s.pending) > 0 {
		n := copy(p, s.pending)
		s.pending = s.pending[n:]
		return n, nil
	}
	for {
		if s.asked {
			n, err := s.try(p)
			if n > 0 || err != nil && err != unix.EAGAIN {
				return n, err
			}
			s.asked = false
			if s.runTodo() {
				return 0, io.EOF
			}
		}
		n, err := s.file.Read(p)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = s.file.SetReadDeadline(time.Time{})
			s.asked = true
		case err == io.EOF: // nobody has it open for writing
			s.runTodo()
			return 0, io.EOF
		default:
			return n, err
		}
	}
}

// try reads what is there; EAGAIN when nothing is.
func (s *source) try(p []byte) (n int, err error) {
	for {
		rerr := s.raw.Read(func(fd uintptr) bool {
			n, err = unix.Read(int(fd), p)
			return true
		})
		switch {
		case errors.Is(rerr, os.ErrDeadlineExceeded): // woken
			_ = s.file.SetReadDeadline(time.Time{})
			s.asked = true
		case rerr != nil:
			return 0, rerr
		case err == unix.EINTR:
		case err == nil && n == 0:
			s.runTodo()
			return 0, io.EOF
		default:
			return max(n, 0), err
		}
	}
}

// runTodo runs what was asked for, and says whether to end.
func (s *source) runTodo() bool {
	s.mu.Lock()
	todo, ending := s.todo, s.ending
	s.todo = nil
	s.mu.Unlock()
	for _, f := range todo {
		f()
	}
	return ending
}

// begin puts a handshake before everything if the pipe does not begin with one: an earlier
// log process has read it.
func (s *source) begin() {
	s.first = false
	handshake := log.AppendHandshake(nil, s.prefix)
	b := make([]byte, log.MaxLine)
	n, _ := s.try(b)
	b = b[:n]
	if !bytes.HasPrefix(b, handshake[:4]) {
		s.pending = handshake
	}
	s.pending = append(s.pending, b...)
}

func (s *source) close() { s.file.Close() }
