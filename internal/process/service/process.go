package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	dovelog "dovetail/internal/dovecot/log"
	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/event"
	"dovetail/internal/process/pace"
	"dovetail/internal/process/privs"
)

// Constants but for tests, which do not wait that long.
var (
	// shutdownDelay is how long clients may stay without a master (clause P1.6.3).
	shutdownDelay = 30 * time.Second / pace.Haste

	// A session that was told to end has endDelay to say so, then its connection is
	// closed, and after closeDelay the process ends without it. After a reload the
	// master sends SIGKILL 6 s after SIGTERM.
	endDelay   = 5 * time.Second
	closeDelay = 500 * time.Millisecond

	// exitDelay bounds all AtExit functions together.
	exitDelay = 2 * time.Second
)

// A Process is this process. Methods may be called from any goroutine.
type Process struct {
	Env     masterproto.Env
	Log     *event.Log // under the program's prefix; changed only by SetDebug
	Options Options
	Args    []string // operands of the command line

	program Program
	logPipe *dovelog.Writer           // nil without a log service
	own     *event.Log                // for what happens to the process
	current atomic.Pointer[event.Log] // what the runtime logs to
	ctx     context.Context
	cancel  context.CancelCauseFunc
	status  *status
	notify  int           // descriptor of the full flag, -1 without
	ended   chan struct{} // closed when the process is to exit

	mu      sync.Mutex // held for bookkeeping, an accept, a status record, a log line
	changed sync.Cond  // on mu: slots, full, stopping

	limit           uint32          // guarded by mu; clients at the same time
	counted         bool            // guarded by mu; left counts
	left            uint32          // guarded by mu; clients until the process has served enough
	active          uint32          // guarded by mu
	oldest, newest  *Client         // guarded by mu; list of the active ones
	listeners       []*os.File      // guarded by mu; nil when closed
	isOpen          bool            // guarded by mu; the first status record is out
	stopping        bool            // guarded by mu; no new clients
	hasEnded        bool            // guarded by mu; ended is closed
	cancelled       bool            // guarded by mu; sessions have been told to end
	shutdownClients bool            // guarded by mu
	unwanted        bool            // guarded by mu; the dead pipe, or the status pipe, is broken
	controlled      bool            // guarded by mu; our own master is there, see control.go
	deadTimer       *time.Timer     // guarded by mu; runs from the master's death to cancelSessions
	full            bool            // guarded by mu; all processes of the service are full
	dropping        *Client         // guarded by mu; told to make room
	fullTimer       *time.Timer     // guarded by mu; looks at the flag again
	identity        *privs.Identity // guarded by mu; what Drop made of the process
	atExit          []func()        // guarded by mu
	onReload        func()          // guarded by mu; nil once it was called
	acceptFailure   acceptFailure   // guarded by mu
	lastIP          string          // guarded by mu; told to the log service
}

// Name returns the program's name.
func (p *Process) Name() string { return p.program.Name }

// Context ends when the process does: when sessions must end, its cause is ErrShutdown.
func (p *Process) Context() context.Context { return p.ctx }

// SetShutdownClients tells what the setting shutdown_clients says; it is yes until then.
func (p *Process) SetShutdownClients(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shutdownClients = yes
}

// SetLogPrefix changes what stands before the lines of the process itself, and what the
// master puts before the notice of its death, and returns a log with that prefix. It is
// for a worker that serves one client, or none: sessions have logs of their own, and Log
// stays.
func (p *Process) SetLogPrefix(prefix string) *event.Log {
	l := p.log().WithPrefix(prefix)
	p.current.Store(l)
	if p.logPipe != nil {
		p.logPipe.SetPrefix(prefix)
	}
	return l
}

// SetDebug makes Log write debug lines, or not. It belongs into Setup or Start.
func (p *Process) SetDebug(on bool) {
	p.Log = p.Log.WithDebug(on)
	p.current.Store(p.log().WithDebug(on))
}

func (p *Process) log() *event.Log { return p.current.Load() }

// AtExit adds a function that runs before exit 0, last one first; all together have 2 s.
func (p *Process) AtExit(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.atExit = append(p.atExit, f)
}

// OnReload sets what is done, in a goroutine of its own, when the master does not want the
// process any more, while it has clients: other processes may have taken the places of
// those that it has to do with. It belongs into Setup or Start.
func (p *Process) OnReload(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onReload = f
}

// runAtExit runs fs, the last one first, and waits for them no longer than exitDelay.
func (p *Process) runAtExit(fs []func()) {
	if len(fs) == 0 {
		return
	}
	done := make(chan struct{})
	go func() { // ends with the functions, or with the process
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				p.logPanic("at exit", v)
			}
		}()
		for _, f := range slices.Backward(fs) {
			f()
		}
	}()
	select {
	case <-done:
	case <-time.After(exitDelay):
	}
}

// Fatal logs a Fatal line and ends the process with status 89, clients or not.
func (p *Process) Fatal(format string, args ...any) {
	os.Exit(p.lastWords(format, args...))
}

