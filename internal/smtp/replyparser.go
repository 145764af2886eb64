package smtp

import (
	"bytes"
	"strconv"
)

// Bounds of a reply (architecture: what a relay says does not grow without end).
const (
	MaxReplyLine  = 2048     // octets kept of a line's text; what is longer is cut
	MaxReplyLines = 100      // lines kept of a reply; further ones are dropped
	maxReply      = 16 << 20 // octets of a whole reply, cut and dropped ones included
)

const (
	errReplyCode    reason = "Invalid status code in reply"
	errReplyCodes   reason = "Inconsistent status codes in reply"
	errReplyStrayCR reason = "Encountered stray CR in reply text"
	errReplySize    reason = "Reply exceeds size limit"
)

// A ReplyParser reads replies out of a stream that comes in pieces (clause S4.7). The zero
// ReplyParser is ready. Between two replies it holds no memory.
type ReplyParser struct {
	// Ehlo lets the first of several lines of a 250 hold any ASCII character (RFC 5321
	// section 4.1.1.1).
	Ehlo bool

	code  int
	lines []string
	part  []byte // beginning of a line whose end has not come; at most MaxReplyLine+lineRoom
	cut   bool   // part has lost its end
	size  int
}

// lineRoom is what a line has besides its text: "250-", CRLF and one octet too many.
const lineRoom = 7

// Partial says whether a reply has begun and not ended.
func (p *ReplyParser) Partial() bool { return p.size > 0 }

// Parse reads b up to the end of a reply and returns how much it took. ok says that the
// reply is complete; otherwise all of b was taken. After an error nothing more can be read.
// r has no Enhanced code: see Forward.
func (p *ReplyParser) Parse(b []byte) (n int, r Reply, ok bool, err error) {
	for n < len(b) {
		line := b[n:]
		end := bytes.IndexByte(line, '\n')
		if end >= 0 {
			line = line[:end]
			n++
		}
		n += len(line)
		if p.size += len(line) + 1; p.size > maxReply {
			return n, Reply{}, false, errReplySize
		}
		if end < 0 {
			return n, Reply{}, false, p.keep(line)
		}
		if len(p.part) > 0 {
			if err := p.keep(line); err != nil {
				return n, Reply{}, false, err
			}
			line = p.part
		}
		last, err := p.line(line)
		if err != nil {
			return n, Reply{}, false, err
		}
		p.part, p.cut = p.part[:0], false
		if last {
			r = Reply{Code: p.code, Text: p.lines}
			*p = ReplyParser{Ehlo: p.Ehlo}
			return n, r, true, nil
		}
	}
	return n, Reply{}, false, nil
}

// keep stores the beginning of a line. What can never become a reply fails at once.
func (p *ReplyParser) keep(piece []byte) error {
	room := MaxReplyLine + lineRoom - len(p.part)
	if p.part == nil {
		p.part = make([]byte, 0, 64)
	}
	if len(piece) <= room {
		p.part = append(p.part, piece...)
	} else {
		p.part = append(p.part, piece[:room]...)
		p.cut = true
		// What is cut off is not looked at again, so it is now.
		if err := p.checkText(trimCR(piece[room:])); err != nil {
			return err
		}
	}
	for i, c := range p.part[:min(3, len(p.part))] {
		if !codeDigit(i, c) {
			return errReplyCode
		}
	}
	return nil
}

// codeDigit says whether c can be the digit of a code at place i.
func codeDigit(i int, c byte) bool {
	switch i {
	case 0:
		return '2' <= c && c <= '5'
	case 1:
		return '0' <= c && c <= '5'
	}
	return '0' <= c && c <= '9'
}

func trimCR(b []byte) []byte { return bytes.TrimSuffix(b, []byte{'\r'}) }

// line reads a line without its LF.
func (p *ReplyParser) line(b []byte) (last bool, err error) {
	if len(b) < 3 || !codeDigit(0, b[0]) || !codeDigit(1, b[1]) || !codeDigit(2, b[2]) {
		return false, errReplyCode
	}
	code := int(b[0]-'0')*100 + int(b[1]-'0')*10 + int(b[2]-'0')
	first := p.code == 0
	if first {
		p.code = code
	} else if code != p.code {
		return false, errReplyCodes
	}
	b = trimCR(b[3:])
	last = len(b) == 0 || b[0] != '-'
	if len(b) > 0 {
		switch c := b[0]; {
		case '0' <= c && c <= '9':
			return false, errReplyCode
		case c == '\r':
			return false, errReplyStrayCR
		case c != ' ' && c != '-':
			return false, reason("Encountered unexpected " + printable(c) + " after reply status code")
		}
		b = b[1:]
	}
	if p.Ehlo && first && code == 250 && !last {
		b = asciiText(b)
	}
	if err := p.checkText(b); err != nil {
		return false, err
	}
	if len(p.lines) < MaxReplyLines {
		p.lines = append(p.lines, string(b[:min(len(b), MaxReplyLine)]))
	}
	return last, nil
}

// asciiText returns a copy of b with spaces for control characters.
func asciiText(b []byte) []byte {
	b = bytes.Clone(b)
	for i, c := range b {
		if c < ' ' || c == 0x7f {
			b[i] = ' '
		}
	}
	return b
}

// checkText refuses what a text cannot hold.
func (p *ReplyParser) checkText(b []byte) error {
	for _, c := range b {
		if textString.has(c) {
			continue
		}
		if c == '\r' {
			return errReplyStrayCR
		}
		return reason("Encountered stray " + printable(c) + " in reply text")
	}
	return nil
}

func printable(c byte) string {
	if ' ' <= c && c <= '~' {
		return "'" + string(rune(c)) + "'"
	}
	return "0x" + strconv.FormatUint(uint64(c)|0x100, 16)[1:]
}
