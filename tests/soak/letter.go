package soak

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
	"dovetail/tests/smuggling"
)

// A letter is one message that a client tried to send.
type letter struct {
	id     string
	text   string // as the client means it
	how    string // it was sent
	rcpts  int    // asked for
	taken  int    // ... that were accepted
	whole  bool   // the server may have had all of it
	code   string // of the answer to the whole message; "" if none came
	answer string // the line
}

// A post office knows all letters.
type office struct {
	mu   sync.Mutex
	sent map[string]*letter // guarded by mu; by id
}

func (o *office) keep(l *letter) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sent == nil {
		o.sent = map[string]*letter{}
	}
	o.sent[l.id] = l
}

// check compares what relays have with what was sent. No client is under way. It returns
// how many letters there are, and how many were answered with 250.
func (o *office) check(t testing.TB, relays ...*relay.Relay) (sent, delivered int) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	there := map[string]int{}
	for _, r := range relays {
		for _, m := range r.Messages() {
			from, _, _ := strings.Cut(strings.TrimPrefix(m.From, "<"), "@")
			l := o.sent[from]
			switch {
			case l == nil:
				t.Errorf("nobody has sent %q to %.5q: %.300q", m.From, m.Rcpts, m.Data)
				continue
			case !m.Accepted:
				continue
			}
			there[from]++
			want := smuggling.Normal(l.text)
			if m.BDAT == nil {
				want = smuggling.Harmless(l.text)
			}
			if got := smuggling.WithoutHeader(m.Data); got != want {
				t.Errorf("%s, by %s, of %d octets arrived as %d; they differ at %d", l.id, l.how, len(want), len(got), differ(got, want))
			}
			if len(m.Rcpts) != l.taken {
				t.Errorf("%s, by %s, has %d recipients of %d", l.id, l.how, len(m.Rcpts), l.taken)
			}
		}
	}
	for id, l := range o.sent {
		n := there[id]
		switch {
		case l.code == "250":
			delivered++
			if n != 1 {
				t.Errorf("%s, by %s, was answered with %q and is there %d times", id, l.how, l.answer, n)
			}
		case !gone(l.code) && n > 0:
			t.Errorf("%s, by %s, was answered with %q and is there %d times", id, l.how, l.answer, n)
		case !l.whole && n > 0:
			t.Errorf("%s, by %s, was not sent whole and is there %d times", id, l.how, n)
		case n > 1: // once is right: the answer was lost
			t.Errorf("%s, by %s, is there %d times", id, l.how, n)
		}
	}
	return len(o.sent), delivered
}

