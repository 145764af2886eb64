package logd

import (
	"bytes"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/log"
)

// A source is the read end of one service's log pipe, as a log.Reader wants it: Read waits
// for data, and while there is none it runs what others have asked for. That is how the
// notice of a process's death comes after everything the process has written, on the
// goroutine that the log.Reader belongs to.
type source struct {
	fd      int
	wake    int    // eventfd
	pending []byte // to be read before the pipe
	first   bool   // nothing was read yet
	prefix  string // of the service, in case the handshake is gone

	mu     sync.Mutex
	todo   []func() // guarded by mu
	ending bool     // guarded by mu: EOF when the pipe is empty
}

// newSource lends fd, which must be non-blocking.
func newSource(fd int, prefix string) (*source, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &source{fd: fd, wake: wake, first: true, prefix: prefix}, nil
}

// do runs f where the source is read, when the pipe is empty. Any goroutine may call it.
// After the end of the source f does not run.
func (s *source) do(f func()) {
	s.mu.Lock()
	s.todo = append(s.todo, f)
	s.mu.Unlock()
	s.kick()
}

// end makes Read return EOF once the pipe is empty. Any goroutine may call it.
func (s *source) end() {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.kick()
}

func (s *source) kick() { unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

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
		n, err := unix.Read(s.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && n > 0:
			return n, nil
		case err == nil: // nobody has it open for writing
			s.runTodo()
			return 0, io.EOF
		case err != unix.EAGAIN:
			return 0, err
		}
		if s.runTodo() {
			return 0, io.EOF
		}
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return 0, err
		}
		if fds[1].Revents != 0 {
			var b [8]byte
			unix.Read(s.wake, b[:])
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
	n, _ := unix.Read(s.fd, b)
	b = b[:max(n, 0)]
	if !bytes.HasPrefix(b, handshake[:4]) {
		s.pending = handshake
	}
	s.pending = append(s.pending, b...)
}

func (s *source) close() { unix.Close(s.wake) }
