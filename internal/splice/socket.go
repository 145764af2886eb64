// Package splice passes octets between a client and a server, both ways, until one of them
// ends: between a TLS client and its worker, or a client and its backend. While a side is
// quiet it costs no buffer, which is what the type Socket is for; large transfers between
// two plain TCP connections stay in the kernel.
package splice

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

// A Socket is a connection whose reader can wait without a buffer: in the mode NoWait, Read
// returns errWouldBlock at once, and Wait waits.
type Socket struct {
	net.Conn
	Raw    syscall.RawConn // lends the descriptor
	NoWait bool            // set by the only reader
}

// NewSocket takes conn, a TCP or Unix socket.
func NewSocket(conn net.Conn) *Socket {
	s := &Socket{Conn: conn}
	if sc, ok := conn.(syscall.Conn); ok {
		s.Raw, _ = sc.SyscallConn()
	}
	return s
}

// SyscallConn implements syscall.Conn.
func (s *Socket) SyscallConn() (syscall.RawConn, error) {
	if s.Raw == nil {
		return nil, syscall.EINVAL
	}
	return s.Raw, nil
}

// CloseWrite tells the peer that nothing more will come.
func (s *Socket) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return syscall.EINVAL
}

func (s *Socket) Read(b []byte) (int, error) {
	if !s.NoWait || s.Raw == nil {
		return s.Conn.Read(b)
	}
	var n int
	var rerr error
	err := s.Raw.Read(func(fd uintptr) bool {
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
func (s *Socket) Wait() error {
	first := true
	return s.Raw.Read(func(fd uintptr) bool {
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
func (s *Socket) readPooled() (b *[]byte, n int, err error) {
	var rerr error
	err = s.Raw.Read(func(fd uintptr) bool {
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

const size = 32 << 10 // of a read

var buffers = sync.Pool{New: func() any { b := make([]byte, size); return &b }}
