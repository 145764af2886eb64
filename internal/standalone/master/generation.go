package master

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/log"
)

const (
	dieTimeout  = 6 * time.Second // between the rounds of ending what is left of an old generation, P1.6.4
	stopTimeout = 5 * time.Second // for processes to say that they accept no more, P1.6.5
	stopPoll    = 100 * time.Millisecond
	quitTime    = time.Second // for processes to close their listeners, P1.6.5
)

// masterLogName in the handshake of a log pipe tells the log process that the master's
// own orders come by it.
const masterLogName = "MASTER"

// A generation is what one configuration started. A reload makes a new one; the old one
// lives until its last process has ended.
type generation struct {
	m        *Master
	cfg      *Config
	services []*service
	log      *service
	anvil    *service // nil without

	masterLog pipe     // orders for the log process
	orders    [][]byte // that did not fit into masterLog
	ordering  *timer

	refs  int    // processes
	forks uint64 // tries to start one

	destroying bool // nothing is started any more
	kill       *timer
	termed     map[int]bool // pids that got SIGTERM
}

// maxOrders bounds what waits for a log process that does not read.
const maxOrders = 4096

func (m *Master) newGeneration(cfg *Config) *generation {
	g := &generation{m: m, cfg: cfg, termed: map[int]bool{}}
	for i := range cfg.Services {
		s := &service{
			Service: &cfg.Services[i], gen: g, processes: map[int]*process{},
			throttle: m.times.throttleMin, notifyFD: -1,
		}
		for _, l := range s.Listeners {
			s.sockets = append(s.sockets, newSocket(s.Service, l))
		}
		switch s.Type {
		case Log:
			g.log = s
		case Anvil:
			g.anvil = s
			s.status = m.anvil.status
		}
		g.services = append(g.services, s)
	}
	return g
}

// open opens all sockets, with those of old that can go on being used. All errors are
// returned; if there are any, everything is as it was before. Else settle is to follow.
func (g *generation) open(old *generation, in *inherited) []error {
	var errs []error
	var files []*socket
	try := func(s *service, k *socket) {
		if k.Kind == Unix && old == nil && alive(k.Path) {
			//lint:ignore ST1005 the words of Dovecot's own message
			errs = append(errs, &ListenError{s.Name, k.Listener, fmt.Errorf("Socket already exists: %s", k.Path)})
		} else if err := k.open(g.cfg.Unprivileged); err != nil {
			errs = append(errs, &ListenError{s.Name, k.Listener, err})
		}
	}
	for _, s := range g.services {
		for _, k := range s.sockets {
			if k.old = old.reusable(s, k); k.old != nil {
				k.fd, k.passed = k.old.fd, k.old.passed
				continue
			}
			if k.Kind == Inet && in != nil {
				if k.fd = in.take(k.Addr); k.fd >= 0 {
					k.passed = true
					continue
				}
			}
			if k.Kind != Inet {
				files = append(files, k) // last: what they replace is missed
				continue
			}
			try(s, k)
		}
	}
	if len(errs) == 0 || old == nil {
		for _, s := range g.services {
			for _, k := range s.sockets {
				if slices.Contains(files, k) {
					try(s, k)
				}
			}
		}
	}
	if len(errs) > 0 {
		g.undo()
	}
	return errs
}

// reusable is the open socket of g that serves for k: one of the same address. The sockets
// of anvil are kept, too, as its process lives on; other Unix sockets are made anew, so
// that no old process takes a connection meant for a new one.
func (g *generation) reusable(s *service, k *socket) *socket {
	if g == nil {
		return nil
	}
	for _, o := range g.services {
		for _, ok := range o.sockets {
			if ok.fd < 0 || ok.Kind != k.Kind {
				continue
			}
			if k.Kind == Inet && ok.Addr == k.Addr && ok.ReusePort == k.ReusePort ||
				k.Kind == Unix && s.Type == Anvil && o.Type == Anvil && ok.Path == k.Path && g.m.anvil.pid != 0 {
				return ok
			}
		}
	}
	return nil
}

