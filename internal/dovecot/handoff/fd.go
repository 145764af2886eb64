package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"dovetail/internal/process/dial"
	"dovetail/internal/process/fdpass"
)

// A Descriptor lends a file descriptor: f may use fd until it returns. A syscall.RawConn
// is one, and what SocketPair returns.
type Descriptor interface {
	Control(f func(fd uintptr)) error
}

// connect connects to the socket at path, whose queue may be full for half a second (clause
// P0.5).
func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	return dial.Unix(ctx, path, 500*time.Millisecond, false)
}

// lendWith sends b with the descriptor that d lends.
func lendWith(conn *net.UnixConn, b []byte, d Descriptor) error {
	var sendErr error
	err := d.Control(func(fd uintptr) { sendErr = fdpass.Send(conn, b, int(fd)) })
	return errors.Join(err, sendErr)
}

// guard makes ctx end all waits on conn, at the latest after limit. stop takes that back,
// clears conn's deadlines, and must be called; it returns the reason if ctx has ended.
func guard(ctx context.Context, conn *net.UnixConn, limit time.Duration) (stop func() error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	done := make(chan struct{})
	end := context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Unix(1, 0))
		close(done)
	})
	return func() error {
		defer cancel()
		if !end() {
			<-done
			_ = conn.SetDeadline(time.Time{})
		}
		return context.Cause(ctx)
	}
}

// passed is a descriptor that came along, not yet taken; none is -1.
type passed int

// readMsg reads once. The first descriptor that comes becomes p; further ones are strays
// and closed at once.
func (p *passed) readMsg(conn *net.UnixConn, b []byte) (int, error) {
	n, fd, err := fdpass.Receive(conn, b)
	switch {
	case fd < 0:
	case *p < 0:
		*p = passed(fd)
	default:
		syscall.Close(fd)
	}
	return n, err
}

// take gives the descriptor to the caller; -1 if there is none.
func (p *passed) take() int {
	fd := int(*p)
	*p = -1
	return fd
}

// close ends a descriptor that nobody took.
func (p *passed) close() {
	if *p >= 0 {
		syscall.Close(p.take())
	}
}

// conn makes a connection of the descriptor, which the caller then owns.
func (p *passed) conn() (net.Conn, error) {
	conn, err := fdpass.NewConn(p.take())
	if err != nil {
		return nil, fmt.Errorf("passed descriptor: %w", err)
	}
	return conn, nil
}

func inode(fd int) (uint64, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Ino, nil
}

// An End is the raw half of a socket pair, to be handed over with Send. It belongs to one
// goroutine.
type End struct{ fd int }

// SocketPair makes two connected stream sockets: near to translate TLS on, far to hand
// over. Both are non-blocking and close-on-exec. The caller closes both, far as soon as
// it was sent.
func SocketPair() (near net.Conn, far *End, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	near, err = fdpass.NewConn(fds[0])
	if err != nil {
		syscall.Close(fds[1])
		return nil, nil, err
	}
	return near, &End{fds[1]}, nil
}

// Control lends the descriptor to f.
func (e *End) Control(f func(fd uintptr)) error {
	if e.fd < 0 {
		return net.ErrClosed
	}
	f(uintptr(e.fd))
	return nil
}

// Close closes the descriptor; the receiver's copy stays open.
func (e *End) Close() error {
	if e.fd < 0 {
		return net.ErrClosed
	}
	fd := e.fd
	e.fd = -1
	return syscall.Close(fd)
}
