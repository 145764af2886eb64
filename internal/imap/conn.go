// Package imap is the little of an IMAP client (RFC 3501) that BURL needs: to log in, to
// fetch one message or part of it, and to fetch what an URL with URLAUTH stands for
// (RFC 4467, RFC 5524). Message data is streamed, never held.
//
//	S: * OK [CAPABILITY ...] ready            or  * PREAUTH, which needs no login
//	C: A1 AUTHENTICATE PLAIN AGFs...
//	C: A2 EXAMINE "INBOX"
//	S: * OK [UIDVALIDITY 7] UIDs valid
//	C: A3 UID FETCH 1 (UID BODY.PEEK[])
//	S: * 1 FETCH (UID 1 BODY[] {55} and 55 octets, then ")" and A3 OK
//	C: A4 URLFETCH "imap://..."
//	S: * URLFETCH "imap://..." {55} and 55 octets, then A4 OK
//
// The server is not trusted: lines, and everything between two commands but message data,
// are bounded, and each wait has a deadline. Which server, which user and which URL is the
// caller's business.
package imap

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"dovetail/internal/timedconn"
)

const (
	// Timeout is how long each wait for the server lasts, unless Options say otherwise.
	Timeout = 2 * time.Minute

	maxLine   = 16 << 10 // octets of a line
	maxAnswer = 1 << 20  // octets a command may be answered with, besides message data
)

// Options say how patient a connection is.
type Options struct {
	Timeout time.Duration // of each wait; 0: Timeout
}

// A Conn is a connection to an IMAP server. It belongs to one goroutine at a time. Once a
// method returned an error that is no *StatusError the connection is of no use any more.
type Conn struct {
	nc   *timedconn.Conn
	in   reader
	caps []string // in upper case; nil while they are not known
	tag  int      // of the last command
	body *Body    // message data that is being read, nil otherwise
	err  error    // why the connection is of no use
	bye  *StatusError
	last *StatusError // of any kind, OK too

	// Preauth says that the server took us for logged in.
	Preauth bool
}

// A StatusError is a NO, BAD or BYE of the server. Text is for logs: it is the server's,
// printable and at most 500 octets long.
type StatusError struct {
	Status string // "NO", "BAD", "BYE"
	Code   string // what stood in brackets before the text: "AUTHENTICATIONFAILED"
	Text   string
}

func (e *StatusError) Error() string {
	s := "IMAP server answered " + e.Status
	if e.Code != "" {
		s += " [" + e.Code + "]"
	}
	return s + " " + e.Text
}

// ErrProtocol is wrapped by errors about what the server sent.
var ErrProtocol = errors.New("IMAP server broke the protocol")

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// New reads the server's greeting from nc, which it takes, also if it fails.
func New(ctx context.Context, nc net.Conn, o Options) (*Conn, error) {
	if o.Timeout == 0 {
		o.Timeout = Timeout
	}
	return open(ctx, nc, o, (*Conn).greeting)
}

// Resume takes a connection over which somebody else has logged in, up to the server's
// answer with tag, which is still to come and must name the capabilities: Dovecot says OK
// without them when it cannot serve the user after all. It takes nc, also if it fails.
func Resume(ctx context.Context, nc net.Conn, tag string, o Options) (*Conn, error) {
	return open(ctx, nc, o, func(c *Conn) error {
		c.in.budget = maxAnswer
		for {
			_, done, err := c.line(tag, nil)
			if err == nil && done && c.caps == nil {
				err = fmt.Errorf("IMAP session was not opened: %s", c.last.Text)
			}
			if err != nil && c.bye != nil && !done {
				err = c.bye
			}
			if err != nil || done {
				return err
			}
		}
	})
}

func open(ctx context.Context, nc net.Conn, o Options, begin func(*Conn) error) (*Conn, error) {
	if o.Timeout == 0 {
		o.Timeout = Timeout
	}
	c := &Conn{nc: timedconn.New(nc, o.Timeout)}
	c.in = reader{br: bufio.NewReaderSize(c.nc, maxLine)}
	defer c.nc.Bind(ctx)()
	if err := begin(c); err != nil {
		nc.Close()
		return nil, c.nc.Why(err)
	}
	return c, nil
}

func (c *Conn) greeting() error {
	c.in.budget = maxAnswer
	if err := c.in.expect("* "); err != nil {
		return err
	}
	word, err := c.in.atom()
	if err != nil {
		return err
	}
	st, err := c.status(strings.ToUpper(word))
	switch {
	case err != nil:
		return err
	case st == nil:
		return protocolError("greeting %q", word)
	case st.Status == "BYE":
		return st
	case st.Status == "PREAUTH":
		c.Preauth = true
	case st.Status != "OK":
		return protocolError("greeting %q", word)
	}
	return nil
}

// Close ends the connection without a word.
func (c *Conn) Close() error {
	if c.err == nil {
		c.err = net.ErrClosed
	}
	return c.nc.Close()
}

// Logout says goodbye, waits for the answer, and closes the connection.
func (c *Conn) Logout(ctx context.Context) error {
	defer c.Close()
	return c.command(ctx, "LOGOUT", nil)
}

// Has says whether the server has a capability, asking for them if need be.
func (c *Conn) Has(ctx context.Context, capability string) (bool, error) {
	if c.err != nil {
		return false, c.err
	}
	if c.caps == nil {
		if err := c.command(ctx, "CAPABILITY", nil); err != nil {
			return false, err
		}
		if c.caps == nil {
			return false, c.fail(protocolError("no CAPABILITY"))
		}
	}
	return slices.Contains(c.caps, strings.ToUpper(capability)), nil
}

