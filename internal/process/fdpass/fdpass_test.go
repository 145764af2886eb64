package fdpass

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns two connected Unix stream sockets.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		c, err := NewConn(fd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns[i] = c.(*net.UnixConn)
		c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return conns[0], conns[1]
}

// openFDs counts this process's descriptors.
func openFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func tcpPair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c, s
}

// A client's connection goes to another process's hands and works there, while the
// sender's stays non-blocking and usable.
func TestConnectionTravels(t *testing.T) {
	a, b := pair(t)
	client, server := tcpPair(t)
	if err := SendConn(a, []byte("record"), server); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, fd, err := Receive(b, buf)
	if err != nil || string(buf[:n]) != "record" || fd < 0 {
		t.Fatalf("%q, %d, %v", buf[:n], fd, err)
	}
	flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if flags&unix.O_NONBLOCK == 0 {
		t.Error("the socket is blocking now")
	}
	if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
		t.Error("the descriptor is not close-on-exec")
	}
	got, err := NewConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if _, ok := got.(*net.TCPConn); !ok {
		t.Fatalf("it became a %T", got)
	}
	server.Close()
	client.SetDeadline(time.Now().Add(10 * time.Second))
	got.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := got.Write([]byte("235 here")); err != nil {
		t.Fatal(err)
	}
	n, err = client.Read(buf)
	if string(buf[:n]) != "235 here" {
		t.Errorf("the client read %q, %v", buf[:n], err)
	}
}

// More data than the socket holds arrives whole, the descriptor with its first part.
func TestLongData(t *testing.T) {
	a, b := pair(t)
	_, server := tcpPair(t)
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	sent := make(chan error, 1)
	go func() { // ends when all is sent, or with a's deadline
		sent <- SendConn(a, data, server)
		a.CloseWrite()
	}()
	var got []byte
	fds := 0
	buf := make([]byte, 64<<10)
	for {
		n, fd, err := Receive(b, buf)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if fd >= 0 {
			if len(got) > 0 {
				t.Error("the descriptor came late")
			}
			fds++
			unix.Close(fd)
		}
		got = append(got, buf[:n]...)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if fds != 1 || !bytes.Equal(got, data) {
		t.Errorf("%d descriptors, %d of %d octets", fds, len(got), len(data))
	}
}

func TestWithoutDescriptor(t *testing.T) {
	a, b := pair(t)
	a.Write([]byte("x"))
	buf := make([]byte, 10)
	if n, fd, err := Receive(b, buf); n != 1 || fd != -1 || err != nil {
		t.Errorf("%d, %d, %v", n, fd, err)
	}
	a.Close()
	if _, fd, err := Receive(b, buf); fd != -1 || err != io.EOF {
		t.Errorf("%d, %v", fd, err)
	}
	if err := Send(b, nil, 0); err == nil {
		t.Error("no data is not refused")
	}
	if err := Send(b, []byte("x"), 0); !errors.Is(err, unix.EPIPE) {
		t.Errorf("to a closed peer: %v", err)
	}
}

// A peer that sends several descriptors fills no table: all are closed, and it is told
// apart from one that sent one.
func TestTooManyDescriptors(t *testing.T) {
	a, b := pair(t)
	for _, count := range []int{2, 3, 250} {
		before := openFDs(t)
		raw, err := a.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		fds := make([]int, count) // all 0, standard input
		var serr error
		raw.Control(func(s uintptr) { serr = unix.Sendmsg(int(s), []byte("x"), unix.UnixRights(fds...), nil, 0) })
		if serr != nil {
			t.Fatal(serr)
		}
		n, fd, err := Receive(b, make([]byte, 10))
		if n != 0 || fd != -1 || !errors.Is(err, ErrTooMany) {
			t.Errorf("%d descriptors: %d, %d, %v", count, n, fd, err)
		}
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors: %d are open, %d were", count, after, before)
		}
	}
}

// Deadlines of the connection hold.
func TestDeadline(t *testing.T) {
	_, b := pair(t)
	b.SetDeadline(time.Now().Add(-time.Second))
	if _, fd, err := Receive(b, make([]byte, 1)); fd != -1 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Receive: %d, %v", fd, err)
	}
	if err := Send(b, []byte("x"), 0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Send: %v", err)
	}
}

// What is no stream socket is refused and closed.
func TestNewConnRefuses(t *testing.T) {
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	dgram, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(dgram[1])
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	unix.Close(pipe[1])
	for name, fd := range map[string]int{"udp": udp, "unix datagram": dgram[0], "pipe": pipe[0], "closed": 1 << 20} {
		if c, err := NewConn(fd); err == nil {
			t.Errorf("%s became a %T", name, c)
			c.Close()
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("%s: still open: %v", name, err)
		}
	}
}

// Control messages come from the kernel, but nothing is taken on trust.
func FuzzReceivedFD(f *testing.F) {
	const far = 1 << 20 // above any descriptor that is open here
	f.Add(unix.UnixRights(far))
	f.Add(unix.UnixRights(far, far+1))
	f.Add(append(unix.UnixRights(far), unix.UnixRights(far+1)...))
	f.Add([]byte{1, 2, 3})
	f.Add([]byte("\x13\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00000"))         // shorter than a descriptor
	f.Add([]byte("\x1b\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x0000000000000")) // two and a half
	f.Fuzz(func(t *testing.T, oob []byte) {
		for i := 0; i+sizeofFD <= len(oob); i += sizeofFD {
			if n := binary.NativeEndian.Uint32(oob[i:]); i >= unix.CmsgLen(0) && n < far {
				return // might be a descriptor of the test's, which would be closed
			}
		}
		if fd, err := receivedFD(oob); err != nil && fd != -1 {
			t.Errorf("%d with %v", fd, err)
		}
	})
}
