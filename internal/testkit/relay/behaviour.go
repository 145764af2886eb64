package relay

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// A Step is a place in the dialogue where a behaviour can be chosen.
type Step string

const (
	Banner   Step = "banner" // a client connected
	EHLO     Step = "EHLO"
	HELO     Step = "HELO"
	STARTTLS Step = "STARTTLS"
	AUTH     Step = "AUTH"
	AuthData Step = "AUTH line" // a line that answers a 334
	XCLIENT  Step = "XCLIENT"
	MAIL     Step = "MAIL"
	RCPT     Step = "RCPT"
	DATA     Step = "DATA"
	Body     Step = "body" // the first octets of message data behind a 354
	Dot      Step = "dot"  // the end of message data was recognised
	BDAT     Step = "BDAT" // after the chunk was read, unless Early
	RSET     Step = "RSET"
	NOOP     Step = "NOOP"
	VRFY     Step = "VRFY"
	QUIT     Step = "QUIT"
	Other    Step = "other" // any other line
)

// Steps are all steps, in the order of a session.
var Steps = []Step{Banner, EHLO, HELO, STARTTLS, AUTH, AuthData, XCLIENT, MAIL, RCPT, DATA, Body, Dot, BDAT, RSET, NOOP, VRFY, QUIT, Other}

// A Behaviour is what the relay does at one step instead of the default.
type Behaviour struct {
	does   string // for messages
	early  bool
	always bool
	drain  bool
	// act answers. It returns false when the connection is over.
	act func(c *session) bool
	// accepted says whether the default's effect (a transaction opened, a recipient
	// taken, data read) happens, too.
	accepted bool
	tls      *tls.Config // for STARTTLS: handshake with it
}

// String says what the behaviour is.
func (b Behaviour) String() string { return b.does }

// Always makes b the behaviour for this and every later time of its step.
func (b Behaviour) Always() Behaviour { b.always = true; return b }

// Early makes a behaviour at BDAT act when the command line came, before its octets are
// read.
func (b Behaviour) Early() Behaviour { b.early = true; return b }

// Drained makes a behaviour at Body read the rest of the message, to its end, and drop it
// without another answer, as a relay does that refuses a message early. Otherwise the rest
// is taken for commands.
func (b Behaviour) Drained() Behaviour { b.drain = true; return b }

// Reply answers with the lines, each with CRLF behind it. A 2xx (354 for DATA, 334 for
// AUTH) has the effect that the default answer has.
func Reply(lines ...string) Behaviour {
	b := Raw(strings.Join(lines, "\r\n") + "\r\n")
	b.does = "answers " + strings.Join(lines, " / ")
	if n := len(lines); n > 0 && lines[n-1] != "" {
		b.accepted = lines[n-1][0] == '2' || strings.HasPrefix(lines[n-1], "354")
	}
	return b
}

// Raw answers with the octets as they are.
func Raw(data string) Behaviour {
	return Behaviour{does: fmt.Sprintf("sends %.60q", data), act: func(c *session) bool { return c.write(data) }}
}

// LongLine answers with one reply line of that many octets, line end included.
func LongLine(code string, octets int) Behaviour {
	b := Raw(code + " " + strings.Repeat("x", max(0, octets-len(code)-3)) + "\r\n")
	b.does = fmt.Sprintf("answers %s with a line of %d octets", code, octets)
	b.accepted = code != "" && code[0] == '2'
	return b
}

// ManyLines answers with one reply of n lines.
func ManyLines(code, text string, n int) Behaviour {
	var b strings.Builder
	for range n - 1 {
		fmt.Fprintf(&b, "%s-%s\r\n", code, text)
	}
	fmt.Fprintf(&b, "%s %s\r\n", code, text)
	r := Raw(b.String())
	r.does = fmt.Sprintf("answers %s with %d lines", code, n)
	r.accepted = code != "" && code[0] == '2'
	return r
}

// Silence answers nothing; later commands are read, and not answered either.
func Silence() Behaviour {
	return Behaviour{does: "says nothing any more", act: func(c *session) bool { c.mute = true; return true }}
}

// HalfLine sends text without a line end, and then nothing any more.
func HalfLine(text string) Behaviour {
	return Behaviour{does: fmt.Sprintf("sends %q and stops", text), act: func(c *session) bool {
		ok := c.write(text)
		c.mute = true
		return ok
	}}
}

// Dribble sends text again and again, every d, until the peer leaves or the test ends. It
// does not read.
func Dribble(d time.Duration, text string) Behaviour {
	return Behaviour{does: fmt.Sprintf("sends %q every %v", text, d), act: func(c *session) bool {
		tick := time.NewTicker(d)
		defer tick.Stop()
		for c.write(text) {
			select {
			case <-tick.C:
			case <-c.stop:
				return false
			}
		}
		return false
	}}
}

// Stall stops reading until the connection is closed by the peer or the test.
func Stall() Behaviour {
	return Behaviour{does: "stops reading", act: func(c *session) bool {
		<-c.stop
		return false
	}}
}

// Close closes the connection, after the lines if there are any.
func Close(lines ...string) Behaviour {
	does := "closes"
	if len(lines) > 0 {
		does = "answers " + strings.Join(lines, " / ") + " and closes"
	}
	return Behaviour{does: does, act: func(c *session) bool {
		for _, l := range lines {
			c.write(l + "\r\n")
		}
		return false
	}}
}

// Reset ends the connection with a RST.
func Reset() Behaviour {
	return Behaviour{does: "resets", act: func(c *session) bool {
		if tcp, ok := c.raw.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		return false
	}}
}

// ReadThen reads n octets of message data (at Body), or of anything, and then does b.
func ReadThen(n int64, b Behaviour) Behaviour {
	return Behaviour{does: fmt.Sprintf("reads %d octets and %s", n, b.does), act: func(c *session) bool {
		if _, err := io.CopyN(io.Discard, c.br, n); err != nil {
			return false
		}
		return b.act(c)
	}}
}

// When waits until ch is closed, and then does b.
func When(ch <-chan struct{}, b Behaviour) Behaviour {
	inner := b.act
	b.does += " when told"
	b.act = func(c *session) bool {
		select {
		case <-ch:
		case <-c.stop:
			return false
		}
		return inner(c)
	}
	return b
}

// After waits d, and then does b.
func After(d time.Duration, b Behaviour) Behaviour {
	inner := b.act
	b.does = fmt.Sprintf("%s after %v", b.does, d)
	b.act = func(c *session) bool {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.stop:
			return false
		}
		return inner(c)
	}
	return b
}

// BreakTLS, at STARTTLS, answers 220 and sends something that is no TLS.
func BreakTLS() Behaviour {
	b := Raw("220 2.0.0 Ready\r\nthis is no TLS handshake\r\n")
	b.does = "breaks the TLS handshake"
	return b
}

// OtherTLS, at STARTTLS, answers 220 and shakes hands with another configuration: a
// wrong certificate, an old version.
func OtherTLS(config *tls.Config) Behaviour {
	b := Reply("220 2.0.0 Ready")
	b.does, b.tls = "shows another certificate", config
	return b
}
