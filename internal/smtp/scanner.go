package smtp

import (
	"net/netip"
	"strings"
)

// A reason is an error whose text replies show, so it begins like a sentence.
type reason string

func (r reason) Error() string { return string(r) }

// A scanner reads a text from left to right. Its methods return false and leave the place
// where it is when the thing they look for does not begin there.
type scanner struct {
	s string
	i int
}

func (p *scanner) end() bool { return p.i >= len(p.s) }

// at says whether the next character is c.
func (p *scanner) at(c byte) bool { return p.i < len(p.s) && p.s[p.i] == c }

// skip steps over the next character if it is c.
func (p *scanner) skip(c byte) bool {
	if p.at(c) {
		p.i++
		return true
	}
	return false
}

// take returns the longest run of characters of set, which may be empty.
func (p *scanner) take(set *charset) string {
	n := set.span(p.s[p.i:])
	p.i += n
	return p.s[p.i-n : p.i]
}

// rest returns what was not read yet.
func (p *scanner) rest() string { return p.s[p.i:] }

const (
	errQuotedPair reason = `Invalid character after '\' in quoted string`
	errQuotedEnd  reason = "Premature end of quoted string"
	errQuotedChar reason = "Invalid character in quoted string"
)

// quotedString reads a quoted string and returns what it stands for (RFC 5321 section
// 4.1.2).
func (p *scanner) quotedString() (value string, ok bool, err error) {
	if !p.at('"') {
		return "", false, nil
	}
	p.i++
	value = p.take(&qtext)
	for p.skip('\\') {
		if p.end() || !graphic.has(p.s[p.i]) {
			return "", false, errQuotedPair
		}
		p.i++
		value += p.s[p.i-1:p.i] + p.take(&qtext)
	}
	switch {
	case p.end():
		return "", false, errQuotedEnd
	case !p.skip('"'):
		return "", false, errQuotedChar
	}
	return value, true, nil
}

const (
	errSubdomain  reason = "Empty sub-domain"
	errDomainChar reason = "Invalid character in domain"
)

// domain reads a domain. Beyond RFC 5321, a label may begin and end with "-" and hold "_".
func (p *scanner) domain() (value string, ok bool, err error) {
	start := p.i
	if p.end() || !label.has(p.s[p.i]) {
		return "", false, nil
	}
	for {
		if p.take(&label) == "" {
			if p.end() || p.at('.') {
				return "", false, errSubdomain
			}
			return "", false, errDomainChar
		}
		if !p.skip('.') {
			return p.s[start:p.i], true, nil
		}
	}
}

const (
	errLiteral      reason = "Invalid address literal"
	errLiteralIPv4  reason = "Invalid IPv4 address literal"
	errLiteralIPv6  reason = "Invalid IPv6 address literal"
	errLiteralEmpty reason = "Empty address literal"
	errLiteralEnd   reason = "Missing ']' at end of address literal"
	errLiteralChar  reason = "Invalid character in address literal"
)

// addressLiteral reads "[192.0.2.1]", "[IPv6:2001:db8::1]" or "[tag:anything]", and
// returns it with its brackets.
func (p *scanner) addressLiteral() (value string, ok bool, err error) {
	start := p.i
	if !p.skip('[') {
		return "", false, nil
	}
	if c := p.peek(); '0' <= c && c <= '9' {
		if !p.ipv4() {
			return "", false, errLiteralIPv4
		}
	} else if err := p.taggedLiteral(); err != nil {
		return "", false, err
	}
	switch {
	case p.end():
		return "", false, errLiteralEnd
	case !p.skip(']'):
		return "", false, errLiteralChar
	}
	return p.s[start:p.i], true, nil
}

// peek returns the next character, NUL at the end.
func (p *scanner) peek() byte {
	if p.end() {
		return 0
	}
	return p.s[p.i]
}

// ipv4 reads four numbers of up to 255. Any number of leading zeros is fine, and so is
// the end of the text after each number: what is missing then is the bracket.
func (p *scanner) ipv4() bool {
	for n := 0; ; n++ {
		digits, octet := 0, 0
		for c := p.peek(); '0' <= c && c <= '9'; c = p.peek() {
			if octet = octet*10 + int(c-'0'); octet > 255 {
				return false
			}
			digits++
			p.i++
		}
		if digits == 0 {
			return false
		}
		if n == 3 || p.end() {
			return true
		}
		if !p.skip('.') {
			return false
		}
	}
}

// taggedLiteral reads what stands between the brackets when it is no IPv4 address.
func (p *scanner) taggedLiteral() error {
	tag := p.take(&keyword)
	// A tag ends with a letter or digit.
	trimmed := strings.TrimRight(tag, "-")
	p.i -= len(tag) - len(trimmed)
	if trimmed == "" || !p.skip(':') {
		return errLiteral
	}
	content := p.take(&dcontent)
	if content == "" {
		return errLiteralEmpty
	}
	if strings.EqualFold(trimmed, "IPv6") {
		ip, err := netip.ParseAddr(content)
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return errLiteralIPv6
		}
	}
	return nil
}
