package matrix

import (
	"crypto/tls"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/tlsfiles"
)

const (
	host = "sub.example.test"

	// quick is the timers' setting where they are to run out; slow elsewhere.
	quick, slow = "700ms", "60s"
	// late is more than quick can become on a busy machine, and less than the timers'
	// defaults.
	late = 25 * time.Second
)

// What makes the session end, and the reply that says so (table S4.9).
var endings = map[string][]string{
	"421":       {"421-4.3.2 " + host + " Lost connection to relay server:", "421 4.3.2 relay.test going down (connection lost)"},
	"421 early": {"421-4.0.0 " + host + " Lost connection to relay server:", "421 4.0.0 4.3.2 relay.test going down (connection lost)"},
	"530":       {"421 4.3.5 " + host + " Internal error occurred. Refer to server log for more information."},
	"lost":      {"421 4.4.0 " + host + " Lost connection to relay server (connection lost)"},
	"bad reply": {"421 4.4.0 " + host + " Lost connection to relay server (bad reply)"},
	"timed out": {"421 4.4.0 " + host + " Lost connection to relay server (timed out)"},
	"refused":   {"421 4.4.0 " + host + " Failed to establish relay connection"},
	"connect":   {"421 4.4.0 " + host + " Failed to connect to relay server (connect)"},
}

// An odd is one way to answer a command.
type odd struct {
	name string
	does relay.Behaviour
	ends string   // key of endings; "" if the reply is handed on
	says []string // ... which then is this
}

var odds = []odd{
	{"2xx", relay.Reply("250 2.5.0 fine"), "", []string{"250 2.5.0 fine"}},
	{"2xx of several lines", relay.Reply("250-2.5.0 fine", "250 2.5.0 really"), "", []string{"250-2.5.0 fine", "250 2.5.0 really"}},
	{"3xx", relay.Reply("350 more"), "", []string{"350 3.0.0 more"}},
	{"4xx", relay.Reply("450 4.2.1 later"), "", []string{"450 4.2.1 later"}},
	{"4xx of several lines", relay.Reply("450-4.2.1 not", "450 4.2.1 now"), "", []string{"450-4.2.1 not", "450 4.2.1 now"}},
	{"421", relay.Reply("421 4.3.2 relay.test going down"), "421", nil},
	{"421 and close", relay.Close("421 4.3.2 relay.test going down"), "421", nil},
	{"5xx", relay.Reply("550 5.7.1 no"), "", []string{"550 5.7.1 no"}},
	{"5xx of several lines", relay.Reply("550-5.7.1 no", "550-never", "550 5.7.1 go away"), "", []string{"550-5.7.1 no", "550-5.7.1 never", "550 5.7.1 go away"}},
	{"530", relay.Reply("530 5.7.0 authenticate first"), "530", nil},
	{"8 MiB line", relay.LongLine("550", 8<<20), "", []string{"550 5.0.0 " + strings.Repeat("x", 2048)}},
	{"garbage", relay.Raw("garbage\r\n"), "bad reply", nil},
	{"NUL", relay.Raw("250 2.1.0 a\x00b\r\n"), "bad reply", nil},
	{"half a line", relay.HalfLine("250 2.1"), "timed out", nil},
	{"silence", relay.Silence(), "timed out", nil},
	{"close", relay.Close(), "lost", nil},
	{"reset", relay.Reset(), "lost", nil},
}

// A cell is one odd answer at one step.
type cell struct {
	name  string
	step  relay.Step
	odd   odd
	lazy  bool // the relay is connected when it is needed, not at the login
	smtps bool
	login bool // XCLIENT comes before AUTH, and not before MAIL
	way   dovetail.Way
	port  system.Port
}

func (c *cell) class() byte {
	if c.odd.says == nil {
		return 0
	}
	return c.odd.says[0][0]
}

