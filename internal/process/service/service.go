// Package service is life under a master, the same for every program that one starts:
// submission-login, submission, and the roles of the standalone system. A program says
// what to do as root, what after that, and how to serve one client; this package takes the
// clients from the listeners, tells the master how many more fit, and ends the process
// when the master, an admin or a limit says so (clauses P1.2 to P1.10, P11).
//
// A process goes through these steps:
//
//	environment, options            not started by a master: one line on stderr, status 89
//	signals, dead pipe              from here on the process can be told to end
//	Program.Setup                   as root: settings, sockets that only root may open, keys
//	privs.Restrict.Apply            with DropAtStart, or if the master asks for a user
//	Program.Start                   without root (a worker: still root, see Process.Drop)
//	first status record             the master now counts on this process
//	Program.Serve                   one goroutine a client, until retired
//	Program.Pipe                    one goroutine for each listener that is no socket
//	exit 0                          when the last client is gone
//
// What makes a process retire (no new clients, listeners closed, exit 0 when the last
// client leaves): the dead pipe, SIGQUIT, service_count, a panic, Process.Retire. SIGTERM
// also ends the clients, with ErrShutdown as the cause of their contexts; so does the dead
// pipe after 30 s unless shutdown_clients is no. Under our own master a reload is no reason
// for that, and single sessions can be ended (see control.go).
package service

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	dovelog "dovetail/internal/dovecot/log"
	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/event"
)

// A Program is what differs from one program to the next. Setup and Start may be nil.
type Program struct {
	// Name is the program's name, "submission-login", and the log prefix with ": ".
	Name string

	// PIDPrefix: what happens to the process is logged under "name(pid): ", whoever it
	// serves, as Dovecot's workers do.
	PIDPrefix bool

	// About says in one sentence what the program is, for those who start it by hand.
	About string

	// Flags adds the program's own options. The common ones (-c -i -k -o -O -L -D) are
	// there already.
	Flags func(*flag.FlagSet)

	// Setup runs as the master started the process, mostly as root, in base_dir.
	Setup func(*Process) error

	// DropAtStart: become what RESTRICT_* say after Setup; root is refused. A program
	// without it stays root, unless the master names a user, until it calls Drop.
	DropAtStart bool

	// Start runs after that, before the master hears that the process is ready, for
	// which it waits 30 s.
	Start func(*Process) error

	// Serve serves one client, in a goroutine of its own. When it returns, the client's
	// connection is closed and its slot is free. ctx is cancelled with ErrShutdown as
	// cause when the session must end with 421; a session that has not ended 5 s later
	// is cut off.
	Serve func(ctx context.Context, c *Client)

	// Pipe reads a listener that is no socket: a fifo, or a pipe of the master's; i is its
	// place in p.Env.Listeners. It takes f, which is non-blocking, runs in a goroutine of
	// its own as soon as the process is ready, and ends when it likes: it counts as no
	// client, and keeps no process. Without it such a listener is ignored, with a warning.
	Pipe func(p *Process, i int, f *os.File)
}

// ErrShutdown is the cause of a client's context when the process has to end. The client
// is told 421 4.3.2.
var ErrShutdown = errors.New("shutting down")

// ErrPanic is the cause of a client's context after a panic in one of its goroutines.
var ErrPanic = errors.New("a bug ended this session")

// Main runs p and never returns. The exit status is 0, or 89 after a logged Fatal line.
func Main(p Program) {
	var args []string
	for _, a := range os.Args[1:] {
		args = append(args, strings.Clone(a)) // SetTitle writes over the originals
	}
	os.Exit(run(p, args, os.Environ()))
}

func run(prog Program, args, environ []string) int {
	env, err := masterproto.ParseEnv(environ)
	if errors.Is(err, masterproto.ErrNotChild) {
		fmt.Fprint(os.Stderr, byHand(prog))
		return masterproto.ExitFatal
	}
	limitThreads(env.ClientLimit)
	p := newProcess(prog, env)
	if err != nil {
		return p.lastWords("%v", err)
	}
	ready := make(chan int, 1)
	go func() { ready <- p.begin(args) }() // ends when the process is ready, or with it
	select {
	case status := <-ready:
		if status != masterproto.ExitOK {
			return status
		}
		<-p.ended
	case <-p.ended: // the master is gone, or somebody wants the process gone
	}
	p.mu.Lock()
	atExit := p.atExit
	p.mu.Unlock()
	p.runAtExit(atExit)
	return masterproto.ExitOK
}