// undo takes open back.
func (g *generation) undo() {
	for _, s := range g.services {
		for _, k := range s.sockets {
			if k.old != nil {
				k.old, k.fd = nil, -1
			}
			k.undo()
		}
	}
}

// settle makes open final.
func (g *generation) settle() {
	for _, s := range g.services {
		for _, k := range s.sockets {
			if k.old != nil {
				k.made = k.old.made
				k.old.fd, k.old.made, k.old = -1, false, nil
			}
			k.settle()
		}
	}
}

// dropFiles closes the sockets of an old generation, and removes files that no listener of
// the new one has replaced.
func (g *generation) dropFiles(next *generation) {
	kept := map[string]bool{}
	for _, s := range next.services {
		for _, k := range s.sockets {
			if k.Kind != Inet {
				kept[k.Path] = true
			}
		}
	}
	for _, s := range g.services {
		for _, k := range s.sockets {
			if k.fd >= 0 && k.Kind != Inet && !kept[k.Path] {
				unix.Unlink(k.Path)
			}
			k.close()
		}
	}
}

// makeLogPipes makes the pipes from all services to the log process, each with its
// handshake.
func (g *generation) makeLogPipes() error {
	with := func(prefix string) (pipe, error) {
		p, err := makePipe(unix.O_NONBLOCK)
		if err == nil {
			_, err = unix.Write(p.w, log.AppendHandshake(nil, prefix))
		}
		return p, err
	}
	var err error
	if g.masterLog, err = with(masterLogName); err != nil {
		return err
	}
	index := firstListener + 1
	for _, s := range g.services {
		if s.Type == Log {
			continue
		}
		if s.logPipe, err = with(s.Name + ": "); err != nil {
			return err
		}
		s.logIndex = index
		index++
	}
	return nil
}

// start begins to serve: sockets must be open, and log pipes may be. anvil, which has lived on, comes first.
func (g *generation) start() error {
	if !g.masterLog.open() {
		if err := g.makeLogPipes(); err != nil {
			return err
		}
	}
	g.m.anvil.start(g)
	for _, s := range g.services {
		s.start()
	}
	if g.log.reader != nil && g.log.startProcess() {
		g.log.listenStop()
	}
	for _, s := range g.services {
		if s.reader == nil {
			continue
		}
		s.startExtra()
		if s.Type == Startup && s.startProcess() {
			s.listenStop()
		}
	}
	return nil
}

// order sends an order to the log process, "<descriptor> <pid> <text>". It is kept while
// the pipe is full.
func (g *generation) order(s *service, pid int, text string) {
	if !g.masterLog.open() || s.logIndex == 0 {
		return
	}
	line := fmt.Appendf(nil, "%d %d %s\n", s.logIndex, pid, text)
	if len(line) > log.MaxLine {
		line = append(line[:log.MaxLine-1], '\n')
	}
	if len(g.orders) < maxOrders {
		g.orders = append(g.orders, line)
	}
	g.sendOrders()
}

func (g *generation) sendOrders() {
	for len(g.orders) > 0 {
		if _, err := unix.Write(g.masterLog.w, g.orders[0]); err == unix.EAGAIN {
			if !g.ordering.pending() {
				g.ordering = g.m.loop.after(stopPoll, g.sendOrders)
			}
			return
		} else if err != nil && err != unix.EINTR {
			g.m.log.Error("write(log process) failed: %v", err)
		}
		g.orders = g.orders[1:]
	}
	g.orders = nil
}

// sayBye tells the log process that a process has ended.
func (g *generation) sayBye(p *process) { g.order(p.service, p.pid, "BYE") }

// logExit says how a process ended, through the log process, which knows what the process
// itself has said.
func (g *generation) logExit(s *service, pid int, st unix.WaitStatus) {
	text, isFatal := s.exitText(pid, st)
	if s.logIndex == 0 {
		g.m.log.Error("%s", text)
		return
	}
	word := "FATAL "
	if isFatal {
		word = "DEFAULT-FATAL "
	}
	g.order(s, pid, word+text)
}

