package stats

import (
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/smtp"
)

// maxValue is how much of a text is sent.
const maxValue = 4096

// A Scope is something that events happen in: a connection, a transaction. It is part of
// whatever stands for that, and its zero value does nothing. It belongs to one goroutine.
type Scope struct {
	c       *Client
	parent  *Scope
	kind    Kind
	fields  func(*Fields)
	created time.Time
	id      uint64 // by which the service knows it ...
	gen     uint64 // ... on the connection of this number
	within  uint64 // ... in the scope of this id
	changed bool
}

// Begin makes s a scope of c, within parent if that is not nil. fields adds what is known,
// and is called whenever the service has to be told: not before somebody wants an event.
// It must not use c.
func (s *Scope) Begin(c *Client, parent *Scope, kind Kind, fields func(*Fields)) {
	if c == nil {
		return
	}
	*s = Scope{c: c, parent: parent, kind: kind, fields: fields, created: time.Now()}
}

// Changed says that fields has something else to add now.
func (s *Scope) Changed() { s.changed = true }

// End ends s. The scopes in it should have ended; one that has not begins anew.
func (s *Scope) End() {
	c := s.c
	if c == nil || s.gen == 0 {
		return // nothing has been said of it
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.gen == c.gen {
		c.appendLocked(func(b []byte) []byte {
			b = append(b, "END\t"...)
			return append(strconv.AppendUint(b, s.id, 10), '\n')
		})
	}
	s.gen = 0
}

// beginLocked adds to b what the service has to know before an event in s.
func (s *Scope) beginLocked(b []byte) []byte {
	parent := uint64(0)
	if s.parent != nil && s.parent.c != nil {
		b = s.parent.beginLocked(b)
		parent = s.parent.id
	}
	known := s.gen == s.c.gen && s.within == parent
	switch {
	case known && !s.changed:
		return b
	case known:
		b = append(b, "UPDATE\t"...)
	default:
		s.c.lastID++
		s.id, s.gen, s.within = s.c.lastID, s.c.gen, parent
		b = append(b, "BEGIN\t"...)
	}
	b = append(strconv.AppendUint(b, s.id, 10), '\t')
	b = append(strconv.AppendUint(b, parent, 10), '\t')
	if !known {
		b = append(b, "0\t"...) // severity
	}
	b = appendTime(b, s.created)
	b = appendSource(b, s.kind)
	if s.parent == nil {
		b = tabline.AppendEscaped(append(b, "\tcservice:"...), s.c.service)
	}
	if cat := kinds[s.kind].category; cat != "" {
		b = append(append(b, "\tc"...), cat...)
	}
	if s.fields != nil {
		f := Fields{b}
		s.fields(&f)
		b = f.b
	}
	s.changed = false
	return append(b, '\n')
}

func appendTime(b []byte, t time.Time) []byte {
	us := t.UnixMicro()
	b = append(strconv.AppendInt(b, us/1e6, 10), '\t')
	return append(strconv.AppendInt(b, us%1e6, 10), '\t')
}

func appendSource(b []byte, k Kind) []byte {
	b = append(b, 's')
	b = append(b, kinds[k].source...)
	return append(b, "\t1"...)
}

// Fields collects the fields of a scope.
type Fields struct{ b []byte }

// Str adds a text. Everything may be in it; no more than 4096 octets are sent.
func (f *Fields) Str(key, value string) { f.b = appendStr(f.b, key, value) }

// Int adds a number.
func (f *Fields) Int(key string, value int64) { f.b = appendInt(f.b, key, value) }

// Addr adds an address as a text; nothing, if there is none.
func (f *Fields) Addr(key string, a netip.Addr) { f.b = appendAddr(f.b, key, a) }

func appendStr(b []byte, key, value string) []byte {
	if len(value) > maxValue {
		value = value[:maxValue]
	}
	b = tabline.AppendEscaped(append(b, "\tS"...), key)
	return tabline.AppendEscaped(append(b, '\t'), value)
}

func appendInt(b []byte, key string, value int64) []byte {
	b = tabline.AppendEscaped(append(b, "\tI"...), key)
	return strconv.AppendInt(append(b, '\t'), value, 10)
}

func appendAddr(b []byte, key string, a netip.Addr) []byte {
	if !a.IsValid() {
		return b
	}
	b = tabline.AppendEscaped(append(b, "\tS"...), key)
	return a.Unmap().AppendTo(append(b, '\t'))
}

// An Event is one that is wanted. It takes fields and then goes out with Send, once. The
// nil Event takes fields and drops them.
type Event struct {
	s *Scope
	n Name
	f Fields
}

var pool = sync.Pool{New: func() any { return new(Event) }}

// Event returns the event n in s; nil, if nobody wants it.
func (s *Scope) Event(n Name) *Event {
	if !s.c.Wants(n) {
		return nil
	}
	e := pool.Get().(*Event)
	e.s, e.n, e.f.b = s, n, e.f.b[:0]
	return e
}

// Str adds a text, as Fields.Str.
func (e *Event) Str(key, value string) *Event {
	if e != nil {
		e.f.Str(key, value)
	}
	return e
}

// Int adds a number.
func (e *Event) Int(key string, value int64) *Event {
	if e != nil {
		e.f.Int(key, value)
	}
	return e
}

// Addr adds an address; nothing, if there is none.
func (e *Event) Addr(key string, a netip.Addr) *Event {
	if e != nil {
		e.f.Addr(key, a)
	}
	return e
}

// With adds fields that several events have in common.
func (e *Event) With(fields func(*Fields)) *Event {
	if e != nil {
		fields(&e.f)
	}
	return e
}

// Command adds cmd_name, which is "unknown" unless known, cmd_input_name, cmd_args and
// cmd_human_args. Unlike Dovecot's, they hold nothing of what follows the mechanism of an
// AUTH: that is a password.
func (e *Event) Command(verb, args string, known bool) *Event {
	if e == nil {
		return nil
	}
	name := strings.ToUpper(verb)
	if name == "AUTH" || !known {
		args, _, _ = strings.Cut(args, " ")
	}
	if !known {
		name, args = "unknown", ""
	}
	e.f.Str("cmd_name", name)
	e.f.Str("cmd_input_name", verb)
	e.f.Str("cmd_args", args)
	e.f.Str("cmd_human_args", args)
	return e
}

// Status adds the reply to a command: status_code, and enhanced_code and error unless they
// are empty. Dovecot has an error for other replies than 2xx and 3xx alone.
func (e *Event) Status(code int, enhanced, text string) *Event {
	if e == nil {
		return nil
	}
	e.f.Int("status_code", int64(code))
	if enhanced != "" {
		e.f.Str("enhanced_code", enhanced)
	}
	if text != "" && (code < 200 || code >= 400) {
		e.f.Str("error", text)
	}
	return e
}

// Reply is Status for a reply that a client gets. The zero reply stands for a command that
// gets none, because its session ends, or somebody else answers it.
func (e *Event) Reply(r smtp.Reply) *Event {
	switch {
	case e == nil:
		return nil
	case r.IsZero():
		return e.Status(Aborted, "9.0.0", "Aborted")
	case len(r.Text) == 1:
		return e.Status(r.Code, r.Enhanced, r.Text[0])
	}
	return e.Status(r.Code, r.Enhanced, strings.Join(r.Text, " "))
}

// Aborted is the status code of what was given up. None of SMTP is so high.
const Aborted = 9000

// Recipients are the counts that an event about the end of a transaction has.
type Recipients struct{ All, Denied, Aborted, Failed, Succeeded int }

// Recipients adds recipients, recipients_denied and so on. Denied are those refused at
// RCPT, failed those and all that were refused later.
func (e *Event) Recipients(r Recipients) *Event {
	if e == nil {
		return nil
	}
	e.f.Int("recipients", int64(r.All))
	e.f.Int("recipients_denied", int64(r.Denied))
	e.f.Int("recipients_aborted", int64(r.Aborted))
	e.f.Int("recipients_failed", int64(r.Failed))
	e.f.Int("recipients_succeeded", int64(r.Succeeded))
	return e
}

// Send sends the event, of something that began at start, and has ended now. Neither e nor
// what it returned may be used any more.
func (e *Event) Send(start time.Time) {
	if e == nil {
		return
	}
	s, c := e.s, e.s.c
	now := time.Now()
	c.mu.Lock()
	c.appendLocked(func(b []byte) []byte {
		b = s.beginLocked(b)
		b = append(b, "EVENT\t0\t"...)
		b = append(strconv.AppendUint(b, s.id, 10), '\t')
		b = append(strconv.AppendInt(b, int64(names[e.n].level), 10), '\t')
		b = appendTime(b, start)
		b = appendSource(b, s.kind)
		b = appendTime(append(b, "\tl"...), now)
		b = append(append(b, 'n'), names[e.n].word...)
		b = append(b, e.f.b...)
		return append(b, '\n')
	})
	c.mu.Unlock()
	e.s = nil
	if cap(e.f.b) <= 4*maxValue {
		pool.Put(e)
	}
}
