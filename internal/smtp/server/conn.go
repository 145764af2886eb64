package server

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"dovetail/internal/process/pace"
	"dovetail/internal/process/rawio"
	"dovetail/internal/smtp"
)

// Bounds that are the same for both users.
const (
	maxName    = 32 // octets of a command's name (clause S1.12)
	maxBad     = 10 // 500, 501 and 503 in a row that are tolerated (clause S1.9)
	maxQueued  = 100
	maxPending = 64 << 10 // octets of commands without a reply; and of replies not yet written

	lineBuffer   = 4 << 10 // what is read at a time while commands are awaited
	lingerTime   = time.Second
	lingerOctets = 1 << 20
)

var (
	// ErrIdle is returned when Options.IdleTimeout passed without input.
	ErrIdle = errors.New("no input within the idle timeout")
	// ErrTerminated is returned after Terminate, or after too many bad commands.
	ErrTerminated = errors.New("session was terminated")
)

// Options of a Conn. The zero value of a limit means what its comment says.
type Options struct {
	Hostname      string        // stands in every 421 that starts here (clause S1.14)
	MaxParams     int           // octets of a command's parameters
	MaxAuthParams int           // of AUTH's; 0: MaxParams
	ReadSize      int           // octets one read takes at most while commands are awaited; 0: 4096
	IdleTimeout   time.Duration // without input and without a command that waits; 0: none
	WriteTimeout  time.Duration // for the client to take replies; 0: a minute

	// Tap, if not nil, is lent every octet that was read (in) or written, in order.
	Tap func(in bool, b []byte)

	// Watcher, if not nil, hears of every command.
	Watcher Watcher

	// Pause, if not nil, is called by Next before it waits for input or for room: what
	// earlier commands put off must not wait any longer.
	Pause func()
}

// A Watcher hears of every command, and of the replies to lines that are none, which have
// no name. It is called with a lock of the Conn held: it must not use that.
type Watcher interface {
	Started(*Command)
	// Finished has the last reply to the command, which leaves now; the zero reply if it
	// gets none of its own, because the session ends or somebody else answers it.
	Finished(*Command, smtp.Reply)
}

// A Conn is one client's dialogue.
type Conn struct {
	opts Options
	nc   net.Conn
	raw  syscall.RawConn // nil: nc has none, and is read with a buffer in hand
	read func(fd uintptr) bool

	bottom syscall.RawConn // of the first nc that had one; others run over that

	// The reading side: the owner's alone.
	in       []byte // unread input is in[pos:]
	pos      int
	buf      *[]byte // what in lies in; nil when nothing is buffered
	want     int     // size of the buffer that the next read takes
	skipping bool    // until the next LF
	n        int     // result of the last read
	rerr     error

	mu         sync.Mutex
	cond       sync.Cond  // of mu: something left the queue, was written, or ended
	queue      []*Command // guarded by mu: queue[head:] are without a finished reply, oldest first
	head       int        // guarded by mu
	pending    int        // guarded by mu: octets of their parameters
	out        []byte     // guarded by mu: replies to be written
	writing    bool       // guarded by mu: somebody is in Flush
	bad        int        // guarded by mu: bad commands in a row
	blocked    bool       // guarded by mu: the owner waits for input
	armed      bool       // guarded by mu: a read deadline is set
	body       bool       // guarded by mu: ... of a command, which the idle timer does not spare
	werr       error      // guarded by mu: why nothing can be written any more
	terminated bool       // guarded by mu
	stats      Stats      // guarded by mu, but In, which is the owner's
	nin        uint64     // the owner's
}

// Stats count what passed.
type Stats struct {
	In, Out           uint64 // octets; an unfinished command line counts up to its parameters
	Commands, Replies uint64
}

// New makes a Conn of nc, which it takes: Close closes it. Nothing is sent.
func New(nc net.Conn, o Options) *Conn {
	if o.ReadSize <= 0 {
		o.ReadSize = lineBuffer
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = time.Minute / pace.Haste
	}
	if o.MaxAuthParams <= 0 {
		o.MaxAuthParams = o.MaxParams
	}
	c := &Conn{opts: o}
	c.cond.L = &c.mu
	c.use(nc)
	return c
}

func (c *Conn) use(nc net.Conn) {
	c.nc, c.raw = nc, nil
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
			c.read = c.readReady
			c.bottom = raw
		}
	}
}

// Conn returns the connection that is read and written.
func (c *Conn) Conn() net.Conn { return c.nc }

// Upgrade goes on with nc, which carries the dialogue from now on, as after STARTTLS. All
// commands must have been answered and flushed, and no input be unread.
func (c *Conn) Upgrade(nc net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.use(nc)
}

// Hostname returns the name that stands in the replies of this server.
func (c *Conn) Hostname() string { return c.opts.Hostname }

// Stats returns the counts so far. Only the owner may call it while others answer.
func (c *Conn) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.In = c.nin - c.unparsed()
	return s
}

