// Package imapurl reads and writes IMAP URLs (RFC 5092) with URLAUTH (RFC 4467), as BURL
// gets them, and says which of them a user of the submission service may use. It fetches
// nothing and knows neither SMTP nor IMAP.
//
//	imap://[user[;AUTH=x]@]host[:port]/mailbox[;UIDVALIDITY=n]/;UID=n[/;SECTION=s][/;PARTIAL=o[.n]]
//	       [[;EXPIRE=t];URLAUTH=access[:mechanism:token]]
//
// Names of parameters are case-insensitive; values are %-encoded. What is wrong with an URL
// is told in the words of Dovecot 2.3 (clause S7.3), which clients and admins know.
package imapurl

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxLength of an URL, in octets. A BURL line has at most 4096.
const MaxLength = 8192

// A URL is an IMAP URL, decoded. Strings of it may hold any octet but NUL.
type URL struct {
	User     string // "" if there is none
	AuthType string // "" if there is none
	Host     string // as it stands there, without a dot at its end; an IPv6 address in brackets
	Port     uint16 // 0 if there is none

	Mailbox     string // UTF-8, if the client is right; "" if there is none
	UIDValidity uint32 // 0 if there is none
	Search      string // of a list of messages
	UID         uint32 // 0: the URL is of a mailbox or list
	Section     string // "" is the whole message
	Partial     *Range // nil is all of the section

	// Of an URL with ;URLAUTH=
	Rump       string    // the URL up to the access, to the octet; "" if there is no URLAUTH
	Expire     time.Time // zero if there is none
	Access     string    // "submit", "user", "authuser", "anonymous", ...
	AccessUser string    // behind the access's +; "" if there is none
	Mechanism  string    // "" if the URL is a rump
	Token      []byte
}

// A Range is a part of a section: Size octets from Offset on, all that follow if Size is 0.
type Range struct{ Offset, Size uint64 }

// A fault is an error whose text is Dovecot's, and stands behind a colon in a reply.
type fault string

func (f fault) Error() string { return string(f) }

func faultf(format string, args ...any) error { return fault(fmt.Sprintf(format, args...)) }

// Parse reads an absolute URL. The error's text is one line of UTF-8 without
// control characters.
func Parse(s string) (*URL, error) {
	if len(s) > MaxLength {
		return nil, fault("URL is too long")
	}
	u, err := parse(s)
	if err != nil {
		return nil, fault(printable(err.Error()))
	}
	return u, nil
}

func parse(s string) (*URL, error) {
	u := &URL{}
	rest, isIMAP, err := cutScheme(s)
	if err != nil {
		return nil, err
	}
	authority := len(rest) > 2 && strings.HasPrefix(rest, "//")
	if authority {
		if rest, err = u.server(rest[2:]); err != nil {
			return nil, err
		}
	} else if isIMAP {
		return nil, fault("Absolute IMAP URL requires `//' after `imap:'")
	}
	segments, tail, err := path(rest)
	if err != nil {
		return nil, err
	}
	if !authority {
		return nil, fault("Relative URL not allowed")
	}
	if rest != tail {
		p := parser{u: u, url: s, segments: segments}
		if err := p.command(); err != nil {
			return nil, err
		}
	}
	return u, u.tail(tail, rest != tail && u.UID == 0)
}

// cutScheme takes off "imap:". What is no scheme at all is left.
func cutScheme(s string) (rest string, isIMAP bool, err error) {
	i := 0
	for i < len(s) && i < 64 && (isAlpha(s[i]) || i > 0 && (isDigit(s[i]) || strings.IndexByte("+-.", s[i]) >= 0)) {
		i++
	}
	if i == 0 || i == len(s) || s[i] != ':' {
		return s, false, nil
	}
	if !strings.EqualFold(s[:i], "imap") {
		return "", false, fault("Not an IMAP URL")
	}
	return s[i+1:], true, nil
}

