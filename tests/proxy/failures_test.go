package proxy

import (
	"crypto/tls"
	"fmt"
	"os"
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

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }

// systems are those whose login process proxies.
var systems = []system.System{system.Dovecot, system.OursLogin, system.Standalone}

// A failure is a row of table S9.7, or near one: what the backend does, what the client
// hears, what the log says.
type failure struct {
	name   string
	fields string
	script relay.Script
	caps   []string // of the backend; nil: as Dovecot's
	tls    string   // "implicit", "starttls"; "": none
	down   bool     // nothing listens
	slow   bool     // the backend sends each octet by itself
	bare   bool     // fields is all that the passdb says

	reply string // to AUTH; lines are joined with " / "
	log   string // the line behind "proxy(USER,IP:PORT): ", or "" for none
	level string // of that line; "": Error
	tries int    // connections to the backend; 0: not looked at
	gone  bool   // the client is disconnected

	// Dovecot's login process aborts (S13.5, S13.6), so only ours is tried ...
	defect bool
	// ... or says something else: why that is.
	theirReply, theirLog, differs string
	// Dovecot says this, once, if the handshake has failed before it looks again.
	sooner string
}

func script(step relay.Step, bs ...relay.Behaviour) relay.Script {
	bs[len(bs)-1] = bs[len(bs)-1].Always()
	return relay.Script{step: bs}
}

const (
	invalid  = "Remote server sent invalid input: "
	aborting = "Aborting due to remote server: "
	closed   = "Disconnected by server: Connection closed (state=%s, duration={n}s)"
	allow    = " (allow it there for this server: login_trusted_networks of Dovecot and Dovetail, smtpd_authorized_xclient_hosts of Postfix)"
	noTime   = "proxy_timeout=2"

	internal     = "Aborting due to internal error: Failed to start SSL handshake: "
	selfSigned   = "Received invalid SSL certificate: self-signed certificate: /CN=backend.test (check ssl_client_ca_* settings?)"
	wrongVersion = "SSL_connect() failed: error:0A00010B:SSL routines::wrong version number"
)

func handshake(why, state string) string {
	return fmt.Sprintf("Disconnected by server: Connection closed: %s (state=%s, duration={n}s)", why, state)
}

func without(cap string) []string {
	return slices.DeleteFunc(slices.Clone(dovecotCaps), func(c string) bool { return strings.HasPrefix(c, cap) })
}

