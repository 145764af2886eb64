package smuggling

import (
	"encoding/binary"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/testkit/client"
)

// write sends text in pieces that end at the offsets. The next one leaves when the server
// has read the one before, so that no two of them come together.
func write(t testing.TB, c *client.Client, text string, split []int) {
	t.Helper()
	from := 0
	for _, to := range append(split[:len(split):len(split)], len(text)) {
		if from == to {
			continue
		}
		if from > 0 {
			awaitRead(t, c.Conn)
		}
		c.Write(text[from:to])
		from = to
	}
}

// awaitRead waits until the peer of a TCP connection of this machine has read all that was
// written: what is written is in the peer's queue at once. Under TLS two writes are two
// records anyway.
func awaitRead(t testing.TB, conn net.Conn) {
	t.Helper()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	us, them := tcp.LocalAddr().(*net.TCPAddr), tcp.RemoteAddr().(*net.TCPAddr)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Microsecond) {
		if kernel.unread(t, them, us) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the server does not read")
		}
	}
}

// kernel is asked about sockets (sock_diag(7)).
var kernel diag

type diag struct {
	mu sync.Mutex
	fd int // 0 before it is needed
}

const (
	diagHeader  = 16
	diagRequest = 56 // struct inet_diag_req_v2
	diagQueue   = diagHeader + 4 + 48 + 4
)

// unread returns how many octets a TCP socket has that were not read.
func (d *diag) unread(t testing.TB, local, remote *net.TCPAddr) uint32 {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd == 0 {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
		if err != nil {
			t.Fatalf("sock_diag: %v", err)
		}
		d.fd = fd
	}
	n := binary.NativeEndian
	answer := make([]byte, 512)
	b := make([]byte, diagHeader+diagRequest)
	n.PutUint32(b, uint32(len(b)))
	n.PutUint16(b[4:], 20) // SOCK_DIAG_BY_FAMILY
	n.PutUint16(b[6:], unix.NLM_F_REQUEST)
	q := b[diagHeader:]
	q[0], q[1] = unix.AF_INET, unix.IPPROTO_TCP
	n.PutUint32(q[4:], ^uint32(0)) // states
	binary.BigEndian.PutUint16(q[8:], uint16(local.Port))
	binary.BigEndian.PutUint16(q[10:], uint16(remote.Port))
	copy(q[12:], local.IP.To4())
	copy(q[28:], remote.IP.To4())
	n.PutUint32(q[48:], ^uint32(0)) // no cookie
	n.PutUint32(q[52:], ^uint32(0))
	if err := unix.Sendto(d.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatalf("sock_diag: %v", err)
	}
	got, _, err := unix.Recvfrom(d.fd, answer, 0)
	if err != nil || got < diagQueue+8 || n.Uint16(answer[4:]) != 20 {
		t.Fatalf("sock_diag: %d octets, type %d, %v", got, n.Uint16(answer[4:]), err)
	}
	return n.Uint32(answer[diagQueue:])
}
