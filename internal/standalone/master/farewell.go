package master

import (
	"time"

	"golang.org/x/sys/unix"
)

// How long a stop waits for connections that are just being made, and for those that nobody
// has accepted to be closed in order.
const (
	farewell     = 100 * time.Millisecond
	farewellPoll = 5 * time.Millisecond
)

// noSYN lets a socket hear all of TCP but who wants to connect: byte 13 of the header has the
// flags.
var noSYN = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},
	{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0x12},            // SYN and ACK
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: 2}, // SYN alone
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
}

// deafen makes the kernel not hear who connects to inet sockets from now on. They try again
// after a second, and find the next master, or nobody.
func (g *generation) deafen() {
	prog := unix.SockFprog{Len: uint16(len(noSYN)), Filter: &noSYN[0]}
	for _, k := range g.closing() {
		if err := unix.SetsockoptSockFprog(k.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
			g.m.log.Debug("%v: SO_ATTACH_FILTER failed: %v", k.Listener, err)
		}
	}
}

// closing are the inet sockets that are gone when the master is. What systemd passed stays,
// and with it who waits there.
func (g *generation) closing() (ks []*socket) {
	for _, s := range g.services {
		for _, k := range s.sockets {
			if k.Kind == Inet && k.fd >= 0 && !k.passed {
				ks = append(ks, k)
			}
		}
	}
	return ks
}

// turnAway closes the connections that wait at inet sockets, as a server does that has
// nothing to say: to leave it to the kernel would reset them. They are no more than the
// queues hold, since deafen, nor than there are descriptors.
func (g *generation) turnAway() {
	if len(g.closing()) == 0 {
		return
	}
	var conns []int
	for end := time.Now().Add(farewell); time.Now().Before(end); time.Sleep(farewellPoll) {
		for _, k := range g.closing() {
			for {
				fd, _, err := unix.Accept4(k.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
				if err != nil {
					break
				}
				_ = unix.Shutdown(fd, unix.SHUT_WR)
				conns = append(conns, fd)
			}
		}
		for _, fd := range conns {
			skipInput(fd)
		}
	}
	for _, fd := range conns {
		skipInput(fd)
		unix.Close(fd)
	}
}

// skipInput reads what there is: a connection that is closed with input left is reset.
func skipInput(fd int) {
	var b [4096]byte
	for range 16 { // a client cannot keep the master
		if n, err := unix.Read(fd, b[:]); n <= 0 && err != unix.EINTR {
			return
		}
	}
}
