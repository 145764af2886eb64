package interop

import (
	"fmt"
	"strings"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
)

// odd are the ways in which a relay answers one command. What makes Dovecot's worker abort
// (differences multi-line-rcpt-refusal, mail-after-refused-mail, success-to-data-is-none)
// is left out at its step.
var odd = []struct {
	name string
	b    relay.Behaviour
	not  []relay.Step
}{
	{"250", relay.Reply("250 2.5.0 fine"), noSuccess},
	{"251 without code", relay.Reply("251 fine"), noSuccess},
	{"250 of several lines", relay.Reply("250-2.1.0 one", "250-2.1.0 two", "250 2.1.0 three"), noSuccess},
	{"250 with another class", relay.Reply("250 5.1.0 odd"), noSuccess},
	{"354", relay.Reply("354 go on"), noSuccess},
	{"450", relay.Reply("450 4.2.1 later"), nil},
	{"450 of several lines", relay.Reply("450-4.2.1 not", "450 4.2.1 now"), []relay.Step{relay.RCPT}},
	{"451 without code", relay.Reply("451 later"), nil},
	{"452 empty", relay.Reply("452 "), nil},
	{"500", relay.Reply("500 5.5.1 what"), nil},
	{"502", relay.Reply("502 5.5.1 not here"), nil},
	{"530", relay.Reply("530 5.7.0 authenticate first"), nil},
	{"550", relay.Reply("550 5.7.1 no"), nil},
	{"550 for a path", relay.Reply("550 5.1.1 <bob@dest.test> unknown"), nil},
	{"554 with 8 bits", relay.Reply("554 5.7.1 n\xc3\xa9in"), nil},
	{"421", relay.Reply("421 4.3.2 relay.test going down"), nil},
	{"421 and close", relay.Close("421 4.3.2 relay.test going down"), nil},
	{"150", relay.Reply("150 no class"), nil},
	{"600", relay.Reply("600 no class"), nil},
	{"garbage", relay.Raw("garbage\r\n"), nil},
	{"NUL", relay.Raw("250 a\x00b\r\n"), nil},
	{"two codes", relay.Raw("450-a\r\n550 b\r\n"), nil},
	{"close", relay.Close(), nil},
	{"reset", relay.Reset(), []relay.Step{relay.Banner}}, // inside or behind connect()
	{"silence", relay.Silence(), nil},
	{"half a line", relay.HalfLine("250 2.1"), nil},
}

// noSuccess are the steps where a 2xx means more than the relay of these cases can do: to
// read data, to make a handshake.
var noSuccess = []relay.Step{relay.DATA, relay.STARTTLS}

// relayCases: at each step, each odd answer, each with a session of its own on the same
// instance.
func relayCases() (cases []scenario) {
	for _, step := range []relay.Step{relay.Banner, relay.EHLO, relay.MAIL, relay.RCPT, relay.DATA, relay.Dot, relay.BDAT, relay.RSET, relay.NOOP, relay.VRFY, relay.QUIT, relay.AUTH, relay.STARTTLS, relay.XCLIENT} {
		var scripts []relay.Script
		var names []string
		for _, o := range odd {
			if contains(o.not, step) {
				continue
			}
			names = append(names, o.name)
			scripts = append(scripts, relay.Script{step: {o.b}})
		}
		o := relay.Options{Scripts: scripts}
		setup := config("submission_relay_connect_timeout = 1 s", "submission_relay_command_timeout = 1 s")
		switch step {
		case relay.DATA, relay.Dot:
			o.Caps = []string{"PIPELINING", "SIZE 10240000", "8BITMIME", "ENHANCEDSTATUSCODES"} // no CHUNKING
		case relay.AUTH:
			o.Caps = append([]string{"AUTH PLAIN"}, relay.DefaultCaps...)
			setup = all(setup, config("submission_relay_user = ruser", "submission_relay_password = rpass"))
		case relay.STARTTLS:
			setup = all(setup, config("submission_relay_ssl = starttls", "submission_relay_ssl_verify = no"))
		case relay.XCLIENT:
			o.Caps = append([]string{"XCLIENT ADDR HELO LOGIN"}, relay.DefaultCaps...)
			setup = all(setup, config("submission_relay_trusted = yes"))
		}
		cases = append(cases, scenario{
			name: "relay: " + string(step), setup: setup, relay: o, relayTLS: step == relay.STARTTLS, slow: true,
			run: func(w *world) {
				for _, name := range names {
					w.local(name).against(step)
					w.chapter(name)
				}
			},
		})
	}
	return cases
}