func failures() []failure {
	rows := []failure{
		{name: "refused", down: true, reply: unavailable,
			log: "connect(127.0.0.1, {backend}) failed: Connection refused (after 1 secs, 1 reconnects, local=127.0.0.1:{port})"},
		{name: "banner-554", script: script(relay.Banner, relay.Reply("554 no")), reply: unavailable, tries: 2,
			log: invalid + "Invalid banner: 554 no"},
		{name: "banner-lines", script: script(relay.Banner, relay.Reply("554-no", "554 never")), reply: unavailable, tries: 2,
			log: invalid + "Invalid banner: 554-no"},
		{name: "banner-garbage", script: script(relay.Banner, relay.Reply("hello, world")), reply: unavailable, tries: 2,
			log: invalid + "Invalid banner: hello, world"},
		{name: "banner-long", script: script(relay.Banner, relay.LongLine("554", 200)), reply: unavailable, tries: 2,
			log: invalid + "Invalid banner: 554 " + strings.Repeat("x", 153) + "..."},
		{name: "banner-two-codes", script: script(relay.Banner, relay.Raw("220-a\r\n554 b\r\n")), reply: unavailable, tries: 2,
			log: invalid + "Inconsistent SMTP reply: 554 b (status != 220)"},
		{name: "ehlo-refused", script: script(relay.EHLO, relay.Reply("500 what")), reply: unavailable, tries: 2,
			log: invalid + "Invalid EHLO line: 500 what"},
		{name: "ehlo-garbage", script: script(relay.EHLO, relay.Raw("25\r\n")), reply: unavailable, tries: 2,
			log: invalid + "Invalid EHLO line: 25"},
		{name: "ehlo-two-codes", script: script(relay.EHLO, relay.Raw("250-a\r\n220 b\r\n")), reply: unavailable, tries: 2,
			log: invalid + "Inconsistent SMTP reply: 220 b (status != 250)"},
		{name: "ehlo-after-xclient", script: script(relay.EHLO, relay.Reply("250-relay.test", "250-PIPELINING", "250-AUTH PLAIN", "250 XCLIENT TTL"), relay.Reply("500 what")), reply: unavailable,
			log: invalid + "Invalid EHLO line: 500 what"},
		{name: "starttls-missing", fields: "starttls=any-cert", reply: unavailable, tries: 1,
			log: aborting + "STARTTLS not supported"},
		{name: "starttls-refused", fields: "starttls=any-cert", tls: "starttls", script: script(relay.STARTTLS, relay.Reply("454 4.7.0 not now")), reply: unavailable, tries: 2,
			log: aborting + "STARTTLS failed: 454 4.7.0 not now"},
		{name: "xclient-refused", script: script(relay.XCLIENT, relay.Reply("550 5.7.0 not you")), reply: unavailable, tries: 2,
			log: aborting + "XCLIENT failed: 550 5.7.0 not you" + allow, theirLog: aborting + "XCLIENT failed: 550 5.7.0 not you", differs: "xclient-refused-says-what-to-do"},
		{name: "auth-not-offered", caps: without("AUTH"), reply: unavailable, tries: 1,
			log: aborting + "Authentication support not advertised (TLS required?)"},
		{name: "auth-empty", caps: append(without("AUTH"), "AUTH"), reply: unavailable, tries: 1,
			log: aborting + "Authentication support not advertised (TLS required?)"},
		{name: "auth-535", script: script(relay.AUTH, relay.Reply("535 5.7.8 No such thing.")), reply: "535 5.7.8 No such thing.", tries: 1,
			log: "Login failed: No such thing.", level: "Info"},
		{name: "auth-535-bare", script: script(relay.AUTH, relay.Reply("535 No such thing.")), reply: "535 No such thing.", tries: 1,
			log: "Login failed: No such thing.", level: "Info"},
		{name: "auth-535-text-code", caps: without("ENHANCED"), script: script(relay.AUTH, relay.Reply("535 5.7.8 No such thing.")), reply: "535 5.7.8 No such thing.", tries: 1,
			log: "Login failed: 5.7.8 No such thing.", level: "Info"},
		{name: "auth-454", script: script(relay.AUTH, relay.Reply("454 4.7.0 later")), reply: "454 4.7.0 later", tries: 2,
			log: "Login failed: later", level: "Info"},
		{name: "auth-421", script: script(relay.AUTH, relay.Reply("421 4.7.0 go away")), reply: "421 4.7.0 go away", gone: true, tries: 1,
			log: "Login failed: go away", level: "Info"},
		{name: "auth-who", fields: "destuser=other master=boss pass=mpw source_ip=127.0.0.1", script: script(relay.AUTH, relay.Reply("535 5.7.8 no")), reply: "535 5.7.8 no", tries: 1,
			log: "Login failed from 127.0.0.1 as user other (master boss): no", level: "Info"},
		{name: "auth-challenge-lines", script: script(relay.AUTH, relay.Raw("334-a\r\n334 b\r\n")), reply: unavailable,
			log: invalid + "Server returned multi-line challenge: 334 a"},
		{name: "auth-challenge-base64", fields: "proxy_mech=LOGIN", script: script(relay.AUTH, relay.Reply("334 !!!")), reply: unavailable,
			log: invalid + "Invalid base64 data in AUTH response"},
		{name: "challenge-before-long-response", fields: "pass=" + strings.Repeat("p", 400), script: script(relay.AUTH, relay.Reply("334 VXNlcg==")), reply: unavailable,
			log: invalid + "Server sent unexpected server-first challenge: 334 VXNlcg=="},

		{name: "cert-ssl", fields: "ssl=yes", tls: "implicit", reply: unavailable, tries: 2,
			log: handshake(selfSigned, "banner"), sooner: internal + selfSigned},
		{name: "cert-starttls", fields: "starttls=yes", tls: "starttls", reply: unavailable, tries: 2,
			log: handshake(selfSigned, "tls-ehlo"), sooner: internal + selfSigned},
		{name: "ssl-to-plain", fields: "ssl=any-cert", reply: unavailable, tries: 2,
			log: handshake(wrongVersion, "banner"), sooner: internal + wrongVersion},
		{name: "clear-behind-starttls", fields: "starttls=any-cert", tls: "starttls", script: script(relay.STARTTLS, relay.BreakTLS()), reply: unavailable, tries: 1,
			log: aborting + "STARTTLS failed: octets in clear behind the reply", theirLog: internal + wrongVersion, differs: "octets in clear are seen as such"},

		// S13.5, S13.6: Dovecot's process dies; the client hears nothing.
		{name: "auth-535-lines", defect: true, script: script(relay.AUTH, relay.Reply("535-5.7.8 No", "535 5.7.8 such thing.")), reply: "535-5.7.8 No / 535 5.7.8 such thing.", tries: 1,
			log: "Login failed: such thing.", level: "Info"},
		{name: "auth-454-lines", defect: true, script: script(relay.AUTH, relay.Reply("454-4.7.0 later", "454 4.7.0 or never")), reply: "454-4.7.0 later / 454 4.7.0 or never", tries: 2,
			log: "Login failed: or never", level: "Info"},
		{name: "auth-250", defect: true, script: script(relay.AUTH, relay.Reply("250 2.0.0 fine")), reply: unavailable, tries: 2,
			log: invalid + "Unexpected AUTH reply: 250 2.0.0 fine"},
		{name: "auth-350", defect: true, script: script(relay.AUTH, relay.Reply("350 go on")), reply: unavailable, tries: 2,
			log: invalid + "Unexpected AUTH reply: 350 go on"},
		{name: "auth-garbage", defect: true, script: script(relay.AUTH, relay.Raw("\x01\xffgarbage\r\n")), reply: unavailable, tries: 2,
			log: invalid + "Invalid AUTH reply: ??garbage"},
		{name: "auth-short", defect: true, script: script(relay.AUTH, relay.Raw("2\r\n")), reply: unavailable, tries: 2,
			log: invalid + "Invalid AUTH reply: 2"},
		{name: "mech-unknown", defect: true, fields: "proxy_mech=NTLM", reply: unavailable, log: "Unsupported SASL mechanism NTLM"},
		{name: "host-missing", defect: true, bare: true, fields: "proxy=y port={port}", reply: unavailable, log: "host not given"},
		{name: "port-bad", defect: true, bare: true, fields: "proxy=y host=127.0.0.1 port=99999", reply: unavailable, log: "Invalid port"},
		{name: "source-bad", defect: true, fields: "source_ip=nowhere", reply: unavailable, log: "Invalid source_ip"},
		{name: "hostips-bad", defect: true, fields: "dovetail_hostips=127.0.0.1,nowhere", reply: unavailable, log: "Invalid dovetail_hostips"},

		// Hostile backends.
		{name: "line-4096", script: script(relay.Banner, relay.LongLine("554", 4096)), reply: unavailable, tries: 2,
			log: invalid + "Invalid banner: 554 " + strings.Repeat("x", 153) + "..."},
		{name: "line-4097", script: script(relay.Banner, relay.LongLine("220", 4097)), reply: unavailable, tries: 2,
			log: invalid + "Too long input line"},
		{name: "replies-unasked", script: script(relay.Banner, relay.Raw("220 a\r\n250 b\r\n250 c\r\n")), reply: unavailable, tries: 2, defect: true,
			log: invalid + "Reply to a command that was not sent: 250 b"},
		{name: "reply-behind-ehlo", script: script(relay.EHLO, relay.Raw("250-relay.test\r\n250 AUTH PLAIN\r\n235 2.7.0 come in\r\n")), reply: unavailable, tries: 2, defect: true,
			log: invalid + "Reply to a command that was not sent: 235 2.7.0 come in"},
		{name: "reply-behind-xclient", script: script(relay.XCLIENT, relay.Raw("220 a\r\n250-a\r\n250 AUTH PLAIN\r\n235 2.7.0 come in\r\n")), reply: unavailable, tries: 2, defect: true,
			log: invalid + "Reply to a command that was not sent: 235 2.7.0 come in"},
		{name: "reply-behind-challenge", fields: "proxy_mech=LOGIN", script: script(relay.AUTH, relay.Raw("334 VXNlcg==\r\n235 2.7.0 come in\r\n")), reply: unavailable, tries: 2, defect: true,
			log: invalid + "Reply to a command that was not sent: 235 2.7.0 come in"},
		// For hours, if it were let.
		{name: "trickles-banner", fields: noTime, slow: true, script: script(relay.Banner, relay.ManyLines("220", strings.Repeat("x", 1000), 90)), reply: unavailable, tries: 1,
			log: "Login timed out in state=banner (after 2 secs, local=127.0.0.1:{port})"},
		{name: "trickles-auth", fields: noTime, slow: true, script: script(relay.AUTH, relay.ManyLines("235", strings.Repeat("x", 1000), 90)), reply: unavailable, tries: 1,
			log: "Login timed out in state=authenticate (after 2 secs, local=127.0.0.1:{port})"},
		{name: "lines-101", script: script(relay.EHLO, relay.ManyLines("250", "X", 101)), reply: unavailable, tries: 2, defect: true,
			log: invalid + "SMTP reply has too many lines"},
	}
	// A MiB without an end, at each step.
	for _, step := range []relay.Step{relay.Banner, relay.EHLO, relay.STARTTLS, relay.XCLIENT, relay.AUTH} {
		row := failure{name: "mib-" + strings.ToLower(string(step)), script: script(step, relay.LongLine("250", 1<<20)), reply: unavailable, tries: 2,
			log: invalid + "Too long input line"}
		if step == relay.STARTTLS {
			row.fields, row.tls = "starttls=any-cert", "starttls"
		}
		rows = append(rows, row)
	}
	// Silence, the end, a reset (not at once, or it is the connection that fails), and the end of half a reply, at each step.
	for _, s := range []struct {
		state, fields, half string
		script              func(relay.Behaviour) relay.Script
	}{
		{"banner", "", "220-", func(b relay.Behaviour) relay.Script { return script(relay.Banner, b) }},
		{"ehlo", "", "250-", func(b relay.Behaviour) relay.Script { return script(relay.EHLO, b) }},
		{"starttls", "starttls=any-cert", "220-", func(b relay.Behaviour) relay.Script { return script(relay.STARTTLS, b) }},
		{"tls-ehlo", "starttls=any-cert", "250-", func(b relay.Behaviour) relay.Script {
			return script(relay.EHLO, relay.Reply("250-relay.test", "250 STARTTLS"), b)
		}},
		{"xclient", "", "220-", func(b relay.Behaviour) relay.Script { return script(relay.XCLIENT, b) }},
		{"xclient-ehlo", "", "250-", func(b relay.Behaviour) relay.Script {
			return script(relay.EHLO, relay.Reply("250-relay.test", "250-PIPELINING", "250-AUTH PLAIN", "250 XCLIENT TTL"), b)
		}},
		{"authenticate", "", "235-", func(b relay.Behaviour) relay.Script { return script(relay.AUTH, b) }},
	} {
		withTLS := func(f failure) failure {
			if s.fields != "" {
				f.tls = "starttls"
			}
			return f
		}
		rows = append(rows,
			withTLS(failure{name: "silent-" + s.state, fields: s.fields + " " + noTime, script: s.script(relay.Silence()), reply: unavailable, tries: 1,
				log: fmt.Sprintf("Login timed out in state=%s (after 2 secs, local=127.0.0.1:{port})", s.state)}),
			withTLS(failure{name: "closes-" + s.state, fields: s.fields, script: s.script(relay.Close()), reply: unavailable, tries: 2,
				log: fmt.Sprintf(closed, s.state)}),
			withTLS(failure{name: "resets-" + s.state, fields: s.fields, script: s.script(relay.After(300*time.Millisecond, relay.Reset())), reply: unavailable, tries: 2,
				log: fmt.Sprintf(closed, s.state)}),
			withTLS(failure{name: "half-reply-" + s.state, fields: s.fields, script: s.script(relay.Close(s.half)), reply: unavailable, tries: 2,
				log: fmt.Sprintf(closed, s.state)}),
		)
	}
	return rows
}

