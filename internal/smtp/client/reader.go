package client

import (
	"io"
	"sync"
	"syscall"
	"time"

	"dovetail/internal/process/rawio"
	"dovetail/internal/smtp"
)

// Buffers that replies are read into, shared by all connections.
var readBuffers = sync.Pool{New: func() any { b := make([]byte, lineBuffer); return &b }}

func getBuffer() *[]byte  { return readBuffers.Get().(*[]byte) }
func putBuffer(b *[]byte) { readBuffers.Put(b) }

func (c *Conn) releaseInput() {
	if c.in != nil {
		putBuffer(c.in)
		c.in = nil
	}
}

// readLoop dispatches replies until the connection is over.
func (c *Conn) readLoop() {
	defer close(c.ended)
	defer c.batch() // for replies that stood before what ended the connection
	defer c.releaseInput()
	for {
		if c.in == nil {
			if err := c.read(); err != nil {
				c.fail(c.lost(err))
				return
			}
		}
		for c.inPos < c.inEnd {
			c.mu.Lock()
			c.parser.Ehlo = len(c.queue) > c.head && c.queue[c.head].kind == ehlo
			c.mu.Unlock()
			n, r, ok, err := c.parser.Parse((*c.in)[c.inPos:c.inEnd])
			c.inPos += n
			if err != nil {
				c.fail(&Error{Kind: BadReply, Log: "Invalid command reply: " + err.Error(), cause: err})
				return
			}
			if ok && !c.dispatch(r) {
				return
			}
		}
		c.releaseInput()
		c.batch()
	}
}

func (c *Conn) batch() {
	if c.hooks.Batch != nil {
		c.hooks.Batch()
	}
}

// lost makes an Error of why nothing can be read; after a partial reply it is the same.
func (c *Conn) lost(err error) *Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return ioError("read", c.stream(), err)
}

// dispatch gives a reply to the command that waits for it.
func (c *Conn) dispatch(r smtp.Reply) bool {
	c.mu.Lock()
	if r.Code == 421 {
		c.mu.Unlock()
		c.fail(refusal(r, Closing))
		return false
	}
	if len(c.queue) == c.head {
		c.mu.Unlock()
		c.fail(&Error{Kind: BadReply, Log: "Unexpected reply: " + r.Split().OneLine(maxLogged)})
		return false
	}
	first := c.queue[c.head]
	if first.kind == streaming && r.Class() == 2 {
		c.mu.Unlock()
		c.fail(&Error{Kind: BadReply, Log: "Got early success reply: " + r.Split().OneLine(maxLogged)})
		return false
	}
	if r.Code == 530 && first.kind != xclient {
		c.mu.Unlock()
		c.fail(refusal(r, NeedsAuth))
		return false
	}
	if first.final != nil && r.Code == 354 {
		// At once, because the next reply may be here already.
		c.queue[c.head] = pending{kind: streaming, done: first.final, began: time.Now()}
		c.partial = true
	} else {
		c.queue[c.head] = pending{}
		c.head++
		if c.head == len(c.queue) {
			c.queue, c.head = c.queue[:0], 0
		}
	}
	c.armLocked(time.Now())
	c.telling = true
	c.mu.Unlock()
	if w := c.cfg.Watcher; w != nil {
		w.Finished(first.verb, first.began, r, nil)
		if first.final != nil && r.Code == 354 {
			w.Sent("")
		}
	}
	first.done(r)
	c.mu.Lock()
	c.telling = false
	c.cond.Broadcast()
	c.mu.Unlock()
	return true
}

// read reads once, into a buffer that it takes when something is there.
func (c *Conn) read() error {
	if c.raw != nil {
		c.rn, c.rerr = 0, nil
		if err := c.raw.Read(c.readFn); err != nil {
			return err
		}
		if c.rerr != nil {
			return c.rerr
		}
		c.inPos, c.inEnd = 0, c.rn
	} else {
		b := getBuffer()
		n, err := c.nc.Read(*b)
		if n == 0 {
			putBuffer(b)
			if err == nil {
				err = io.ErrNoProgress
			}
			return err
		}
		c.in, c.inPos, c.inEnd = b, 0, n
	}
	c.tap(true, (*c.in)[:c.inEnd])
	return nil
}

// readReady is called by the poller when something may be there, and says whether the read
// is over.
func (c *Conn) readReady(fd uintptr) bool {
	b := getBuffer()
	n, err := rawio.Read(fd, *b)
	if n > 0 {
		c.in, c.rn = b, n
		return true
	}
	putBuffer(b)
	switch {
	case err == syscall.EAGAIN:
		return false
	case err != nil:
		c.rerr = err
	default:
		c.rerr = io.EOF
	}
	return true
}
