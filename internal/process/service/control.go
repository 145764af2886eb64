package service

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/usermask"
)

// openControl listens to our own master, if it is one (package masterproto has the
// protocol). Under Dovecot's there is no control channel.
func (p *Process) openControl() error {
	fd := p.Env.ControlFD
	if fd == 0 {
		return nil
	}
	if err := unix.SetNonblock(fd, true); err != nil { // it should be
		return fmt.Errorf("control channel: %w", err)
	}
	raw, err := os.NewFile(uintptr(fd), "control channel").SyscallConn()
	if err != nil {
		return fmt.Errorf("control channel: %w", err)
	}
	if _, err := unix.Write(fd, []byte(masterproto.ControlReady)); err != nil {
		return fmt.Errorf("control channel: %w", err)
	}
	p.mu.Lock()
	p.controlled = true
	p.mu.Unlock()
	go func() { // ends when the master is gone, or with the process
		for p.nextOrder(raw) {
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.controlled = false
		p.abandonedLocked()
	}()
	return nil
}

// nextOrder waits for an order and carries it out; nothing is held while it waits. False:
// the master is gone.
func (p *Process) nextOrder(raw syscall.RawConn) bool {
	open := false
	err := raw.Read(func(fd uintptr) bool {
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n == 0 {
			return false
		}
		open = p.readOrder(int(fd))
		return true
	})
	return err == nil && open
}

func (p *Process) readOrder(fd int) bool {
	b := make([]byte, masterproto.MaxControl+1)
	n, err := unix.Read(fd, b)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return true
	case err != nil || n == 0:
		return false
	}
	o, err := masterproto.ParseOrder(b[:n])
	if err != nil {
		p.log().Error("%v", err)
		return true
	}
	answer := masterproto.AppendAnswer(nil, o.Tag)
	if o.Word == masterproto.ControlKick && len(o.Args) == 2 {
		count := 0
		if m, err := usermask.FromWire(o.Args[0], o.Args[1]); err != nil {
			p.log().Error("control channel: KICK: %v", err)
		} else {
			count = p.kick(m)
		}
		answer = masterproto.AppendAnswer(nil, o.Tag, strconv.Itoa(count))
	}
	if _, err := unix.Write(fd, answer); err != nil && err != unix.EPIPE {
		p.log().Error("control channel: %v", err)
	}
	return true
}

// kick ends the sessions that m means, and returns how many: they are told, and cut off if
// they have not ended within endDelay.
func (p *Process) kick(m usermask.Mask) (count int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := p.oldest; c != nil; c = c.newer {
		if c.user == "" || c.kicked || !m.Matches(c.user, c.addr) {
			continue
		}
		c.kicked = true
		count++
		c.cancel(ErrShutdown) // does not wait: what follows has goroutines of its own
		time.AfterFunc(endDelay, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if !c.left {
				p.log().Warning("a kicked session did not end within %v, closing its connection", endDelay)
				go c.Conn.Close() // ends when no call uses it any more, which Close sees to
			}
		})
	}
	return count
}