func contains(steps []relay.Step, s relay.Step) bool {
	for _, x := range steps {
		if x == s {
			return true
		}
	}
	return false
}

// against walks through a session in which the relay is odd at one step, and stops when
// the server closes.
func (s *session) against(step relay.Step) {
	s.w.t.Helper()
	defer s.c.Close()
	lines := []string{"EHLO client.example.org", "AUTH PLAIN " + plain("alice", "wonder")}
	switch step {
	case relay.RSET, relay.VRFY, relay.NOOP:
		lines = append(lines, string(step)+map[relay.Step]string{relay.VRFY: " joe"}[step])
	case relay.Banner, relay.EHLO, relay.AUTH, relay.STARTTLS, relay.QUIT:
	default:
		lines = append(lines, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "DATA", "x\r\n.")
	}
	lines = append(lines, "NOOP", "QUIT")
	had := logins(s.w.inst.Log())
	for i := 0; i < len(lines); i++ {
		got := s.do(lines[i])
		switch {
		case len(got) == 0 || got[len(got)-1] == "": // the end
			return
		case i == 1:
			s.w.loggedIn(had, got)
		case lines[i] == "DATA" && !strings.HasPrefix(got[0], "354"):
			i++ // no message then
		}
	}
	s.gone()
}

// clientCases: what a client does wrong, and when it leaves.
func clientCases() (cases []scenario) {
	leave := map[string]func(*client.Client){
		"close":      func(c *client.Client) { c.Close() },
		"reset":      func(c *client.Client) { c.Reset() },
		"half-close": func(c *client.Client) { c.CloseWrite() },
	}
	points := []struct {
		name string
		say  []string // one reply each
		then string   // sent without waiting
	}{
		{"at the greeting", nil, ""},
		{"inside a line", nil, "EHL"},
		{"after EHLO", []string{"EHLO x"}, ""},
		{"inside AUTH", []string{"AUTH PLAIN"}, ""},
		{"after login", []string{"AUTH PLAIN " + plain("alice", "wonder")}, ""},
		{"after MAIL", []string{"AUTH PLAIN " + plain("alice", "wonder"), "MAIL FROM:<a@b>"}, ""},
		{"after RCPT", []string{"AUTH PLAIN " + plain("alice", "wonder"), "MAIL FROM:<a@b>", "RCPT TO:<c@d>"}, ""},
		{"inside DATA", []string{"AUTH PLAIN " + plain("alice", "wonder"), "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA"}, "half a message\r\n"},
		{"inside BDAT", []string{"AUTH PLAIN " + plain("alice", "wonder"), "MAIL FROM:<a@b>", "RCPT TO:<c@d>"}, "BDAT 100 LAST\r\nhalf a message\r\n"},
	}
	for _, how := range []string{"close", "reset", "half-close"} {
		cases = append(cases, scenario{name: "client leaves by " + how, run: func(w *world) {
			for i, p := range points {
				s := w.local(p.name)
				had := logins(w.inst.Log())
				for _, line := range p.say {
					if last := s.do(line); strings.HasPrefix(line, "AUTH") {
						w.loggedIn(had, last)
					}
				}
				if p.then != "" {
					s.send(p.then)
				}
				leave[how](s.c)
				if how == "half-close" {
					s.gone()
				}
				w.inst.WaitFor(func(lines []string) bool {
					return count(lines, "submission-login: Info: Disconnected: ", ">: Info: Disconnected: ") > i
				})
				w.chapter(p.name)
			}
		}})
	}
	return append(cases,
		scenario{name: "commands of all kinds after login", run: func(w *world) {
			s := w.local("c")
			s.login("alice", "wonder")
			for _, line := range []string{"EHLO", "HELO", "HELO x y", "MAIL", "MAIL FROM", "MAIL FROM:", "MAIL FROM:<", "MAIL FROM:<a@b>x", "MAIL FROM:<a@b> ", "RSET x", "RSET",
				"RCPT TO:<c@d>", "DATA", "BDAT 0", "BDAT 3 LAST x\r\nabc", "BDAT -1", "VRFY", "VRFY \"a\\\"b\"", "HELP", "EXPN x", "ETRN x", "LHLO x", "XCLIENT", "STARTTLS", "STARTTLS x", "AUTH", "AUTH PLAIN x y", "AUTH PLAIN =", "QUIT x", "NOOP x", "NOOP \"x y\"", "FOO"} {
				s.do(line)
			}
			s.do("QUIT")
			s.gone()
		}},
		scenario{name: "paths", run: func(w *world) {
			s := w.local("c")
			s.login("alice", "wonder")
			for _, p := range []string{"<>", "<a@b>", "<a@b.c.d>", "<\"a\"@b>", "<\"a b\"@b>", "<\"a\\\"b\"@b>", "<a@[192.0.2.1]>", "<a@[IPv6:2001:db8::1]>", "<a@[x-tag:y]>", "<a@[1.2.3]>",
				"<@x:a@b>", "<@x,@y:a@b>", "<@x>", "<a@>", "<@b>", "<a..b@c>", "<.a@b>", "<a.@b>", "<a@b.>", "<a@.b>", "<a@b..c>", "<a@-b>", "<a_b@c_d>", "<a b@c>", "<a@b", "a@b>", "<<a@b>>", "<\xc3\xa9@b>", "<a@b\xc3\xa9>", "<postmaster>", "<PostMaster>", "<\"\"@b>", "<a+b=c@d>"} {
				s.do("MAIL FROM:" + p)
				s.do("RSET")
				s.do("MAIL FROM:<x@y>")
				s.do("RCPT TO:" + p)
				s.do("RSET")
			}
			s.do("QUIT")
			s.gone()
		}},
		scenario{name: "parameters", run: func(w *world) {
			s := w.local("c")
			s.login("alice", "wonder")
			for _, p := range []string{"SIZE=0", "SIZE=1", "SIZE", "SIZE=", "SIZE=-1", "SIZE=99999999999999999999", "BODY=7BIT", "BODY=8bitmime", "BODY=BINARYMIME", "BODY", "RET=FULL", "RET=hdrs", "RET=", "RET", "ENVID=a+3Db", "ENVID=", "ENVID=+", "ENVID=+20", "ENVID=+00",
				"AUTH=<>", "AUTH=a@b", "AUTH=a+40b", "AUTH=", "AUTH=x", "SMTPUTF8", "REQUIRETLS", "FOO", "FOO=BAR", "SIZE=1 BODY=8BITMIME RET=FULL ENVID=x AUTH=<>", "SIZE=1 SIZE=1", "=", "A=B=C"} {
				s.do("MAIL FROM:<a@b> " + p)
				s.do("RSET")
			}
			for _, p := range []string{"NOTIFY=NEVER", "NOTIFY=SUCCESS", "NOTIFY=delay,failure,success", "NOTIFY=", "NOTIFY", "NOTIFY=NEVER,SUCCESS", "NOTIFY=X", "NOTIFY=SUCCESS,,DELAY", "NOTIFY=SUCCESS,SUCCESS", "ORCPT=rfc822;c@d", "ORCPT=RFC822;c+40d", "ORCPT=rfc822;", "ORCPT=rfc822", "ORCPT=;x", "ORCPT=x400;abc", "ORCPT=rfc822;c+2Bx@d", "ORCPT=rfc822;+", "ORCPT=", "FOO=1", "NOTIFY=NEVER NOTIFY=NEVER"} {
				s.do("MAIL FROM:<a@b>")
				s.do("RCPT TO:<c@d> " + p)
				s.do("RSET")
			}
			s.do("QUIT")
			s.gone()
		}},
		scenario{name: "line syntax after login", run: func(w *world) {
			s := w.local("c")
			s.login("alice", "wonder")
			for _, line := range []string{"NOOP\n", "NOOP\rx\r\n", "NOOP\x00\r\n", "NOOP\r\r\n", " NOOP\r\n", "  NOOP\r\n", "NOOP  x\r\n", "NOOP\tx\r\n", "NOOP\t\r\n", "\r\n", "\n", "NO-OP\r\n", "NOOP \xff\r\n", "NOOP \xc3\xa9\r\n",
				"noop\r\n", strings.Repeat("A", 32) + "\r\n", strings.Repeat("A", 33) + "\r\n", "NOOP " + strings.Repeat("a", 4096) + "\r\n", "NOOP " + strings.Repeat("a", 4097) + "\r\n"} {
				s.send(line)
				s.reply()
				s.do("RSET") // so that bad commands do not add up
			}
			s.do("QUIT")
			s.gone()
		}},
		scenario{name: "too many bad commands", run: func(w *world) {
			s := w.local("c")
			s.login("alice", "wonder")
			for range 11 {
				s.do("FOO")
			}
			s.gone()
		}},
		scenario{name: "a message of every size", run: func(w *world) {
			s := w.local("c")
			s.login("alice", "wonder")
			for _, n := range []int{0, 1, 998, 10000, 100000} {
				s.message(strings.Repeat("x", n))
				s.bdat(strings.Repeat("y", n))
			}
			s.do("QUIT")
			s.gone()
		}},
		scenario{
			name:  "line ends to a DATA relay",
			relay: relay.Options{Caps: []string{"PIPELINING", "SIZE 10240000", "8BITMIME"}},
			run: func(w *world) {
				s := w.local("c")
				s.login("alice", "wonder")
				for _, body := range []string{"a\nb", "..", "..\r\n...", "\x00\x00", "a\x00\r\nb", "\xff\xfe", "no end"} {
					s.message(body)
					s.bdat(body)
				}
				s.do("QUIT")
				s.gone()
			},
		},
		scenario{name: "a pipelined transaction", run: func(w *world) {
			s := w.local("c")
			s.login("alice", "wonder")
			s.batch(4, "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "RCPT TO:<e@f>", "DATA")
			s.batch(1, "x", ".")
			s.batch(5, "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "BDAT 3\r\nabcBDAT 3 LAST\r\ndefNOOP")
			s.do("QUIT")
			s.gone()
		}},
		scenario{name: "a day", run: aDay},
	)
}

// aDay is one of everything that happens in production.
func aDay(w *world) {
	for i := range 3 {
		s := ways[i].dial(w, "user "+ways[i].name)
		s.do("AUTH PLAIN " + plain("alice", fmt.Sprint("wrong", i)))
		s.login("alice", "wonder")
		s.message(hello)
		for _, line := range []string{"MAIL FROM:<a@b>", "RCPT TO:<nobody>", "RSET"} { // one write of them makes Dovecot's worker abort
			s.do(line)
		}
		s.bdat("Subject: two\r\n\r\n", "body\r\n")
		s.do("QUIT")
		s.gone()
	}
	scan := w.local("scanner")
	scan.do("EHLO scan", "MAIL FROM:<a@b>", "VRFY root", "FOO")
	scan.c.Close()
	kicked := w.local("kicked")
	kicked.login("bob@example.test", "bpass")
	w.eventually("anvil to count", func() bool { return strings.Contains(w.inst.Doveadm("who"), "bob@example.test") })
	w.inst.Doveadm("kick", "bob@example.test")
	kicked.gone()
	w.reload("login_greeting = another day.")
	s := w.local("evening")
	s.login("alice", "wonder")
	s.message(hello)
	s.c.Close()
}