// begin calls start and turns what goes wrong there into an exit status.
func (p *Process) begin(args []string) (status int) {
	defer func() {
		if v := recover(); v != nil { // in Setup or Start
			p.logPanic("at the start", v)
			status = p.lastWords("the program has a bug")
		}
	}()
	deepen(false)
	if err := p.start(args); err != nil {
		return p.lastWords("%v", err)
	}
	return masterproto.ExitOK
}

// byHand is what somebody reads who starts the program in a shell.
func byHand(prog Program) string {
	about := prog.About
	if about == "" {
		about = "part of Dovetail's submission service"
	}
	return fmt.Sprintf("%[1]s: %[2]s. It is not started by hand, but by a master: by `dovetail run -c FILE`, "+
		"or by Dovecot with `executable = /path/to/%[1]s` and `vsz_limit = 0` in its service block.\n", prog.Name, about)
}

// newProcess makes a Process that can log and do nothing else yet.
func newProcess(prog Program, env masterproto.Env) *Process {
	p := &Process{Env: env, program: prog, shutdownClients: true}
	p.changed.L = &p.mu
	p.ended = make(chan struct{})
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	prefix := prog.Name + ": "
	var sink event.Sink = event.SinkFunc(plainStderr)
	if env.LogService {
		p.logPipe = dovelog.NewWriter(masterproto.LogFD, env.ServiceName+": ")
		p.logPipe.SetPrefix(prefix)
		sink = p.logPipe
	}
	p.Log = event.New(sink, prefix, strings.TrimSpace(env.LogDebug) == "*")
	p.own = p.Log
	if prog.PIDPrefix {
		p.own = p.Log.WithPrefix(fmt.Sprintf("%s(%d): ", prog.Name, os.Getpid()))
	}
	p.current.Store(p.Log)
	return p
}

// plainStderr is the log of a process whose master has no log service.
func plainStderr(level event.Level, prefix, text string) {
	line := dovelog.AppendSanitised(nil, prefix+level.String()+": "+text)
	syscall.Write(masterproto.LogFD, append(line, '\n'))
}

// start does everything up to the first status record.
func (p *Process) start(args []string) error {
	p.inherit()
	p.status = newStatus(masterproto.StatusFD, masterproto.Status{
		PID: int32(os.Getpid()), Generation: p.Env.Generation,
	}, p.log, p.masterGone)
	p.limit = p.Env.ClientLimit
	p.counted, p.left = p.Env.ServiceCount > 0, p.Env.ServiceCount
	p.notify = loginNotify()
	if err := p.options(args); err != nil {
		return err
	}
	p.checkVersion()
	limitMemory()
	if err := p.catchSignals(); err != nil {
		return err
	}
	if err := p.openControl(); err != nil {
		return err
	}
	if err := p.watchDeadPipe(); err != nil {
		return err
	}
	if f := p.program.Setup; f != nil {
		if err := f(p); err != nil {
			return err
		}
	}
	if err := p.dropAtStart(); err != nil {
		return err
	}
	if f := p.program.Start; f != nil {
		if err := f(p); err != nil {
			return err
		}
	}
	return p.open()
}

// lastWords logs a Fatal line, makes sure that it gets out (see log.Writer.Nudge), and
// returns the exit status that goes with it.
func (p *Process) lastWords(format string, args ...any) int {
	p.log().Fatal(format, args...)
	if p.logPipe != nil {
		time.Sleep(nudgeDelay)
		p.logPipe.Nudge()
	}
	return masterproto.ExitFatal
}

// nudgeDelay is ample for the log service to have read what was written.
const nudgeDelay = 50 * time.Millisecond

// checkVersion warns of a master whose contract may be another one. Dovecot leaves its
// version out with version_ignore = yes.
func (p *Process) checkVersion() {
	v := p.Env.Version
	if v != "" && !strings.HasPrefix(v, "2.3.") && !strings.HasPrefix(v, masterproto.OwnVersion) {
		p.log().Warning("The master's version is %s, this program knows Dovecot 2.3 (set version_ignore = yes to silence this)", v)
	}
}
