package interop

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// An act is a part of a day. Who comes in it has gone at its end.
type act struct {
	name    string
	scripts []relay.Script // of the connections to the relay that it makes
	do      func(w *world)

	// ehlos is how often somebody says EHLO who is logged in. Dovecot then announces BURL
	// (difference burl-announced-only-when-it-works), which out= of the log counts.
	ehlos int
}

// visit is an act of one client.
func visit(name string, script relay.Script, do func(w *world, s *session)) act {
	return act{name: name, scripts: []relay.Script{script}, do: func(w *world) {
		s := ways[2].dial(w, name)
		s.login("alice", "wonder")
		do(w, s)
		s.leave()
	}}
}

// greets says that in the act somebody says EHLO who is logged in.
func (a act) greets() act {
	a.ehlos++
	return a
}

// leave says QUIT, and waits for the end.
func (s *session) leave() {
	s.w.t.Helper()
	s.do("QUIT")
	s.gone()
}

// stranger is an act of a client who does not log in.
func stranger(name string, way way, lines ...string) act {
	return act{name: name, do: func(w *world) {
		s := way.dial(w, name)
		for _, l := range lines {
			s.do(l)
		}
		s.leave()
	}}
}

// dayUsers are more users.
var dayUsers = users("small:{PLAIN}x:12001:12001::{dir}/mail/small::userdb_submission_max_mail_size=1000",
	"there:{PLAIN}x:12001:12001::{dir}/mail/there::nologin=y host=192.0.2.1 reason=Try_there",
	"nobody:{PLAIN}x:1:1::{dir}/mail/nobody::", // a uid below first_valid_uid
	"nowhere:{PLAIN}x:12001:12001::/nonexistent/nowhere::")

