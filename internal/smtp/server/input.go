package server

import (
	"io"
	"syscall"
	"time"

	"dovetail/internal/process/rawio"
)

// Input returns the octets that were read and not yet used: at least one, and if it has to
// read, up to size. They are lent until the next call of a method of the reading side;
// Discard uses them up. io.EOF: the client will send nothing more; other errors as Next.
func (c *Conn) Input(size int) ([]byte, error) {
	if c.pos == len(c.in) {
		if err := c.fill(size, true); err != nil {
			return nil, err
		}
	}
	return c.in[c.pos:], nil
}

// Discard uses up n octets of what Input returned.
func (c *Conn) Discard(n int) {
	c.pos += n
	if c.pos == len(c.in) {
		c.release()
	}
}

// Buffered returns what was read and not used, as Input does, without reading.
func (c *Conn) Buffered() []byte { return c.in[c.pos:] }

// Preload puts b, which it copies, before what will be read, as if it had been read
// already. It must come before the first read, and counts as input.
func (c *Conn) Preload(b []byte) {
	if len(b) == 0 {
		return
	}
	c.buf = getBuffer(len(b))
	c.in = append((*c.buf)[:0], b...)
	c.pos = 0
	c.nin += uint64(len(b))
	if c.opts.Tap != nil {
		c.opts.Tap(true, b)
	}
}

// DropInput drops all input that was read or can be read without waiting, at most 64 KiB,
// and returns how much that was.
func (c *Conn) DropInput() int {
	n := len(c.in) - c.pos
	c.Discard(n)
	if c.raw == nil {
		return n
	}
	b := getBuffer(lineBuffer)
	defer putBuffer(b)
	for n < large {
		m := 0
		err := c.raw.Read(func(fd uintptr) bool {
			m, _ = rawio.Read(fd, *b)
			return true
		})
		if err != nil || m <= 0 {
			break
		}
		n += m
	}
	return n
}

func (c *Conn) release() {
	if c.buf != nil {
		putBuffer(c.buf)
		c.buf = nil
	}
	c.in, c.pos = nil, 0
}

// fill reads once, behind what is unread, into a buffer of at least size octets; a
// buffer in which input is left grows to size. body: it belongs to a command.
func (c *Conn) fill(size int, body bool) error {
	c.mu.Lock()
	c.body = body
	err := c.endedLocked()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.makeRoom(size)
	c.n, c.rerr = 0, nil
	if c.raw != nil {
		if err = c.raw.Read(c.read); err == nil {
			err = c.rerr
		}
	} else {
		c.beforeBlock()
		c.n, err = c.nc.Read(c.space())
	}
	c.mu.Lock()
	c.blocked = false
	ended := c.endedLocked()
	if c.armed && ended == nil {
		c.armed = false
		c.nc.SetReadDeadline(time.Time{}) // an old one would end a later read at once
	}
	c.mu.Unlock()
	if c.n <= 0 && len(c.in) == c.pos {
		c.release()
	}
	switch {
	case ended != nil:
		return ended
	case c.n > 0:
		c.nin += uint64(c.n)
		c.in = c.in[:len(c.in)+c.n]
		if c.opts.Tap != nil {
			c.opts.Tap(true, c.in[len(c.in)-c.n:])
		}
		return nil
	case err == nil || err == io.EOF:
		return io.EOF
	case isTimeout(err):
		return ErrIdle
	}
	return eof(err)
}

// makeRoom moves what is unread to the beginning of a buffer that can take more.
func (c *Conn) makeRoom(size int) {
	c.want = size
	if c.buf == nil {
		return
	}
	old, left := c.buf, len(c.in)-c.pos
	if left >= len(*old) || size > len(*old) {
		c.buf = getBuffer(max(size, 2*left))
	}
	if c.buf != old || c.pos > 0 {
		c.in = (*c.buf)[:copy(*c.buf, c.in[c.pos:])]
		c.pos = 0
	}
	if c.buf != old {
		putBuffer(old)
	}
}

// space returns where the next read goes, taking a buffer if there is none.
func (c *Conn) space() []byte {
	if c.buf == nil {
		c.buf = getBuffer(c.want)
		c.in, c.pos = (*c.buf)[:0], 0
	}
	b := (*c.buf)[len(c.in):]
	if c.want <= lineBuffer { // commands are awaited
		b = b[:min(len(b), c.opts.ReadSize)]
	}
	return b
}

// readReady is called by the poller when something may be there. It says whether the read
// is over. While it is not, no buffer is held for it.
func (c *Conn) readReady(fd uintptr) bool {
	n, err := rawio.Read(fd, c.space())
	switch {
	case n > 0:
		c.n = n
	case err == syscall.EAGAIN:
		if len(c.in) == 0 {
			c.release()
		}
		c.beforeBlock()
		return false
	case err != nil:
		c.rerr = err
	default:
		c.rerr = io.EOF
	}
	return true
}

// beforeBlock writes the replies that are ready, and starts the idle timer unless a
// command waits for its reply.
func (c *Conn) beforeBlock() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.blocked {
		c.flushLocked() // an error ends the read
	}
	c.blocked = true
	if c.endedLocked() != nil {
		c.wakeLocked()
		return
	}
	c.armLocked()
}

// armLocked sets or clears the deadline of the read that the owner waits in.
func (c *Conn) armLocked() {
	if c.opts.IdleTimeout <= 0 || c.endedLocked() != nil {
		return
	}
	if c.body || c.head == len(c.queue) {
		c.armed = true
		c.nc.SetReadDeadline(time.Now().Add(c.opts.IdleTimeout))
	} else if c.armed {
		c.armed = false
		c.nc.SetReadDeadline(time.Time{})
	}
}

// endedLocked says why nothing can be read any more.
func (c *Conn) endedLocked() error {
	if c.terminated {
		return ErrTerminated
	}
	if c.werr != nil {
		return eof(c.werr)
	}
	return nil
}
