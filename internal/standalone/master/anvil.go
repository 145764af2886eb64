package master

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// anvilHandshake begins what anvil reads, whenever a new process reads it.
const anvilHandshake = "VERSION\tanvil\t1\t0\n"

// An anvil is what the master keeps for the anvil process, which counts sessions: it
// lives through reloads, and after a crash the next one goes on with the same pipes
// (clauses P6.1, P6.7).
type anvil struct {
	m           *Master
	status      pipe
	blocking    pipe   // descriptor 3 of the other services
	nonblocking pipe   // the master's own
	logPass     [2]int // socketpair: the descriptor of the log pipe after a reload
	pid         int    // 0: none runs
	uid         uint32
	restarted   bool // one has ended before
	control     *control
	kills       [][]byte
	killing     *timer
	discard     [2]*watch // of the pipes while nobody reads them
}

// maxKills bounds what waits for an anvil process that does not read.
const maxKills = 65536

func newAnvil(m *Master) (*anvil, error) {
	a := &anvil{m: m}
	var err error
	if a.status, err = makePipe(unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	if a.blocking, err = makePipe(0); err != nil {
		return nil, err
	}
	if a.nonblocking, err = makePipe(0); err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(a.nonblocking.w, true); err != nil {
		return nil, err
	}
	a.logPass, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair() failed: %w", err)
	}
	return a, nil
}

func (a *anvil) close() {
	a.discardStop()
	a.killing.stop()
	a.status.close()
	a.blocking.close()
	a.nonblocking.close()
	unix.Close(a.logPass[0])
	unix.Close(a.logPass[1])
}

// start is called for each new generation, before its services start. A process that
// runs becomes the new generation's, and gets its log pipe.
func (a *anvil) start(g *generation) {
	if g.anvil == nil || a.pid == 0 {
		a.discardStart()
		return
	}
	if g.anvil.logPipe.open() {
		rights := unix.UnixRights(g.anvil.logPipe.w)
		if err := unix.Sendmsg(a.logPass[1], []byte{0}, rights, nil, unix.MSG_DONTWAIT); err != nil {
			a.m.log.Error("fd_send(anvil log fd) failed: %v", err)
		}
	}
	g.anvil.adoptAnvil()
}

// adoptAnvil makes the running anvil process one of s.
func (s *service) adoptAnvil() {
	a := s.gen.m.anvil
	s.adopt(&process{
		service: s, pid: a.pid, uid: a.uid, initialized: true, available: s.ClientLimit,
		started: time.Now(), control: a.control,
	})
}

// release takes the anvil process away from an old generation.
func (a *anvil) release(g *generation) {
	if g.anvil == nil {
		return
	}
	for _, p := range g.anvil.processes {
		p.control = nil // goes with the process
		g.anvil.remove(p)
	}
}

// created is called when a process has been started.
func (a *anvil) created(p *process) {
	a.pid, a.uid, a.control = p.pid, p.uid, p.control
	a.discardStop()
	for _, q := range []pipe{a.blocking, a.nonblocking} {
		for full(q.w) { // with what was for the one before
			var b [1024]byte
			if n, _ := unix.Read(q.r, b[:]); n <= 0 {
				break
			}
		}
		if _, err := unix.Write(q.w, []byte(anvilHandshake)); err != nil {
			p.service.errorf("write(anvil) failed: %v", err)
		}
	}
}

// full says whether a write to the pipe w would have to wait.
func full(w int) bool {
	p := []unix.PollFd{{Fd: int32(w), Events: unix.POLLOUT}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 0
}

// ended is called when a process of the anvil service has ended.
func (a *anvil) ended(p *process) {
	if p.pid == a.pid {
		a.pid, a.control = 0, nil
		a.discardStart()
	}
	a.restarted = true
}

// discardStart reads away what others write while there is no anvil process: they would
// stand still when the pipe is full.
func (a *anvil) discardStart() {
	if a.discard[0] != nil {
		return
	}
	for i, fd := range []int{a.blocking.r, a.nonblocking.r} {
		a.discard[i] = a.m.loop.watch(fd, func() {
			var b [1024]byte
			if n, err := unix.Read(fd, b[:]); n <= 0 && err != unix.EINTR {
				a.m.log.Error("read(anvil fd) failed: %v", err)
				a.discardStop()
			}
		})
	}
}

func (a *anvil) discardStop() {
	for i := range a.discard {
		a.discard[i].stop()
		a.discard[i] = nil
	}
}

// kill tells anvil that a process has died without taking its leave (clause P6.7).
func (a *anvil) kill(pid int) {
	if len(a.kills) < maxKills {
		a.kills = append(a.kills, fmt.Appendf(nil, "KILL\t%d\n", pid))
	}
	a.sendKills()
}

func (a *anvil) sendKills() {
	for len(a.kills) > 0 {
		if _, err := unix.Write(a.nonblocking.w, a.kills[0]); err == unix.EAGAIN {
			if !a.killing.pending() {
				a.killing = a.m.loop.after(stopPoll, a.sendKills)
			}
			return
		} else if err != nil && err != unix.EINTR {
			a.m.log.Error("write(anvil process) failed: %v", err)
		}
		a.kills = a.kills[1:]
	}
	a.kills = nil
}
