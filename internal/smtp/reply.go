package smtp

import (
	"strconv"
	"strings"
)

// A Reply is an SMTP reply (RFC 5321 section 4.2): "250-2.1.0 first", "250 2.1.0 last".
type Reply struct {
	Code     int      // 200 to 599
	Enhanced string   // "2.1.0" (RFC 2034), repeated on every line; "" for none
	Text     []string // the lines without code and line end; at least one, may be ""
}

// NewReply returns a reply; without text it has one empty line.
func NewReply(code int, enhanced string, text ...string) Reply {
	if len(text) == 0 {
		text = []string{""}
	}
	return Reply{Code: code, Enhanced: enhanced, Text: text}
}

// IsZero says that r is no reply at all.
func (r Reply) IsZero() bool { return r.Code == 0 }

// Class returns the first digit of the code: 2 success, 3 go on, 4 later, 5 no.
func (r Reply) Class() int { return r.Code / 100 }

// Append adds the wire form of r, each line with CRLF.
func (r Reply) Append(b []byte) []byte {
	for i, text := range r.Text {
		b = strconv.AppendInt(b, int64(r.Code), 10)
		if i < len(r.Text)-1 {
			b = append(b, '-')
		} else {
			b = append(b, ' ')
		}
		if r.Enhanced != "" {
			b = append(b, r.Enhanced...)
			b = append(b, ' ')
		}
		b = append(b, text...)
		b = append(b, '\r', '\n')
	}
	return b
}

// String returns the reply on one line, as log lines show it: "450 4.6.0 l1 l2".
func (r Reply) String() string {
	var b strings.Builder
	b.WriteString(strconv.Itoa(r.Code))
	if r.Enhanced != "" {
		b.WriteByte(' ')
		b.WriteString(r.Enhanced)
	}
	for _, text := range r.Text {
		b.WriteByte(' ')
		b.WriteString(text)
	}
	return b.String()
}
