package server

import (
	"bytes"
	"time"
	"unicode/utf8"

	"dovetail/internal/smtp"
)

// A Command is a line of the client. It waits for one reply.
type Command struct {
	Name   string // upper case
	Params string // what stands behind the first space, without blanks at the end

	// With a Watcher:
	Verb  string    // the name as the client wrote it
	Began time.Time // when it was read

	c     *Conn
	reply smtp.Reply // guarded by c.mu: waits for older commands
	done  bool       // guarded by c.mu
}

// Reply answers the command; a second call does nothing. It may block while the client
// does not take replies only in Flush, which it does not call.
func (cmd *Command) Reply(r smtp.Reply) {
	c := cmd.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replyLocked(cmd, r)
}

func (c *Conn) replyLocked(cmd *Command, r smtp.Reply) {
	if cmd.done || c.terminated {
		return
	}
	cmd.done, cmd.reply = true, r
	for c.head < len(c.queue) && c.queue[c.head].done {
		first := c.queue[c.head]
		c.queue[c.head] = nil
		c.head++
		c.pending -= len(first.Params)
		if c.countLocked(first.reply.Code) {
			c.finishedLocked(first, smtp.Reply{})
			c.terminateLocked(c.Reply421("4.7.0", "Too many invalid commands."))
			return
		}
		c.finishedLocked(first, first.reply)
		c.appendLocked(first.reply)
	}
	if c.head == len(c.queue) {
		c.queue, c.head = c.queue[:0], 0
		if c.blocked {
			c.armLocked()
		}
	}
	c.cond.Broadcast()
}

func (c *Conn) finishedLocked(cmd *Command, r smtp.Reply) {
	if w := c.opts.Watcher; w != nil {
		w.Finished(cmd, r)
	}
}

// countLocked counts bad commands in a row and says whether these are too many.
func (c *Conn) countLocked(code int) bool {
	switch code {
	case 500, 501, 503:
		c.bad++
	default:
		c.bad = 0
	}
	return c.bad > maxBad
}

// TooManyBad says whether the session was terminated for bad commands.
func (c *Conn) TooManyBad() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bad > maxBad
}

// Interim sends a reply to cmd that does not finish it, a 334 or 354. All older commands
// must be finished (see Turn).
func (cmd *Command) Interim(r smtp.Reply) {
	c := cmd.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if cmd.done || c.terminated {
		return
	}
	c.bad = 0
	c.appendLocked(r)
}

// Turn writes what is ready and waits until all commands before cmd are finished. The
// waiting ends with their replies, each of which has its own deadline, or with
// ErrTerminated or a write error.
func (cmd *Command) Turn() error {
	c := cmd.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if err := c.flushLocked(); err != nil {
			return err
		}
		if c.terminated {
			return ErrTerminated
		}
		if cmd.done || c.head < len(c.queue) && c.queue[c.head] == cmd {
			return nil
		}
		c.cond.Wait()
	}
}

// Next returns the next command. Lines that are none are answered here. It waits for room
// while 100 commands or 64 KiB of them have no reply, and writes what is ready before it
// waits. Errors: io.EOF (the client will send nothing more), ErrIdle, ErrTerminated, or
// that of the connection.
func (c *Conn) Next() (*Command, error) {
	for {
		if err := c.room(); err != nil {
			return nil, err
		}
		cmd, ok := c.parse()
		if cmd != nil {
			return cmd, nil
		}
		if ok {
			continue // a line was answered or skipped; there may be more
		}
		if c.opts.Pause != nil {
			c.opts.Pause()
		}
		if err := c.fill(lineBuffer, false); err != nil {
			return nil, err
		}
	}
}

// room waits until one more command may wait.
func (c *Conn) room() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	paused := c.opts.Pause == nil
	for {
		switch {
		case c.terminated:
			return ErrTerminated
		case c.werr != nil:
			return eof(c.werr)
		case len(c.queue)-c.head < maxQueued && c.pending < maxPending && len(c.out) < maxPending:
			return nil
		}
		if len(c.out) > 0 && !c.writing {
			c.flushLocked()
			continue
		}
		if !paused {
			paused = true
			c.mu.Unlock()
			c.opts.Pause()
			c.mu.Lock()
			continue
		}
		c.cond.Wait()
	}
}

