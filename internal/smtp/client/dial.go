package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"dovetail/internal/smtp"
)

// maxLogged is how much of a reply a line shows, in octets.
const maxLogged = 512

// maxLine is what a command may have without its CRLF where the relay might count: AUTH
// with an initial response, and XCLIENT (clauses S4.3, S4.4).
const maxLine = 510

// cancelled is what ends a Dial whose context ended.
func cancelled() *Error { return &Error{Kind: Cancelled} }

// Dial connects to the relay and returns when it is ready, or why it is not: the error is
// always an *Error. Each step may take Config.ConnectTimeout. Start must follow.
func Dial(ctx context.Context, cfg *Config) (*Conn, *Error) {
	c, e := connect(ctx, cfg)
	if e != nil {
		return nil, e
	}
	// What ends the steps below when ctx does: a deadline that has passed. Who sets another
	// one looks at ctx afterwards (setDeadline).
	base := c.nc
	stop := context.AfterFunc(ctx, func() { base.SetDeadline(time.Unix(1, 0)) })
	c.dialing = ctx
	e = c.handshake(ctx)
	c.dialing = nil
	if !stop() {
		e = cancelled()
	}
	if e != nil {
		e.Codes = c.has(smtp.CapEnhancedStatusCodes)
		c.mu.Lock()
		quit := c.endLocked(e)
		c.mu.Unlock()
		c.shut(quit)
		c.releaseInput()
		return nil, e
	}
	return c, nil
}

// connect tries the addresses of the relay in turn.
func connect(ctx context.Context, cfg *Config) (*Conn, *Error) {
	port := strconv.Itoa(int(cfg.Port))
	addrs, e := lookup(ctx, cfg)
	for _, addr := range addrs {
		c := &Conn{cfg: cfg, name: net.JoinHostPort(addr.String(), port)}
		c.cond.L = &c.mu
		d := net.Dialer{Timeout: cfg.ConnectTimeout, KeepAlive: -1} // no wait is without a deadline
		nc, err := d.DialContext(ctx, "tcp", c.name)
		if err == nil {
			c.use(nc)
			if w := cfg.Watcher; w != nil {
				w.Connected(nc.LocalAddr(), nc.RemoteAddr())
			}
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, cancelled()
		}
		e = &Error{Kind: ConnectFailed, cause: err, Log: "connect(" + c.name + ") failed: " + connectReason(err)}
	}
	return nil, e
}

// lookup returns at least one address, or an error.
func lookup(ctx context.Context, cfg *Config) ([]netip.Addr, *Error) {
	if addr, err := netip.ParseAddr(strings.Trim(cfg.Host, "[]")); err == nil {
		return []netip.Addr{addr}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	addrs, err := cfg.Resolver.Lookup(ctx, cfg.Host)
	if err == nil && len(addrs) == 0 {
		err = errors.New("no addresses")
	}
	if err != nil {
		return nil, &Error{Kind: LookupFailed, cause: err, Log: "dns_lookup(" + cfg.Host + ") failed: " + err.Error()}
	}
	return addrs, nil
}

func connectReason(err error) string {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "Connection timed out"
	}
	return Reason(err)
}

func (c *Conn) use(nc net.Conn) {
	c.nc = nc
	if tcp, ok := nc.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			c.raw = raw
		}
	}
}

// handshake does what the package comment shows, until the relay is ready.
func (c *Conn) handshake(ctx context.Context) *Error {
	if c.cfg.Mode == ImplicitTLS {
		if e := c.startTLS(ctx); e != nil {
			return e
		}
	}
	c.phase = "Connection"
	if e := c.setDeadline(); e != nil {
		return e
	}
	greeting, e := c.reply()
	if e != nil {
		return e
	}
	c.phase = "SMTP handshake"
	switch {
	case greeting.Code == 220:
	case greeting.Class() == 2:
		return &Error{Kind: BadReply, Log: "Received inappropriate greeting"}
	default:
		return refusal(greeting, Refused)
	}
	if e := c.ehlo(c.step); e != nil {
		return e
	}
	if c.cfg.Mode == StartTLS {
		if e := c.upgrade(ctx); e != nil {
			return e
		}
	}
	if c.cfg.User == "" {
		return nil
	}
	if commands := smtp.XclientCommands(c.caps.Xclient, maxLine, c.cfg.Xclient); len(commands) > 0 {
		for _, line := range commands {
			r, e := c.step(line, command)
			if e != nil {
				return e
			}
			if r.Code == 421 {
				return refusal(r, Closing)
			}
		}
		if e := c.ehlo(c.step); e != nil {
			return e
		}
	}
	if e := c.login(); e != nil {
		return e
	}
	return c.ehlo(c.step)
}

