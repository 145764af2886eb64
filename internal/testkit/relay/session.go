package relay

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// A session serves one connection. It belongs to its goroutine, but for the fields of
// Conn, which change under the relay's lock.
type session struct {
	*Conn
	script Script
	count  map[Step]int
	nc     net.Conn // TLS once there is some
	br     *bufio.Reader
	stop   chan struct{}

	mute    bool // answers nothing any more
	greeted bool // EHLO or HELO accepted
	mail    *string
	rcpts   []string
	chunks  []int64
	failed  bool // one of them was refused
	body    []byte
	size    int64
}

func (s *session) serve() {
	defer s.raw.Close()
	end := s.dialogue()
	s.relay.change(func() { s.End = end })
}

func (s *session) dialogue() (end string) {
	if s.relay.o.Implicit && !s.handshake(s.relay.o.TLS) {
		return "TLS failed"
	}
	if !s.do(Banner, "220 relay.test ESMTP ready") {
		return "closed"
	}
	for {
		line, err := s.readLine()
		switch {
		case errors.Is(err, io.EOF):
			return "eof"
		case err != nil:
			return err.Error()
		}
		s.relay.change(func() { s.Lines = append(s.Lines, line) })
		verb, args, _ := strings.Cut(line, " ")
		verb = strings.ToUpper(verb)
		if !s.command(verb, args) {
			if verb == "QUIT" {
				return "QUIT"
			}
			return "closed"
		}
	}
}

// command returns false when the connection is over.
func (s *session) command(verb, args string) bool {
	s.checkTurn(verb)
	switch verb {
	case "EHLO":
		s.greeted = true
		return s.do(EHLO, s.ehlo()...)
	case "HELO":
		s.greeted = true
		return s.do(HELO, "250 relay.test")
	case "STARTTLS":
		return s.startTLS()
	case "AUTH":
		return s.auth(args)
	case "XCLIENT":
		return s.do(XCLIENT, "220 relay.test ESMTP ready again")
	case "MAIL":
		return s.envelope(MAIL, args, "250 2.1.0 Ok")
	case "RCPT":
		return s.envelope(RCPT, args, "250 2.1.5 Ok")
	case "DATA":
		return s.data()
	case "BDAT":
		return s.bdat(args)
	case "RSET":
		s.forget()
		return s.do(RSET, "250 2.0.0 Ok")
	case "NOOP":
		return s.do(NOOP, "250 2.0.0 Ok")
	case "VRFY":
		return s.do(VRFY, "252 2.0.0 "+args)
	case "QUIT":
		s.do(QUIT, "221 2.0.0 Bye")
		return false
	}
	return s.do(Other, "500 5.5.1 Unknown command")
}

func (s *session) ehlo() []string {
	lines := append([]string{"relay.test"}, s.relay.o.Caps...)
	if s.relay.o.TLS != nil && s.TLS == nil {
		lines = append(lines, "STARTTLS")
	}
	for i, l := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		lines[i] = "250" + sep + l
	}
	return lines
}

func (s *session) announced(cap string) bool {
	for _, c := range s.relay.o.Caps {
		if c == cap || strings.HasPrefix(c, cap+" ") {
			return true
		}
	}
	return false
}

// endsGroup are the commands that must be the last of a pipelined group (RFC 2920).
var endsGroup = map[string]bool{"EHLO": true, "HELO": true, "DATA": true, "VRFY": true, "NOOP": true, "QUIT": true, "STARTTLS": true, "AUTH": true}

// checkTurn notes what a client must not do.
func (s *session) checkTurn(verb string) {
	if s.br.Buffered() > 0 && verb != "BDAT" && (endsGroup[verb] || !s.announced("PIPELINING")) {
		s.violation("%d octets were sent behind %s before its answer", s.br.Buffered(), verb)
	}
	switch verb {
	case "MAIL":
		if s.mail != nil {
			s.violation("MAIL in a transaction")
		}
		if !s.greeted {
			s.violation("MAIL before EHLO")
		}
	case "DATA":
		if s.chunks != nil {
			s.violation("DATA after BDAT")
		}
	case "STARTTLS":
		if s.TLS != nil {
			s.violation("STARTTLS inside TLS")
		}
	}
}

func (s *session) violation(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.relay.change(func() { s.Violations = append(s.Violations, text) })
}

// choose returns what the script says for this time of the step.
func (s *session) choose(step Step) (Behaviour, bool) {
	list := s.script[step]
	n := s.count[step]
	s.count[step]++
	switch {
	case n < len(list):
		return list[n], list[n].act != nil
	case len(list) > 0 && list[len(list)-1].always:
		return list[len(list)-1], true
	}
	return Behaviour{}, false
}

