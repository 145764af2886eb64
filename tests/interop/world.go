// Package interop runs the same cases against Dovecot and against the pairings of its
// halves with ours, and compares what clients, the relay and the log saw. The truth is
// what Dovecot does in the same run; it is not kept.
//
// What differs on purpose is in tests/transcripts/differences.txt; the parts of it that
// show here are in differences.go, by name.
package interop

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/tlsfiles"
)

// A scenario is one case.
type scenario struct {
	name  string
	setup func(*system.Setup) // changes what the instance is given; nil: nothing
	relay relay.Options
	run   func(w *world)

	// relayTLS gives the relay a certificate that nobody trusts.
	relayTLS bool
	// quietLog leaves the log out of the comparison: what is killed says so in words that
	// depend on the moment.
	quietLog bool
	// slow cases wait for seconds by their nature; -short leaves them out.
	slow bool
}

// A world is one run of a scenario.
type world struct {
	t     *testing.T
	inst  *system.Running
	relay *relay.Relay

	quietLog    bool
	quietLogins int // that are no session of the record, but in the log

	mu       sync.Mutex
	sessions []*session
	notes    []string
	chapters []chapter
	told     struct{ sessions, conns, log int } // how much of each is in chapters
}

// hiccup is a line of Dovecot's worker that its log service read when it had forgotten whose
// process that was, as happens on a busy machine when it has ended.
var hiccup = regexp.MustCompile(`(?m)^submission: Info: Disconnected: `)

// played is play, again if Dovecot's log service had a hiccup.
func (sc scenario) played(t *testing.T, sys system.System) (rec *record) {
	t.Helper()
	for range 3 {
		if rec = sc.play(t, sys); sys.Worker != system.Theirs || !hiccup.MatchString(rec.log) {
			break
		}
	}
	return rec
}

// play runs the scenario on the system and returns what was seen.
func (sc scenario) play(t *testing.T, sys system.System) *record {
	t.Helper()
	port := system.Hold(t)
	o := sc.relay
	if sc.relayTLS {
		pair := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "relay.test", Names: []string{"relay.test", "127.0.0.1"}})
		o.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS()}}
	}
	o.Listener = port.Listen(t)
	w := &world{t: t, relay: relay.Start(t, o), quietLog: sc.quietLog}
	setup := system.Setup{RelayPort: port.Number}
	if sc.setup != nil {
		sc.setup(&setup)
	}
	w.inst = sys.Start(t, setup)
	sc.run(w)
	if w.told.sessions < len(w.sessions) || len(w.notes) > 0 {
		w.chapter("all")
	}
	w.inst.Stop()
	return &record{chapters: w.chapters, log: w.inst.WholeLog()}
}

func logins(lines []string) int { return count(lines, ": Login: ") }

// logouts counts ends of logins: of sessions, and of workers that could not begin one.
func logouts(lines []string) (n int) {
	for _, l := range lines {
		if noSession.MatchString(l) {
			n++
		}
	}
	return n + count(lines, "): Info: Disconnected: ", ">: Info: Disconnected: ", "Fatal: ")
}

var noSession = regexp.MustCompile(`^submission\([^)]*\): Error: `)

func count(lines []string, texts ...string) (n int) {
	for _, l := range lines {
		if slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(l, t) }) {
			n++
		}
	}
	return n
}

// note adds a line to the record: what doveadm said, how many processes there are.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, fmt.Sprintf(format, args...))
}

// A session is one client connection; everything that is said becomes part of the record.
type session struct {
	w    *world
	name string
	c    *client.Client
	said []string
}

// dial connects; the greeting is recorded.
func (w *world) dial(name string, o client.Options) *session {
	w.t.Helper()
	addr := w.inst.Addr()
	if o.TLS != nil {
		addr = w.inst.TLSAddr()
	}
	s := w.dialTo(name, addr, o)
	s.reply()
	return s
}

