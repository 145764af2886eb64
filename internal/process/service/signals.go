package service

import (
	"os/signal"
	"syscall"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/siginfo"
)

// catchSignals makes signals mean what the master means by them (clauses P1.6.5, P1.7).
// Others that would end a process are ignored, as the master's SIGPIPE is.
func (p *Process) catchSignals() error {
	err := siginfo.Notify(func(s siginfo.Signal) {
		switch s.Number {
		case masterproto.SignalIdleKill:
			p.idleKill()
		case masterproto.SignalFull:
			p.flagChanged()
		case masterproto.SignalStop:
			p.Retire()
		case masterproto.SignalKick:
			p.kicked(s)
		}
	}, masterproto.SignalIdleKill, masterproto.SignalFull, masterproto.SignalStop, masterproto.SignalKick)
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP, syscall.SIGUSR2, syscall.SIGALRM)
	return err
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
func (p *Process) kicked(s siginfo.Signal) {
	if s.Known {
		p.own.Warning("Killed with signal %d (by pid=%d uid=%d code=%s)", s.Number, s.PID, s.UID, s.CodeText())
	} else {
		p.own.Warning("Killed with signal %d", s.Number)
	}
	p.cancelSessions()
}
