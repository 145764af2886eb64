package transcript

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/tlsfiles"
)

// Replay starts the system as the case wants it, replays the case, stops the system, and
// compares the log. A failure names the file and the line, what came instead, and shows
// the dialogue so far.
func Replay(t *testing.T, sys system.System, c *Case) {
	t.Helper()
	sys.Need(t)
	// Dovecot may lose the first line of a log, about once in a thousand cases on a busy
	// machine. Where a program of its own writes, such a run is made again.
	again := 0
	if sys.Login == system.Theirs || sys.Worker == system.Theirs {
		again = 2
	}
	for lost := true; lost && !t.Failed(); again-- {
		lost = replayOnce(t, sys, c, again > 0)
	}
}

// replayOnce is Replay, but for a log that lacks a line, if that may be Dovecot's doing:
// then it returns true.
func replayOnce(t *testing.T, sys system.System, c *Case, mayLose bool) (lost bool) {
	t.Helper()
	port := system.Hold(t)
	var l net.Listener
	if c.Relay {
		l = port.Listen(t)
		defer l.Close()
	}
	inst := sys.Start(t, system.Setup{Config: c.Config, Unset: c.Unset, RelayPort: port.Number, Files: mailOfAlice})
	r := &replay{c: c, inst: inst, listener: l, done: make([]bool, len(c.Events)),
		values: Values{Host: inst.Host, RelayPort: strconv.Itoa(port.Number), Dir: inst.Dir, Bad: badToken}}
	r.cond.L = &r.mu
	var tokens *system.IMAP
	if c.needsToken() {
		tokens = inst.IMAP(t, "alice", "wonder")
		r.values.Token = tokens.Token
	}
	r.run(t)
	if tokens != nil {
		tokens.Close()
	}
	if t.Failed() {
		return false
	}
	return r.compareLog(t, mayLose)
}

const badToken = "010123456789abcdef0123456789abcdef01234567"

// mailOfAlice is the message that the BURL cases read: UID 1 of alice's INBOX.
var mailOfAlice = map[string]system.File{
	"mail/alice/Maildir/new/1.M1P1.host": {
		Data: "Subject: hello\nFrom: a@b\n\nbody of alice\n.dot line\n", UID: system.UID, Mode: 0o600,
	},
}

func (c *Case) needsToken() bool {
	for _, e := range c.Events {
		if e.Kind == Client && strings.Contains(e.Text.Source, "{token}") {
			return true
		}
	}
	return false
}

// A replay is one run of a case: two goroutines walk through the events, one on the
// client's side, one on the relay's.
type replay struct {
	c        *Case
	inst     *system.Running
	listener net.Listener // nil: nothing listens
	values   Values

	clients [3]*stream // the client goroutine's; by Event.Conn
	logins  int        // announced so far; the client goroutine's

	mu    sync.Mutex
	cond  sync.Cond
	done  []bool // by event; guarded by mu
	said  []string
	err   error   // the first; guarded by mu
	relay *stream // set by the relay goroutine; guarded by mu for stop
	open  []*stream
}

func (r *replay) run(t *testing.T) {
	t.Helper()
	timer := time.AfterFunc(2*time.Minute, func() { r.fail(nil, errors.New("the case does not end")) })
	defer timer.Stop()
	finished := make(chan struct{})
	go func() { // ends with the relay's events, or when the client's side fails
		defer close(finished)
		r.side(t, func(k Kind) bool { return k == ToMTA || k == MTA }, r.relayEvent)
	}()
	r.side(t, func(k Kind) bool { return k == Client || k == Server }, r.clientEvent)
	<-finished
	r.leftovers()
	for _, s := range r.clients {
		s.close()
	}
	r.relay.close()
	if r.err != nil {
		t.Errorf("%v: %v\nso far:\n%s", r.inst.System, r.err, strings.Join(r.said, "\n"))
	}
}

// side walks through the events of one side.
func (r *replay) side(t *testing.T, mine func(Kind) bool, do func(t *testing.T, i int) error) {
	for i := range r.c.Events {
		e := &r.c.Events[i]
		if !mine(e.Kind) {
			continue
		}
		if r.isDone(i) { // sent with the one before it
			continue
		}
		if e.Kind == Client && !r.waitAbove(i) {
			return
		}
		if err := do(t, i); err != nil {
			r.fail(e, err)
			return
		}
		r.finish(i)
	}
}

func (r *replay) isDone(i int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done[i]
}

func (r *replay) finish(i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done[i] = true
	r.cond.Broadcast()
}

// waitAbove waits until all events above i are done. It returns false when the other side
// failed.
func (r *replay) waitAbove(i int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if r.err != nil {
			return false
		}
		all := true
		for _, d := range r.done[:i] {
			all = all && d
		}
		if all {
			return true
		}
		r.cond.Wait()
	}
}

// fail keeps the first error and ends both sides.
func (r *replay) fail(e *Event, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	if e != nil {
		err = fmt.Errorf("%s:%d: %w", filepath.Base(r.c.Path), e.Line, err)
	}
	r.err = err
	for _, s := range r.open {
		s.close()
	}
	if r.listener != nil {
		r.listener.Close()
	}
	r.cond.Broadcast()
}

