package system

import (
	"fmt"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// A Port is one that the kernel gave and gives to nobody else as long as it is held: a
// socket is bound to it without listening, so a connection is refused until a program
// listens there, which SO_REUSEADDR on both sides allows.
type Port struct {
	Number int
	fd     int
}

// Hold returns a free port of 127.0.0.1, released with the test.
func Hold(t testing.TB) Port {
	t.Helper()
	p, err := hold()
	if err != nil {
		t.Fatalf("no free port: %v", err)
	}
	t.Cleanup(func() { unix.Close(p.fd) })
	return p
}

// Addr returns "127.0.0.1:12345".
func (p Port) Addr() string { return fmt.Sprintf("127.0.0.1:%d", p.Number) }

// Listen makes somebody listen there: this process.
func (p Port) Listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", p.Addr()) // Go sets SO_REUSEADDR
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func hold() (Port, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Port{}, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	var sa unix.Sockaddr
	if err == nil {
		sa, err = unix.Getsockname(fd)
	}
	if err != nil {
		unix.Close(fd)
		return Port{}, err
	}
	return Port{Number: sa.(*unix.SockaddrInet4).Port, fd: fd}, nil
}
