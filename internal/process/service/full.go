package service

import (
	"math/rand/v2"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
)

const (
	// A process that can serve only one client drops it after a while, the sooner the
	// older it is, so that not every process of the service drops its own for one that
	// waits (clause P1.7.4).
	maxDropDelay  = 100 * time.Millisecond
	dropJitter    = 10 * time.Millisecond
	oldEnough     = time.Minute // a client of this age has no more delay than the jitter
	dropPatience  = 5 * time.Second
	flagLookAgain = time.Second
)

// loginNotify returns the descriptor of the full flag, or -1 for a service that has none:
// its number is then free, and may be anything of ours.
func loginNotify() int {
	var st unix.Stat_t
	if unix.Fstat(masterproto.LoginNotifyFD, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 0 {
		return -1
	}
	return masterproto.LoginNotifyFD
}

// readFlagLocked looks at the flag: the offset of a file that all processes of the service
// share, and which only the master moves (clause P1.7.3).
func (p *Process) readFlagLocked() {
	if p.notify < 0 {
		return
	}
	at, err := unix.Seek(p.notify, 0, unix.SEEK_CUR)
	if err != nil {
		p.log().Error("lseek(login notify fd) failed: %v", err)
		p.notify = -1
		return
	}
	was := p.full
	p.full = at == 1
	if p.full && !was {
		p.changed.Broadcast()
	}
}

// flagChanged is called for SIGUSR1.
func (p *Process) flagChanged() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readFlagLocked()
	// The master tells a change only once, and another may have overtaken the signal.
	if p.notify >= 0 && !p.full && p.availableLocked() == 0 && p.fullTimer == nil {
		p.fullTimer = time.AfterFunc(flagLookAgain, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.fullTimer = nil
			p.readFlagLocked()
		})
	}
}

// nowFullLocked is called when the last slot was taken: the flag may have been set before
// this process was there to be told.
func (p *Process) nowFullLocked() { p.readFlagLocked() }

// canDropLocked says whether a client could be dropped for one that waits.
func (p *Process) canDropLocked() bool {
	return p.full && !p.stopping && p.dropping == nil && p.oldestDroppableLocked() != nil
}

func (p *Process) oldestDroppableLocked() *Client {
	for c := p.oldest; c != nil; c = c.newer {
		if c.drop != nil {
			return c
		}
	}
	return nil
}

// makeRoom drops the oldest client that may be dropped, if a client still waits at the listener and
// all processes are still full.
func (p *Process) makeRoom(listener syscall.RawConn) {
	if wait := p.dropDelay(); wait > 0 {
		select {
		case <-time.After(wait):
		case <-p.ended:
			return
		}
	}
	waits := false
	listener.Control(func(fd uintptr) { waits = readable(int(fd)) })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readFlagLocked()
	c := p.oldestDroppableLocked()
	if c == nil || !p.canDropLocked() || p.availableLocked() > 0 || !waits {
		return
	}
	p.dropping = c
	drop := c.drop
	c.drop = nil
	go func() { // ends at once: drop does not block
		defer c.guard()
		drop()
	}()
	time.AfterFunc(dropPatience, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.dropping == c {
			p.dropping = nil
			closeSoon([]net.Conn{c.Conn})
			p.changed.Broadcast()
		}
	})
}

// dropDelay returns how long a full process waits before it drops a client.
func (p *Process) dropDelay() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.oldestDroppableLocked()
	if c == nil || p.limit > 1 && !(p.counted && p.left == 1) {
		return 0
	}
	young := max(0, oldEnough-time.Since(c.Accepted))
	return time.Duration(float64(maxDropDelay)*float64(young)/float64(oldEnough)) + rand.N(dropJitter)
}