// say adds to the dialogue that a failure shows.
func (r *replay) say(e *Event, text string) {
	mark := string(rune(e.Kind))
	if e.Conn == 2 {
		mark += "2"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range strings.SplitAfter(text, "\r\n") {
		if line != "" || text == "" {
			r.said = append(r.said, "  "+mark+": "+show(strings.TrimSuffix(line, "\r\n")))
		}
	}
}

func (r *replay) act(e *Event, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, fmt.Sprintf("  %c! %s", e.Kind, text))
}

// opened registers a connection, so that fail can close it.
func (r *replay) opened(s *stream) *stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = append(r.open, s)
	if r.err != nil {
		s.close()
	}
	return s
}

func (r *replay) clientEvent(t *testing.T, i int) error {
	e := &r.c.Events[i]
	s := r.clients[e.Conn]
	if s == nil && e.Word != "connect" && e.Word != "wait" {
		return errors.New("no connection")
	}
	if !e.Action {
		if e.Kind == Client {
			return r.send(i, s)
		}
		return r.receive(e, s)
	}
	r.act(e, strings.TrimSpace(e.Word+" "+e.Source))
	switch e.Word {
	case "connect":
		s, err := r.connect(e)
		r.clients[e.Conn] = s
		return err
	case "wait":
		time.Sleep(e.Wait)
	case "starttls":
		if x := s.excess(); x != "" {
			return fmt.Errorf("in clear before the handshake: %s", show(x))
		}
		err := s.handshake(func(c net.Conn) *tls.Conn { return tls.Client(c, r.inst.TLS()) })
		wantFail := i+1 < len(r.c.Events) && r.c.Events[i+1].Word == "tls-failed"
		if wantFail {
			if err == nil {
				return errors.New("the TLS handshake succeeds")
			}
			return nil
		}
		return err
	case "shutdown":
		return s.closeWrite()
	case "close":
		if x := s.excess(); x != "" {
			return fmt.Errorf("not expected: %s", show(x))
		}
		s.close()
	case "eof":
		return s.expectEOF()
	case "tls-failed": // seen at starttls
	}
	return nil
}

func (r *replay) connect(e *Event) (*stream, error) {
	d := net.Dialer{Timeout: eventTimeout}
	if e.Source != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(e.Source)}
	}
	addr := r.inst.Addr()
	if e.TLS {
		addr = r.inst.TLSAddr()
	}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := r.opened(newStream(conn))
	if e.TLS {
		err = s.handshake(func(c net.Conn) *tls.Conn { return tls.Client(c, r.inst.TLS()) })
	}
	return s, err
}

// send writes the group of lines that begins with event i.
func (r *replay) send(i int, s *stream) error {
	if x := s.excess(); x != "" {
		return fmt.Errorf("not expected: %s", show(x))
	}
	var data strings.Builder
	last := i
	for ; last < len(r.c.Events); last++ {
		e := &r.c.Events[last]
		if last > i && !e.continues(&r.c.Events[last-1]) {
			break
		}
		text, err := e.Text.Expand(r.values)
		if err != nil {
			return err
		}
		r.say(e, text)
		data.WriteString(text)
	}
	err := s.write(data.String())
	if err != nil && last < len(r.c.Events) && r.c.Events[last].Word == "eof" {
		err = nil // the system closed while we were writing, as expected
	}
	for ; last > i+1; last-- {
		r.finish(last - 1)
	}
	return err
}

func (r *replay) receive(e *Event, s *stream) error {
	got, ended, err := s.expect(e.Text, r.values)
	if got != "" {
		r.say(e, got)
	}
	if e.Optional && ended != nil {
		return nil
	}
	if err == nil && e.Kind == Server && strings.HasPrefix(got, "235 ") {
		r.waitLogin()
	}
	return err
}

// waitLogin waits until the login process has logged the login that was just announced,
// if the case says that it does: the worker announces it, and could log its own lines
// first when the client is quick. The recorder waited before each of the client's lines.
func (r *replay) waitLogin() {
	isLogin := func(line string) bool {
		return strings.HasPrefix(line, "submission-login: Info: Login: ") || strings.Contains(line, ": Started proxying to ")
	}
	want := 0
	for _, l := range r.c.Log {
		if isLogin(l.Text.Source) {
			want++
		}
	}
	r.logins++
	r.inst.WaitFor(func(lines []string) bool {
		n := 0
		for _, l := range lines {
			if isLogin(l) {
				n++
			}
		}
		return n >= min(want, r.logins)
	})
}

// relayTLS is the certificate of the fake relay, which nobody trusts.
var relayTLS struct {
	once   sync.Once
	config *tls.Config
}