var backendTLS = tlsfiles.Request{CN: "backend.test", Names: []string{"127.0.0.1"}}

// Each failure is answered and logged as in S9.7, by ours and, where it lives, by Dovecot's.
func TestFailures(t *testing.T) {
	for _, sys := range systems {
		t.Run(sys.String(), func(t *testing.T) {
			sys.Need(t)
			pair := tlsfiles.SelfSigned(t, backendTLS)
			config := &tls.Config{Certificates: []tls.Certificate{pair.TLS()}}
			var rows []failure
			var users []user
			for _, r := range failures() {
				if r.defect && !ours(sys) {
					continue
				}
				rows = append(rows, r)
				u := user{name: r.name, fields: r.fields, bare: r.bare, slow: r.slow}
				if !r.down {
					u.relay = &relay.Options{Caps: r.caps, Script: r.script, Implicit: r.tls == "implicit"}
					if r.tls != "" {
						u.relay.TLS = config
					}
				}
				users = append(users, u)
			}
			f := start(t, sys, users, "login_proxy_max_reconnects = 1", "auth_verbose = yes")
			atOnce(t, rows, func(r failure) string { return r.name }, func(t *testing.T, r failure) { r.try(t, f) })
		})
	}
}

// atOnce runs tests of rows that mostly wait, more of them at a time than there are
// processors.
func atOnce[R any](t *testing.T, rows []R, name func(R) string, try func(*testing.T, R)) {
	const most = 16
	turn := make(chan struct{}, most)
	var wg sync.WaitGroup
	for _, r := range rows {
		turn <- struct{}{}
		wg.Go(func() { // ends with the row
			defer func() { <-turn }()
			t.Run(name(r), func(t *testing.T) { try(t, r) })
		})
	}
	wg.Wait()
}

