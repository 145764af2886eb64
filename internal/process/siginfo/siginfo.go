// Package siginfo catches signals and tells who sent them, which os/signal does not:
// Dovecot's log lines name the sender. It also costs less at the start of a process: no
// thread is switched to for each signal, and none is kept.
//
// On linux/amd64 and linux/arm64 a handler of a few instructions writes what the kernel
// says into a pipe, which a goroutine reads. Elsewhere os/signal is used, and nobody is
// known.
package siginfo

import "syscall"

// A Signal is one that arrived.
type Signal struct {
	Number syscall.Signal
	Known  bool // the rest is known
	PID    int  // of the sender
	UID    uint32
	Code   int32 // si_code: how it was sent
}

// Codes of signals that processes send.
const (
	codeUser   = 0  // kill
	codeQueue  = -1 // sigqueue
	codeThread = -6 // tkill, tgkill
)

// CodeText returns Dovecot's word for the code.
func (s Signal) CodeText() string {
	switch s.Code {
	case codeUser:
		return "kill"
	case codeQueue:
		return "sigqueue"
	case codeThread:
		return "tkill"
	}
	return "kernel"
}

// Notify calls f, in a goroutine that ends with the process, for each of the signals that
// arrives from now on; a process calls it once. Signals that arrive much faster than f
// returns are dropped.
func Notify(f func(Signal), signals ...syscall.Signal) error { return notify(f, signals) }
