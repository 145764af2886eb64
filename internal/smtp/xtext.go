package smtp

import (
	"strings"
)

const upperHex = "0123456789ABCDEF"

const (
	errXtextHex   reason = "Invalid hexchar after '+' in xtext"
	errXtextChar  reason = "Invalid character in xtext"
	errXtextNUL   reason = "Encountered NUL character in xtext"
	errXtextEmpty reason = "Empty address value"
)

// AppendXtext adds the xtext form of s (RFC 3461 section 4): what is not printable, space,
// "+" and "=" become "+" and two hexadecimal digits.
func AppendXtext(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; xchar.has(c) {
			b = append(b, c)
		} else {
			b = append(b, '+', upperHex[c>>4], upperHex[c&15])
		}
	}
	return b
}

// ParseXtext reverses AppendXtext. The result may hold anything but NUL.
func ParseXtext(s string) (string, error) {
	sc := scanner{s: s}
	value, err := sc.xtext()
	switch {
	case err != nil:
		return "", err
	case !sc.end():
		return "", errXtextChar
	case strings.IndexByte(value, 0) >= 0:
		return "", errXtextNUL
	}
	return value, nil
}

// xtext reads the longest run of xtext, which may be empty, and returns what it stands for.
func (p *scanner) xtext() (string, error) {
	value := p.take(&xchar)
	if !p.at('+') {
		return value, nil
	}
	b := append(make([]byte, 0, len(p.s)), value...)
	for p.skip('+') {
		if len(p.rest()) < 2 {
			return "", errXtextHex
		}
		hi := strings.IndexByte(upperHex, p.s[p.i])
		lo := strings.IndexByte(upperHex, p.s[p.i+1])
		if hi < 0 || lo < 0 {
			return "", errXtextHex
		}
		p.i += 2
		b = append(append(b, byte(hi<<4|lo)), p.take(&xchar)...)
	}
	return string(b), nil
}