// dialTo connects to an address, and waits for nothing.
func (w *world) dialTo(name, addr string, o client.Options) *session {
	w.t.Helper()
	s := &session{w: w, name: name, c: client.Dial(w.t, addr, o)}
	w.mu.Lock()
	w.sessions = append(w.sessions, s)
	w.mu.Unlock()
	return s
}

// local connects from the server's own address: secured, without TLS.
func (w *world) local(name string) *session {
	w.t.Helper()
	return w.dial(name, client.Options{})
}

// add puts lines into the record.
func (s *session) add(mark, text string) { s.said = append(s.said, mark+" "+text) }

// reply reads and records one reply. The end of the connection is one, too.
func (s *session) reply() (lines []string) {
	s.w.t.Helper()
	for {
		line, err := s.c.TryLine()
		if err != nil {
			if line != "" {
				s.add("S:", line+`\c`)
			}
			s.ended(err)
			return append(lines, line)
		}
		s.add("S:", line)
		lines = append(lines, line)
		if len(line) < 4 || line[3] != '-' {
			return lines
		}
	}
}

// ended records why nothing more comes.
func (s *session) ended(err error) {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		s.w.t.Errorf("%s: no answer in time\n%s", s.name, strings.Join(s.said, "\n"))
	}
	s.add("S!", "end")
}

// do sends the lines in one write and reads as many replies.
func (s *session) do(lines ...string) []string {
	s.w.t.Helper()
	return s.batch(len(lines), lines...)
}

// batch sends the lines in one write and reads n replies; it returns the last.
func (s *session) batch(n int, lines ...string) (last []string) {
	s.w.t.Helper()
	s.send(strings.Join(lines, "\r\n") + "\r\n")
	for range n {
		last = s.reply()
	}
	return last
}

// send sends octets; they are not recorded: every run sends the same.
func (s *session) send(data string) {
	s.w.t.Helper()
	_ = s.c.TryWrite(data) // the server may have gone, which the next reply shows
}

// login logs in and waits until the login process has logged it.
func (s *session) login(user, password string) []string {
	s.w.t.Helper()
	had := logins(s.w.inst.Log())
	last := s.do("AUTH PLAIN " + plain(user, password))
	s.w.loggedIn(had, last)
	return last
}

// loggedIn waits for one login line more than had, if last says that there was a login.
func (w *world) loggedIn(had int, last []string) {
	if len(last) > 0 && strings.HasPrefix(last[0], "235") {
		w.inst.WaitFor(func(lines []string) bool { return logins(lines) > had })
	}
}

// gone waits for the end of the connection and records what came before it.
func (s *session) gone() {
	s.w.t.Helper()
	for {
		line, err := s.c.TryLine()
		if err == nil {
			s.add("S:", line)
			continue
		}
		if line != "" {
			s.add("S:", line+`\c`)
		}
		s.ended(err)
		return
	}
}

// startTLS makes STARTTLS and the handshake.
func (s *session) startTLS() {
	s.w.t.Helper()
	s.do("STARTTLS")
	s.c.StartTLS(s.w.inst.TLS())
}

// message sends one message by DATA.
func (s *session) message(body string) []string {
	s.w.t.Helper()
	s.do("MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>")
	s.do("DATA")
	return s.batch(1, strings.TrimSuffix(body, "\r\n"), ".")
}

// bdat sends one message by BDAT, in pieces.
func (s *session) bdat(pieces ...string) (last []string) {
	s.w.t.Helper()
	s.do("MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>")
	for i, p := range pieces {
		mark := ""
		if i == len(pieces)-1 {
			mark = " LAST"
		}
		s.send(fmt.Sprintf("BDAT %d%s\r\n%s", len(p), mark, p))
		last = s.reply()
	}
	return last
}

// patience is how long is waited for what should happen soon, on a busy machine.
const patience = time.Minute

// eventually waits until ok; what is for the failure.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%v: still waiting for %s", w.inst.System, what)
		}
	}
}
