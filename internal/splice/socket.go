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

	"dovetail/internal/process/rawio"
)

// errWouldBlock is what Read returns in the mode without waiting. To crypto/tls it is a
// timeout, after which it can go on.
var errWouldBlock net.Error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "no input yet" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// A Socket is a connection whose reader can wait without a buffer: in the mode NoWait, Read
// returns errWouldBlock at once, and Wait waits. There is one reader at a time.
type Socket struct {
	net.Conn
	Raw    syscall.RawConn // lends the descriptor
	NoWait bool            // set by the only reader

	// The reader's, for what it lets the poller call: the functions are made once, when
	// they are needed.
	read, take, wait func(fd uintptr) bool
	b                []byte
	pooled           *[]byte
	n                int
	err              error
	waited           bool

	// Likewise the writer's.
	put  func(fd uintptr) bool
	wb   []byte
	wn   int
	werr error
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
	s.b = b
	if s.read == nil {
		s.read = s.readOnce
	}
	err := s.Raw.Read(s.read)
	s.b = nil
	switch {
	case err != nil:
		return 0, err
	case s.err == syscall.EAGAIN:
		return 0, errWouldBlock
	case s.err != nil:
		return 0, s.err
	case s.n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	return s.n, nil
}

// readOnce reads into s.b, whether there is something or not.
func (s *Socket) readOnce(fd uintptr) bool {
	for {
		if s.n, s.err = syscall.Read(int(fd), s.b); s.err != syscall.EINTR {
			return true
		}
	}
}

// Wait waits until a read will give something, be it the end. The connection's read
// deadline holds.
func (s *Socket) Wait() error {
	s.waited = false
	if s.wait == nil {
		s.wait = s.waitReady
	}
	return s.Raw.Read(s.wait)
}

func (s *Socket) waitReady(fd uintptr) bool {
	if s.waited {
		return true
	}
	s.waited = true
	var b [1]byte
	n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return n >= 0 && err == nil || err != syscall.EAGAIN
}

// tryWrite writes what the kernel takes of b without waiting.
func (s *Socket) tryWrite(b []byte) (int, error) {
	if s.Raw == nil {
		return 0, nil
	}
	if s.put == nil {
		s.put = s.writeOnce
	}
	s.wb, s.wn, s.werr = b, 0, nil
	err := s.Raw.Write(s.put)
	s.wb = nil
	if err == nil && s.werr != syscall.EAGAIN {
		err = s.werr
	}
	return s.wn, err
}

func (s *Socket) writeOnce(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), s.wb)
		if err == syscall.EINTR {
			continue
		}
		s.wn, s.werr = max(n, 0), err
		return true
	}
}

// readPooled waits for input and reads it into a buffer of the pool, which the caller then
// owns. It ends with io.EOF.
func (s *Socket) readPooled() (b *[]byte, n int, err error) {
	if s.take == nil {
		s.take = s.takeReady
	}
	err = s.Raw.Read(s.take)
	b, s.pooled = s.pooled, nil
	switch {
	case err != nil:
		if b != nil {
			buffers.Put(b)
		}
		return nil, 0, err
	case b != nil:
		return b, s.n, nil
	case s.err != nil:
		return nil, 0, s.err
	}
	return nil, 0, io.EOF
}

// takeReady reads into a buffer of the pool. While there is nothing, it holds none.
func (s *Socket) takeReady(fd uintptr) bool {
	b := buffers.Get().(*[]byte)
	if s.n, s.err = rawio.Read(fd, *b); s.n > 0 {
		s.pooled = b
		return true
	}
	buffers.Put(b)
	return s.err != syscall.EAGAIN
}

const size = 32 << 10 // of a read

var buffers = sync.Pool{New: func() any { b := make([]byte, size); return &b }}
