package imap

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"
)

// A reader takes the server's answers apart.
type reader struct {
	br     *bufio.Reader // of maxLine octets
	budget int           // octets that may still be read for this command, besides message data
	code   string        // of the last status, as it came
}

// maxDepth of lists in lists.
const maxDepth = 20

func (r *reader) spend(n int) error {
	if r.budget -= n; r.budget < 0 {
		return protocolError("an answer of more than %d octets", maxAnswer)
	}
	return nil
}

// peek returns the next octet.
func (r *reader) peek() (byte, error) {
	b, err := r.br.Peek(1)
	if err != nil {
		return 0, eof(err)
	}
	return b[0], nil
}

// eof is the end of the connection where there should be something.
func eof(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// expect reads exactly s.
func (r *reader) expect(s string) error {
	for i := range len(s) {
		c, err := r.br.ReadByte()
		if err != nil {
			return eof(err)
		}
		if err := r.spend(1); err != nil {
			return err
		}
		if c != s[i] {
			return protocolError("%q where %q should be", c, s[i])
		}
	}
	return nil
}

// until reads up to an octet that ends, which stays, and returns a copy. The result has
// fewer than maxLine octets.
func (r *reader) until(ends func(byte) bool) (string, error) {
	for scanned := 0; ; {
		b, _ := r.br.Peek(r.br.Buffered())
		for i := scanned; i < len(b); i++ {
			if ends(b[i]) {
				s := string(b[:i])
				_, _ = r.br.Discard(i)
				return s, r.spend(i)
			}
		}
		if scanned = len(b); scanned == r.br.Size() {
			return "", protocolError("a line of more than %d octets", maxLine)
		}
		if _, err := r.br.Peek(scanned + 1); err != nil { // waits for more
			return "", eof(err)
		}
	}
}

// atom reads an atom, or * or +.
func (r *reader) atom() (string, error) {
	s, err := r.until(func(c byte) bool { return c <= ' ' || c >= 0x7f || strings.IndexByte(`(){"`, c) >= 0 })
	if err == nil && s == "" {
		c, _ := r.peek()
		err = protocolError("%q where a word should be", c)
	}
	return s, err
}

// text reads the rest of a line, with its end.
func (r *reader) text() (string, error) {
	s, err := r.until(func(c byte) bool { return c == '\n' })
	if err == nil {
		err = r.expect("\n")
	}
	return strings.TrimSuffix(s, "\r"), err
}

// end reads the end of a line.
func (r *reader) end() error {
	s, err := r.text()
	if err == nil && s != "" {
		err = protocolError("%.20q where a line should end", s)
	}
	return err
}

// A value is a string of the server: Text, unless the octets are still to be read.
type value struct {
	null    bool // NIL
	text    string
	literal bool   // size octets follow
	size    uint64 // of the literal
}

// nstring reads a string, or NIL. An atom is taken for a string, too.
func (r *reader) nstring() (v value, err error) {
	c, err := r.peek()
	switch {
	case err != nil:
		return v, err
	case c == '"':
		v.text, err = r.quoted()
		return v, err
	case c == '~' || c == '{':
		if c == '~' {
			if err := r.expect("~"); err != nil {
				return v, err
			}
		}
		v.literal = true
		v.size, err = r.literal()
		return v, err
	}
	v.text, err = r.until(func(c byte) bool { return c <= ' ' || c >= 0x7f || c == '(' || c == ')' || c == '"' })
	if err == nil && v.text == "" {
		err = protocolError("%q where a string should be", c)
	}
	if strings.EqualFold(v.text, "NIL") {
		return value{null: true}, err
	}
	return v, err
}

// quoted reads a quoted string.
func (r *reader) quoted() (string, error) {
	if err := r.expect(`"`); err != nil {
		return "", err
	}
	var b []byte
	for {
		part, err := r.until(func(c byte) bool { return c == '"' || c == '\\' || c == '\r' || c == '\n' })
		if err != nil {
			return "", err
		}
		if b = append(b, part...); len(b) > maxLine {
			return "", protocolError("a string of more than %d octets", maxLine)
		}
		switch c, _ := r.peek(); c {
		case '"':
			return string(b), r.expect(`"`)
		case '\\':
			if err := r.expect(`\`); err != nil {
				return "", err
			}
			c, err := r.peek()
			if err != nil {
				return "", err
			}
			if err := r.skip(1); err != nil {
				return "", err
			}
			b = append(b, c)
		default:
			return "", protocolError("a string that does not end")
		}
	}
}

// literal reads {n} and the end of the line.
func (r *reader) literal() (uint64, error) {
	if err := r.expect("{"); err != nil {
		return 0, err
	}
	s, err := r.until(func(c byte) bool { return c == '}' || c < ' ' })
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(s, "+"), 10, 63)
	if err != nil {
		return 0, protocolError("literal of %.20q octets", s)
	}
	if err := r.expect("}"); err != nil {
		return 0, err
	}
	return n, r.end()
}

// shortString reads a string of at most maxLine octets, whatever its form.
func (r *reader) shortString() (string, error) {
	v, err := r.nstring()
	if err != nil || !v.literal {
		return v.text, err
	}
	if v.size > maxLine {
		return "", protocolError("a string of %d octets", v.size)
	}
	if err := r.spend(int(v.size)); err != nil {
		return "", err
	}
	b := make([]byte, v.size)
	_, err = io.ReadFull(r.br, b)
	return string(b), eof(err)
}

// skip passes over octets.
func (r *reader) skip(n uint64) error {
	if n > maxAnswer {
		return protocolError("an answer of more than %d octets", maxAnswer)
	}
	if err := r.spend(int(n)); err != nil {
		return err
	}
	_, err := r.br.Discard(int(n))
	return eof(err)
}

// skipValue passes over a string, number or list.
func (r *reader) skipValue(depth int) error {
	c, err := r.peek()
	if err != nil {
		return err
	}
	if c != '(' {
		v, err := r.nstring()
		if err == nil && v.literal {
			err = r.skip(v.size)
		}
		return err
	}
	if depth == maxDepth {
		return protocolError("lists in lists")
	}
	if err := r.expect("("); err != nil {
		return err
	}
	for {
		switch c, err := r.peek(); {
		case err != nil:
			return err
		case c == ')':
			return r.expect(")")
		case c == ' ':
			err = r.expect(" ")
			if err != nil {
				return err
			}
		default:
			if err := r.skipValue(depth + 1); err != nil {
				return err
			}
		}
	}
}

// skipLine passes over the rest of a line, whatever strings it holds.
func (r *reader) skipLine() error {
	for {
		s, err := r.until(func(c byte) bool { return c == '\n' || c == '"' })
		if err != nil {
			return err
		}
		if c, _ := r.peek(); c == '"' {
			if _, err := r.quoted(); err != nil {
				return err
			}
			continue
		}
		if err := r.expect("\n"); err != nil {
			return err
		}
		s = strings.TrimSuffix(s, "\r")
		i := strings.LastIndexByte(s, '{')
		if i < 0 || !strings.HasSuffix(s, "}") {
			return nil
		}
		n, err := strconv.ParseUint(strings.TrimSuffix(s[i+1:len(s)-1], "+"), 10, 63)
		if err != nil {
			return nil
		}
		if err := r.skip(n); err != nil {
			return err
		}
	}
}