// expect returns what the client hears in place of the command's usual reply, or nil for
// that. The step's command is the one that the relay answers oddly.
func (c *cell) expect() []string {
	switch {
	case c.step == relay.QUIT: // what the relay says does not matter
		return nil
	case c.step == relay.XCLIENT && c.odd.ends == "530": // a refusal like others
		return nil
	case c.odd.ends == "421" && (c.step == relay.Banner || c.step == relay.EHLO): // what extensions there are is not yet known
		return endings["421 early"]
	case c.odd.ends == "timed out" && c.handshake():
		return endings["connect"]
	case c.odd.ends != "":
		return endings[c.odd.ends]
	}
	says := slices.Clone(c.odd.says)
	switch c.step {
	case relay.Banner:
		if c.class() == '2' {
			return endings["bad reply"]
		}
		return endings["refused"]
	case relay.EHLO, relay.STARTTLS, relay.AUTH:
		if c.class() == '2' {
			return nil
		}
		return endings["refused"]
	case relay.XCLIENT: // what it says does not matter
		return nil
	case relay.NOOP:
		if c.class() == '2' {
			return nil
		}
	case relay.RCPT:
		if c.class() != '2' { // the path is put before the text of the first line
			code, text := says[0][:10], says[0][10:]
			says[0] = code + "<bob@dest.test> " + text
		}
	case relay.DATA:
		if c.class() == '2' { // clause S13.13
			text := strings.Join(c.odd.says, " ")
			text = "451 4.4.0 Unexpected reply from relay server: " + strings.ReplaceAll(text, " 250-2.5.0", "")
			text = strings.ReplaceAll(strings.ReplaceAll(text, "250-", "250 "), "fine 250 2.5.0", "fine")
			return []string{text}
		}
	case relay.Body:
		if c.class() == '2' { // before the message is there
			return endings["bad reply"]
		}
	}
	return says
}

// fields are the user's settings.
func (c *cell) fields(timer string) []string {
	f := []string{dovetail.Relay(c.port.Number), "submission_relay_connect_timeout=" + timer, "submission_relay_command_timeout=" + timer}
	switch {
	case c.smtps:
		f = append(f, "submission_relay_ssl=smtps")
	case c.step == relay.STARTTLS:
		f = append(f, "submission_relay_ssl=starttls")
	}
	if c.step == relay.AUTH || c.login {
		f = append(f, "submission_relay_user=ruser", "submission_relay_password=rpass")
	}
	if c.step == relay.XCLIENT {
		f = append(f, "submission_relay_trusted=yes")
	}
	if c.lazy {
		f = append(f, "submission_backend_capabilities=8BITMIME,DSN,VRFY")
	}
	return f
}

// cells are all of them.
func cells(t *testing.T, other *tls.Config) []*cell {
	var all []*cell
	add := func(c cell) {
		c.name = string(c.step) + "/" + c.odd.name
		if c.smtps {
			c.name += ", smtps"
		}
		if c.login {
			c.name += ", login"
		}
		if c.lazy {
			c.name += ", lazy"
		}
		c.way = dovetail.Way(len(all) % 3)
		c.port = system.Hold(t)
		all = append(all, &c)
	}
	for _, step := range []relay.Step{relay.Banner, relay.EHLO, relay.STARTTLS, relay.AUTH, relay.XCLIENT, relay.MAIL, relay.RCPT, relay.DATA, relay.Body, relay.Dot, relay.BDAT, relay.RSET, relay.NOOP, relay.VRFY, relay.QUIT} {
		list := odds
		if step == relay.STARTTLS {
			list = append(slices.Clone(odds),
				odd{"TLS failure", relay.BreakTLS(), "connect", nil},
				odd{"wrong certificate", relay.OtherTLS(other), "connect", nil})
		}
		for _, o := range list {
			add(cell{step: step, odd: o})
			if c := (cell{step: step, odd: o, login: step == relay.XCLIENT}); c.handshake() {
				c.lazy = true
				add(c)
			}
		}
	}
	for _, lazy := range []bool{false, true} {
		add(cell{step: relay.Banner, odd: odd{"TLS failure", relay.Raw("220 in clear\r\n"), "connect", nil}, smtps: true, lazy: lazy})
		add(cell{step: relay.Banner, odd: odd{"wrong certificate", relay.Behaviour{}, "connect", nil}, smtps: true, lazy: lazy})
	}
	return all
}

// handshake says whether the step comes before the connection is ready.
func (c *cell) handshake() bool {
	return c.login || slices.Contains([]relay.Step{relay.Banner, relay.EHLO, relay.STARTTLS, relay.AUTH}, c.step)
}