var attempt = regexp.MustCompile(`^Info: Login attempt \d+ failed: `)

// try logs in once and looks at what became of it.
func (r failure) try(t *testing.T, f *front) {
	reply, log := r.reply, r.log
	if !ours(f.System) && r.differs != "" {
		if r.theirReply != "" {
			reply = r.theirReply
		}
		if r.theirLog != "" {
			log = r.theirLog
		}
	}
	c := f.dial(t, client.Options{})
	if got := strings.Join(login(c, r.name), " / "); got != reply {
		t.Errorf("the client hears\n     %s\nwant %s", got, reply)
	}
	if r.gone {
		c.ExpectEOF()
	} else {
		c.Send("QUIT")
		c.Expect("221 2.0.0 Bye")
	}
	level := r.level
	if level == "" {
		level = "Error"
	}
	name := "proxy(" + r.name + ",127.0.0.1:{backend}): "
	if r.bare || r.defect && r.script == nil && r.fields != "" {
		name = "proxy(" + r.name + "): " // it did not get as far as an address
	}
	f.WaitLine("user=<" + r.name + ">")
	f.WaitFor(func([]string) bool {
		return strings.Contains(strings.Join(f.logOf(r.name), "\n"), "Info: Disconnected: ")
	})
	var got []string
	for _, l := range f.logOf(r.name) {
		if !attempt.MatchString(l) && !strings.HasPrefix(l, "Info: Disconnected: ") {
			got = append(got, l)
		}
	}
	sooner := !ours(f.System) && r.sooner != "" && len(got) == 1 && got[0] == "Error: "+name+r.sooner
	if want := level + ": " + name + log; len(got) != 1 || got[0] != want && !sooner {
		t.Errorf("the log has\n     %s\nwant %s", strings.Join(got, "\n     "), want)
	}
	if b := f.backends[r.name]; b != nil && r.tries > 0 && !sooner {
		if n := len(b.Conns()); n != r.tries {
			t.Errorf("%d connections, want %d\n%s", n, r.tries, b.Transcript())
		}
	}
}