func (r *replay) relayEvent(t *testing.T, i int) error {
	e := &r.c.Events[i]
	if e.Action {
		r.act(e, e.Word)
	}
	s := r.relay
	if s == nil && e.Word != "connect" && e.Word != "wait" {
		return errors.New("no connection to the relay")
	}
	switch e.Word {
	case "":
		if e.Kind == ToMTA {
			return r.receive(e, s)
		}
		text, err := e.Text.Expand(r.values)
		if err == nil {
			r.say(e, text)
			err = s.write(text)
		}
		return err
	case "connect":
		if r.listener == nil {
			return errors.New("nothing listens")
		}
		if tcp, ok := r.listener.(*net.TCPListener); ok {
			_ = tcp.SetDeadline(time.Now().Add(eventTimeout))
		}
		conn, err := r.listener.Accept()
		if err != nil {
			return err
		}
		s = r.opened(newStream(conn))
		r.mu.Lock()
		r.relay = s
		r.mu.Unlock()
	case "tls":
		relayTLS.once.Do(func() {
			pair := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "relay.test", Names: []string{"relay.test", "127.0.0.1"}})
			relayTLS.config = &tls.Config{Certificates: []tls.Certificate{pair.TLS()}}
		})
		return s.handshake(func(c net.Conn) *tls.Conn { return tls.Server(c, relayTLS.config) })
	case "eof", "error":
		return s.expectEOF()
	case "wait":
		time.Sleep(e.Wait)
	case "close":
		s.close()
	case "rst":
		s.reset()
	}
	return nil
}

// leftovers looks for what nobody expected: octets, or another connection to the relay.
func (r *replay) leftovers() {
	if r.err != nil {
		return
	}
	for i, s := range append(r.clients[:], r.relay) {
		if s == nil {
			continue
		}
		if x := s.excess(); x != "" && !(s == r.relay && s.closed()) {
			side := "client"
			if i == len(r.clients) {
				side = "relay"
			}
			r.fail(nil, fmt.Errorf("%s: the %s got more than expected: %s", filepath.Base(r.c.Path), side, show(x)))
			return
		}
	}
	if tcp, ok := r.listener.(*net.TCPListener); ok {
		_ = tcp.SetDeadline(time.Now().Add(5 * time.Millisecond))
		if conn, err := tcp.Accept(); err == nil {
			conn.Close()
			r.fail(nil, fmt.Errorf("%s: one connection more to the relay than expected", filepath.Base(r.c.Path)))
		}
	}
}

// compareLog waits for the log lines of the case, stops the system, and compares.
func (r *replay) compareLog(t *testing.T, mayLose bool) (lost bool) {
	t.Helper()
	count := len(r.c.Log)
	for _, x := range r.c.Extra {
		count += x.Count
	}
	r.inst.WaitLog(count)
	r.inst.Stop()
	got := r.inst.Log()
	if len(got) < count && mayLose {
		t.Logf("the log lacks a line; again:\n%s", r.inst.WholeLog())
		return true
	}
	for _, x := range r.c.Extra {
		had := len(got)
		got = slices.DeleteFunc(got, func(line string) bool { return x.Text.Matches(line, r.values) })
		if had-len(got) != x.Count {
			t.Errorf("%s: %d log lines, want %d of the form\n%s", filepath.Base(r.c.Path), had-len(got), x.Count, x.Text.Source)
		}
	}
	got = r.inOrder(t, got)
	for i, want := range r.c.Log {
		if i >= len(got) {
			t.Errorf("%s:%d: no log line\nwant %s", filepath.Base(r.c.Path), want.Line, want.Text.Source)
			continue
		}
		if !want.Text.Matches(got[i], r.values) {
			t.Errorf("%s:%d: the log has\n     %s\nwant %s", filepath.Base(r.c.Path), want.Line, show(got[i]), want.Text.Source)
		}
	}
	for _, line := range got[min(len(r.c.Log), len(got)):] {
		t.Errorf("%s: one log line more than expected:\n%s", filepath.Base(r.c.Path), show(line))
	}
	return false
}

// inOrder returns the log lines in the order of the case, if they are in that order for
// each process: between processes there is none, as each writes when it gets to it.
func (r *replay) inOrder(t *testing.T, got []string) []string {
	if len(got) != len(r.c.Log) {
		return got
	}
	left, out, moved := slices.Clone(got), make([]string, 0, len(got)), false
	for _, want := range r.c.Log {
		// The first line of the process that the expected one is of.
		i := slices.IndexFunc(left, func(line string) bool { return process(line) == process(want.Text.Source) })
		if i < 0 {
			return got
		}
		moved = moved || i > 0
		out = append(out, left[i])
		left = slices.Delete(left, i, i+1)
	}
	if moved {
		t.Logf("%s: the log lines of different processes came in another order", filepath.Base(r.c.Path))
	}
	return out
}

// process is what stands before the first ": ", without pids and sessions.
func process(line string) string {
	prefix, _, _ := strings.Cut(line, ": ")
	name, _, _ := strings.Cut(prefix, "(")
	return name
}

// show writes octets as a transcript would, cut to a readable length.
func show(s string) string {
	const most = 400
	var b strings.Builder
	for i := 0; i < len(s) && i < most; i++ {
		switch c := s[i]; {
		case c == '\\':
			b.WriteString(`\\`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, `\x%02X`, c)
		default:
			b.WriteByte(c)
		}
	}
	if len(s) > most {
		fmt.Fprintf(&b, "... (%d octets)", len(s))
	}
	return b.String()
}