// At each step each odd answer: the client gets the reply of clause S4, within the timers,
// never a 250 for a message that the relay does not have; and the next session works.
func TestRelayMatrix(t *testing.T) {
	t.Parallel()
	ca := tlsfiles.NewCA(t, "relay's CA")
	right := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, tlsfiles.Request{CN: "127.0.0.1", Names: []string{"127.0.0.1"}}).TLS()}}
	wrong := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, tlsfiles.Request{CN: "other.test", Names: []string{"other.test"}}).TLS()}}
	caFile := writeTemp(t, string(ca.Cert))
	all := cells(t, wrong)
	var users []dovetail.User
	for i, c := range all {
		timer := slow
		if c.odd.ends == "timed out" {
			timer = quick
		}
		name := fmt.Sprint("u", i)
		users = append(users, dovetail.User{Name: name, Fields: c.fields(timer)}, dovetail.User{Name: name + "-next", Fields: c.fields(slow)})
	}
	steady := relay.Start(t, relay.Options{})
	users = append(users, dovetail.User{Name: "steady", Fields: []string{dovetail.Relay(steady.Port)}})
	s := dovetail.Start(t, dovetail.Setup{Shared: true, Users: users, Config: "ssl_client_ca_file = " + caFile + "\n"})
	idle := s.Idle(t, "steady")

	t.Run("cells", func(t *testing.T) {
		for i, c := range all {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.run(t, s, fmt.Sprint("u", i), right, wrong)
			})
		}
	})
	s.Settled(t, idle)
	if n, want := len(s.Lines(": Info: Disconnected: ", "(state=")), 2*len(all)+1; n != want {
		t.Errorf("%d sessions have a line about their end, of %d", n, want)
	}
	s.NoSessions(t, "submission")
	s.NoSessions(t, "submission-login")
}

func writeTemp(t *testing.T, data string) string {
	t.Helper()
	f, err := os.CreateTemp("", "dtca")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(f.Name()) })
	defer f.Close()
	if _, err := f.WriteString(data); err != nil {
		t.Fatal(err)
	}
	if err := f.Chmod(0o644); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// run is one cell.
func (c *cell) run(t *testing.T, s *dovetail.Server, user string, right, wrong *tls.Config) {
	o := relay.Options{
		Listener: c.port.Listen(t), Timeout: dovetail.Patience,
		Caps:    []string{"PIPELINING", "SIZE", "8BITMIME", "ENHANCEDSTATUSCODES", "DSN", "VRFY", "AUTH PLAIN", "XCLIENT ADDR HELO"},
		Scripts: []relay.Script{{c.step: {c.odd.does.Drained()}}, {}},
	}
	if c.step == relay.BDAT {
		o.Caps = append(o.Caps, "CHUNKING")
	}
	if c.step == relay.STARTTLS {
		o.TLS = right
	}
	if c.smtps && c.odd.does.String() == "" {
		o.TLS, o.Implicit = wrong, true
	}
	r := relay.Start(t, o)
	defer func() {
		if t.Failed() {
			t.Logf("log:\n%s\nrelay:\n%s", strings.Join(append(s.Lines("("+user+")"), s.Lines("("+user+"-next)")...), "\n"), r.Transcript())
		}
	}()
	cl := s.Login(t, c.way, user)
	began := time.Now()
	c.talk(t, cl)
	if took := time.Since(began); took > late {
		t.Errorf("it took %v", took)
	}
	for _, conn := range r.Conns()[:1] {
		for _, m := range conn.Messages {
			if m.Accepted && !c.mayBeTaken() {
				t.Errorf("the relay took a message: %.200q", m.Data)
			}
		}
		for _, v := range conn.Violations {
			if c.step != relay.Body && !c.smtps && !strings.HasPrefix(v, "TLS handshake: ") {
				t.Errorf("violation: %s\n%s", v, r.Transcript())
			}
		}
	}
	if c.smtps { // it always speaks in clear, or shows the wrong name
		r.Stop()
		r = relay.Start(t, relay.Options{Listener: c.port.Listen(t), TLS: right, Implicit: true, Timeout: dovetail.Patience})
	}
	had := len(r.Messages())
	next := s.Login(t, c.way, user+"-next") // who has time
	message(next, "next")
	next.Do("QUIT", "221")
	next.ExpectEOF()
	all := r.WaitMessages(had + 1)
	if m := all[len(all)-1]; !m.Accepted || !strings.HasSuffix(string(m.Data), "next\r\n") {
		t.Errorf("the next message: %+v", m)
	}
}