// tail reads what stands behind the path: a search program, if list says that it may.
func (u *URL) tail(s string, list bool) error {
	if strings.HasPrefix(s, "?") {
		n, err := scan(s[1:], isQueryChar, "#", "Query")
		if err != nil {
			return err
		}
		query := s[1 : 1+n]
		s = s[1+n:]
		if !list {
			return fault("Search query part only valid for messagelist-type IMAP URL")
		}
		if query == "" {
			return fault("Empty IMAP URL search query not allowed")
		}
		if u.Search, err = decode(query); err != nil {
			return err
		}
	}
	if strings.HasPrefix(s, "#") {
		if _, err := scan(s[1:], isQueryChar, "", "Fragment"); err != nil {
			return err
		}
		return fault("Fragment component not allowed in IMAP URL")
	}
	return nil
}

// path splits the path of an URL into its segments, still encoded, and resolves those that
// are dots. tail begins with ? or # or is empty.
func path(s string) (segments []string, tail string, err error) {
	n, err := scan(s, func(c byte) bool { return isPathChar(c) || c == '/' }, "?#", "Path")
	if err != nil {
		return nil, "", err
	}
	last := ""
	for seg := range strings.SplitSeq(strings.TrimPrefix(s[:n], "/"), "/") {
		switch last = seg; seg {
		case ".":
		case "..":
			segments = segments[:max(len(segments)-1, 0)]
		default:
			segments = append(segments, seg)
		}
	}
	if last == "." || last == ".." {
		segments = append(segments, "")
	}
	return segments, s[n:], nil
}

// scan returns where a component of an URL ends: at one of stops, or with s. All of its
// characters must be ok, and its %-encodings right.
func scan(s string, ok func(byte) bool, stops, component string) (int, error) {
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '%':
			if _, err := hexOctet(s[i+1:]); err != nil {
				return 0, err
			}
			i += 2
		case strings.IndexByte(stops, s[i]) >= 0:
			return i, nil
		case !ok(s[i]):
			return 0, fault(component + " component contains invalid character")
		}
	}
	return len(s), nil
}

// decode takes the %-encoding off.
func decode(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			var err error
			if c, err = hexOctet(s[i+1:]); err != nil {
				return "", err
			}
			i += 2
		}
		b = append(b, c)
	}
	return string(b), nil
}

// hexOctet reads what stands behind a %.
func hexOctet(s string) (byte, error) {
	if len(s) < 2 {
		return 0, fault("Unexpected URI boundary after '%'")
	}
	hi, lo := hexDigit(s[0]), hexDigit(s[1])
	switch {
	case hi < 0:
		return 0, faultf("Expecting hex digit after '%%', but found '%c'", s[0])
	case lo < 0:
		return 0, faultf("Expecting hex digit after '%%%c', but found '%c'", s[0], s[1])
	case hi == 0 && lo == 0:
		return 0, fault("Percent encoding is not allowed to encode NUL character")
	}
	return byte(hi<<4 | lo), nil
}

func hexDigit(c byte) int {
	switch {
	case isDigit(c):
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// number reads an IMAP number of so many bits.
func number(s string, bits int) (uint64, error) {
	if s == "" || !isDigit(s[0]) {
		return 0, faultf("Value '%s' is not a valid IMAP number", s)
	}
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		return 0, fault("IMAP number is too high")
	}
	return n, nil
}

func isAlpha(c byte) bool      { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isDigit(c byte) bool      { return c >= '0' && c <= '9' }
func isUnreserved(c byte) bool { return isAlpha(c) || isDigit(c) || strings.IndexByte("-._~", c) >= 0 }
func isSubDelim(c byte) bool   { return strings.IndexByte("!$&'()*+,;=", c) >= 0 }
func isUserChar(c byte) bool   { return isUnreserved(c) || isSubDelim(c) || c == ':' || c == '%' }
func isPathChar(c byte) bool   { return isUnreserved(c) || isSubDelim(c) || c == ':' || c == '@' }
func isQueryChar(c byte) bool  { return isPathChar(c) || c == '/' || c == '?' }

// printable replaces what must not stand in a reply: control characters, which would end
// the line, and what is no UTF-8.
func printable(s string) string {
	bad := func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError }
	if strings.IndexFunc(s, bad) < 0 {
		return s
	}
	return strings.Map(func(r rune) rune {
		if bad(r) {
			return '?'
		}
		return r
	}, s)
}
