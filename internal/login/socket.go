package login

import (
	"io"
	"net"
	"sync"
	"syscall"
)

// errWouldBlock is what Read returns in the mode without waiting. To crypto/tls it is a
// timeout, after which it can go on.
var errWouldBlock net.Error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "no input yet" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// A socket is a connection whose reader can wait without a buffer: in the mode NoWait, Read
// returns errWouldBlock at once, and Wait waits.
type socket struct {
	net.Conn
	raw    syscall.RawConn
	NoWait bool // set by the only reader
}

// newSocket takes conn, a TCP or Unix socket.
func newSocket(conn net.Conn) *socket {
	s := &socket{Conn: conn}
	if sc, ok := conn.(syscall.Conn); ok {
		s.raw, _ = sc.SyscallConn()
	}
	return s
}

// SyscallConn lends the descriptor.
func (s *socket) SyscallConn() (syscall.RawConn, error) {
	if s.raw == nil {
		return nil, syscall.EINVAL
	}
	return s.raw, nil
}

// CloseWrite tells the peer that nothing more will come.
func (s *socket) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return syscall.EINVAL
}

func (s *socket) Read(b []byte) (int, error) {
	if !s.NoWait || s.raw == nil {
		return s.Conn.Read(b)
	}
	var n int
	var rerr error
	err := s.raw.Read(func(fd uintptr) bool {
		for {
			n, rerr = syscall.Read(int(fd), b)
			if rerr != syscall.EINTR {
				return true
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case rerr == syscall.EAGAIN:
		return 0, errWouldBlock
	case rerr != nil:
		return 0, rerr
	case n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// Wait waits until a read will give something, be it the end. The connection's read
// deadline holds.
func (s *socket) Wait() error {
	first := true
	return s.raw.Read(func(fd uintptr) bool {
		if !first {
			return true
		}
		first = false
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return n >= 0 && err == nil || err != syscall.EAGAIN
	})
}

// readPooled waits for input and reads it into a buffer of the pool, which the caller then
// owns. It ends with io.EOF.
func (s *socket) readPooled() (b *[]byte, n int, err error) {
	var rerr error
	err = s.raw.Read(func(fd uintptr) bool {
		b = buffers.Get().(*[]byte)
		for {
			n, rerr = syscall.Read(int(fd), *b)
			switch {
			case rerr == syscall.EINTR:
				continue
			case rerr == nil && n > 0:
				return true
			}
			break
		}
		buffers.Put(b)
		b = nil
		return rerr != syscall.EAGAIN
	})
	switch {
	case err != nil:
		return nil, 0, err
	case b != nil:
		return b, n, nil
	case rerr != nil:
		return nil, 0, rerr
	}
	return nil, 0, io.EOF
}

var buffers = sync.Pool{New: func() any { b := make([]byte, forwardSize); return &b }}
