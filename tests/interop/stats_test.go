package interop

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// counts are what doveadm stats dump shows: a metric's count, and the sums of its fields.
func counts(r *system.Running) (rows []string) {
	for _, l := range strings.Split(r.Doveadm("stats", "dump"), "\n") {
		f := strings.Split(l, "\t")
		if len(f) < 4 || f[0] == "metric_name" || f[2] == "0" {
			continue
		}
		row := f[0] + " " + f[2]
		if f[1] != "duration" {
			row += " " + f[1] + "=" + f[3]
		}
		rows = append(rows, normalise(row, r))
	}
	slices.Sort(rows)
	return rows
}

func statsDialogues() []scenario {
	say := func(lines ...string) func(w *world) {
		return func(w *world) {
			s := w.local("c")
			for _, l := range lines {
				s.do(l)
			}
			s.gone()
		}
	}
	auth := "AUTH PLAIN " + plain("alice", "wonder")
	return []scenario{
		{name: "nothing", run: func(w *world) { w.local("c").c.Close() }},
		{name: "before the login", run: say("EHLO x", "HELO x", "NOOP", "RSET", "FOO", "MAIL FROM:<a@b>", "VRFY x", "QUIT")},
		{name: "failed logins", run: say("AUTH PLAIN "+plain("alice", "bad"), "AUTH PLAIN "+plain("carol", "cpass"), "AUTH", "AUTH FOO", "AUTH PLAIN", "*", "QUIT")},
		{name: "failed in other ways", setup: config(withMechanisms, "passdb ck {", " driver = checkpassword", " args = {dir}/etc/ck", "}"), run: func(w *world) {
			s := w.local("c")
			s.do("AUTH PLAIN " + plain("unknown", "x"))
			s.do("AUTH PLAIN =")
			mechanisms[3].auth(s, "alice", "wrong")
			mechanisms[4].auth(s, "alice", "wrong")
			s.do("QUIT")
			s.gone()
		}},
		{name: "left in AUTH", run: func(w *world) {
			s := w.local("c")
			s.do("AUTH LOGIN")
			s.do(b64("alice"))
			s.c.Close()
		}},
		{name: "lines that are no commands", run: say("", " NOOP", "NO-OP", "NOOP "+strings.Repeat("x", 2000), "HELP", "quit")},
		{name: "too many bad commands", run: func(w *world) {
			s := w.local("c")
			for range 11 {
				s.do("FOO")
			}
			s.gone()
		}},
		{name: "XCLIENT", setup: config("login_trusted_networks = 127.0.0.3"), run: func(w *world) {
			s := w.dial("c", client.Options{From: "127.0.0.3"})
			s.do("XCLIENT ADDR=192.0.2.77 PORT=777 HELO=client.example PROTO=SMTP SESSION=abc TTL=3")
			s.do("XCLIENT FOO=BAR")
			s.do(auth)
			s.do("QUIT")
			s.gone()
		}},
		{name: "each mechanism", setup: config(withMechanisms), run: func(w *world) {
			for _, m := range mechanisms {
				s := w.local("c")
				m.auth(s, "alice", "wonder")
				s.do("QUIT")
				s.gone()
			}
		}},
		{name: "proxied", setup: proxied, relay: relay.Options{Caps: []string{"AUTH PLAIN", "PIPELINING"}}, run: say("EHLO x", "AUTH PLAIN "+plain("p1", "pw"), "NOOP", "QUIT")},
		{name: "proxied, left", setup: proxied, relay: relay.Options{Caps: []string{"AUTH PLAIN", "PIPELINING"}}, run: func(w *world) {
			s := w.local("c")
			s.do("AUTH PLAIN " + plain("p1", "pw"))
			s.c.Close()
			w.inst.WaitLine("Disconnected by client")
		}},
		{name: "proxied, refused", setup: proxied, relay: relay.Options{Caps: []string{"AUTH PLAIN", "PIPELINING"}, Script: relay.Script{relay.AUTH: {relay.Reply("535 5.7.8 no")}}},
			run: say("AUTH PLAIN "+plain("p1", "pw"), "QUIT")},
		{name: "proxied, backend odd", setup: proxied, relay: relay.Options{Script: relay.Script{relay.Banner: {relay.Reply("554 no").Always()}}},
			run: say("AUTH PLAIN "+plain("p1", "pw"), "QUIT")},
		{name: "login", run: say("EHLO x", auth, "QUIT")},
		{name: "login in steps", run: say("AUTH LOGIN", b64("alice"), b64("wonder"), "QUIT")},
		{name: "a message", run: say("EHLO x", auth, "EHLO y", "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "DATA", "Subject: x\r\n\r\nx\r\n.", "QUIT")},
		{name: "BDAT", run: say(auth, "MAIL FROM:<alice@example.test> SIZE=10", "RCPT TO:<bob@dest.test>", "RCPT TO:<carol@dest.test>", "BDAT 3\r\nabc", "BDAT 3 LAST\r\ndef", "QUIT")},
		{name: "RSET", run: say(auth, "MAIL FROM:<alice@example.test>", "RSET", "MAIL FROM:<>", "RCPT TO:<bob@dest.test>", "RSET", "QUIT")},
		{name: "commands", run: say(auth, "NOOP", "VRFY x", "FOO", "MAIL", "RCPT TO:<a@b>", "DATA", "BDAT 0", "STARTTLS", "AUTH PLAIN", "HELP", "QUIT")},
		{name: "left in MAIL", run: func(w *world) {
			s := w.local("c")
			for _, l := range []string{auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>"} {
				s.do(l)
			}
			s.c.Close()
		}},
		{name: "left in DATA", run: func(w *world) {
			s := w.local("c")
			for _, l := range []string{auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "DATA"} {
				s.do(l)
			}
			s.send("half\r\n")
			s.c.Close()
		}},
		{name: "TLS", run: func(w *world) {
			s := w.dial("c", client.Options{TLS: w.inst.TLS()})
			s.do("EHLO x")
			s.do(auth)
			s.message(hello)
			s.do("QUIT")
			s.gone()
		}},
		{name: "STARTTLS", run: func(w *world) {
			s := w.dial("c", client.Options{From: "127.0.0.2"})
			s.do("EHLO x")
			s.startTLS()
			s.do(auth)
			s.do("QUIT")
			s.gone()
		}},
		{name: "relay refuses", relay: relay.Options{Script: relay.Script{relay.MAIL: {relay.Reply("550 5.1.1 no")}, relay.RCPT: {relay.Reply("450 4.1.1 later")}, relay.Dot: {relay.Reply("554 5.6.0 no")}, relay.BDAT: {relay.Reply("554 5.6.0 no")}}},
			run: say(auth, "MAIL FROM:<alice@example.test>", "RSET", "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "RCPT TO:<carol@dest.test>", "DATA", "x\r\n.", "QUIT")},
		{name: "relay by DATA", relay: relay.Options{Caps: []string{"PIPELINING", "SIZE 10240000", "8BITMIME", "ENHANCEDSTATUSCODES", "DSN"}},
			run: say(auth, "MAIL FROM:<alice@example.test> BODY=8BITMIME RET=HDRS ENVID=x", "RCPT TO:<bob@dest.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;x@y", "DATA", "..x\r\n.", "QUIT")},
		{name: "relay without codes", relay: relay.Options{Caps: []string{"PIPELINING"}, Script: relay.Script{relay.RCPT: {relay.Reply("550 5.1.1 no")}, relay.DATA: {relay.Reply("451 4.3.0 later")}}},
			run: say(auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "RCPT TO:<carol@dest.test>", "DATA", "x\r\n.", "QUIT")},
		{name: "relay with a login", setup: config("submission_relay_user = u", "submission_relay_password = p"), relay: relay.Options{Caps: append([]string{"AUTH PLAIN"}, relay.DefaultCaps...)},
			run: say(auth, "QUIT")},
		{name: "relay with XCLIENT", setup: config("submission_relay_trusted = yes"), relay: relayWithXclient,
			run: say(auth, "MAIL FROM:<alice@example.test>", "RSET", "QUIT")},
		{name: "relay says 421", relay: relay.Options{Script: relay.Script{relay.RCPT: {relay.Reply("421 4.3.2 relay.test going down")}}},
			run: func(w *world) {
				s := w.local("c")
				for _, l := range []string{auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>"} {
					s.do(l)
				}
				s.gone()
			}},
		{name: "relay silent", setup: config("submission_relay_command_timeout = 1 s"), relay: relay.Options{Script: relay.Script{relay.RCPT: {relay.Silence()}}},
			run: func(w *world) {
				s := w.local("c")
				for _, l := range []string{auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>"} {
					s.do(l)
				}
				s.gone()
			}},
		{name: "relay garbage", relay: relay.Options{Script: relay.Script{relay.RCPT: {relay.Raw("garbage\r\n")}}},
			run: func(w *world) {
				s := w.local("c")
				for _, l := range []string{auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>"} {
					s.do(l)
				}
				s.gone()
			}},
		{name: "relay refuses at once", relay: relay.Options{Script: relay.Script{relay.Banner: {relay.Reply("554 5.3.2 no").Always()}}},
			run: func(w *world) {
				s := w.local("c")
				s.do(auth)
				s.gone()
			}},
		{name: "relay lost at the dot", relay: relay.Options{Script: relay.Script{relay.BDAT: {relay.Close()}}},
			run: func(w *world) {
				s := w.local("c")
				for _, l := range []string{auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "DATA", "x\r\n."} {
					s.do(l)
				}
				s.gone()
			}},
		{name: "too big", setup: config("submission_max_mail_size = 1000"),
			run: say(auth, "MAIL FROM:<alice@example.test> SIZE=2000", "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "DATA", strings.Repeat("x", 1500)+"\r\n.", "QUIT")},
		{name: "too big, and again", setup: config("submission_max_mail_size = 1000"),
			run: say(auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "DATA", strings.Repeat("x", 1500)+"\r\n.", "MAIL FROM:<alice@example.test>", "RSET", "QUIT")},
		{name: "BDAT and RSET", run: say(auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "BDAT 2\r\nx\n", "RSET", "QUIT")},
		{name: "too many recipients", setup: config("submission_max_recipients = 1"),
			run: say(auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "RCPT TO:<carol@dest.test>", "DATA", "x\r\n.", "QUIT")},
		{name: "two messages", run: say(auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "DATA", "x\r\n.", "MAIL FROM:<>", "RCPT TO:<bob@dest.test>", "DATA", "x\r\n.", "QUIT")},
		{name: "EHLO inside a transaction", run: say(auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "EHLO y", "QUIT")},
		{name: "userdb does not know the user", setup: config("passdb x {", " driver = static", " args = password=x", "}"), run: func(w *world) {
			s := w.local("c")
			s.send("AUTH PLAIN " + plain("zork", "x") + "\r\n")
			s.c.ExpectGone()
			w.inst.WaitLine("Internal login failure")
		}},
		{name: "relay lost", relay: relay.Options{Script: relay.Script{relay.RCPT: {relay.Close()}}},
			run: func(w *world) {
				s := w.local("c")
				for _, l := range []string{auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>"} {
					s.do(l)
				}
				s.gone()
			}},
	}
}

func proxied(s *system.Setup) {
	s.Config = append(s.Config, "passdb pf {", " driver = passwd-file", " args = {dir}/etc/pusers", "}")
}

// countsOf plays dialogues one after the other on an instance of their own, and returns what
// is counted after each. If want is not nil the counts are awaited.
func countsOf(t *testing.T, sys system.System, dialogues []scenario, want [][]string) (all [][]string) {
	t.Helper()
	port := system.Hold(t)
	o := dialogues[0].relay
	o.Listener = port.Listen(t)
	w := &world{t: t, relay: relay.Start(t, o)}
	setup := system.Setup{RelayPort: port.Number, Config: metrics()}
	if f := dialogues[0].setup; f != nil {
		f(&setup)
	}
	w.inst = sys.Start(t, setup)
	for i, sc := range dialogues {
		sc.run(w)
		w.chapter(sc.name)
		if want == nil {
			all = append(all, steadyCounts(w.inst))
			continue
		}
		got := counts(w.inst)
		for end := time.Now().Add(countsWait); !slices.Equal(got, want[i]) && time.Now().Before(end); got = counts(w.inst) {
			time.Sleep(20 * time.Millisecond)
		}
		all = append(all, got)
	}
	w.inst.Stop()
	if strings.Contains(w.inst.WholeLog(), "stats: Error: ") {
		t.Errorf("%v: the stats process complains:\n%s", sys, w.inst.WholeLog())
	}
	return all
}

// countsWait is how long events may take to be counted.
const countsWait = 5 * time.Second

// steadyCounts returns the counts when they do not change any more.
func steadyCounts(r *system.Running) (rows []string) {
	for same := 0; same < 5; time.Sleep(50 * time.Millisecond) {
		now := counts(r)
		if slices.Equal(now, rows) {
			same++
		} else {
			rows, same = now, 0
		}
	}
	return rows
}

// doveadm stats dump shows the same counts of the same dialogues. What a QUIT
// inside a transaction makes of the relay's side depends on the moment with Dovecot, and is
// left out. On purpose there is no second RSET before the MAIL that follows an EHLO inside a
// transaction, and what follows the mechanism of an AUTH is not told: it is a password.
func TestStats(t *testing.T) {
	t.Parallel()
	system.OursBoth.Need(t)
	var plain []scenario
	groups := map[string][]scenario{}
	for _, sc := range statsDialogues() {
		if sc.setup == nil && sc.relay.Caps == nil && sc.relay.Script == nil {
			plain = append(plain, sc)
		} else {
			groups[sc.name] = []scenario{sc}
		}
	}
	// In parts that take about as long as each other.
	for i := 0; i < len(plain); i += 6 {
		groups["plain from "+plain[i].name] = plain[i:min(i+6, len(plain))]
	}
	for name, dialogues := range groups {
		t.Run(id(name), func(t *testing.T) {
			t.Parallel()
			want := countsOf(t, system.Dovecot, dialogues, nil)
			for i := range want {
				if len(want[i]) < 4 {
					t.Fatalf("almost nothing is counted: %q", want[i])
				}
			}
			got := countsOf(t, system.OursBoth, dialogues, want)
			for i, sc := range dialogues {
				if d := cmp.Diff(want[i], got[i]); d != "" {
					t.Fatalf("doveadm stats dump after %s (-Dovecot +ours):\n%s", sc.name, d)
				}
			}
		})
	}
}
