package proxy

import (
	"bufio"
	"errors"
	"io"
	"strings"

	"dovetail/internal/smtp"
)

const (
	maxLine  = 4096 // octets of a backend's line with its end (clause S9.10)
	maxLines = 100  // of a reply
)

// A reader reads replies.
type reader struct {
	br   *bufio.Reader
	last string // the last line read, for the log
}

func newReader(r io.Reader) *reader { return &reader{br: bufio.NewReaderSize(r, maxLine)} }

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
		case !ok:
			return reply, invalid("Invalid SMTP reply", line)
		case reply.Code != 0 && code != reply.Code:
			return reply, invalid("Inconsistent SMTP reply", line+" (status != "+itoa(reply.Code)+")")
		}
		reply.Code = code
		reply.Text = append(reply.Text, text)
		if !more {
			return reply, nil
		}
	}
	return reply, &Failure{Text: "Remote server sent invalid input: SMTP reply has too many lines", Retry: true}
}

func (r *reader) line() (string, error) {
	b, err := r.br.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", &Failure{Text: "Remote server sent invalid input: Too long input line", Retry: true}
	}
	if err != nil {
		return "", err
	}
	r.last = clean(strings.TrimSuffix(string(b[:len(b)-1]), "\r"))
	return r.last, nil
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
		if r < ' ' && r != '\t' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

func itoa(n int) string {
	return string([]byte{byte('0' + n/100%10), byte('0' + n/10%10), byte('0' + n%10)})
}
