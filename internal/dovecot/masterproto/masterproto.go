// Package masterproto is the contract between Dovecot's master and the processes it
// starts (clauses P1.1 to P1.10), for both ends: what a master passes in the environment
// and in descriptors, and what a process reports back. What a process does with it is
// package service's business, when to start one is the master's.
//
// Descriptors at exec, none of them close-on-exec (clause P1.3):
//
//	0 1   /dev/null
//	2     log pipe, non-blocking              package log
//	3     anvil pipe, blocking                package anvil
//	4     login notify file, type login only  file offset 1: all processes are full; 0: not
//	5     status pipe, non-blocking           Status records
//	6     write end of the dead pipe          POLLERR: the master wants the process gone
//	7...  listeners, non-blocking             SOCKET<i>_SETTINGS describes 7+i
package masterproto

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// Descriptors of a process that a master starts.
const (
	LogFD           = 2
	AnvilFD         = 3
	LoginNotifyFD   = 4
	StatusFD        = 5
	DeadFD          = 6
	FirstListenerFD = 7
)

// OwnVersion begins the DOVECOT_VERSION of a master that is ours.
const OwnVersion = "dovetail"

// Signals from the master, and from admins.
const (
	SignalIdleKill = syscall.SIGINT  // exit if idle (clause P1.7.1)
	SignalFull     = syscall.SIGUSR1 // look at the login notify file again (clause P1.7.3)
	SignalStop     = syscall.SIGQUIT // the master is going away: close listeners (clause P1.6.5)
	SignalKick     = syscall.SIGTERM // end the clients with 421, exit 0 (clause P1.7.2)
)

// Exit statuses that the master has words for (clause P1.9.1).
const (
	ExitOK          = 0
	ExitLogOpen     = 80
	ExitLogWrite    = 81
	ExitLogInternal = 82
	ExitOutOfMemory = 83
	ExitExec        = 84
	ExitFatal       = 89
)

// ExitText returns the master's words for an exit status, without parentheses; "" when it
// has none. For ExitOutOfMemory the real master adds the service's vsz_limit.
func ExitText(status int) string {
	switch status {
	case ExitLogOpen:
		return "Can't open log file"
	case ExitLogWrite:
		return "Can't write to log file"
	case ExitLogInternal:
		return "Internal logging error"
	case ExitOutOfMemory:
		return "Out of memory"
	case ExitExec:
		return "exec() failed"
	case ExitFatal:
		return "Fatal failure"
	}
	return ""
}

// A Status is one record on descriptor 5: how many more connections a process would accept
// now. One record is one write. The C struct in host byte order:
//
//	0 4 pid
//	4 4 generation       the GENERATION of the environment; another one is ignored with an error
//	8 4 available count
type Status struct {
	PID        int32
	Generation uint32
	Available  uint32
}

// StatusSize is the length of a record.
const StatusSize = 12

// Append adds the wire form of s to b. ParseStatus reverses it.
func (s Status) Append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(s.PID))
	b = binary.NativeEndian.AppendUint32(b, s.Generation)
	return binary.NativeEndian.AppendUint32(b, s.Available)
}

// ParseStatus parses one record. Dovecot's master drops everything that one read returned
// when its size is no multiple of StatusSize (clause P1.5.5).
func ParseStatus(b []byte) (Status, error) {
	if len(b) != StatusSize {
		return Status{}, fmt.Errorf("status record: %d bytes, want %d", len(b), StatusSize)
	}
	u32 := binary.NativeEndian.Uint32
	return Status{PID: int32(u32(b)), Generation: u32(b[4:]), Available: u32(b[8:])}, nil
}
