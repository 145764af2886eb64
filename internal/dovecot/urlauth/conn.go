// Package urlauth gets from Dovecot what an IMAP URL stands for, in the name of a user of
// the submission service. It decides nothing: which way an URL may go is the business of
// package submission/burl.
//
// URLs with URLAUTH are resolved by the imap-urlauth service, protocol version 2 (clauses
// P7.2 to P7.6), whoever's they are:
//
//	C: VERSION imap-urlauth 2 0                         only by the service's own socket
//	C: AUTH submission <pid> <user> <session> <token>   likewise
//	S: OK                                               or FAILED, and close
//	C: USER <target user>
//	S: OK                                               or NO: there is no such user
//	C: URL <url> body
//	S: OK <size>                                        then size octets, and LF if size > 0
//	   NO                                               or NO error=<text>
//	C: END
//	S: OK                                               another USER may follow
//
// There are two ways to it. Dial uses the service's own socket; but in Dovecot 2.3 what
// listens there aborts on every AUTH (clause P7.10). Sockets.URLAuth goes round that: it
// logs in with the token at the auth service and hands a connection over to the service
// behind (clause P7.11).
//
// Other URLs, of the user himself, need an IMAP session as that user. Again there are two
// ways: Sockets.IMAP logs in with the token and hands a connection over to the imap service
// (clause P7.12), and Exec runs Dovecot's imap program as the user (clause P7.13).
//
// What each way needs:
//
//	way              before root is dropped                      afterwards
//	Dial             nothing                                     <base_dir>/imap-urlauth (0666)
//	Sockets.URLAuth  Open                                        the user's uid, /proc, the token of the login
//	Sockets.IMAP     Open                                        /proc, the token of the login; a real userdb
//	Exec             the settings of imap for this user          the user's uid; to run programs
//
// Their connections speak IMAP, which is package imap's business.
//
// The token is auth_token of the USER reply (package authmaster): it is bound to process
// id, user and session of the login. None of the ways works in a user's chroot.
package urlauth

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/timedconn"
)

const (
	// Timeout is how long each wait for a service lasts, as in Dovecot (clause P7.8).
	Timeout = 2 * time.Minute

	// MaxRequest is the length of a line to the imap-urlauth service, with its LF.
	MaxRequest = 2048

	maxReply = 16 << 10 // octets of a line from it
)

// A Login is a login at the submission service, as the auth service knows it.
type Login struct {
	PID     int    // of the process that claimed it
	User    string // user name, of the USER reply
	Session string // session id of the login
	Token   string // auth_token of the USER reply: a secret
}

var (
	// ErrDenied: the service does not take the login.
	ErrDenied = errors.New("imap-urlauth service denied access")
	// ErrNoUser: there is no user of that name.
	ErrNoUser = errors.New("no such user")
	// ErrTooLong: the URL, or user name, is longer than the service takes.
	ErrTooLong = errors.New("URL is too long for the imap-urlauth service")
)

// A RefusedError says that the service does not give out what an URL stands for. Text is
// its reason (clause S7.6), "" if it tells none: a wrong token, no access to the mailbox.
type RefusedError struct{ Text string }

func (e *RefusedError) Error() string {
	if e.Text == "" {
		return "URL refused"
	}
	return e.Text
}

// ErrProtocol is wrapped by errors about what the service sent.
var ErrProtocol = errors.New("imap-urlauth service broke the protocol")

// A Conn is a session with the imap-urlauth service. It belongs to one goroutine at a
// time. After an error that is neither ErrNoUser, ErrTooLong nor a *RefusedError it is of
// no use any more.
type Conn struct {
	nc     *timedconn.Conn
	br     *bufio.Reader
	target string // user of the last USER; "" if none
	body   *Body  // that is being read
	err    error  // why the connection is of no use
}

// Dial connects to the imap-urlauth service's socket at path. ErrDenied: the token is
// wrong. io.ErrUnexpectedEOF: the service closed, as the broken one of Dovecot 2.3 does.
func Dial(ctx context.Context, path string, l Login) (*Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	c := newConn(nc, Timeout)
	line := tabline.Append(nil, "VERSION", "imap-urlauth", "2", "0")
	line = tabline.Append(line, "AUTH", "submission", strconv.Itoa(l.PID), l.User, l.Session, l.Token)
	reply, err := c.exchange(ctx, line)
	return c.begun(reply, err)
}

func newConn(nc net.Conn, timeout time.Duration) *Conn {
	t := timedconn.New(nc, timeout)
	return &Conn{nc: t, br: bufio.NewReaderSize(t, maxReply)}
}

// begun looks at the answer to AUTH.
func (c *Conn) begun(reply []string, err error) (*Conn, error) {
	switch {
	case err != nil:
	case len(reply) == 1 && reply[0] == "OK":
		return c, nil
	case reply[0] == "FAILED":
		err = ErrDenied
	default:
		err = fmt.Errorf("%w: %.50q in answer to AUTH", ErrProtocol, reply[0])
	}
	c.nc.Close()
	return nil, err
}