// unparsed is how much of a command line that has no end yet Dovecot would not count: what
// stands behind the name and a space, or the name.
func (c *Conn) unparsed() uint64 {
	if c.body || c.pos >= len(c.in) {
		return 0
	}
	rest := c.in[c.pos:]
	rest = rest[bytes.LastIndexByte(rest, '\n')+1:]
	return uint64(len(rest) - 1 - bytes.IndexAny(rest, " \r"))
}

// Unfinished returns the name of the oldest command that has no reply yet, or "".
func (c *Conn) Unfinished() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cmd := range c.queue[c.head:] {
		if !cmd.done {
			return cmd.Name
		}
	}
	return ""
}

// Send puts a reply that answers no command, such as a greeting, behind those that are
// ready. No command may be waiting.
func (c *Conn) Send(r smtp.Reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.terminated {
		c.appendLocked(r)
	}
}

func (c *Conn) appendLocked(r smtp.Reply) {
	if c.out == nil {
		c.out = getSmall()
	}
	c.out = r.Append(c.out)
	c.stats.Replies++
}

// Flush writes what is ready. If another goroutine is writing it leaves that to it and
// returns at once. The error, which ends the connection, is the same from then on.
func (c *Conn) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flushLocked()
}

// Settle writes what is ready, and waits until that is done, also by another goroutine. The
// wait ends within the write timeout.
func (c *Conn) Settle() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flushLocked()
	for c.writing {
		c.cond.Wait()
	}
	return c.werr
}

func (c *Conn) flushLocked() error {
	if c.writing {
		return c.werr
	}
	c.writing = true
	for len(c.out) > 0 && c.werr == nil {
		out := c.out
		c.out = nil
		nc, raw := c.nc, c.raw
		c.mu.Unlock()
		n, err := write(nc, raw, out, c.opts.WriteTimeout)
		if c.opts.Tap != nil {
			c.opts.Tap(false, out[:n])
		}
		c.mu.Lock()
		c.stats.Out += uint64(n)
		if err != nil {
			c.werr = err
			c.wakeLocked()
		}
		putSmall(out)
	}
	c.writing = false
	c.cond.Broadcast()
	return c.werr
}

// write writes b. Only if the socket's buffer is full is a deadline needed.
func write(nc net.Conn, raw syscall.RawConn, b []byte, timeout time.Duration) (int, error) {
	n := 0
	if raw != nil {
		err := raw.Write(func(fd uintptr) bool {
			n, _ = rawio.Write(fd, b)
			return true // what is not written now is below
		})
		if err != nil {
			return 0, err
		}
		if n == len(b) {
			return n, nil
		}
	}
	if err := nc.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return n, err
	}
	m, err := nc.Write(b[n:])
	if err == nil {
		err = nc.SetWriteDeadline(time.Time{})
	}
	return n + m, err
}

// Terminate answers the oldest waiting command with r, drops all others, and lets nothing
// further pass: Next, Input and Line return ErrTerminated. What was ready before leaves
// first. The first call counts. It does not close the connection.
func (c *Conn) Terminate(r smtp.Reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.terminateLocked(r)
	c.flushLocked()
}

func (c *Conn) terminateLocked(r smtp.Reply) {
	if c.terminated {
		return
	}
	c.terminated = true
	c.dropLocked()
	if !r.IsZero() {
		c.appendLocked(r)
	}
	c.wakeLocked()
	c.cond.Broadcast()
}

// Drop forgets the commands without a reply: whoever goes on with the client answers them.
func (c *Conn) Drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked()
}

func (c *Conn) dropLocked() {
	for _, cmd := range c.queue[c.head:] {
		c.finishedLocked(cmd, smtp.Reply{})
	}
	c.queue, c.head = nil, 0
}

// wakeLocked ends the read that the owner waits in, and every later one.
func (c *Conn) wakeLocked() { c.nc.SetReadDeadline(time.Unix(1, 0)) }

// Reply421 makes the reply with which this server ends a session: the host name stands
// before the text (clause S1.14).
func (c *Conn) Reply421(enhanced, text string) smtp.Reply {
	return smtp.NewReply(421, enhanced, c.opts.Hostname+" "+text)
}

// Close writes what is ready and closes the connection. So that a client that is still
// sending gets to read the last reply, its input is then read and dropped for up to a
// second (a close with unread input makes TCP reset the connection, and the reply is lost).
func (c *Conn) Close() error {
	c.Settle()
	c.mu.Lock()
	linger := c.werr == nil && (c.terminated || len(c.in) > c.pos)
	c.terminated = true
	c.dropLocked()
	c.cond.Broadcast()
	c.mu.Unlock()
	c.nin -= c.unparsed()
	c.release()
	if linger {
		c.linger()
	}
	return c.nc.Close()
}

func (c *Conn) linger() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	b := getSmall()
	defer func() { putSmall(b) }()
	b = b[:cap(b)]
	for n := 0; n < lingerOctets; {
		m, err := c.nc.Read(b)
		if err != nil {
			return
		}
		n += m
	}
}

// isTimeout says whether a read ended by its deadline.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// eof makes one error of the ways in which a client is just gone. Under TLS
// io.ErrUnexpectedEOF stays: the client has not closed TLS first.
func eof(err error) error {
	if errors.Is(err, syscall.EPIPE) {
		return io.EOF
	}
	return err
}
