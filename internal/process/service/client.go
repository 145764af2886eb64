package service

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"dovetail/internal/dovecot/masterproto"
)

// A Client is one accepted connection. Serve owns it.
type Client struct {
	Conn     net.Conn             // *net.TCPConn or *net.UnixConn; closed when Serve, and what Then says, has returned
	Listener masterproto.Listener // by which it came
	Accepted time.Time
	Process  *Process

	ctx          context.Context
	cancel       context.CancelCauseFunc
	older, newer *Client    // guarded by Process.mu
	drop         func()     // guarded by Process.mu
	unserved     bool       // guarded by Process.mu
	user         string     // guarded by Process.mu; "" before Identify
	addr         netip.Addr // guarded by Process.mu
	kicked       bool       // guarded by Process.mu
	left         bool       // guarded by Process.mu; Serve has returned

	mu       sync.Mutex
	onPanic  func() // guarded by mu
	then     func() // guarded by mu
	panicked bool   // guarded by mu
}

// Droppable says that this client may be dropped when all processes of the service are
// full and a new connection waits; drop then is called once, must not block, and makes
// Serve return soon (clause P1.7.4). The oldest such client of the process is taken. nil:
// it may not, any more.
func (c *Client) Droppable(drop func()) {
	p := c.Process
	p.mu.Lock()
	defer p.mu.Unlock()
	c.drop = drop
	if p.full && drop != nil {
		p.changed.Broadcast()
	}
}

// Identify says whose session this is, and from which address (the zero Addr if that is not
// known), for an admin who ends some of the process's sessions: their contexts are cancelled
// with ErrShutdown as cause. Before, and for user "", the session can only end with all.
func (c *Client) Identify(user string, addr netip.Addr) {
	p := c.Process
	p.mu.Lock()
	defer p.mu.Unlock()
	c.user, c.addr = user, addr.Unmap().WithZone("")
}

// NotServed says that nobody was served: the client does not count for service_count, as one
// that leaves before it has said what it wants.
func (c *Client) NotServed() {
	p := c.Process
	p.mu.Lock()
	defer p.mu.Unlock()
	c.unserved = true
}

// OnPanic sets what is done before the connection is closed when one of the client's
// goroutines panics: telling the client 421 4.3.0. The connection's deadline is then
// panicDelay away. It runs in the goroutine that panicked.
func (c *Client) OnPanic(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onPanic = f
}

const panicDelay = 2 * time.Second

// Go runs f in a goroutine of this session: a panic in it ends this session, as one in
// Serve does, not the process. What ends f is the caller's business.
func (c *Client) Go(f func()) {
	go func() { // ends with f
		defer c.guard()
		f()
	}()
}

// guard is deferred by every goroutine of a session.
func (c *Client) guard() {
	if v := recover(); v != nil {
		c.failed(v)
	}
}

// failed ends the session after a panic, and lets the process finish the others and
// retire: nobody knows what else is broken.
func (c *Client) failed(v any) {
	p := c.Process
	p.Retire()
	p.logPanic("in a session", v)
	c.mu.Lock()
	first, hook := !c.panicked, c.onPanic
	c.panicked = true
	c.mu.Unlock()
	if first {
		c.Conn.SetDeadline(time.Now().Add(panicDelay))
		if hook != nil {
			func() {
				defer func() {
					if v := recover(); v != nil {
						p.logPanic("after the panic of a session", v)
					}
				}()
				hook()
			}()
		}
		c.cancel(ErrPanic)
		c.Conn.Close()
	}
}

// logPanic writes what is known of a panic: one line with the value, one with the stack,
// innermost function first. It is called by the deferred function that recovered.
func (p *Process) logPanic(where string, v any) {
	p.log().Panic("panic %s: %v", where, v)
	p.log().Error("Raw backtrace: %s", backtrace())
}

const maxFrames = 64

// backtrace returns the stack of a panic that is being recovered from, without arguments.
func backtrace() string {
	pcs := make([]uintptr, maxFrames)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	var b strings.Builder
	n, inside := 0, false // inside: past the machinery of panicking
	for {
		f, more := frames.Next()
		machinery := strings.HasPrefix(f.Function, "runtime.")
		if !inside && f.Function == "runtime.gopanic" {
			inside = true
		} else if inside && !(n == 0 && machinery) {
			if n > 0 {
				b.WriteString(" -> ")
			}
			file := f.File[strings.LastIndexByte(f.File, '/')+1:]
			fmt.Fprintf(&b, "#%d %s[%s:%d]", n, f.Function, file, f.Line)
			n++
		}
		if !more {
			return b.String()
		}
	}
}

// Then sets what goes on with the client when Serve has returned: a goroutine of its own,
// with the small stack that a long wait needs, while Serve's has grown. Until f returns the
// client is served as before.
func (c *Client) Then(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.then = f
}

// serve is the goroutine of one client. It ends when Program.Serve returns.
func (p *Process) serve(c *Client) {
	f := p.program.Serve
	if p.Env.ClientLimit == 1 {
		deepen(false)
	}
	goesOn := p.guarded(c, func() { f(c.ctx, c) })
	if goesOn == nil {
		p.over(c)
		return
	}
	go func() { // ends when goesOn does
		p.guarded(c, goesOn)
		p.over(c)
	}()
}

// guarded runs f and returns what Then has set, unless there was a panic.
func (p *Process) guarded(c *Client, f func()) (then func()) {
	defer c.guard()
	f()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.panicked {
		then = c.then
	}
	c.then = nil
	return then
}

func (p *Process) over(c *Client) {
	c.cancel(nil)
	c.Conn.Close()
	p.finished(c)
}

// finished frees the client's slot.
func (p *Process) finished(c *Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unlinkLocked(c)
	c.left = true
	p.active--
	if p.counted && p.left > 0 && !c.unserved {
		p.left--
	}
	if p.dropping == c {
		p.dropping = nil
	}
	p.settleLocked()
	p.changed.Broadcast()
}

func (p *Process) linkLocked(c *Client) {
	c.older = p.newest
	if c.older != nil {
		c.older.newer = c
	} else {
		p.oldest = c
	}
	p.newest = c
}

func (p *Process) unlinkLocked(c *Client) {
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		p.oldest = c.newer
	}
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		p.newest = c.older
	}
	c.older, c.newer, c.drop = nil, nil, nil
}
