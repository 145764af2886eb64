package master

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"strconv"
	"time"

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
	passed  bool   // systemd made it
	made    bool   // the file at Path is this socket's
	aside   string // where the file that was at Path stands until settle or undo; "" without
	watch   *watch
	old     *socket // of the previous generation, whose descriptor this one uses
}

func newSocket(s *Service, l Listener) *socket {
	backlog := uint64(s.ProcessLimit) * uint64(s.ClientLimit)
	return &socket{Listener: l, backlog: int(min(max(backlog, minBacklog), math.MaxInt32)), fd: -1}
}

// open opens the listener. The file that a Unix socket or FIFO may find in its place is
// kept until settle, so that undo can put it back. unprivileged: the owner of files is not
// changed.
func (s *socket) open(unprivileged bool) error {
	if s.Kind == Inet {
		fd, err := listenInet(s.Addr, s.backlog, s.ReusePort)
		if err != nil {
			return failed(s.Listener.String(), err)
		}
		s.fd = fd
		return nil
	}
	if s.Kind == Unix && len(s.Path) > maxSocketPath {
		return fmt.Errorf("%s: the path of a socket has at most %d bytes", s.Path, maxSocketPath)
	}
	// A name that a client asks for in this moment is missing. That cannot be helped by
	// making the new socket under another name first: Dovecot's auth goes by the name that
	// its sockets were bound to.
	aside := s.Path + "~"
	if err := unix.Rename(s.Path, aside); err == nil {
		s.aside = aside
	} else if err != unix.ENOENT {
		return failed("rename("+s.Path+")", err)
	}
	if err := s.makeFile(unprivileged); err != nil {
		s.undo()
		return err
	}
	return nil
}

// makeFile makes the file of a Unix socket or FIFO, with owner and mode.
func (s *socket) makeFile(unprivileged bool) error {
	what, make := "net_listen_unix", s.makeUnix
	if s.Kind == FIFO {
		what, make = "mkfifo", s.makeFIFO
	}
	if err := make(); err != nil {
		return failed(what+"("+s.Path+")", err)
	}
	if !unprivileged && (s.UID != privs.Unset || s.GID != privs.Unset) {
		if err := unix.Lchown(s.Path, int(int32(s.UID)), int(int32(s.GID))); err != nil {
			return failed("chown("+s.Path+")", err)
		}
	}
	if err := unix.Chmod(s.Path, s.Mode&0o777); err != nil {
		return failed("chmod("+s.Path+")", err)
	}
	return nil
}

func (s *socket) makeUnix() (err error) {
	s.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err = unix.Bind(s.fd, &unix.SockaddrUnix{Name: s.Path}); err != nil {
		return err
	}
	s.made = true
	return unix.Listen(s.fd, s.backlog)
}

func (s *socket) makeFIFO() (err error) {
	if err = unix.Mkfifo(s.Path, 0o600); err != nil {
		return err
	}
	s.made = true
	// For reading and writing: without a writer there would be no end of EOFs.
	s.fd, err = unix.Open(s.Path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	return err
}

// settle makes open final.
func (s *socket) settle() {
	if s.aside != "" {
		unix.Unlink(s.aside)
		s.aside = ""
	}
}

// undo takes open back.
func (s *socket) undo() {
	if s.made {
		unix.Unlink(s.Path)
		s.made = false
	}
	if s.aside != "" {
		unix.Rename(s.aside, s.Path)
		s.aside = ""
	}
	s.close()
}

// close closes the listener. Its file stays.
func (s *socket) close() {
	s.watch.stop()
	s.watch = nil
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
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

// How long the processes of a master that was killed may take to close their
// listeners (those that were just starting notice it a moment later), and how often it is looked.
const (
	orphanGrace = 2 * time.Second
	orphanPoll  = 10 * time.Millisecond
)

// awaitOrphans waits until nobody listens where cfg does, orphanGrace at most. Whoever
// listens then is somebody else, and an error of open.
func awaitOrphans(cfg *Config, in *inherited) {
	for end := time.Now().Add(orphanGrace); anyListens(cfg, in) && time.Now().Before(end); {
		time.Sleep(orphanPoll)
	}
}

func anyListens(cfg *Config, in *inherited) bool {
	for i := range cfg.Services {
		for _, l := range cfg.Services[i].Listeners {
			switch {
			case l.Kind == Unix && alive(l.Path):
				return true
			case l.Kind == Inet && !in.has(l.Addr):
				fd, err := listenInet(l.Addr, 0, l.ReusePort)
				if err == unix.EADDRINUSE {
					return true
				}
				if err == nil {
					unix.Close(fd)
				}
			}
		}
	}
	return false
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
	found := in.find(addr)
	if found < 0 {
		return -1
	}
	fd := in.fds[found]
	in.fds = append(in.fds[:found], in.fds[found+1:]...)
	in.addrs = append(in.addrs[:found], in.addrs[found+1:]...)
	return fd
}

// has says whether take would give one.
func (in *inherited) has(addr netip.AddrPort) bool { return in.find(addr) >= 0 }

func (in *inherited) find(addr netip.AddrPort) int {
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
	return found
}

// closeRest closes what nobody took.
func (in *inherited) closeRest(log *event.Log) {
	for i, fd := range in.fds {
		log.Error("systemd listens on port %d, but it's not configured in Dovetail. Closing.", in.addrs[i].Port())
		unix.Close(fd)
	}
	in.fds, in.addrs = nil, nil
}
