package log

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"dovetail/internal/process/event"
)

// A Line is one line of the wire.
type Line struct {
	Level     event.Level
	Option    bool   // Text is an option, "prefix=..." or "ip=..."; Level says nothing
	PID       int    // 0: the line does not say
	NoPrefix  bool   // the stored prefix is not put before it
	PrefixLen int    // so many octets of Text stand before the severity word, and no stored prefix
	Text      string // not sanitised
}

var errBrokenType = errors.New("broken log line")

// Parse parses one line without its LF. What does not begin with the start byte is an
// error line without pid. err is set for a type that no line can have; Line then holds the
// whole text as an error.
func Parse(line string) (Line, error) {
	if line == "" || line[0] != startByte {
		return Line{Level: event.Error, Text: line}, nil
	}
	broken := Line{Level: event.Error, Text: line}
	if len(line) < 2 {
		return broken, fmt.Errorf("%w: no type", errBrokenType)
	}
	var l Line
	flags, typ := line[1]&^typeMask, line[1]&typeMask
	switch {
	case typ == typeOption:
		l.Option = true
	case typ >= 1 && typ <= typeByte(event.Panic):
		l.Level = event.Level(typ - 1)
	default:
		return broken, fmt.Errorf("%w: type %d", errBrokenType, typ)
	}
	l.NoPrefix = flags&flagNoPrefix != 0
	l.Text = line[2:]
	if pid, text, ok := number(l.Text); ok {
		l.PID, l.Text = pid, text
	} else {
		return l, nil // as old Dovecots wrote it
	}
	if flags&flagPrefixLen != 0 {
		if n, text, ok := number(l.Text); ok {
			l.Text = text
			if n <= len(text) {
				l.PrefixLen = n
			}
		}
	}
	return l, nil
}

// number splits "<n> SP rest". It takes up to nine digits.
func number(s string) (n int, rest string, ok bool) {
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9' && i < 9:
			n = n*10 + int(c-'0')
		case c == ' ' && i > 0:
			return n, s[i+1:], true
		default:
			return 0, s, false
		}
	}
	return 0, s, false
}

// A Record is one line as the log service writes it: Prefix, the severity word and ": ",
// Text. Both are sanitised.
type Record struct {
	Level  event.Level
	Prefix string
	Text   string
	PID    int // 0: the line did not say
}

// maxProcesses is how many pids' options a Reader keeps. Forget keeps it far from that.
const maxProcesses = 16384

// A client is what a Reader knows of one pid.
type client struct {
	prefix    string
	hasPrefix bool
	ip        string
	fatal     bool
}

// A Reader is the log service's end of one service's pipe. One goroutine reads; the other
// methods belong to it, too.
type Reader struct {
	br        *bufio.Reader
	service   string // prefix of the handshake
	clients   map[int]*client
	continued bool   // the piece before was not the end of its line
	head      Record // of the line that goes on if continued, without its text
}

// NewReader reads the master's handshake from r.
func NewReader(r io.Reader) (*Reader, error) {
	br := bufio.NewReaderSize(r, MaxLine)
	service, err := readHandshake(br)
	if err != nil {
		return nil, err
	}
	return &Reader{br: br, service: service, clients: map[int]*client{}}, nil
}

// Service returns the service's prefix, "submission-login: ".
func (r *Reader) Service() string { return r.service }

// Next returns the next line that is to be logged; options are kept and skipped. A line
// over MaxLine bytes comes in pieces, the later ones beginning with "<line continued> ".
// io.EOF: no process has the pipe open any more.
func (r *Reader) Next() (Record, error) {
	for {
		raw, err := r.br.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull && len(raw) == 0 {
			return Record{}, err
		}
		continued := r.continued
		r.continued = err == bufio.ErrBufferFull
		text := string(bytes.TrimSuffix(raw, []byte{'\n'}))
		if continued {
			if text == "" {
				continue
			}
			rec := r.head
			rec.Text = sanitised("<line continued> " + text)
			return rec, nil
		}
		r.head = Record{Level: event.Error, Prefix: r.service}
		line, perr := Parse(text)
		if perr != nil {
			rec := r.head
			rec.Text = sanitised(fmt.Sprintf("%v: %s", perr, text))
			return rec, nil
		}
		if line.Option {
			r.option(line)
			continue
		}
		rec := r.record(line)
		r.head = rec
		return rec, nil
	}
}

func sanitised(s string) string { return string(AppendSanitised(nil, s)) }

// client returns what is known of pid, nil when there is no room for another one.
func (r *Reader) client(pid int) *client {
	c := r.clients[pid]
	if c == nil && pid != 0 && len(r.clients) < maxProcesses {
		c = &client{}
		r.clients[pid] = c
	}
	return c
}

func (r *Reader) option(l Line) {
	c := r.client(l.PID)
	if c == nil {
		return
	}
	if p, ok := strings.CutPrefix(l.Text, optionPrefix); ok {
		c.prefix, c.hasPrefix = sanitised(cut(p, maxPrefix)), true
	} else if ip, ok := strings.CutPrefix(l.Text, optionIP); ok {
		c.ip = sanitised(cut(ip, maxIP))
	}
}

const maxIP = 64

func (r *Reader) record(l Line) Record {
	rec := Record{Level: l.Level, PID: l.PID}
	if !l.NoPrefix && l.PrefixLen == 0 {
		rec.Prefix = r.service
		if c := r.clients[l.PID]; c != nil && c.hasPrefix {
			rec.Prefix = c.prefix
		}
	}
	if l.Level >= event.Fatal {
		if c := r.client(l.PID); c != nil {
			c.fatal = true
		}
	}
	rec.Prefix += sanitised(l.Text[:l.PrefixLen])
	rec.Text = sanitised(l.Text[l.PrefixLen:])
	return rec
}

// A Last is what a process had told the log service when it ended.
type Last struct {
	Prefix      string // of its lines: the one it set, or the service's
	IP          string // of its last client; "" if it did not say, or set a prefix since
	FatalLogged bool   // it logged a fatal or panic line: the master's notice is dropped (clause P1.9.2)
}

// Forget returns what is known of a process that ended, and drops it.
func (r *Reader) Forget(pid int) Last {
	c := r.clients[pid]
	delete(r.clients, pid)
	if c == nil {
		return Last{Prefix: r.service}
	}
	last := Last{Prefix: r.service, IP: c.ip, FatalLogged: c.fatal}
	if c.hasPrefix {
		last.Prefix, last.IP = c.prefix, ""
	}
	return last
}
