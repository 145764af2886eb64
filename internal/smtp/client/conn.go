package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dovetail/internal/smtp"
)

const (
	lineBuffer = 4 << 10 // what a read takes at a time: replies are short
	maxUnsent  = 16 << 10
	quitWait   = 100 * time.Millisecond // for QUIT to leave, before the connection is closed
)

// A TLSMode says when TLS begins.
type TLSMode uint8

const (
	NoTLS TLSMode = iota
	StartTLS
	ImplicitTLS
)

// A Resolver finds the addresses of a name: package dns's Client under Dovecot, or the
// system's.
type Resolver interface {
	Lookup(ctx context.Context, name string) ([]netip.Addr, error)
}

// Config is what Dial needs to know. It is lent for the life of the connection, and not
// changed.
type Config struct {
	ID       int    // names the connection, beside the address, in logs of a broken one
	Host     string // name or address of the relay
	Port     uint16
	Resolver Resolver
	Hostname string // ours, for EHLO

	Mode TLSMode
	TLS  *tls.Config // for the relay's name; nil with NoTLS

	// Under, if not nil, makes what lies between the connection and TLS.
	Under func(net.Conn) net.Conn
	// HandshakeError, if not nil, puts an error of a TLS handshake into words.
	HandshakeError func(err error) string

	User, MasterUser, Password string             // with a User: log in (clause S4.4)
	Xclient                    []smtp.XclientAttr // ... and say this before

	ConnectTimeout time.Duration // of each step of Dial; must be set
	CommandTimeout time.Duration // of a command, after the reply before it; must be set
	IdleTimeout    time.Duration // without any command, until Hooks.Idle; 0: none

	Warn func(text string)          // a line about what the relay said amiss; nil: none
	Tap  func(in bool, data []byte) // is lent what is read (in) and written, in clear but for what logs in; nil: none

	Watcher Watcher // hears of the connection and its commands; nil: nobody
}

// A Watcher hears of a connection and its commands. It may be called with locks of this
// package held, and must not use the Conn.
type Watcher interface {
	Connected(local, remote net.Addr)
	Disconnected(in, out uint64) // octets, in clear
	Sent(verb string)            // a command is going to be written; "": the data behind a DATA
	// Finished has the reply to a command that was sent when it began; without one, why
	// there is none.
	Finished(verb string, began time.Time, r smtp.Reply, e *Error)
}

// Hooks are called without locks of this package held. Each may be nil but Go.
type Hooks struct {
	Go     func(func()) // starts a goroutine
	Batch  func()       // by the reader: replies were dispatched, and no more have come
	Idle   func()       // by a timer: IdleTimeout passed. See CloseIfIdle
	Failed func(*Error) // by whoever noticed, once: the connection ended by itself. What waits is forgotten
}

// A Conn is a connection that is ready. The owner sends; other methods say so.
type Conn struct {
	cfg  *Config
	name string // "192.0.2.1:25", for logs
	nc   net.Conn
	raw  syscall.RawConn   // of a plaintext connection; nil: reads and writes go through nc
	caps smtp.Capabilities // the owner's
	old  bool              // the relay knows no EHLO

	dialing context.Context // Dial's, during Dial
	phase   string          // of Dial, for a log line
	asked   pending         // with a Watcher: the command that waits, during Dial
	hidden  bool            // the tap is not lent what passes, during Dial

	hooks Hooks
	ended chan struct{} // closed when the reader has ended; nil before Start

	// The reader's, and Dial's before it.
	parser smtp.ReplyParser
	in     *[]byte // buffer in use, or nil
	inPos  int     // unread is (*in)[inPos:inEnd]
	inEnd  int
	readFn func(fd uintptr) bool // of raw.Read
	rn     int                   // what it read
	rerr   error

	// The owner's.
	out    []byte // not yet written
	unsent int    // commands in it

	mu      sync.Mutex
	cond    sync.Cond   // of mu: a reply was dispatched, or the connection failed
	queue   []pending   // guarded by mu: queue[head:] wait for a reply, oldest first
	head    int         // guarded by mu
	telling bool        // guarded by mu: a function hears of a reply that has left the queue
	err     *Error      // guarded by mu: why nothing works any more
	writing bool        // guarded by mu: a write is going on
	partial bool        // guarded by mu: the relay would not take QUIT for a command
	expires time.Time   // guarded by mu: when the oldest command, or idleness, is out of time
	timer   *time.Timer // guarded by mu; nil before it is first needed
	fires   time.Time   // guarded by mu: when timer does
	stopped bool        // guarded by mu: no timer any more

	nin, nout atomic.Uint64 // octets, with a Watcher
}

