package imap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

var (
	// ErrNotFound: there is no such message (any more).
	ErrNotFound = errors.New("Message not found") //lint:ignore ST1005 Dovecot's words

	// ErrRefused: the server does not give out what the URL stands for, and says no more.
	ErrRefused = errors.New("URL refused")
)

// A Body is message data. It must be read to its end, or closed, before the connection can
// do anything else. It belongs to the connection's goroutine.
type Body struct {
	Size uint64 // octets

	c      *Conn
	left   uint64
	text   string       // what there is, if it did not come as a literal
	finish func() error // reads the rest of the answer, up to the tag
	unbind func()
	err    error // what Read returns; io.EOF at the end
}

// Read implements io.Reader. After all octets it reads the server's answer, and returns
// io.EOF only if that is OK: before, nothing has been fetched.
func (b *Body) Read(p []byte) (n int, err error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.left > 0 {
		if uint64(len(p)) > b.left {
			p = p[:b.left]
		}
		if b.text != "" {
			n = copy(p, b.text)
			b.text = b.text[n:]
		} else if n, err = b.c.in.br.Read(p); err != nil {
			b.end(b.c.fail(eof(err)))
			return n, b.err
		}
		b.left -= uint64(n)
		return n, nil
	}
	if err = b.finish(); err == nil {
		err = io.EOF
	}
	b.end(err)
	return 0, b.err
}

// end is the end, however it came.
func (b *Body) end(err error) {
	b.err = err
	b.c.body = nil
	b.unbind()
}

// Close leaves the rest: unless all was read, it closes the connection.
func (b *Body) Close() error {
	if b.err == nil {
		b.end(b.c.fail(errors.New("imap: message data was not wanted")))
	}
	return nil
}

// Examine opens a mailbox for reading. name is UTF-8, with the server's own separator.
// validity is 0 if the server does not tell. A refusal is a *StatusError.
func (c *Conn) Examine(ctx context.Context, name string) (validity uint32, err error) {
	encoded, err := EncodeName(name)
	if err != nil {
		return 0, err
	}
	q, _ := quote(encoded)
	tag, unbind, err := c.send(ctx, "EXAMINE "+q)
	if err != nil {
		return 0, err
	}
	defer unbind()
	for {
		c.in.code = ""
		_, done, err := c.line(tag, nil)
		if word, n, _ := strings.Cut(c.in.code, " "); strings.EqualFold(word, "UIDVALIDITY") {
			if v, err := strconv.ParseUint(n, 10, 32); err == nil {
				validity = uint32(v)
			}
		}
		var st *StatusError
		if err != nil && !(done && errors.As(err, &st)) {
			return 0, c.fail(err)
		}
		if done {
			return validity, err
		}
	}
}

// A Part says what of a message is wanted. Section is RFC 3501's, "" is all of it; it
// stands in the command as it is (see imapurl.ParseSection). If Partial is set, it is Size
// octets from Offset on; Size 0 is all that follow.
type Part struct {
	Section      string
	Partial      bool
	Offset, Size uint64
}

// wholeRest is the size that stands for all the rest: the largest that RFC 3501 allows.
const wholeRest = 1<<32 - 1

// Fetch fetches part of a message of the mailbox that is open. ErrNotFound, and a refusal
// (a *StatusError), leave the connection usable.
func (c *Conn) Fetch(ctx context.Context, uid uint32, p Part) (*Body, error) {
	item := "BODY.PEEK[" + p.Section + "]"
	if p.Partial {
		size := p.Size
		if size == 0 {
			size = wholeRest
		}
		item += fmt.Sprintf("<%d.%d>", p.Offset, size)
	}
	return c.fetch(ctx, fmt.Sprintf("UID FETCH %d (UID %s)", uid, item), ErrNotFound, func(word string, _ uint64) (bool, *Body, error) {
		if word != "FETCH" {
			return false, nil, nil
		}
		body, err := c.fetched(uid)
		return true, body, err
	})
}

// fetch sends a command, and returns the data that find finds in its answers, of which
// there may be one. Without any it returns missing.
func (c *Conn) fetch(ctx context.Context, text string, missing error, find func(word string, number uint64) (handled bool, body *Body, err error)) (*Body, error) {
	tag, unbind, err := c.send(ctx, text)
	if err != nil {
		return nil, err
	}
	var body *Body
	h := func(word string, number uint64) (handled, stop bool, err error) {
		handled, b, err := find(word, number)
		if b != nil && err == nil {
			if body != nil {
				return true, false, protocolError("the same data twice")
			}
			body = b
			return true, true, nil
		}
		return handled, false, err
	}
	if _, err = c.answer(tag, h); err != nil || body == nil {
		unbind()
		if err == nil {
			err = missing
		}
		return nil, err
	}
	line := body.finish
	body.c, body.left, body.unbind = c, body.Size, unbind
	body.finish = func() error {
		if err := line(); err != nil {
			return c.fail(err)
		}
		_, err := c.answer(tag, h)
		return err
	}
	c.body = body
	return body, nil
}