// mayBeTaken says that the relay takes the message of the first session, whatever it says
// to it: at these steps the dialogue gets that far.
func (c *cell) mayBeTaken() bool { return c.expect() == nil || c.class() == '2' || c.odd.ends == "" }

// message sends a message and wants it to be accepted.
func message(c *client.Client, text string) {
	c.Do("MAIL FROM:<alice@example.test>", "250")
	c.Do("RCPT TO:<bob@dest.test>", "250")
	c.Do("DATA", "354")
	c.Send(text, ".")
	c.ExpectCode("250")
}

// The dialogue, and at which of its commands the client hears of a step.
var dialogue = []struct {
	says  string
	usual []string
	steps []relay.Step
}{
	{"NOOP", []string{"250 2.0.0 OK"}, []relay.Step{relay.NOOP}},
	{"VRFY joe", []string{"252 2.0.0 joe"}, []relay.Step{relay.VRFY}},
	{"RSET", []string{"250 2.0.0 Ok"}, []relay.Step{relay.RSET}},
	{"MAIL FROM:<alice@example.test>", []string{"250 2.1.0 Ok"}, []relay.Step{relay.MAIL, relay.XCLIENT}},
	{"RCPT TO:<bob@dest.test>", []string{"250 2.1.5 Ok"}, []relay.Step{relay.RCPT}},
	{"DATA", nil, []relay.Step{relay.DATA, relay.Body, relay.Dot, relay.BDAT}},
	{"QUIT", []string{"221 2.0.0 Bye"}, []relay.Step{relay.QUIT}},
}

// talk is the client's side of the first session.
func (c *cell) talk(t *testing.T, cl *client.Client) {
	odd := c.expect()
	if c.handshake() && odd != nil {
		if c.lazy {
			cl.Send("MAIL FROM:<alice@example.test>")
		}
		if c.odd.name == "reset" && c.step == relay.Banner { // inside or behind connect()
			odd = []string{cl.Line()}
			if odd[0] != endings["connect"][0] && odd[0] != endings["lost"][0] {
				t.Errorf("got %q", odd)
			}
		} else {
			cl.Expect(odd...)
		}
		cl.ExpectGone()
		return
	}
	for _, d := range dialogue {
		here := odd != nil && slices.Contains(d.steps, c.step)
		want := d.usual
		if here {
			want = odd
		}
		if d.says == "DATA" {
			cl.Do("DATA", "354")
			body := "hello"
			if c.step == relay.Body { // more than is held back, so that it begins before the end
				body = strings.Repeat("hello\r\n", 60000)
			}
			if c.step == relay.Body && c.class() == '2' { // and more than sockets hold: the end is not sent before the relay has answered
				body = strings.Repeat(strings.Repeat("hello ", 160)+"\r\n", 16<<20/962)
			}
			if cl.TryWrite(body+"\r\n.\r\n") != nil && !strings.HasPrefix(odd[len(odd)-1], "421") {
				t.Error("the server does not read")
			}
			want = []string{"250 2.0.0 Ok: queued as 12345"}
			if c.step == relay.BDAT {
				want = []string{"250 2.0.0 Ok: bdat"}
			}
			if here {
				want = odd
			}
		} else {
			cl.Send(d.says)
		}
		if !here && c.step == relay.EHLO && odd == nil { // the relay has no extensions, and codes come twice
			cl.ExpectCode(want[0][:6])
		} else {
			cl.Expect(want...)
		}
		switch {
		case !here:
		case strings.HasPrefix(want[len(want)-1], "421"):
			cl.ExpectGone()
			return
		case want[0][0] == '2':
		default: // it goes on with the next one
			if c.step == relay.MAIL {
				cl.Do("RCPT TO:<bob@dest.test>", "503 5.5.0 MAIL needed first")
			}
			if c.step == relay.RCPT {
				cl.Do("DATA", "554 5.5.0 No valid recipients")
			}
			if c.step != relay.RSET {
				cl.Do("RSET", "250")
			}
			message(cl, "again")
			cl.Do("QUIT", "221")
			cl.ExpectEOF()
			return
		}
	}
	cl.ExpectEOF()
}