// do answers a step that has no effect of its own.
func (s *session) do(step Step, lines ...string) bool {
	_, ok := s.doEffect(step, lines...)
	return ok
}

// doEffect answers a step; accepted says whether its effect happens.
func (s *session) doEffect(step Step, lines ...string) (accepted, ok bool) {
	b, chosen := s.choose(step)
	if !chosen {
		return true, s.write(strings.Join(lines, "\r\n") + "\r\n")
	}
	return b.accepted, b.act(s)
}

func (s *session) write(data string) bool {
	if s.mute {
		return true
	}
	_ = s.nc.SetWriteDeadline(time.Now().Add(sessionTimeout))
	_, err := io.WriteString(s.nc, data)
	return err == nil
}

// readLine returns a line without its line end.
func (s *session) readLine() (string, error) {
	_ = s.nc.SetReadDeadline(time.Now().Add(sessionTimeout))
	var line []byte
	for {
		part, err := s.br.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) || len(line) > maxLine {
			if len(line) > 0 {
				s.violation("the connection ended inside a line: %.100q", line)
				s.keep(line)
			}
			return "", err
		}
	}
	s.keep(line)
	body, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok {
		body = line[:len(line)-1]
		s.violation("a command line ends in a bare LF: %.100q", line)
	}
	return string(body), nil
}

func (s *session) keep(data []byte) {
	s.relay.change(func() {
		if len(s.Received)+len(data) <= keepOctets {
			s.Received = append(s.Received, data...)
		}
	})
}

func (s *session) startTLS() bool {
	if s.relay.o.TLS == nil && len(s.script[STARTTLS]) == 0 {
		return s.write("502 5.5.1 no TLS\r\n")
	}
	b, chosen := s.choose(STARTTLS)
	config := s.relay.o.TLS
	if chosen {
		if !b.act(s) {
			return false
		}
		if !b.accepted {
			return true
		}
		if b.tls != nil {
			config = b.tls
		}
	} else if !s.write("220 2.0.0 Ready to start TLS\r\n") {
		return false
	}
	s.greeted = false
	s.forget()
	return s.handshake(config)
}

func (s *session) handshake(config *tls.Config) bool {
	if config == nil {
		s.violation("TLS is wanted, and the test gave no configuration")
		return false
	}
	if s.br.Buffered() > 0 {
		s.violation("%d octets in clear behind STARTTLS", s.br.Buffered())
	}
	_ = s.nc.SetDeadline(time.Now().Add(sessionTimeout))
	tc := tls.Server(s.nc, config)
	if err := tc.Handshake(); err != nil {
		s.violation("TLS handshake: %v", err)
		return false
	}
	state := tc.ConnectionState()
	s.nc, s.br = tc, bufio.NewReaderSize(tc, 64<<10)
	s.relay.change(func() { s.TLS = &state })
	return true
}

func (s *session) auth(args string) bool {
	mech, initial, has := strings.Cut(args, " ")
	var got []string
	if has {
		got = append(got, decode(initial))
	}
	want := 1
	if strings.EqualFold(mech, "LOGIN") {
		want = 2
	}
	for len(got) < want && len(s.script[AUTH]) <= s.count[AUTH] {
		if !s.write("334 \r\n") {
			return false
		}
		line, err := s.readLine()
		if err != nil {
			return false
		}
		s.relay.change(func() { s.Lines = append(s.Lines, line) })
		got = append(got, decode(line))
		if b, chosen := s.choose(AuthData); chosen {
			return b.act(s)
		}
	}
	s.relay.change(func() { s.Auth = append(s.Auth, strings.Join(got, "\x00")) })
	return s.do(AUTH, "235 2.7.0 Authentication successful")
}

func decode(s string) string {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "not base64: " + s
	}
	return string(b)
}

// envelope handles MAIL and RCPT.
func (s *session) envelope(step Step, args, reply string) bool {
	switch {
	case step == RCPT && s.mail == nil:
		return s.write("503 5.5.1 no MAIL\r\n")
	case step == MAIL && s.mail != nil:
		return s.write("503 5.5.1 nested MAIL\r\n")
	}
	accepted, ok := s.doEffect(step, reply)
	if accepted {
		_, path, _ := strings.Cut(args, ":")
		if step == MAIL {
			s.forget()
			s.mail = &path
		} else {
			s.rcpts = append(s.rcpts, path)
		}
	}
	return ok
}

func (s *session) forget() {
	s.mail, s.rcpts, s.chunks, s.body, s.size, s.failed = nil, nil, nil, nil, 0, false
}

