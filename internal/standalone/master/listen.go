package master

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"dovetail/internal/process/event"
	"dovetail/internal/process/privs"
)

// minBacklog is Dovecot's least length of the queue of a listener.
const minBacklog = 4

// maxSocketPath is what fits into a sockaddr_un with its final NUL.
const maxSocketPath = 107

// A socket is an open listener.
type socket struct {
	Listener
	backlog int
	fd      int    // -1: not open
	temp    string // where a Unix socket or FIFO stands until it is published; "" afterwards
	watch   *watch
	old     *socket // of the previous generation, whose descriptor this one uses
}

func newSocket(s *Service, l Listener) *socket {
	backlog := uint64(s.ProcessLimit) * uint64(s.ClientLimit)
	return &socket{Listener: l, backlog: int(min(max(backlog, minBacklog), math.MaxInt32)), fd: -1}
}

// open opens the listener. A Unix socket or FIFO appears under its name only when publish
// is called, so that a failure of another one leaves what is there as it is.
// unprivileged: the owner of files is not changed.
func (s *socket) open(unprivileged bool) error {
	switch s.Kind {
	case Inet:
		return s.openInet()
	case FIFO:
		return s.openFile(unprivileged, "mkfifo", func() (int, error) {
			if err := unix.Mkfifo(s.temp, 0o600); err != nil {
				return -1, err
			}
			// For reading and writing: without a writer there would be no end of EOFs.
			return unix.Open(s.temp, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		})
	}
	return s.openFile(unprivileged, "net_listen_unix", func() (int, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return -1, err
		}
		if err = unix.Bind(fd, &unix.SockaddrUnix{Name: s.temp}); err == nil {
			err = unix.Listen(fd, s.backlog)
		}
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		return fd, nil
	})
}

// openFile makes a file beside s.Path with make, and gives it owner and mode.
func (s *socket) openFile(unprivileged bool, what string, open func() (int, error)) error {
	if s.Kind == Unix && len(s.Path) >= maxSocketPath {
		return fmt.Errorf("%s: the path of a socket has at most %d bytes", s.Path, maxSocketPath-1)
	}
	s.temp = s.Path + "~"
	unix.Unlink(s.temp)
	fd, err := open()
	if err != nil {
		s.temp = ""
		return fmt.Errorf("%s(%s) failed: %w", what, s.Path, err)
	}
	s.fd = fd
	if !unprivileged && (s.UID != privs.Unset || s.GID != privs.Unset) {
		if err := os.Lchown(s.temp, int(int32(s.UID)), int(int32(s.GID))); err != nil {
			s.close()
			return fmt.Errorf("chown(%s) failed: %w", s.Path, err)
		}
	}
	if err := os.Chmod(s.temp, os.FileMode(s.Mode)&0o777); err != nil {
		s.close()
		return fmt.Errorf("chmod(%s) failed: %w", s.Path, err)
	}
	return nil
}

// publish puts a new Unix socket or FIFO in its place, over a dead one.
func (s *socket) publish() error {
	if s.temp == "" {
		return nil
	}
	if err := unix.Rename(s.temp, s.Path); err != nil {
		return fmt.Errorf("rename(%s) failed: %w", s.Path, err)
	}
	s.temp = ""
	return nil
}

// close closes the listener; one not yet published leaves no file.
func (s *socket) close() {
	s.watch.stop()
	if s.temp != "" {
		unix.Unlink(s.temp)
		s.temp = ""
	}
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// openInet opens the listener s. With ReusePort more than one can be open for its address.
func (s *socket) openInet() error {
	fd, err := listenInet(s.Addr, s.backlog, s.ReusePort)
	if err != nil {
		return fmt.Errorf("%s failed: %w", s.Listener, err)
	}
	s.fd = fd
	return nil
}

func listenInet(addr netip.AddrPort, backlog int, reusePort bool) (fd int, err error) {
	family := unix.AF_INET6
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if addr.Addr().Is4() {
		family = unix.AF_INET
		sa = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
		}
	}()
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return
	}
	if reusePort {
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return
		}
	}
	if family == unix.AF_INET6 {
		if err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return
		}
	}
	if err = unix.Bind(fd, sa); err != nil {
		return
	}
	err = unix.Listen(fd, backlog)
	return
}

// dropOne accepts one waiting connection and closes it. False: there is none.
func (s *socket) dropOne() bool {
	if s.fd < 0 || s.Kind == FIFO {
		return false
	}
	fd, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// dropAll closes all waiting connections.
func (s *socket) dropAll() {
	for range s.backlog + minBacklog { // those that come meanwhile can wait
		if !s.dropOne() {
			return
		}
	}
}

// firstPassed is the first descriptor that systemd passes.
const firstPassed = 3

// inherited are listening descriptors that systemd passed (LISTEN_FDS), for one who has a
// listener for them.
type inherited struct {
	fds   []int
	addrs []netip.AddrPort
}

// takeInherited takes the descriptors that were passed to this process. get is os.Getenv.
func takeInherited(get func(string) string, log *event.Log) *inherited {
	in := &inherited{}
	if pid, err := strconv.Atoi(get("LISTEN_PID")); err != nil || pid != os.Getpid() {
		return in
	}
	n, err := strconv.Atoi(get("LISTEN_FDS"))
	if err != nil || n < 0 || n > maxDescriptors {
		return in
	}
	for fd := firstPassed; fd < firstPassed+n; fd++ {
		unix.CloseOnExec(fd)
		listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		sa, err2 := unix.Getsockname(fd)
		if err != nil || err2 != nil || listening == 0 {
			continue
		}
		var addr netip.AddrPort
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			addr = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
		case *unix.SockaddrInet6:
			addr = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
		default:
			continue
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			log.Error("systemd's descriptor %d: %v", fd, err)
			continue
		}
		in.fds, in.addrs = append(in.fds, fd), append(in.addrs, addr)
	}
	return in
}

// take gives the descriptor for a listener: one of its address, else one of its port and
// family, as Dovecot does. -1: there is none.
func (in *inherited) take(addr netip.AddrPort) int {
	found := -1
	for i, a := range in.addrs {
		if a == addr {
			found = i
			break
		}
		if found < 0 && a.Port() == addr.Port() && a.Addr().Is4() == addr.Addr().Is4() {
			found = i
		}
	}
	if found < 0 {
		return -1
	}
	fd := in.fds[found]
	in.fds = append(in.fds[:found], in.fds[found+1:]...)
	in.addrs = append(in.addrs[:found], in.addrs[found+1:]...)
	return fd
}

// closeRest closes what nobody took.
func (in *inherited) closeRest(log *event.Log) {
	for i, fd := range in.fds {
		log.Error("systemd listens on port %d, but it's not configured in Dovetail. Closing.", in.addrs[i].Port())
		unix.Close(fd)
	}
	in.fds, in.addrs = nil, nil
}