// aLongDay is logins, failures, messages, disconnects, kicks and reloads, one after the other.
func aLongDay() (day []act) {
	add := func(acts ...act) { day = append(day, acts...) }
	for _, way := range ways {
		for _, m := range mechanisms {
			add(act{name: "login " + way.name + " " + m.name, scripts: make([]relay.Script, 1), do: func(w *world) {
				s := way.dial(w, way.name)
				had := logins(w.inst.Log())
				w.loggedIn(had, m.auth(s, "alice", "wonder"))
				s.message(hello)
				s.bdat("Subject: two\r\n\r\n", "body\r\n")
				s.leave()
			}})
		}
	}
	// Who does not get in.
	tls := ways[2]
	for _, m := range mechanisms {
		add(act{name: "wrong " + m.name, scripts: nil, do: func(w *world) {
			s := tls.dial(w, "wrong")
			m.auth(s, "alice", "wrong")
			m.auth(s, "unknown", "wrong")
			s.leave()
		}})
	}
	add(
		act{name: "wrong, then right", scripts: make([]relay.Script, 1), do: func(w *world) {
			s := tls.dial(w, "s")
			s.do("AUTH PLAIN " + plain("alice", "wrong"))
			s.login("alice", "wonder")
			s.leave()
		}},
		act{name: "wrong and gone", scripts: nil, do: func(w *world) {
			s := tls.dial(w, "s")
			s.do("AUTH PLAIN " + plain("alice", "wrong"))
			s.c.Close()
		}},
		stranger("nologin", tls, "AUTH PLAIN "+plain("carol", "cpass")),
		stranger("nologin with a reason", tls, "AUTH PLAIN "+plain("dave", "dpass")),
		stranger("nologin with a host", tls, "AUTH PLAIN "+plain("there", "x")),
		stranger("from another network", tls, "AUTH PLAIN "+plain("erin", "epass")),
		stranger("in clear", way{"clear", func(w *world, name string) *session { return w.dial(name, client.Options{From: "127.0.0.2"}) }}, "EHLO x", "AUTH PLAIN "+plain("alice", "wonder")),
		stranger("another mechanism", tls, "AUTH FOO"),
		stranger("cancelled", tls, "AUTH LOGIN", "*"),
		stranger("no base64", tls, "AUTH LOGIN", "!"),
		stranger("no attempt", tls, "EHLO x", "NOOP"),
		stranger("commands of later", tls, "EHLO x", "MAIL FROM:<a@b>", "VRFY root"),
		act{name: "gone at once", scripts: nil, do: func(w *world) { w.local("s").c.Close() }},
		act{name: "gone inside AUTH", scripts: nil, do: func(w *world) {
			s := tls.dial(w, "s")
			s.do("AUTH LOGIN")
			s.do(b64("alice"))
			s.c.Close()
		}},
		act{name: "too many bad commands", scripts: nil, do: func(w *world) {
			s := tls.dial(w, "s")
			for range 11 {
				s.do("FOO")
			}
			s.gone()
		}},
		act{name: "a uid that is not valid", scripts: nil, do: func(w *world) {
			s := tls.dial(w, "s")
			s.do("AUTH PLAIN " + plain("nobody", "x"))
			s.gone()
		}},
		act{name: "no home", scripts: make([]relay.Script, 1), do: func(w *world) {
			s := tls.dial(w, "s")
			s.login("nowhere", "x")
			s.message(hello)
			s.leave()
		}},
	)
	// What the relay says.
	for _, x := range []struct {
		name   string
		script relay.Script
	}{
		{"MAIL refused", relay.Script{relay.MAIL: {relay.Reply("550 5.7.1 not you")}}},
		{"RCPT refused", relay.Script{relay.RCPT: {relay.Reply("550 5.1.1 <bob@dest.test> unknown")}}},
		{"RCPT later", relay.Script{relay.RCPT: {relay.Reply("451 4.7.1 greylisted")}}},
		{"message refused", relay.Script{relay.BDAT: {relay.Reply("554 5.7.1 spam")}}},
		{"message refused in two lines", relay.Script{relay.BDAT: {relay.Reply("554-5.7.1 spam", "554 5.7.1 and more")}}},
		{"message later", relay.Script{relay.BDAT: {relay.Reply("452 4.3.1 full")}}},
		{"message taken", relay.Script{relay.BDAT: {relay.Reply("250 2.0.0 Ok: queued as " + strings.Repeat("4XYZ", 40))}}},
	} {
		add(visit("relay: "+x.name, x.script, func(w *world, s *session) {
			if got := s.do("MAIL FROM:<alice@example.test>"); !strings.HasPrefix(got[0], "2") {
				return
			}
			if got := s.do("RCPT TO:<bob@dest.test>"); !strings.HasPrefix(got[0], "2") {
				s.do("RSET")
				return
			}
			s.do("DATA")
			s.batch(1, "x", ".")
		}))
	}
	for _, x := range []struct {
		name   string
		script relay.Script
	}{
		{"closes", relay.Script{relay.RCPT: {relay.Close()}}},
		{"goes down", relay.Script{relay.MAIL: {relay.Reply("421 4.3.2 relay.test going down")}}},
		{"says nothing", relay.Script{relay.RCPT: {relay.Silence()}}},
		{"talks nonsense", relay.Script{relay.MAIL: {relay.Raw("garbage\r\n")}}},
		{"is closed", relay.Script{relay.Banner: {relay.Reply("554 5.3.2 no")}}},
		{"is lost with the message", relay.Script{relay.BDAT: {relay.Close()}}},
		{"wants a login", relay.Script{relay.MAIL: {relay.Reply("530 5.7.0 authenticate first")}}},
	} {
		add(act{name: "relay " + x.name, scripts: []relay.Script{x.script}, do: func(w *world) {
			s := tls.dial(w, "s")
			had := logins(w.inst.Log())
			for i, line := range []string{"AUTH PLAIN " + plain("alice", "wonder"), "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "DATA", "x\r\n."} {
				got := s.do(line)
				if i == 0 {
					w.loggedIn(had, got)
				}
				if !strings.HasPrefix(got[0], "2") && !strings.HasPrefix(got[0], "3") {
					break
				}
			}
			s.gone()
		}})
	}
	// What clients do, logged in.
	add(
		visit("too large", nil, func(w *world, s *session) {
			s.do("MAIL FROM:<a@b> SIZE=20000")
			s.message(strings.Repeat(strings.Repeat("x", 70)+"\r\n", 200))
			s.message(hello)
		}),
		act{name: "too large for the user", scripts: make([]relay.Script, 1), do: func(w *world) {
			s := tls.dial(w, "s")
			s.login("small", "x")
			s.message(strings.Repeat("x", 1500))
			s.leave()
		}},
		visit("too many recipients", nil, func(w *world, s *session) {
			s.do("MAIL FROM:<a@b>")
			for i := range 4 {
				s.do(fmt.Sprintf("RCPT TO:<r%d@dest.test>", i))
			}
			s.do("DATA")
			s.batch(1, "x", ".")
		}),
		visit("given up", nil, func(w *world, s *session) {
			s.do("MAIL FROM:<a@b>")
			s.do("RCPT TO:<c@d>")
			s.do("RSET")
			s.do("MAIL FROM:<>")
			s.do("RCPT TO:<c@d>")
			s.do("EHLO again")
			s.message(hello)
		}).greets(),
		visit("QUIT in between", nil, func(w *world, s *session) { s.do("MAIL FROM:<a@b>") }),
	)
	for _, x := range []struct {
		name string
		say  []string
		then string
	}{
		{"after the login", nil, ""},
		{"inside a line", nil, "MAI"},
		{"after EHLO", []string{"EHLO x"}, ""},
		{"after RCPT", []string{"MAIL FROM:<a@b>", "RCPT TO:<c@d>"}, ""},
		{"inside the message", []string{"MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA"}, "half a line"},
		{"inside a chunk", []string{"MAIL FROM:<a@b>", "RCPT TO:<c@d>"}, "BDAT 100 LAST\r\nhalf"},
	} {
		for how, leave := range []func(*client.Client){func(c *client.Client) { c.Close() }, func(c *client.Client) { c.Reset() }} {
			gone := act{name: fmt.Sprintf("gone %s, %d", x.name, how), scripts: make([]relay.Script, 1), do: func(w *world) {
				s := w.local("s")
				s.login("alice", "wonder")
				for _, l := range x.say {
					s.do(l)
				}
				s.send(x.then)
				leave(s.c)
			}}
			if x.name == "after EHLO" {
				gone = gone.greets()
			}
			add(gone)
		}
	}
	add(
		act{name: "too many bad commands, logged in", scripts: make([]relay.Script, 1), do: func(w *world) {
			s := tls.dial(w, "s")
			s.login("alice", "wonder")
			for range 11 {
				s.do("FOO")
			}
			s.gone()
		}},
		act{name: "one session too many", scripts: make([]relay.Script, 3), do: func(w *world) {
			var open []*session
			for i := range 3 {
				s := w.local(fmt.Sprint(i))
				s.login("alice", "wonder")
				open = append(open, s)
				w.whoCounts(i + 1)
			}
			s := w.local("too many")
			s.do("AUTH PLAIN " + plain("alice", "wonder"))
			s.gone()
			for _, s := range open {
				s.leave()
				w.whoCounts(len(open) - 1 - slices.Index(open, s))
			}
		}},
		act{name: "XCLIENT", scripts: make([]relay.Script, 1), do: func(w *world) {
			s := w.dial("edge", client.Options{From: "127.0.0.3"})
			s.do("XCLIENT ADDR=192.0.2.77 PORT=777 HELO=client.example PROTO=SMTP")
			s.do("AUTH PLAIN " + plain("alice", "wrong"))
			s.login("alice", "wonder")
			s.message(hello)
			s.leave()
		}},
		act{name: "kicked", scripts: make([]relay.Script, 2), do: func(w *world) {
			s := tls.dial(w, "s")
			s.login("bob@example.test", "bpass")
			w.whoCounts(1)
			w.inst.Doveadm("kick", "bob@example.test")
			s.gone()
			w.whoCounts(0)
			s = w.local("inside a message")
			s.login("alice", "wonder")
			s.do("MAIL FROM:<a@b>")
			s.do("RCPT TO:<c@d>")
			w.whoCounts(1)
			w.inst.Doveadm("kick", "alice")
			s.gone()
			w.whoCounts(0)
		}},
		act{name: "reload", scripts: make([]relay.Script, 2), do: func(w *world) {
			s := tls.dial(w, "before")
			s.login("alice", "wonder")
			w.reload("login_greeting = another day.")
			late := tls.dial(w, "after")
			late.login("bob@example.test", "bpass")
			late.message(hello)
			late.leave()
			s.message(hello)
			s.leave()
		}},
	)
	return day
}