// parse takes one line from the buffer. Without a command ok says whether something was
// taken.
func (c *Conn) parse() (cmd *Command, ok bool) {
	b := c.in[c.pos:]
	lf := bytes.IndexByte(b, '\n')
	if c.skipping {
		if lf < 0 {
			c.Discard(len(b))
			return nil, false
		}
		c.skipping = false
		c.Discard(lf + 1)
		return nil, true
	}
	line := b
	if lf >= 0 {
		line = b[:lf]
		if len(line) > 0 && line[len(line)-1] == '\r' {
			line = line[:len(line)-1]
		}
	}
	name := nameLen(line)
	limit := c.opts.MaxParams
	if name == 4 && isAuth(line) {
		limit = c.opts.MaxAuthParams
	}
	bad := ""
	switch {
	case name > maxName || len(line) > name && line[name] != ' ' && !(lf < 0 && line[name] == '\r' && len(line) == name+1):
		bad = "Invalid command syntax"
	case len(line)-name-1 > limit+1 || lf >= 0 && len(line)-name-1 > limit:
		bad = "Line too long"
	case lf < 0:
		return nil, false
	default:
		params := trim(line[min(name+1, len(line)):])
		if !isText(params) || len(params) > 0 && params[0] == ' ' {
			bad = "Invalid command syntax"
			break
		}
		cmd = &Command{Name: upper(line[:name]), Params: string(params), c: c}
		if cmd.Verb = cmd.Name; c.opts.Watcher != nil && string(line[:name]) != cmd.Name {
			cmd.Verb = string(line[:name])
		}
		c.Discard(lf + 1)
		c.push(cmd, true)
		return cmd, true
	}
	cmd = &Command{c: c}
	if lf >= 0 {
		c.Discard(lf + 1)
	} else {
		c.Discard(len(b))
		c.skipping = true
	}
	c.push(cmd, false)
	cmd.Reply(smtp.NewReply(500, "5.5.2", bad))
	return nil, true
}

// push puts cmd, which may stand for a line that is no command, behind those that wait.
func (c *Conn) push(cmd *Command, isCommand bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.head > 0 && len(c.queue) == cap(c.queue) {
		n := copy(c.queue, c.queue[c.head:])
		clear(c.queue[n:])
		c.queue, c.head = c.queue[:n], 0
	}
	c.queue = append(c.queue, cmd)
	c.pending += len(cmd.Params)
	c.stats.Commands++
	if w := c.opts.Watcher; w != nil {
		cmd.Began = time.Now()
		if isCommand {
			w.Started(cmd)
		}
	}
}

// Line returns the next line as it is, without its line end: what answers a 334. At most
// limit octets are accepted; tooLong then says that the line was longer, and it is dropped
// up to its end. ok is false for a line with octets that are no text (clause S2.10).
func (c *Conn) Line(limit int) (line string, tooLong, ok bool, err error) {
	for {
		b := c.in[c.pos:]
		lf := bytes.IndexByte(b, '\n')
		end := lf
		if lf > 0 && b[lf-1] == '\r' {
			end--
		}
		switch {
		case lf >= 0 && c.skipping:
			c.skipping = false
			c.Discard(lf + 1)
			return "", true, true, nil
		case lf >= 0:
			if end > limit {
				c.Discard(lf + 1)
				return "", true, true, nil
			}
			line = string(b[:end])
			c.Discard(lf + 1)
			return line, false, isText([]byte(line)), nil
		case c.skipping || len(b) > limit+1:
			c.skipping = true
			c.Discard(len(b))
		}
		if err := c.fill(lineBuffer, false); err != nil {
			return "", false, false, err
		}
	}
}

func nameLen(b []byte) int {
	for i, ch := range b {
		if ch |= 0x20; ch < 'a' || ch > 'z' {
			return i
		}
	}
	return len(b)
}

func isAuth(b []byte) bool {
	return b[0]|0x20 == 'a' && b[1]|0x20 == 'u' && b[2]|0x20 == 't' && b[3]|0x20 == 'h'
}

// upper returns b in upper case; for the usual names without a copy.
func upper(b []byte) string {
	var u [maxName]byte
	for i, ch := range b {
		u[i] = ch &^ 0x20
	}
	name := u[:len(b)]
	if s, ok := usual[string(name)]; ok {
		return s
	}
	return string(name)
}

var usual = map[string]string{
	"MAIL": "MAIL", "RCPT": "RCPT", "DATA": "DATA", "BDAT": "BDAT", "RSET": "RSET",
	"NOOP": "NOOP", "QUIT": "QUIT", "EHLO": "EHLO", "AUTH": "AUTH",
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// isText says whether b is HT, printable ASCII, and valid UTF-8 beyond it.
func isText(b []byte) bool {
	ascii := true
	for _, ch := range b {
		if ch < ' ' && ch != '\t' || ch == 0x7f {
			return false
		}
		ascii = ascii && ch < utf8.RuneSelf
	}
	return ascii || utf8.Valid(b)
}