// ehlo introduces us, and takes the relay's capabilities from its answer. do sends a
// command and waits.
func (c *Conn) ehlo(do func(line string, kind pendingKind) (smtp.Reply, *Error)) *Error {
	for {
		verb := "EHLO "
		if c.old {
			verb = "HELO "
		}
		r, e := do(verb+c.cfg.Hostname, ehlo)
		if e != nil {
			return e
		}
		if r.Class() == 2 {
			var warnings []string
			c.caps, warnings = smtp.ParseEhlo(r)
			for _, w := range warnings {
				c.warn(w)
			}
			return nil
		}
		if c.old || r.Code != 500 && r.Code != 502 {
			return refusal(r, Refused)
		}
		c.old = true
	}
}

// step sends a command and waits for its reply; before Start.
func (c *Conn) step(line string, kind pendingKind) (smtp.Reply, *Error) {
	c.parser.Ehlo = kind == ehlo
	defer func() { c.parser.Ehlo = false }()
	w := c.cfg.Watcher
	if w != nil && kind != answer {
		c.asked.verb, c.asked.began = verbOf(line), time.Now()
		w.Sent(c.asked.verb)
	}
	r, e := c.ask(line)
	if w != nil && (e != nil || r.Code != 334) {
		w.Finished(c.asked.verb, c.asked.began, r, e)
	}
	return r, e
}

// ask sends a line and waits for the reply, which has one step's time; before Start.
func (c *Conn) ask(line string) (smtp.Reply, *Error) {
	if e := c.setDeadline(); e != nil {
		return smtp.Reply{}, e
	}
	b := append([]byte(line), '\r', '\n')
	n, err := c.nc.Write(b)
	c.tap(false, b[:n])
	if err != nil {
		return smtp.Reply{}, c.dialError("write", err)
	}
	return c.reply()
}

// setDeadline gives the next step its time; before Start.
func (c *Conn) setDeadline() *Error {
	c.nc.SetDeadline(time.Now().Add(c.cfg.ConnectTimeout))
	if c.dialing.Err() != nil {
		return cancelled()
	}
	return nil
}

// reply waits for a reply, until the step's deadline; before Start.
func (c *Conn) reply() (smtp.Reply, *Error) {
	for {
		if c.in != nil {
			n, r, ok, err := c.parser.Parse((*c.in)[c.inPos:c.inEnd])
			c.inPos += n
			if err != nil {
				return r, &Error{Kind: BadReply, Log: "Invalid command reply: " + err.Error(), cause: err}
			}
			if c.inPos == c.inEnd {
				c.releaseInput()
			}
			if ok {
				return r, nil
			}
		}
		b := getBuffer()
		n, err := c.nc.Read(*b)
		c.tap(true, (*b)[:n])
		if n == 0 {
			putBuffer(b)
			if err != nil {
				return smtp.Reply{}, c.dialError("read", err)
			}
			continue
		}
		c.in, c.inPos, c.inEnd = b, 0, n
	}
}

// dialError is ioError before Start, where the time of a step is over.
func (c *Conn) dialError(verb string, err error) *Error {
	e := ioError(verb, c.stream(), err)
	if e.Kind == TimedOut {
		e.Kind = ConnectFailed
		e.Log = fmt.Sprintf("%s timed out after %d seconds", c.phase, int(c.cfg.ConnectTimeout/time.Second))
	}
	return e
}

// upgrade does STARTTLS.
func (c *Conn) upgrade(ctx context.Context) *Error {
	if !c.has(smtp.CapStartTLS) {
		return &Error{Kind: ConnectFailed, Log: "Requested STARTTLS, but server doesn't support it"}
	}
	r, e := c.step("STARTTLS", command)
	if e != nil {
		return e
	}
	if r.Class() != 2 {
		return refusal(r, Refused)
	}
	if c.in != nil {
		// Not encrypted, and yet meant to be read as if it were (CVE-2021-33515's other side).
		return &Error{Kind: ConnectFailed, Log: "Received data behind the reply to STARTTLS"}
	}
	if e := c.startTLS(ctx); e != nil {
		return e
	}
	return c.ehlo(c.step)
}

func (c *Conn) startTLS(ctx context.Context) *Error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ConnectTimeout)
	defer cancel()
	under := c.nc
	if c.cfg.Under != nil {
		under = c.cfg.Under(under)
	}
	t := tls.Client(under, c.cfg.TLS)
	if e := c.setDeadline(); e != nil {
		return e
	}
	c.mu.Lock()
	c.partial = true // no QUIT in the middle of it
	c.mu.Unlock()
	if err := t.HandshakeContext(ctx); err != nil {
		why := err.Error()
		if c.cfg.HandshakeError != nil {
			why = c.cfg.HandshakeError(err)
		}
		return &Error{Kind: ConnectFailed, cause: err, Log: "SSL handshaking with " + c.name + " failed: " + why}
	}
	c.mu.Lock()
	c.partial = false
	c.mu.Unlock()
	c.nc, c.raw = t, nil
	return nil
}
