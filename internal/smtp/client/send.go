package client

import (
	"time"

	"dovetail/internal/process/rawio"
	"dovetail/internal/smtp"
)

// Send sends a command, line, without its CRLF. It is written by the next Flush, or before
// when much has gathered; done is called, by the reader, with its reply. To a relay without
// PIPELINING, Send waits until no other command waits (and flushes). An error means that
// the connection was over before; when it ends later, Hooks.Failed hears of it, not done.
func (c *Conn) Send(line []byte, done func(smtp.Reply)) *Error {
	return c.send(line, pending{kind: command, done: done})
}

func (c *Conn) send(line []byte, p pending) *Error {
	if !c.has(smtp.CapPipelining) {
		if e := c.WaitAll(); e != nil {
			return e
		}
	}
	if c.cfg.Watcher != nil {
		p.verb = verbOf(line)
	}
	if e := c.push(p); e != nil {
		return e
	}
	c.appendOut(line)
	if c.unsent++; len(c.out) > maxUnsent || c.unsent >= maxBatch || !c.has(smtp.CapPipelining) {
		c.Flush()
	}
	return nil
}

// verbOf returns the command's name; for those of a transaction without a copy.
func verbOf[T string | []byte](line T) string {
	n := 0
	for n < len(line) && line[n] != ' ' {
		n++
	}
	switch string(line[:n]) {
	case "MAIL":
		return "MAIL"
	case "RCPT":
		return "RCPT"
	case "DATA":
		return "DATA"
	case "RSET":
		return "RSET"
	case "NOOP":
		return "NOOP"
	case "QUIT":
		return "QUIT"
	}
	return string(line[:n])
}

// maxBatch is how many commands gather before they are written.
const maxBatch = 64

func (c *Conn) appendOut(line []byte) {
	if c.out == nil {
		c.out = (*getBuffer())[:0]
	}
	c.out = append(append(c.out, line...), '\r', '\n')
}

func (c *Conn) push(p pending) *Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if c.head > 0 && len(c.queue) == cap(c.queue) {
		n := copy(c.queue, c.queue[c.head:])
		clear(c.queue[n:])
		c.queue, c.head = c.queue[:n], 0
	}
	if w := c.cfg.Watcher; w != nil {
		p.began = time.Now()
		w.Sent(p.verb)
	}
	c.queue = append(c.queue, p)
	if len(c.queue)-c.head == 1 {
		c.armLocked(time.Now())
	}
	return nil
}

// Flush writes what Send gathered. It is the owner's.
func (c *Conn) Flush() *Error {
	if len(c.out) == 0 {
		return c.Err()
	}
	e := c.write(c.out)
	if cap(c.out) == lineBuffer {
		b := c.out[:lineBuffer]
		putBuffer(&b)
	}
	c.out, c.unsent = nil, 0
	return e
}

// WaitAll flushes and waits until no command waits for its reply and the functions have
// heard all of them, or the connection is over. The wait ends with the command's time.
func (c *Conn) WaitAll() *Error {
	return c.waitUntil(func() bool { return len(c.queue) == c.head && !c.telling })
}

// Settle is WaitAll but for the message that is under way, which waits for us: one whose
// chunk, or data, was the last that was sent. What came before that has been answered.
func (c *Conn) Settle() *Error {
	return c.waitUntil(func() bool {
		if c.telling || len(c.queue) == c.head {
			return !c.telling
		}
		last := c.queue[len(c.queue)-1].kind
		return last == chunk || last == streaming
	})
}

// waitUntil flushes and waits until ok, which is called with mu held.
func (c *Conn) waitUntil(ok func() bool) *Error {
	if e := c.Flush(); e != nil {
		return e
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && !ok() {
		c.cond.Wait()
	}
	return c.err
}

// Do sends a command and waits for its reply.
func (c *Conn) Do(line string) (smtp.Reply, *Error) { return c.do(line, command) }

// DoThen is Do; then hears the reply before.
func (c *Conn) DoThen(line string, then func(smtp.Reply)) (smtp.Reply, *Error) {
	return c.exchange([]byte(line), pending{kind: command, done: then})
}

func (c *Conn) do(line string, kind pendingKind) (smtp.Reply, *Error) {
	return c.exchange([]byte(line), pending{kind: kind})
}

// exchange sends a command and waits for its reply, also if that is the relay's last word.
// p.done, which may be nil, hears it before.
func (c *Conn) exchange(line []byte, p pending) (r smtp.Reply, e *Error) {
	got, done := false, p.done
	p.done = func(reply smtp.Reply) {
		if done != nil {
			done(reply)
		}
		c.mu.Lock()
		r, got = reply, true
		c.mu.Unlock()
	}
	if e = c.send(line, p); e == nil {
		e = c.waitUntil(func() bool { return got })
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if got {
		return r, nil
	}
	return smtp.Reply{}, e
}

// Introduce says XCLIENT and EHLO again (clause S4.3), if the relay takes any of attrs. What
// it answers to XCLIENT does not matter; a refused EHLO is returned.
func (c *Conn) Introduce(attrs []smtp.XclientAttr) (refused smtp.Reply, e *Error) {
	commands := smtp.XclientCommands(c.caps.Xclient, maxLine, attrs)
	if len(commands) == 0 {
		return smtp.Reply{}, nil
	}
	if e := c.WaitAll(); e != nil {
		return smtp.Reply{}, e
	}
	for _, line := range commands {
		if _, e := c.do(line, xclient); e != nil {
			return smtp.Reply{}, e
		}
	}
	if e := c.ehlo(c.do); e != nil {
		if e.Kind == Refused {
			return e.Reply, nil
		}
		return smtp.Reply{}, e
	}
	return smtp.Reply{}, nil
}

// write writes b, for which the relay has CommandTimeout. Meanwhile no QUIT may be sent.
func (c *Conn) write(b []byte) *Error {
	c.mu.Lock()
	if e := c.err; e != nil {
		c.mu.Unlock()
		return e
	}
	c.writing = true
	c.mu.Unlock()
	n, err := c.writeSome(b)
	c.tap(false, b[:n])
	c.mu.Lock()
	c.writing = false
	c.partial = c.partial || err != nil
	e := c.err
	if e != nil {
		c.cond.Broadcast() // for QUIT
	}
	c.mu.Unlock()
	if err != nil {
		return c.writeFailed(ioError("write", c.stream(), err))
	}
	return e
}

func (c *Conn) writeSome(b []byte) (n int, err error) {
	if c.raw != nil {
		err = c.raw.Write(func(fd uintptr) bool {
			n, _ = rawio.Write(fd, b)
			return true // what is not written now is below
		})
		if err != nil || n == len(b) {
			return n, err
		}
	}
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.cfg.CommandTimeout)); err != nil {
		return n, err
	}
	m, err := c.nc.Write(b[n:])
	if err == nil {
		err = c.nc.SetWriteDeadline(time.Time{})
	}
	return n + m, err
}

// lastWords is how long a reply is waited for that the relay sent before it closed.
const lastWords = time.Second

// writeFailed ends the connection after a failed write: with e, unless the reader hears
// more. What the relay said before it closed is worth more than the error.
func (c *Conn) writeFailed(e *Error) *Error {
	if e.Kind == Lost {
		c.nc.SetReadDeadline(time.Now().Add(lastWords))
		c.mu.Lock()
		c.awaitLocked(2*lastWords, func() bool { return c.err != nil })
		c.mu.Unlock()
	}
	c.fail(e)
	return c.Err()
}
