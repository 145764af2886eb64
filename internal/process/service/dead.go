package service

import (
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
)

// watchDeadPipe calls masterGone when the master has closed its end of the dead pipe
// (clause P1.6.1). The runtime's poller does the waiting, which takes a non-blocking
// descriptor: the flag belongs to all processes of the service, none of which writes.
func (p *Process) watchDeadPipe() error {
	if err := unix.SetNonblock(masterproto.DeadFD, true); err != nil {
		return fmt.Errorf("dead pipe: %w", err)
	}
	pipe := os.NewFile(masterproto.DeadFD, "dead pipe")
	raw, err := pipe.SyscallConn()
	if err != nil {
		return fmt.Errorf("dead pipe: %w", err)
	}
	go func() { // ends when the master is gone, or with the process
		err := raw.Read(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd)}}
			n, _ := unix.Poll(fds, 0)
			return n > 0
		})
		if err != nil && !errors.Is(err, os.ErrClosed) {
			p.log().Error("dead pipe: %v", err)
		}
		p.masterGone()
	}()
	return nil
}

// inherit makes the master's descriptors close-on-exec: whatever is executed must not keep
// the pipes, or the listeners, open (clauses P0.7, P1.3.1).
func (p *Process) inherit() {
	const first = masterproto.LogFD + 1
	if unix.CloseRange(first, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	last := max(masterproto.FirstListenerFD+len(p.Env.Listeners)-1, p.Env.ControlFD)
	for fd := first; fd <= last; fd++ {
		unix.CloseOnExec(fd)
	}
}