func differ(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

var oddities = []string{
	"\r\n", "\n", "\r", ".", "..", "\r\n.", "\r\n.\r", "\n.", "\n.\n", "\r.", "\r.\r", "\x00", "\x00.", "\r\x00.", "\x80\xff", " ", strings.Repeat("long", 600),
	"\r\n.\r\nMAIL FROM:<hidden@evil.test>\r\nRCPT TO:<x@evil.test>\r\nDATA\r\n", "RSET\r\n", "BDAT 3 LAST\r\n",
}

// random makes a text of so many octets.
func random(r *rand.Rand, size int) string {
	const block = 256 << 10 // a larger one says things again
	var b []byte
	for len(b) < min(size, block) {
		if r.IntN(3) == 0 {
			b = append(b, oddities[r.IntN(len(oddities))]...)
		} else {
			b = append(b, fmt.Sprintf("line %d\r\n", r.IntN(1000))...)
		}
	}
	if n := len(b); size > n {
		b = bytes.Repeat(b, size/n+1)
	}
	return string(b[:size])
}

// forDATA makes a text that DATA can carry: it ends with a line.
func forDATA(text string) string { return strings.TrimRight(text, "\r") + "\r\n" }

// stuffed is what a client sends of it behind the 354.
func stuffed(text string) string {
	text = strings.ReplaceAll(text, "\r\n.", "\r\n..")
	if strings.HasPrefix(text, ".") {
		text = "." + text
	}
	return text + ".\r\n"
}

// A writer is a client that sends letters.
type writer struct {
	o    *office
	s    *server
	rnd  *rand.Rand
	name string
	n    int // letters so far
	most int // octets of a large one
	lose int // of a hundred letters, how many the client does not stay for
}

// sessions sends so many letters, in as many sessions as it takes.
func (w *writer) sessions(t testing.TB, letters int, users []string) {
	for end := w.n + letters; w.n < end; {
		p, err := w.s.connect(dovetail.Way(w.rnd.IntN(3)))
		if err != nil {
			t.Errorf("%s: %v", w.name, err)
			return
		}
		user := users[w.rnd.IntN(len(users))]
		if code := p.say("AUTH PLAIN " + plain(user, dovetail.Password) + "\r\n"); code != "235" {
			t.Errorf("%s: login of %s: %s %q %v", w.name, user, code, p.last, p.err)
			p.drop(false)
			return
		}
		for stay := true; stay && w.n < end; {
			switch w.rnd.IntN(4) {
			case 0:
				stay = w.pipelined(p, min(1+w.rnd.IntN(3), end-w.n))
			case 1:
				stay = w.inChunks(p)
			default:
				stay = w.byDATA(p)
			}
		}
		if w.rnd.IntN(4) > 0 && p.err == nil {
			p.say("QUIT\r\n")
		}
		p.drop(w.rnd.IntN(8) == 0)
	}
}

// next makes a letter, and the commands for its envelope.
func (w *writer) next(how string) (l *letter, envelope string) {
	w.n++
	size := w.rnd.IntN(64 << 10)
	switch w.rnd.IntN(100) {
	case 0:
		size = w.rnd.IntN(w.most)
	case 1, 2, 3, 4:
		size = 100<<10 + w.rnd.IntN(100<<10) // about what is held back
	}
	l = &letter{id: fmt.Sprintf("%s-%d", w.name, w.n), how: how, text: random(w.rnd, size), rcpts: 1 + w.rnd.IntN(5)}
	if w.rnd.IntN(10) == 0 {
		l.rcpts = 1 + w.rnd.IntN(50)
	}
	w.o.keep(l)
	envelope = "MAIL FROM:<" + l.id + "@soak.test>\r\n"
	for n := range l.rcpts {
		envelope += fmt.Sprintf("RCPT TO:<%d@dest.test>\r\n", n)
	}
	return l, envelope
}

// envelope reads the replies to one. stay is false at the session's end; a letter without
// recipients cannot go.
func (p *peer) envelope(l *letter) (mail string, stay bool) {
	for n := range 1 + l.rcpts {
		code := p.reply()
		switch {
		case gone(code):
			return mail, false
		case n == 0:
			mail = code
		case code == "250":
			l.taken++
		}
	}
	return mail, true
}

// answered takes the answer to a letter. It is false at the session's end.
func (p *peer) answered(l *letter) bool {
	l.whole = true
	l.code = p.reply()
	l.answer = p.last
	return !gone(l.code)
}

// loses says whether the client leaves inside of text, or right behind it; then it has gone.
func (w *writer) loses(p *peer, l *letter, text string) bool {
	if w.rnd.IntN(100) >= w.lose {
		return false
	}
	l.how += ", left"
	n := w.rnd.IntN(len(text) + 1)
	if w.rnd.IntN(2) == 0 {
		n = len(text)
	}
	l.whole = n == len(text)
	p.write(text[:n])
	switch w.rnd.IntN(3) {
	case 0:
		p.drop(false)
	case 1:
		p.drop(true)
	default: // and listens
		p.halfClose()
		for !gone(p.reply()) {
			if l.whole && p.last[0] != '3' {
				l.code, l.answer = p.last[:3], p.last
			}
		}
	}
	return true
}

func (w *writer) byDATA(p *peer) bool {
	l, envelope := w.next("DATA")
	l.text = forDATA(l.text)
	if !p.write(envelope) {
		p.ended()
		return false
	}
	mail, stay := p.envelope(l)
	if !stay {
		return false
	}
	if mail != "250" || l.taken == 0 {
		return !gone(p.say("RSET\r\n"))
	}
	switch code := p.say("DATA\r\n"); {
	case gone(code):
		return false
	case code != "354":
		l.code, l.answer = code, p.last
		return !gone(p.say("RSET\r\n"))
	}
	text := stuffed(l.text)
	if w.loses(p, l, text) {
		return false
	}
	p.write(text)
	return p.answered(l)
}

func (w *writer) inChunks(p *peer) bool {
	l, envelope := w.next("BDAT")
	p.write(envelope)
	mail, stay := p.envelope(l)
	if !stay {
		return false
	}
	if mail != "250" || l.taken == 0 {
		return !gone(p.say("RSET\r\n"))
	}
	for rest := l.text; ; {
		n := len(rest)
		if n > 0 && w.rnd.IntN(2) == 0 {
			n = w.rnd.IntN(n)
		}
		last := ""
		if n == len(rest) {
			last = " LAST"
		}
		chunk := fmt.Sprintf("BDAT %d%s\r\n%s", n, last, rest[:n])
		if last != "" && w.loses(p, l, chunk) {
			return false
		}
		p.write(chunk)
		if last != "" {
			if !p.answered(l) {
				return false
			}
			return l.code == "250" || !gone(p.say("RSET\r\n"))
		}
		switch code := p.reply(); {
		case gone(code):
			return false
		case code != "250": // the letter is refused
			l.code, l.answer = code, p.last
			return !gone(p.say("RSET\r\n"))
		}
		rest = rest[n:]
	}
}

// pipelined sends letters in one write, and then reads.
func (w *writer) pipelined(p *peer, n int) bool {
	var letters []*letter
	var text strings.Builder
	for range n {
		l, envelope := w.next("BDAT, pipelined")
		if len(l.text) > 200<<10 {
			l.text = l.text[:200<<10]
		}
		letters = append(letters, l)
		fmt.Fprintf(&text, "%sBDAT %d LAST\r\n%sRSET\r\n", envelope, len(l.text), l.text)
	}
	for _, l := range letters {
		l.whole = true // perhaps
	}
	p.write(text.String())
	for _, l := range letters {
		if _, stay := p.envelope(l); !stay {
			return false
		}
		if !p.answered(l) || gone(p.reply()) {
			return false
		}
	}
	return true
}