// Close ends the session.
func (c *Conn) Close() error {
	if c.err == nil {
		c.err = net.ErrClosed
	}
	return c.nc.Close()
}

// fail makes the session useless.
func (c *Conn) fail(err error) error {
	err = c.nc.Why(err)
	if c.err == nil {
		c.err = err
		c.nc.Close()
	}
	return err
}

// exchange sends a line, and returns the fields of the answer.
func (c *Conn) exchange(ctx context.Context, line []byte) ([]string, error) {
	switch {
	case c.err != nil:
		return nil, c.err
	case c.body != nil:
		return nil, errors.New("urlauth: data of an URL has not been read to its end")
	case len(line) > MaxRequest:
		return nil, ErrTooLong
	}
	defer c.nc.Bind(ctx)()
	if _, err := c.nc.Write(line); err != nil {
		return nil, c.fail(err)
	}
	return c.readLine()
}

// readLine reads the fields of a line, at least one.
func (c *Conn) readLine() ([]string, error) {
	line, err := c.br.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, c.fail(fmt.Errorf("%w: a line of more than %d octets", ErrProtocol, maxReply))
	case errors.Is(err, io.EOF):
		return nil, c.fail(io.ErrUnexpectedEOF)
	case err != nil:
		return nil, c.fail(err)
	}
	return tabline.Split(strings.TrimSuffix(string(line[:len(line)-1]), "\r")), nil
}

// Fetch returns what url stands for, in the mailbox of user, who is the one it names.
func (c *Conn) Fetch(ctx context.Context, user, url string) (*Body, error) {
	if err := c.choose(ctx, user); err != nil {
		return nil, err
	}
	reply, err := c.exchange(ctx, tabline.Append(nil, "URL", url, "body"))
	if err != nil {
		return nil, err
	}
	switch fields := tabline.ParseFields(reply[1:]); {
	case reply[0] == "NO":
		text, _ := fields.Get("error")
		return nil, &RefusedError{printable(text)}
	case reply[0] != "OK" || len(reply) < 2:
		return nil, c.fail(fmt.Errorf("%w: %.50q in answer to URL", ErrProtocol, reply[0]))
	}
	size, err := strconv.ParseUint(reply[len(reply)-1], 10, 63)
	if err != nil {
		return nil, c.fail(fmt.Errorf("%w: size %.50q", ErrProtocol, reply[len(reply)-1]))
	}
	c.body = &Body{Size: size, c: c, left: size, unbind: c.nc.Bind(ctx)}
	return c.body, nil
}

// choose makes user the one whose URLs are fetched.
func (c *Conn) choose(ctx context.Context, user string) error {
	if user == c.target && c.target != "" {
		return nil
	}
	if c.target != "" {
		c.target = ""
		switch reply, err := c.exchange(ctx, tabline.Append(nil, "END")); {
		case err != nil:
			return err
		case reply[0] != "OK":
			return c.fail(fmt.Errorf("%w: %.50q in answer to END", ErrProtocol, reply[0]))
		}
	}
	reply, err := c.exchange(ctx, tabline.Append(nil, "USER", user))
	switch {
	case err != nil:
		return err
	case reply[0] == "NO":
		return ErrNoUser
	case reply[0] != "OK":
		return c.fail(fmt.Errorf("%w: %.50q in answer to USER", ErrProtocol, reply[0]))
	}
	c.target = user
	return nil
}

// A Body is what an URL stands for. It must be read to its end, or closed, before the
// session can do anything else.
type Body struct {
	Size uint64 // octets

	c      *Conn
	left   uint64
	unbind func()
	err    error // what Read returns; io.EOF at the end
}

// Read implements io.Reader. It returns io.EOF only if all octets came, and what must
// follow them.
func (b *Body) Read(p []byte) (n int, err error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.left > 0 {
		if uint64(len(p)) > b.left {
			p = p[:b.left]
		}
		n, err = b.c.br.Read(p)
		b.left -= uint64(n)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			b.end(b.c.fail(err))
			return n, b.err
		}
		return n, nil
	}
	err = io.EOF
	if b.Size > 0 {
		switch c, readErr := b.c.br.ReadByte(); {
		case errors.Is(readErr, io.EOF):
			err = b.c.fail(io.ErrUnexpectedEOF)
		case readErr != nil:
			err = b.c.fail(readErr)
		case c != '\n':
			err = b.c.fail(fmt.Errorf("%w: %q behind the data", ErrProtocol, c))
		}
	}
	b.end(err)
	return 0, b.err
}

func (b *Body) end(err error) {
	b.err = err
	b.c.body = nil
	b.unbind()
}

// Close leaves the rest: unless all was read, the session ends.
func (b *Body) Close() error {
	if b.err == nil {
		b.end(b.c.fail(errors.New("urlauth: data of an URL was not wanted")))
	}
	return nil
}

// printable cuts what a service sent to what can stand in a log or reply.
func printable(s string) string {
	const most = 2 * MaxRequest
	b := []byte(s[:min(len(s), most)])
	for i, c := range b {
		if c < ' ' || c == 0x7f {
			b[i] = '?'
		}
	}
	return strings.ToValidUTF8(string(b), "?")
}