// A pending is a command that waits for its reply.
type pending struct {
	kind  pendingKind
	done  func(smtp.Reply)
	final func(smtp.Reply) // of DATA: hears the answer to the message after a 354

	// With a Watcher:
	verb  string
	began time.Time
}

type pendingKind uint8

const (
	command   pendingKind = iota
	ehlo                  // its reply's first line may hold anything
	xclient               // of which only a 421 matters
	answer                // to a challenge of AUTH
	chunk                 // of a message that goes on
	streaming             // a message whose data is not sent yet
)

// Caps returns what the relay announced last. It is the owner's.
func (c *Conn) Caps() *smtp.Capabilities { return &c.caps }

// stream names the connection where it broke, as Dovecot does.
func (c *Conn) stream() string { return fmt.Sprintf("(conn:%s,id=%d)", c.name, c.cfg.ID) }

// Err returns why the connection is over, or nil. Any goroutine may call it.
func (c *Conn) Err() *Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Waiting returns how many commands have no reply yet. Any goroutine may call it.
func (c *Conn) Waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) - c.head
}

// Start begins to read. Dial's connection must be started before it is used.
func (c *Conn) Start(h Hooks) {
	c.hooks = h
	if c.raw != nil {
		c.readFn = c.readReady
	}
	c.nc.SetDeadline(time.Time{})
	c.mu.Lock()
	c.armLocked(time.Now())
	c.mu.Unlock()
	c.ended = make(chan struct{})
	h.Go(c.readLoop) // ends with the connection
}

// Ended is closed when no function is called any more because of what was read, some time
// after the end of the connection.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// Close ends the connection, with a QUIT if the relay would take it for one, and forgets
// what waits: no hook and no function is called because of it. Any goroutine may call it,
// more than once.
func (c *Conn) Close() {
	c.mu.Lock()
	first := c.err == nil
	quit := first && c.endLocked(&Error{Kind: Cancelled})
	c.mu.Unlock()
	if first {
		c.shut(quit)
	}
}

// Abort is Close without QUIT, for a connection on which the relay awaits something else.
func (c *Conn) Abort() {
	c.mu.Lock()
	first := c.err == nil
	if first {
		c.endLocked(&Error{Kind: Cancelled})
	}
	c.mu.Unlock()
	if first {
		c.shut(false)
	}
}

// CloseIfIdle is Close for Hooks.Idle: it does nothing if a command was sent since.
func (c *Conn) CloseIfIdle() {
	c.mu.Lock()
	idle := c.err == nil && len(c.queue) == c.head && c.expires.IsZero()
	quit := idle && c.endLocked(&Error{Kind: Cancelled})
	c.mu.Unlock()
	if idle {
		c.shut(quit)
	}
}

// fail ends the connection because of e.
func (c *Conn) fail(e *Error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	quit := c.endLocked(e)
	c.mu.Unlock()
	c.shut(quit)
	if c.hooks.Failed != nil {
		c.hooks.Failed(e)
	}
}