// closeDeadPipes tells all processes that the master does not want them any more.
func (g *generation) closeDeadPipes() {
	for _, s := range g.services {
		s.dead.close()
	}
}

// retire ends the generation after a reload: it starts nothing more, and its processes go
// when their clients have gone.
//
// Dovecot sends SIGTERM after 6 seconds to whoever is left, unless shutdown_clients is no.
// Here a reload ends no session: the processes that serve clients are left alone. What
// they need (auth, config) ends after them, and last the log process.
func (g *generation) retire() {
	g.destroying = true
	g.closeDeadPipes()
	for _, s := range g.services {
		s.quiesce()
	}
	g.closeLog()
	if g.refs > 0 {
		g.kill = g.m.loop.after(dieTimeout, g.killRound)
	} else {
		g.end()
	}
}

// closeLog closes the master's ends of the log pipes: the log process goes when the last
// one who writes has gone.
func (g *generation) closeLog() {
	g.ordering.stop()
	g.sendOrders()
	g.ordering.stop()
	g.masterLog.close()
	for _, s := range g.services {
		s.logPipe.close()
	}
}

// killRound ends processes that nobody needs any more and that do not go by themselves.
func (g *generation) killRound() {
	rank := func(s *service) int {
		switch {
		case s.Type == Log:
			return 2
		case s.Type == Settings || s.Name == "auth":
			return 1
		}
		return 0
	}
	left := -1
	for _, s := range g.services {
		if len(s.processes) > 0 && (left < 0 || rank(s) < left) {
			left = rank(s)
		}
	}
	for _, s := range g.services {
		if left <= 0 || rank(s) != left || len(s.processes) == 0 {
			continue
		}
		sig := unix.SIGTERM
		for pid := range s.processes {
			if g.termed[pid] {
				sig = unix.SIGKILL
			}
			g.termed[pid] = true
		}
		s.signal(sig)
	}
	g.kill = g.m.loop.after(dieTimeout, g.killRound)
}

// end is called when the last process of a retired generation has ended.
func (g *generation) end() {
	g.kill.stop()
	for _, s := range g.services {
		s.monitorStop()
		for _, k := range s.sockets {
			k.close()
		}
	}
	g.m.old = slices.DeleteFunc(g.m.old, func(o *generation) bool { return o == g })
}

// stop ends the generation with the master (clause P1.6.5).
func (g *generation) stop() {
	g.destroying = true
	g.deafen()
	g.closeDeadPipes()
	for _, s := range g.services {
		s.listenStop()
	}
	for end := time.Now().Add(stopTimeout); time.Now().Before(end); {
		g.m.reap()
		accepting := false
		for _, s := range g.services {
			if s.reader != nil {
				s.readStatus()
			}
			accepting = accepting || s.avail > 0
		}
		if !accepting {
			break
		}
		time.Sleep(stopPoll)
	}
	// What is left may still have listeners open, which would be in the way of a restart.
	sent := 0
	for _, s := range g.services {
		for pid := range s.processes {
			if err := unix.Kill(pid, unix.SIGQUIT); err == nil {
				sent++
			} else if err != unix.ESRCH {
				s.errorf("kill(%d, SIGQUIT) failed: %v", pid, err)
			}
		}
	}
	if sent > 0 {
		time.Sleep(g.m.times.quit)
		g.m.reap()
	}
	g.turnAway()
	for _, s := range g.services {
		s.monitorStop()
		for _, k := range s.sockets {
			k.close()
		}
	}
	g.closeLog()
}

// removeFiles removes the sockets of the generation, so that nobody waits at them.
func (g *generation) removeFiles() error {
	var errs []error
	for _, s := range g.services {
		for _, k := range s.sockets {
			if k.Kind != Inet {
				if err := os.Remove(k.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}
