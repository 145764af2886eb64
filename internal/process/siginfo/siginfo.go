// Package siginfo tells who sent a signal, which package os/signal does not: Dovecot's log
// lines name the sender. Linux on amd64 and arm64; elsewhere nobody is known.
package siginfo

import "syscall"

// A Sender is who sent a signal.
type Sender struct {
	PID  int32
	UID  uint32
	Code int32 // si_code: how it was sent
}

// Codes of signals that processes send.
const (
	codeUser   = 0  // kill
	codeQueue  = -1 // sigqueue
	codeThread = -6 // tkill, tgkill
)

// CodeText returns Dovecot's word for the code.
func (s Sender) CodeText() string {
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

// Watch makes Last know the senders of sig from now on. Only one signal can be watched,
// once; signal.Notify must have been called for it before. False: not on this platform.
func Watch(sig syscall.Signal) bool { return watch(sig) }

// Last returns the sender of the latest watched signal. ok is false if none came.
func Last() (s Sender, ok bool) { return last() }