// Clients returns how many are being served.
func (p *Process) Clients() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(p.active)
}

// dropAtStart becomes what the master asks for. A program that drops later still does it
// now if the master names a user.
func (p *Process) dropAtStart() error {
	r := p.Env.Restrict
	if !p.program.DropAtStart && r.UID == privs.Unset && r.Chroot == "" {
		return nil
	}
	if err := r.Apply(); err != nil {
		return err
	}
	if p.program.DropAtStart && os.Geteuid() == 0 {
		return fmt.Errorf("this program must not run as root: set user in service %s", p.Env.ServiceName)
	}
	p.allowCoreDumps()
	return nil
}

func (p *Process) allowCoreDumps() {
	if p.Options.CoreDumps { // the kernel took it away with root
		unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	}
}

// ErrOtherIdentity: the process already became another user.
var ErrOtherIdentity = errors.New("the process already is another user")

// Drop makes the process the user, for good (clause P1.4.3). For the user that it already
// is, Drop does nothing; for another uid, gid or chroot it returns an error that wraps
// ErrOtherIdentity and names both, and the settings that keep it from happening. After
// any other error the process has retired and must not serve this client.
func (p *Process) Drop(id privs.Identity) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if is := p.identity; is != nil {
		if is.UID == id.UID && is.GID == id.GID && is.Chroot == id.Chroot {
			return nil
		}
		return fmt.Errorf("%w: it is uid %d gid %d chroot %q, the client's user is uid %d gid %d chroot %q "+
			"(set client_limit = 1 and service_count = 1 in service %s to have a process for each client)",
			ErrOtherIdentity, is.UID, is.GID, is.Chroot, id.UID, id.GID, id.Chroot, p.Env.ServiceName)
	}
	if err := id.Drop(); err != nil {
		if !errors.Is(err, privs.ErrRoot) {
			p.retireLocked()
		}
		return err
	}
	p.identity = &id
	p.allowCoreDumps()
	return nil
}

// Retire stops taking clients: listeners are closed at once, and the process exits with 0
// when the last client has left.
func (p *Process) Retire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retireLocked()
}

func (p *Process) retireLocked() {
	if p.stopping {
		return
	}
	p.stopping = true
	if p.isOpen {
		closeSoon(p.listeners)
	} else {
		for i := range p.Env.Listeners {
			unix.Close(masterproto.FirstListenerFD + i)
		}
	}
	p.listeners = nil
	p.changed.Broadcast()
	p.settleLocked()
}

// closeSoon closes files or connections without waiting. Close waits for calls that are
// under way, and these may wait for the mutex that its caller holds.
func closeSoon[C io.Closer](cs []C) {
	for _, c := range cs {
		go c.Close() // ends when no call uses c any more, which Close sees to
	}
}

// settleLocked is called after every change of the counts: it ends the process, or tells
// the master.
func (p *Process) settleLocked() {
	if p.active == 0 && (p.stopping || p.counted && p.left == 0) {
		p.endLocked()
		return
	}
	if p.isOpen {
		p.status.set(p.availableLocked())
	}
}

func (p *Process) endLocked() {
	p.stopping = true
	if !p.hasEnded {
		p.hasEnded = true
		close(p.ended)
	}
}

// availableLocked returns how many more clients would be accepted now (clause P1.5.8).
func (p *Process) availableLocked() uint32 {
	n := p.limit
	if p.counted {
		n = min(n, p.left)
	}
	if p.stopping || p.active >= n {
		return 0
	}
	return n - p.active
}

// masterGone is what the dead pipe, and a status pipe that nobody reads, mean: a reload or
// a stop (clause P1.6). Which of the two it is only our own master lets a process know: its
// control channel outlives a reload, and so may sessions.
func (p *Process) masterGone() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unwanted = true
	p.retireLocked()
	if f := p.onReload; f != nil && !p.hasEnded {
		p.onReload = nil
		go f() // ends when f does
	}
	p.abandonedLocked()
}

// abandonedLocked gives the sessions of a process that has no master any more a last while.
func (p *Process) abandonedLocked() {
	if p.unwanted && !p.controlled && p.deadTimer == nil && !p.hasEnded {
		p.deadTimer = time.AfterFunc(shutdownDelay, func() {
			p.mu.Lock()
			yes := p.shutdownClients
			p.mu.Unlock()
			if yes {
				p.cancelSessions()
			}
		})
	}
}

// cancelSessions ends every session: first it tells them, then it closes their
// connections, then the process ends whether they have or not.
func (p *Process) cancelSessions() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retireLocked()
	if p.cancelled || p.hasEnded {
		return
	}
	p.cancelled = true
	p.cancel(ErrShutdown)
	time.AfterFunc(endDelay, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.hasEnded {
			return
		}
		p.log().Warning("%d sessions did not end within %v, closing their connections", p.active, endDelay)
		var conns []net.Conn
		for c := p.oldest; c != nil; c = c.newer {
			conns = append(conns, c.Conn)
		}
		closeSoon(conns)
		time.AfterFunc(closeDelay, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.endLocked()
		})
	})
}