// StartTLS protects the connection. The server's certificate is config's business.
func (c *Conn) StartTLS(ctx context.Context, config *tls.Config) error {
	if err := c.command(ctx, "STARTTLS", nil); err != nil {
		return err
	}
	if c.in.br.Buffered() > 0 {
		return c.fail(protocolError("data in clear behind the answer to STARTTLS"))
	}
	if err := c.nc.SetDeadline(time.Now().Add(c.nc.Timeout())); err != nil {
		return c.fail(err)
	}
	conn := tls.Client(c.nc.Conn, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return c.fail(err)
	}
	c.nc = timedconn.New(conn, c.nc.Timeout())
	c.in.br.Reset(c.nc)
	c.caps = nil
	return nil
}

// fail makes the connection useless, and returns why.
func (c *Conn) fail(err error) error {
	err = c.nc.Why(err)
	if c.bye != nil && !errors.Is(err, context.Canceled) {
		err = c.bye
	}
	if c.err == nil {
		c.err = err
		c.nc.Close()
	}
	return err
}

// command sends a command and reads everything up to its answer. A nil handler passes over
// all data.
func (c *Conn) command(ctx context.Context, text string, h handler) error {
	tag, unbind, err := c.send(ctx, text)
	if err != nil {
		return err
	}
	defer unbind()
	_, err = c.answer(tag, h)
	return err
}

// send begins a command. The caller calls unbind when ctx no longer matters.
func (c *Conn) send(ctx context.Context, text string) (tag string, unbind func(), err error) {
	switch {
	case c.err != nil:
		return "", nil, c.err
	case c.body != nil:
		return "", nil, errors.New("imap: message data has not been read to its end")
	case len(text) > maxLine || strings.ContainsAny(text, "\r\n\x00"):
		return "", nil, errors.New("imap: command cannot be sent")
	}
	c.tag++
	tag = "A" + strconv.Itoa(c.tag)
	unbind = c.nc.Bind(ctx)
	c.in.budget = maxAnswer
	if _, err := c.nc.Write([]byte(tag + " " + text + "\r\n")); err != nil {
		unbind()
		return "", nil, c.fail(err)
	}
	return tag, unbind, nil
}

// A handler is given each untagged answer that is no status: what stands behind "* ",
// with the number before it, if any. It reads the rest of the line. handled: it did; else
// the line is passed over. stop: it left message data to be read.
type handler func(word string, number uint64) (handled, stop bool, err error)

// answer reads until the answer with tag, or until h stops. An error that is no
// *StatusError makes the connection useless.
func (c *Conn) answer(tag string, h handler) (stopped bool, err error) {
	for {
		stopped, done, err := c.line(tag, h)
		var st *StatusError
		if err != nil && !(done && errors.As(err, &st)) {
			return false, c.fail(err)
		}
		if done || stopped {
			return stopped, err
		}
	}
}

// line reads one answer of the server.
func (c *Conn) line(tag string, h handler) (stopped, done bool, err error) {
	first, err := c.in.atom()
	if err != nil {
		return false, false, err
	}
	if first == "+" {
		return false, false, protocolError("continuation that nobody asked for")
	}
	if err := c.in.expect(" "); err != nil {
		return false, false, err
	}
	word, err := c.in.atom()
	if err != nil {
		return false, false, err
	}
	word = strings.ToUpper(word)
	if first != "*" {
		st, err := c.status(word)
		switch {
		case err != nil:
			return false, false, err
		case first != tag || st == nil || st.Status == "BYE" || st.Status == "PREAUTH":
			return false, false, protocolError("answer %.20q %.20q", first, word)
		case st.Status == "OK":
			return false, true, nil
		}
		return false, true, st
	}
	switch word {
	case "OK", "NO", "BAD", "BYE", "PREAUTH":
		st, err := c.status(word)
		if err == nil && st.Status == "BYE" {
			c.bye = st
		}
		return false, false, err
	case "CAPABILITY":
		text, err := c.in.text()
		c.caps = strings.Fields(strings.ToUpper(text))
		return false, false, err
	}
	var number uint64
	if n, err := strconv.ParseUint(word, 10, 32); err == nil {
		number = n
		if err := c.in.expect(" "); err != nil {
			return false, false, err
		}
		if word, err = c.in.atom(); err != nil {
			return false, false, err
		}
		word = strings.ToUpper(word)
	}
	if h != nil {
		handled, stopped, err := h(word, number)
		if handled || stopped || err != nil {
			return stopped, false, err
		}
	}
	return false, false, c.in.skipLine()
}

// status reads what stands behind OK, NO, BAD, BYE or PREAUTH; nil for another word. Of
// the codes it keeps CAPABILITY.
func (c *Conn) status(word string) (*StatusError, error) {
	if !slices.Contains([]string{"OK", "NO", "BAD", "BYE", "PREAUTH"}, word) {
		return nil, nil
	}
	text, err := c.in.text()
	if err != nil {
		return nil, err
	}
	st := &StatusError{Status: word, Text: strings.TrimSpace(text)}
	if rest, ok := strings.CutPrefix(st.Text, "["); ok {
		if code, rest, ok := strings.Cut(rest, "]"); ok {
			st.Code, st.Text = code, strings.TrimSpace(rest)
		}
	}
	if name, rest, _ := strings.Cut(st.Code, " "); strings.EqualFold(name, "CAPABILITY") {
		c.caps = strings.Fields(strings.ToUpper(rest))
	}
	c.in.code = st.Code
	st.Code, st.Text = printable(st.Code), printable(st.Text)
	c.last = st
	return st, nil
}

// printable cuts what the server sent to what can stand in a log.
func printable(s string) string {
	const most = 500
	b := []byte(s[:min(len(s), most)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