// The log of a day is the same, line by line, but for what is documented.
func TestDay(t *testing.T) {
	t.Parallel()
	system.OursBoth.Need(t)
	// On a busy machine a session may go on for more than the 6 seconds after a reload.
	common := all(config(withMechanisms, "shutdown_clients = no", "mail_max_userip_connections = 3", "submission_max_mail_size = 10000", "submission_max_recipients = 3",
		"submission_relay_command_timeout = 1 s", "login_trusted_networks = 127.0.0.3"), dayUsers)
	for _, m := range []struct {
		name  string
		setup func(*system.Setup)
	}{
		{"as shipped, auth_verbose", all(common, config("auth_verbose = yes", "verbose_proctitle = yes"))},
		{"recommended", all(common, service("submission-login", "service_count = 0", "process_min_avail = 1"), service("submission", "process_min_avail = 4"))},
	} {
		t.Run(id(m.name), func(t *testing.T) {
			t.Parallel()
			day := aLongDay()
			truth := dayLog(t, system.Dovecot, m.setup, day, nil)
			if len(slices.Concat(truth...)) < 2*len(day) {
				t.Fatalf("the log is almost empty: %q", truth)
			}
			for _, sys := range []system.System{system.Dovecot, system.OursLogin, system.OursWorker, system.OursBoth} {
				t.Run(sys.String(), func(t *testing.T) {
					t.Parallel()
					dayLog(t, sys, m.setup, day, truth)
				})
			}
		})
	}
}

