package service

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/fdpass"
)

// open turns the inherited descriptors into listeners, tells the master that the process
// is ready, and starts to accept.
func (p *Process) open() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return nil
	}
	var files []*os.File
	var words []masterproto.Listener
	var pipes []int
	for i, l := range p.Env.Listeners {
		fd := masterproto.FirstListenerFD + i
		listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if errors.Is(err, unix.ENOTSOCK) {
			if p.program.Pipe != nil {
				pipes = append(pipes, i)
				continue
			}
			p.log().Warning("listener %s is a fifo, which has no clients: ignored", l.Name)
			unix.Close(fd)
			continue
		}
		if err == nil && listens == 0 {
			err = errors.New("it does not listen")
		}
		if err == nil {
			err = unix.SetNonblock(fd, true) // it should be
		}
		if err != nil {
			return &os.PathError{Op: "listener", Path: l.Name, Err: err}
		}
		files = append(files, os.NewFile(uintptr(fd), l.Name))
		words = append(words, l)
	}
	for _, i := range pipes { // reading must not need a thread
		if err := unix.SetNonblock(masterproto.FirstListenerFD+i, true); err != nil {
			return &os.PathError{Op: "listener", Path: p.Env.Listeners[i].Name, Err: err}
		}
	}
	p.isOpen = true
	p.listeners = files
	p.settleLocked()
	for i, f := range files {
		go p.accept(f, words[i])
	}
	for _, i := range pipes {
		go p.program.Pipe(p, i, os.NewFile(uintptr(masterproto.FirstListenerFD+i), p.Env.Listeners[i].Name)) // ends with it
	}
	return nil
}

// What a look at a listener can lead to.
type outcome int

const (
	closed   outcome = iota // the process takes no more clients
	accepted                // a client, which has its slot
	noSlot                  // nothing to do before a slot is free
	overflow                // a client waits, all processes are full, and one may be dropped
	failed                  // a shortage of some kind
)

// accept takes clients from one listener. It ends when the listener is closed.
//
// A slot is taken only when accept4 has returned a client, both under mu: a listener that
// waits holds none (clause P1.10.2). All processes of the service do the same with the
// same socket, so another one may be faster (clause P1.10.3).
func (p *Process) accept(f *os.File, l masterproto.Listener) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	for {
		var what outcome
		var fd int
		err := raw.Read(func(s uintptr) bool {
			var wait bool
			what, fd, wait = p.tryAccept(int(s))
			return !wait
		})
		if err != nil {
			return // closed
		}
		switch what {
		case closed:
			return
		case accepted:
			if !p.admit(fd, l) && !p.pause() {
				return
			}
		case noSlot:
			p.awaitSlot()
		case overflow:
			p.makeRoom(raw)
		case failed:
			if !p.pause() {
				return
			}
		}
	}
}

// tryAccept looks at a listener that may have a client. wait: it has none.
func (p *Process) tryAccept(s int) (what outcome, fd int, wait bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return closed, -1, false
	}
	if p.availableLocked() == 0 {
		if !p.canDropLocked() {
			return noSlot, -1, false
		}
		return overflow, -1, !readable(s)
	}
	for {
		fd, _, err := unix.Accept4(s, unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			p.active++
			p.settleLocked()
			if p.availableLocked() == 0 {
				p.nowFullLocked()
			}
			return accepted, fd, false
		case err == unix.EAGAIN:
			return noSlot, -1, true
		case isShortage(err):
			p.acceptFailureLocked(err)
			return failed, -1, false
		case err == unix.EBADF || err == unix.EINVAL || err == unix.ENOTSOCK || err == unix.EOPNOTSUPP:
			p.log().Error("accept: %v", err)
			return closed, -1, false
		}
		// EINTR, or a connection that broke in the queue (ECONNABORTED, EPERM by the
		// firewall, and the network's errors): the next one.
	}
}

// readable says whether a client waits in the queue of listener s.
func readable(s int) bool {
	fds := []unix.PollFd{{Fd: int32(s), Events: unix.POLLIN}}
	n, _ := unix.Poll(fds, 0)
	return n > 0
}

// admit makes a client of an accepted socket, whose slot is taken, and serves it. False:
// a shortage.
func (p *Process) admit(fd int, l masterproto.Listener) bool {
	c := &Client{Listener: l, Accepted: time.Now(), Process: p}
	conn, err := fdpass.NewConn(fd)
	if err == nil && conn.RemoteAddr() == nil { // reset while it was in the queue
		conn.Close()
		err = unix.ECONNRESET
	}
	if err != nil {
		return p.notAdmitted(err)
	}
	c.Conn = conn
	c.ctx, c.cancel = context.WithCancelCause(p.ctx)
	ip := ""
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		ip = a.AddrPort().Addr().Unmap().String()
	}
	p.mu.Lock()
	p.acceptFailure.count = 0
	p.linkLocked(c)
	tell := p.logPipe != nil && ip != "" && ip != p.lastIP
	if tell {
		p.lastIP = ip
	}
	p.mu.Unlock()
	if tell {
		p.logPipe.SetIP(ip)
	}
	go p.serve(c)
	return true
}

// notAdmitted gives a slot back that no client got. False: a shortage.
func (p *Process) notAdmitted(err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active--
	p.settleLocked()
	p.changed.Broadcast()
	if isShortage(err) {
		p.acceptFailureLocked(err)
		return false
	}
	p.log().Debug("accept() failed: %v", err)
	return true
}

// awaitSlot returns when a slot is free, a client may be dropped, or the process stops.
func (p *Process) awaitSlot() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.stopping && p.availableLocked() == 0 && !p.canDropLocked() {
		p.changed.Wait()
	}
}

func isShortage(err error) bool {
	for _, e := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Shortages are waited out, and logged once in a while.
const (
	firstPause   = 50 * time.Millisecond
	maxPause     = time.Second
	shortageNote = 10 * time.Second
)

type acceptFailure struct {
	count  int // in a row
	noteAt time.Time
}

func (p *Process) acceptFailureLocked(err error) {
	f := &p.acceptFailure
	f.count++
	if now := time.Now(); now.After(f.noteAt) {
		f.noteAt = now.Add(shortageNote)
		p.log().Error("accept() failed: %v (%d clients are being served)", err, p.active)
	}
}

// pause waits after a shortage. False: the process stops.
func (p *Process) pause() bool {
	p.mu.Lock()
	wait := min(maxPause, firstPause<<min(max(p.acceptFailure.count-1, 0), 10))
	p.mu.Unlock()
	select {
	case <-time.After(wait):
		return true
	case <-p.ended:
		return false
	}
}
