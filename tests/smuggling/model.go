// Package smuggling sends messages that could be taken for more than one message, and looks
// at what arrives: for each message in there is one message out, equal but for the
// documented normalisation (internal/README.md, rules of the data path), and no command that
// stands in a message is ever run. pipelining_test.go: where packets begin and end makes no
// difference.
package smuggling

import (
	"bytes"
	"strings"
)

// Normal is what becomes of text on its way: CRLF for a bare LF.
func Normal(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\n", "\r\n")
}

// Harmless is what becomes of it, besides, for a relay that gets it by DATA: whatever could
// be a line's start before a dot becomes one, and the last line is complete.
func Harmless(text string) string {
	text = Normal(text)
	var b strings.Builder
	start := true // of a line, for somebody
	for i := 0; i < len(text); i++ {
		rest := strings.TrimLeft(text[i:], "\x00")
		if start && strings.HasPrefix(rest, ".") {
			if i > 0 && text[i-1] == '\r' {
				b.WriteByte('\n')
			}
			i = len(text) - len(rest) // without NULs
		}
		b.WriteByte(text[i])
		start = text[i] == '\r' || text[i] == '\n'
	}
	if out := b.String(); out == "" || strings.HasSuffix(out, "\r\n") {
		return out
	}
	return b.String() + "\r\n"
}

// WithoutHeader returns a message without the first header, which we added.
func WithoutHeader(data []byte) string {
	for i := 0; ; {
		n := bytes.Index(data[i:], []byte("\r\n"))
		if n < 0 {
			return "no header: " + string(data)
		}
		if i += n + 2; i == len(data) || data[i] != '\t' {
			return string(data[i:])
		}
	}
}
