package service

import (
	"os"
	"os/signal"
	"syscall"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/siginfo"
)

// catchSignals makes signals mean what the master means by them (clauses P1.6.5, P1.7).
// Those that mean nothing are caught as well, since ignoring them would be passed on to
// what the process executes.
func (p *Process) catchSignals() {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch, masterproto.SignalIdleKill, masterproto.SignalFull, masterproto.SignalStop, masterproto.SignalKick,
		syscall.SIGHUP, syscall.SIGUSR2, syscall.SIGALRM)
	siginfo.Watch(masterproto.SignalKick)
	signal.Ignore(syscall.SIGPIPE) // as the master started us; writes get EPIPE
	go func() {                    // ends with the process
		for s := range ch {
			switch s {
			case masterproto.SignalIdleKill:
				p.idleKill()
			case masterproto.SignalFull:
				p.flagChanged()
			case masterproto.SignalStop:
				p.Retire()
			case masterproto.SignalKick:
				p.kicked()
			}
		}
	}()
}

// idleKill ends a process that serves nobody. Another one does not answer, and the master
// asks again when it has been idle for IDLE_KILL seconds (clause P1.7.1).
func (p *Process) idleKill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isOpen && p.active == 0 {
		p.retireLocked()
	}
}

// kicked is SIGTERM: the sessions end, then the process.
func (p *Process) kicked() {
	const number = int(masterproto.SignalKick)
	if from, ok := siginfo.Last(); ok {
		p.log().Warning("Killed with signal %d (by pid=%d uid=%d code=%s)", number, from.PID, from.UID, from.CodeText())
	} else {
		p.log().Warning("Killed with signal %d", number)
	}
	p.cancelSessions()
}