// fetched reads the list of a FETCH answer up to the data of a section, if there is one.
func (c *Conn) fetched(uid uint32) (*Body, error) {
	if err := c.in.expect(" ("); err != nil {
		return nil, err
	}
	seen := uint64(uid)
	var body *Body
	items := func() error { // reads on, to the data or the end of the line
		for {
			switch b, err := c.in.peek(); {
			case err != nil:
				return err
			case b == ')':
				if err := c.in.expect(")"); err != nil {
					return err
				}
				return c.in.end()
			case b == ' ':
				if err := c.in.expect(" "); err != nil {
					return err
				}
			}
			name, err := c.in.item()
			if err != nil {
				return err
			}
			if err := c.in.expect(" "); err != nil {
				return err
			}
			switch name = strings.ToUpper(name); {
			case name == "UID":
				v, err := c.in.nstring()
				if err != nil {
					return err
				}
				if seen, err = strconv.ParseUint(v.text, 10, 32); err != nil || v.literal {
					return protocolError("UID %.20q", v.text)
				}
			case strings.HasPrefix(name, "BODY[") && body == nil:
				v, err := c.in.nstring()
				if err != nil {
					return err
				}
				body = newBody(v)
				return nil
			default:
				if err := c.in.skipValue(0); err != nil {
					return err
				}
			}
		}
	}
	if err := items(); err != nil || body == nil {
		return nil, err // news about flags
	}
	check := func() error {
		if seen != uint64(uid) {
			return protocolError("message %d, but %d was asked for", seen, uid)
		}
		return nil
	}
	body.finish = func() error {
		if err := items(); err != nil {
			return err
		}
		return check()
	}
	return body, check()
}

// newBody makes a body of a string. NIL is no octets.
func newBody(v value) *Body {
	b := &Body{Size: v.size, text: v.text}
	if !v.literal {
		b.Size = uint64(len(v.text))
	}
	return b
}

// item reads the name of an item of FETCH, with what it has in brackets.
func (r *reader) item() (string, error) {
	name, err := r.until(func(c byte) bool { return c <= ' ' || c == '[' || c == '(' || c == ')' })
	if err != nil {
		return "", err
	}
	if c, _ := r.peek(); c != '[' {
		if name == "" {
			return "", protocolError("%q where an item should be", c)
		}
		return name, nil
	}
	quoted, escaped := false, false
	section, err := r.until(func(c byte) bool {
		switch {
		case escaped:
			escaped = false
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			escaped = true
		}
		return c < ' ' || c == ']' && !quoted
	})
	if err != nil {
		return "", err
	}
	if err := r.expect("]"); err != nil {
		return "", err
	}
	origin, err := r.until(func(c byte) bool { return c <= ' ' })
	return name + section + "]" + origin, err
}

// URLFetch fetches what an URL with URLAUTH stands for. If the server has URLAUTH=BINARY it
// is asked in the way of RFC 5524, in which data may hold NUL octets. ErrRefused: it says
// NIL. A refusal may also be a *StatusError. Both leave the connection usable.
func (c *Conn) URLFetch(ctx context.Context, url string) (*Body, error) {
	q, ok := quote(url)
	if !ok {
		return nil, errors.New("imap: URL is not printable ASCII")
	}
	extended, err := c.Has(ctx, "URLAUTH=BINARY")
	if err != nil {
		return nil, err
	}
	text := "URLFETCH " + q
	if extended {
		text = "URLFETCH (" + q + " BODY)"
	}
	return c.fetch(ctx, text, ErrRefused, func(word string, _ uint64) (bool, *Body, error) {
		if word != "URLFETCH" {
			return false, nil, nil
		}
		body, err := c.urlFetched(url)
		return true, body, err
	})
}

// urlFetched reads a URLFETCH answer: the URL, and either a string, or (RFC 5524) lists
// like (BODY string).
func (c *Conn) urlFetched(url string) (*Body, error) {
	if err := c.in.expect(" "); err != nil {
		return nil, err
	}
	got, err := c.in.shortString()
	if err != nil {
		return nil, err
	}
	if got != url {
		return nil, protocolError("data of another URL than was asked for")
	}
	if err := c.in.expect(" "); err != nil {
		return nil, err
	}
	b, err := c.in.peek()
	if err != nil {
		return nil, err
	}
	listed := b == '('
	if listed {
		if err := c.in.expect("("); err != nil {
			return nil, err
		}
		name, err := c.in.shortString()
		if err != nil {
			return nil, err
		}
		if !strings.EqualFold(name, "BODY") {
			return nil, protocolError("item %.20q, but BODY was asked for", name)
		}
		if err := c.in.expect(" "); err != nil {
			return nil, err
		}
	}
	v, err := c.in.nstring()
	if err != nil {
		return nil, err
	}
	finish := func() error {
		if listed {
			if err := c.in.expect(")"); err != nil {
				return err
			}
		}
		return c.in.end()
	}
	if v.null {
		return nil, finish()
	}
	body := newBody(v)
	body.finish = finish
	return body, nil
}
