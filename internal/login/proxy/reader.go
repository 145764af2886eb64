package proxy

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"dovetail/internal/smtp"
)

const (
	maxLine   = 4096 // octets of a backend's line with its end (clause S9.10)
	maxLines  = 100  // of a reply
	maxLogged = 160  // octets of a line in a log line
)

// A reader reads replies.
type reader struct {
	br    *bufio.Reader
	first string // first line of the last reply, or the line that is none
}

var buffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, maxLine) }}

// newReader returns a reader, whose buffer release gives back.
func newReader(r io.Reader) *reader {
	br := buffers.Get().(*bufio.Reader)
	br.Reset(r)
	return &reader{br: br}
}

func (r *reader) release() {
	if r.br != nil {
		r.br.Reset(nil)
		buffers.Put(r.br)
		r.br = nil
	}
}

// errNoReply: the line in first is no reply.
var errNoReply = errors.New("no SMTP reply")

// reply reads one reply. Its text has no enhanced code cut off.
func (r *reader) reply() (smtp.Reply, error) {
	var reply smtp.Reply
	for len(reply.Text) < maxLines {
		line, err := r.line()
		if err != nil {
			return reply, err
		}
		code, more, text, ok := parse(line)
		switch {
		case reply.Code != 0 && (!ok || code != reply.Code):
			return reply, invalid("Inconsistent SMTP reply", short(line)+" (status != "+strconv.Itoa(reply.Code)+")")
		case reply.Code == 0:
			r.first = line
		}
		if !ok {
			return reply, errNoReply
		}
		reply.Code = code
		reply.Text = append(reply.Text, text)
		if !more {
			return reply, nil
		}
	}
	return reply, protocol("SMTP reply has too many lines")
}

func (r *reader) line() (string, error) {
	b, err := r.br.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", protocol("Too long input line")
	}
	if err != nil {
		return "", err
	}
	return clean(strings.TrimSuffix(string(b[:len(b)-1]), "\r")), nil
}

// rest returns what was read behind the last line.
func (r *reader) rest() []byte {
	b, _ := r.br.Peek(r.br.Buffered())
	return b
}

// parse reads a code from 200 to 559, then "-", a space, or the end.
func parse(line string) (code int, more bool, text string, ok bool) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || line[1] < '0' || line[1] > '5' || line[2] < '0' || line[2] > '9' {
		return 0, false, "", false
	}
	code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if len(line) == 3 {
		return code, false, "", true
	}
	return code, line[3] == '-', line[4:], line[3] == '-' || line[3] == ' '
}

// clean replaces what does not belong into replies and log lines.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// short cuts a line for the log.
func short(line string) string {
	if len(line) <= maxLogged {
		return line
	}
	line = line[:maxLogged-3]
	for len(line) > 0 && !utf8.ValidString(line[max(0, len(line)-utf8.UTFMax):]) && !utf8.RuneStart(line[len(line)-1]) {
		line = line[:len(line)-1]
	}
	return strings.ToValidUTF8(line, "") + "..."
}