// dayLog plays a day and returns what the log says of each act. With the truth it waits for
// that, and fails when something else comes.
func dayLog(t *testing.T, sys system.System, setup func(*system.Setup), day []act, truth [][]string) (all [][]string) {
	t.Helper()
	port := system.Hold(t)
	o := relay.Options{Listener: port.Listen(t)}
	for _, a := range day {
		o.Scripts = append(o.Scripts, a.scripts...)
	}
	w := &world{t: t, relay: relay.Start(t, o)}
	s := system.Setup{RelayPort: port.Number}
	setup(&s)
	w.inst = sys.Start(t, s)
	for i, a := range day {
		before := w.inst.WholeLog()
		lines := func() (lines []string) {
			for _, l := range strings.Split(strings.TrimPrefix(w.inst.WholeLog(), before), "\n") {
				if l != "" && !strings.HasPrefix(l, "master: Warning: Time moved ") {
					lines = append(lines, normalise(l, w.inst))
				}
			}
			// The log process reads the pipes of the processes in an order of its own.
			slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(prefix(a), prefix(b)) })
			return lines
		}
		first := len(w.sessions)
		a.do(w)
		var diff string
		for end, same, last := time.Now().Add(patience), time.Now(), 0; ; time.Sleep(5 * time.Millisecond) {
			now := lines()
			if len(now) != last {
				same, last = time.Now(), len(now)
			}
			if truth != nil {
				want := truth[i]
				if sys.Worker == system.Ours {
					want = shortened(want, a.ehlos*len("250-BURL imap imap://sub.example.test\r\n"))
				}
				diff, _ = compared(sys, &record{chapters: []chapter{{a.name, want}}}, &record{chapters: []chapter{{a.name, now}}})
				if diff == "" || time.Since(same) > wrongFor || time.Now().After(end) {
					break
				}
				continue
			}
			of := func(process string) int {
				return count(now, process+": Info: Login: ", process+": Info: Disconnected: ")
			}
			if of("submission-login") >= len(w.sessions)-first && logins(now) <= logouts(now) && time.Since(same) > quietFor || time.Now().After(end) {
				break
			}
		}
		if diff != "" {
			t.Errorf("%s", diff)
		}
		all = append(all, lines())
	}
	if n, want := len(w.relay.AllEnded()), len(o.Scripts); n != want {
		t.Errorf("%d connections to the relay, want %d", n, want)
	}
	before := w.inst.WholeLog()
	w.inst.Stop()
	all = append(all, []string{normalise(strings.TrimPrefix(w.inst.WholeLog(), before), w.inst)})
	if truth != nil {
		if d := cmp.Diff(truth[len(day)], all[len(day)]); d != "" {
			t.Errorf("the end of the day (-Dovecot +%v): %s", sys, d)
		}
	}
	return all
}

// shortened takes octets from what the log says has been sent to the client.
func shortened(lines []string, octets int) []string {
	lines = slices.Clone(lines)
	for i, l := range lines {
		lines[i] = addToOut(l, -octets)
	}
	return lines
}

// prefix says whose line it is: a service's, or a user's session.
func prefix(line string) string {
	before, _, _ := strings.Cut(line, ": ")
	return before
}

const (
	quietFor = 150 * time.Millisecond // until an act is over
	wrongFor = 5 * time.Second        // until what else has come is a difference
)