// endLocked makes e the end, and says whether QUIT can be sent: not when a command or a
// message is half sent.
func (c *Conn) endLocked(e *Error) (quit bool) {
	e.Waiting = len(c.queue) - c.head
	if w := c.cfg.Watcher; w != nil {
		for _, p := range c.queue[c.head:] {
			w.Finished(p.verb, p.began, smtp.Reply{}, e)
		}
	}
	c.err = e
	c.queue, c.head = nil, 0
	c.stopped = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.cond.Broadcast()
	if c.partial || e.Kind == Lost {
		return false
	}
	if c.writing {
		// Most often what was answered has just left, and its writer does not know yet.
		c.awaitLocked(quitWait, func() bool { return !c.writing })
	}
	return !c.writing && !c.partial
}

// awaitLocked waits until ok, which is called with mu held, at most for d.
func (c *Conn) awaitLocked(d time.Duration, ok func() bool) {
	deadline := time.Now().Add(d) // before the timer's: when that goes off it has passed
	timer := time.AfterFunc(d, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cond.Broadcast()
	})
	defer timer.Stop()
	for !ok() && time.Now().Before(deadline) {
		c.cond.Wait()
	}
}

// shut closes the socket. QUIT's answer is not awaited (clauses S4.9, S4.12).
func (c *Conn) shut(quit bool) {
	if quit {
		c.nc.SetWriteDeadline(time.Now().Add(quitWait))
		line := []byte("QUIT\r\n")
		c.nc.Write(line)
		c.tap(false, line)
	}
	if w := c.cfg.Watcher; w != nil {
		w.Disconnected(c.nin.Load(), c.nout.Load())
	}
	if t, ok := c.nc.(*tls.Conn); ok {
		// Its Close would wait up to five seconds to say good-bye.
		t.NetConn().Close()
		return
	}
	c.nc.Close()
}

func (c *Conn) tap(in bool, b []byte) {
	if c.cfg.Watcher != nil {
		n := &c.nout
		if in {
			n = &c.nin
		}
		n.Add(uint64(len(b)))
	}
	if c.cfg.Tap != nil && len(b) > 0 && !c.hidden {
		c.cfg.Tap(in, b)
	}
}

func (c *Conn) warn(text string) {
	if c.cfg.Warn != nil {
		c.cfg.Warn(text)
	}
}

// has says whether the relay announced all of caps.
func (c *Conn) has(caps smtp.Cap) bool { return c.caps.Has(caps) }

// armLocked starts the time that the next reply, or the next command, has. now is the
// present.
func (c *Conn) armLocked(now time.Time) {
	d := c.cfg.CommandTimeout
	switch {
	case len(c.queue) == c.head:
		d = c.cfg.IdleTimeout
	case c.queue[c.head].kind == streaming:
		d = 0 // the relay waits for us, and each write has its own time
	}
	if d <= 0 {
		c.expires = time.Time{}
		return
	}
	c.expires = now.Add(d)
	switch {
	case c.stopped:
	case c.timer == nil:
		c.timer = time.AfterFunc(d, c.onTimer)
		c.fires = c.expires
	case c.expires.Before(c.fires):
		c.timer.Reset(d)
		c.fires = c.expires
	} // one that fires too early looks at expires and goes on
}

// onTimer runs in a goroutine of its own.
func (c *Conn) onTimer() {
	c.mu.Lock()
	if c.stopped {
		c.mu.Unlock()
		return
	}
	if c.expires.IsZero() { // nothing is waited for, for now
		c.timer = nil
		c.mu.Unlock()
		return
	}
	if left := time.Until(c.expires); left > 0 {
		c.timer.Reset(left)
		c.fires = c.expires
		c.mu.Unlock()
		return
	}
	idle := len(c.queue) == c.head
	c.expires, c.timer = time.Time{}, nil
	c.mu.Unlock()
	if !idle {
		c.fail(&Error{Kind: TimedOut, Log: "Command timed out, disconnecting"})
	} else if c.hooks.Idle != nil {
		c.hooks.Idle()
	}
}