func (s *session) data() bool {
	if s.mail == nil || len(s.rcpts) == 0 {
		if _, chosen := s.script[DATA]; !chosen {
			return s.write("503 5.5.1 no recipients\r\n")
		}
	}
	accepted, ok := s.doEffect(DATA, "354 End data with <CR><LF>.<CR><LF>")
	if !ok || !accepted {
		return ok
	}
	if b, chosen := s.choose(Body); chosen {
		if ok := b.act(s); !ok || !b.drain {
			return ok
		}
		_, err := s.readBody()
		s.forget()
		return err == nil
	}
	wire, err := s.readBody()
	if err != nil {
		return false
	}
	data := unstuff(wire)
	b, chosen := s.choose(Dot)
	s.finish(Message{Data: data, Wire: wire, Size: int64(len(data)), Accepted: !chosen || b.accepted})
	if chosen {
		return b.act(s)
	}
	return s.write("250 2.0.0 Ok: queued as 12345\r\n")
}

// readBody reads until the end of data as the relay's options see it.
func (s *session) readBody() (wire []byte, err error) {
	next := 0
	for {
		_ = s.nc.SetReadDeadline(time.Now().Add(sessionTimeout))
		if _, err := s.br.Peek(1); err != nil {
			s.keep(wire)
			return nil, err
		}
		part, _ := s.br.Peek(s.br.Buffered())
		had := len(wire)
		wire = append(wire, part...)
		var at int
		if at, next = s.relay.o.EndOfData.in(wire, next); at >= 0 {
			_, _ = s.br.Discard(at - had)
			s.keep(wire[:at])
			return wire[:at:at], nil
		}
		_, _ = s.br.Discard(len(part))
		if len(wire) > keepOctets {
			return nil, errors.New("too much message data")
		}
	}
}

// unstuff returns the content of what came behind a 354, strictly read.
func unstuff(wire []byte) []byte {
	wire = bytes.TrimSuffix(wire, []byte(".\r\n"))
	out := make([]byte, 0, len(wire))
	for i, c := range wire {
		start := i == 0 || i >= 2 && wire[i-2] == '\r' && wire[i-1] == '\n'
		if c == '.' && start {
			continue
		}
		out = append(out, c)
	}
	return out
}

func (s *session) bdat(args string) bool {
	word, mark, _ := strings.Cut(args, " ")
	n, err := strconv.ParseInt(word, 10, 64)
	if err != nil || n < 0 || mark != "" && !strings.EqualFold(mark, "LAST") {
		s.violation("BDAT %s", args)
		return s.write("501 5.5.4 bad BDAT\r\n")
	}
	if list, at := s.script[BDAT], s.count[BDAT]; at < len(list) && list[at].early {
		b, _ := s.choose(BDAT)
		if !b.act(s) || s.readChunk(n) != nil {
			return false
		}
		if mark != "" { // it ends the message, whatever was said
			s.forget()
		}
		return true
	}
	if s.mail == nil {
		s.violation("BDAT without MAIL")
	}
	if s.readChunk(n) != nil {
		return false
	}
	s.chunks = append(s.chunks, n)
	b, chosen := s.choose(BDAT)
	if !chosen {
		b = Reply("250 2.0.0 Ok: bdat")
		if s.failed {
			b = Reply("503 5.5.1 a chunk was refused")
		}
	}
	switch {
	case mark == "":
		s.failed = s.failed || !b.accepted
	case s.failed:
		s.note(Message{Data: s.body, BDAT: s.chunks, Size: s.size, Accepted: b.accepted})
	default:
		s.finish(Message{Data: s.body, BDAT: s.chunks, Size: s.size, Accepted: b.accepted})
	}
	return b.act(s)
}

func (s *session) readChunk(n int64) error {
	_ = s.nc.SetReadDeadline(time.Now().Add(sessionTimeout))
	s.size += n
	if s.relay.o.Discard || s.size > keepOctets {
		_, err := io.CopyN(io.Discard, s.br, n)
		return err
	}
	chunk := make([]byte, n)
	got, err := io.ReadFull(s.br, chunk)
	s.keep(chunk[:got])
	s.body = append(s.body, chunk[:got]...)
	return err
}

// finish notes a message, and ends the transaction.
func (s *session) finish(m Message) {
	s.note(m)
	s.forget()
}

// note notes a message. A transaction with a refused chunk goes on until RSET.
func (s *session) note(m Message) {
	if s.mail != nil {
		m.From = *s.mail
	}
	m.Rcpts = s.rcpts
	if s.relay.o.Discard {
		m.Data, m.Wire = nil, nil
	}
	s.relay.change(func() { s.Messages = append(s.Messages, m) })
}
