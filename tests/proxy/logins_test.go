package proxy

import (
	"crypto/tls"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/tlsfiles"
)

// A passed login is one that works: what the client says first, what the backend then
// hears, what the log says of it.
type passed struct {
	name   string
	fields string
	from   string   // the client's address; "": 127.0.0.1
	before []string // what the client says before AUTH
	caps   []string // of the backend; nil: as Dovecot's
	script relay.Script
	tls    string // of the backend: "implicit", "starttls"; "": none
	slow   bool   // it sends each octet by itself

	heard  string // by the backend, before the client's own commands, joined with " / "
	theirs string // the same from Dovecot, where it differs; "-": Dovecot cannot do it
	reply  string // "": 235 2.7.0 Authentication successful
	log    string // "Started proxying to ..."; "": to <127.0.0.1> ({n.nnn} secs)
}

const (
	hello    = "EHLO sub.example.test"
	xclient  = hello + " / XCLIENT HELO=[UNAVAILABLE] PROTO=ESMTP TTL=4 PORT={port} ADDR=127.0.0.1 SESSION={session} / " + hello
	postfix  = "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"
	mtaCaps  = "PIPELINING"
	trusting = "login_trusted_networks = 127.0.0.3"
)

func auth(user string) string { return " / AUTH PLAIN " + plain3(user, user, "pw") }

func xtext(s string) string { return strings.NewReplacer("+", "+2B", "=", "+3D").Replace(s) }

func logins() []passed {
	long := strings.Repeat("p", 400)
	return []passed{
		{name: "plain", heard: xclient + auth("plain")},
		{name: "helo", before: []string{"HELO old.example"},
			heard: hello + " / XCLIENT HELO=old.example PROTO=SMTP TTL=4 PORT={port} ADDR=127.0.0.1 SESSION={session} / {client} old.example" + auth("helo")},
		{name: "ehlo", before: []string{"EHLO new.example"},
			heard: hello + " / XCLIENT HELO=new.example PROTO=ESMTP TTL=4 PORT={port} ADDR=127.0.0.1 SESSION={session} / {client} new.example" + auth("ehlo")},
		{name: "ehlo-literal", before: []string{"HELO x", "EHLO [192.0.2.1]"},
			heard: hello + " / XCLIENT HELO=[192.0.2.1] PROTO=ESMTP TTL=4 PORT={port} ADDR=127.0.0.1 SESSION={session} / {client} [192.0.2.1]" + auth("ehlo-literal")},
		{name: "destuser", fields: "destuser=there@x", heard: xclient + " / AUTH PLAIN " + plain3("there@x", "there@x", "pw"),
			log: "Started proxying to <127.0.0.1> as user there@x ({n.nnn} secs)"},
		{name: "master", fields: "master=boss pass=mpw", heard: xclient + " / AUTH PLAIN " + plain3("master", "boss", "mpw"),
			log: "Started proxying to <127.0.0.1> (master boss) ({n.nnn} secs)"},
		{name: "both", fields: "master=boss destuser=there pass=mpw source_ip=127.0.0.1", heard: xclient + " / AUTH PLAIN " + plain3("there", "boss", "mpw"),
			log: "Started proxying to <127.0.0.1> from 127.0.0.1 as user there (master boss) ({n.nnn} secs)"},
		{name: "long-password", fields: "pass=" + long, heard: xclient + " / AUTH PLAIN / " + plain3("long-password", "long-password", long)},
		{name: "not-trusted", fields: "proxy_not_trusted=y", heard: hello + auth("not-trusted")},
		{name: "no-xclient", caps: without("XCLIENT"), heard: hello + auth("no-xclient")},
		{name: "xclient-empty", caps: append(without("XCLIENT"), "XCLIENT"), heard: hello + auth("xclient-empty")},
		{name: "xclient-some", caps: append(without("XCLIENT"), "XCLIENT ADDR ttl"),
			heard: hello + " / XCLIENT TTL=4 ADDR=127.0.0.1 / " + hello + auth("xclient-some")},
		{name: "xclient-split", fields: "forward_a=" + strings.Repeat("a", 300) + " forward_b=" + strings.Repeat("b", 300),
			heard: hello + " / XCLIENT HELO=[UNAVAILABLE] PROTO=ESMTP TTL=4 PORT={port} ADDR=127.0.0.1 SESSION={session} / XCLIENT FORWARD=" +
				xtext(encode("a="+strings.Repeat("a", 300)+"\tb="+strings.Repeat("b", 300))) + " / " + hello + auth("xclient-split")},
		{name: "forward", fields: "forward_x=1+1 FORWARD_y=z",
			heard: hello + " / XCLIENT HELO=[UNAVAILABLE] PROTO=ESMTP TTL=4 PORT={port} ADDR=127.0.0.1 SESSION={session} FORWARD=" + encode("x=1+1\ty=z") + " / " + hello + auth("forward")},
		{name: "xclient-24", caps: append(without("XCLIENT"), "XCLIENT ADDR PORT PROTO HELO LOGIN SESSION CLIENT-TRANSPORT TTL TIMEOUT DESTNAME DESTADDR DESTPORT FORWARD"),
			heard:  hello + " / XCLIENT HELO=[UNAVAILABLE] PROTO=ESMTP TTL=4 PORT={port} ADDR=127.0.0.1 DESTPORT={port} DESTADDR=127.0.0.1 SESSION={session} CLIENT-TRANSPORT=insecure / " + hello + auth("xclient-24"),
			theirs: xclient + auth("xclient-24")},
		{name: "behind-trusted", from: "127.0.0.3", before: []string{"XCLIENT ADDR=192.0.2.7 PORT=77 HELO=h.example PROTO=SMTP SESSION=abc TTL=3"},
			heard: hello + " / XCLIENT HELO=h.example PROTO=SMTP TTL=2 PORT={port} ADDR=192.0.2.7 SESSION={session} / {client} h.example" + auth("behind-trusted")},
		{name: "behind-trusted-6", from: "127.0.0.3", before: []string{"XCLIENT ADDR=IPV6:2001:db8::7 TTL=2"},
			heard:  hello + " / XCLIENT HELO=[UNAVAILABLE] PROTO=ESMTP TTL=1 PORT={port} ADDR=IPV6:2001:db8::7 SESSION={session} / " + hello + auth("behind-trusted-6"),
			theirs: hello + " / XCLIENT HELO=[UNAVAILABLE] PROTO=ESMTP TTL=1 PORT={port} ADDR=2001:db8::7 SESSION={session} / " + hello + auth("behind-trusted-6")},
		{name: "login", fields: "proxy_mech=LOGIN", heard: xclient + " / AUTH LOGIN / " + encode("login") + " / " + encode("pw"),
			theirs: xclient + " / AUTH LOGIN = / " + encode("login")}, // the relay takes the empty response for a name
		{name: "external", fields: "proxy_mech=EXTERNAL destuser=me", heard: xclient + " / AUTH EXTERNAL " + encode("me"), log: "Started proxying to <127.0.0.1> as user me ({n.nnn} secs)"},
		{name: "xoauth2", fields: "proxy_mech=XOAUTH2 pass=tok", heard: xclient + " / AUTH XOAUTH2 " + encode("user=xoauth2\x01auth=Bearer tok\x01\x01")},
		{name: "oauthbearer", fields: "proxy_mech=OAUTHBEARER pass=tok",
			heard:  xclient + " / AUTH OAUTHBEARER {token}",
			theirs: xclient + " / AUTH OAUTHBEARER " + encode("n,a=oauthbearer,\x01auth=Bearer tok\x01\x01")},
		{name: "noauth", fields: "proxy_noauth=y", before: []string{"EHLO new.example"}, reply: "235 2.7.0 Logged in.",
			heard: hello + " / XCLIENT HELO=new.example PROTO=ESMTP LOGIN=noauth TTL=4 PORT={port} ADDR=127.0.0.1 SESSION={session} / {client} new.example"},
		{name: "noauth-destuser", fields: "proxy_noauth=y destuser=there", before: []string{"EHLO new.example"}, reply: "235 2.7.0 Logged in.",
			heard:  hello + " / XCLIENT HELO=new.example PROTO=ESMTP LOGIN=there TTL=4 PORT={port} ADDR=127.0.0.1 SESSION={session} / {client} new.example",
			theirs: hello + " / XCLIENT HELO=new.example PROTO=ESMTP LOGIN=noauth-destuser TTL=4 PORT={port} ADDR=127.0.0.1 SESSION={session} / " + hello,
			log:    "Started proxying to <127.0.0.1> as user there ({n.nnn} secs)"},
		{name: "reply-bare", script: script(relay.AUTH, relay.Reply("235 welcome")), reply: "235 welcome", heard: xclient + auth("reply-bare")},
		{name: "reply-utf8", script: script(relay.AUTH, relay.Reply("235 2.7.0 Grüße")), reply: "235 2.7.0 Grüße", heard: xclient + auth("reply-utf8")},
		{name: "reply-other-code", script: script(relay.AUTH, relay.Reply("235 2.0.0 Logged in.")), reply: "235 2.0.0 Logged in.", heard: xclient + auth("reply-other-code")},
		{name: "reply-lines", script: script(relay.AUTH, relay.Reply("235-2.7.0 Welcome", "235 2.7.0 to the machine")), reply: "235-2.7.0 Welcome / 235 2.7.0 to the machine",
			heard: xclient + auth("reply-lines"), theirs: "-"},
		{name: "byte-by-byte", slow: true, heard: xclient + auth("byte-by-byte")},
		{name: "starttls", fields: "starttls=any-cert", tls: "starttls",
			heard: hello + " / STARTTLS / " + xclient + auth("starttls")},
		{name: "ssl", fields: "ssl=any-cert", tls: "implicit", heard: xclient + auth("ssl")},
		{name: "ssl-and-starttls", fields: "ssl=any-cert starttls=yes", tls: "starttls",
			heard: hello + " / STARTTLS / " + xclient + auth("ssl-and-starttls")},

		// An MTA: the client's own greeting, its name, and no login.
		{name: "mta", fields: "proxy_noauth=y", before: []string{"EHLO new.example"}, caps: []string{mtaCaps, postfix}, reply: "235 2.7.0 Logged in.", theirs: "-",
			heard: hello + " / XCLIENT NAME=localhost REVERSE_NAME=localhost HELO=new.example PROTO=ESMTP LOGIN=mta PORT={port} ADDR=127.0.0.1 DESTPORT={port} DESTADDR=127.0.0.1 / EHLO new.example"},
		{name: "mta-helo", fields: "proxy_noauth=y", before: []string{"HELO old.example"}, caps: []string{mtaCaps, "XCLIENT ADDR"}, reply: "235 2.7.0 Logged in.", theirs: "-",
			heard: hello + " / XCLIENT ADDR=127.0.0.1 / HELO old.example"},
		{name: "mta-silent-client", fields: "proxy_noauth=y", caps: []string{mtaCaps, "XCLIENT ADDR"}, reply: "235 2.7.0 Logged in.", theirs: "-",
			heard: hello + " / XCLIENT ADDR=127.0.0.1 / " + hello},
		{name: "mta-no-xclient", fields: "proxy_noauth=y", before: []string{"EHLO new.example"}, caps: []string{mtaCaps}, reply: "235 2.7.0 Logged in.", theirs: "-",
			heard: hello + " / EHLO new.example"},
		{name: "mta-unknown-host", fields: "proxy_noauth=y", from: "127.0.0.3", before: []string{"XCLIENT ADDR=192.0.2.99", "EHLO new.example"}, caps: []string{mtaCaps, "XCLIENT NAME ADDR"}, reply: "235 2.7.0 Logged in.", theirs: "-",
			heard: hello + " / XCLIENT NAME={unknown} ADDR=192.0.2.99 / EHLO new.example"},
		{name: "mta-login", before: []string{"EHLO new.example"}, caps: []string{mtaCaps, postfix, "AUTH PLAIN"}, theirs: "-",
			heard: hello + " / XCLIENT NAME=localhost REVERSE_NAME=localhost HELO=new.example PROTO=ESMTP PORT={port} ADDR=127.0.0.1 DESTPORT={port} DESTADDR=127.0.0.1 / {client} new.example" + auth("mta-login")},
	}
}

// Each login is passed on as its fields say, by ours and by Dovecot's.
func TestLogins(t *testing.T) {
	for _, sys := range systems {
		t.Run(sys.String(), func(t *testing.T) {
			sys.Need(t)
			pair := tlsfiles.SelfSigned(t, backendTLS)
			config := &tls.Config{Certificates: []tls.Certificate{pair.TLS()}}
			var rows []passed
			var users []user
			for _, r := range logins() {
				if r.theirs == "-" && !ours(sys) {
					continue
				}
				rows = append(rows, r)
				o := &relay.Options{Caps: r.caps, Script: r.script, Implicit: r.tls == "implicit"}
				if r.tls != "" {
					o.TLS = config
				}
				users = append(users, user{name: r.name, fields: r.fields, relay: o, slow: r.slow})
			}
			f := start(t, sys, users, "login_proxy_max_reconnects = 0", trusting)
			atOnce(t, rows, func(r passed) string { return r.name }, func(t *testing.T, r passed) { r.try(t, f) })
		})
	}
}

func (r passed) try(t *testing.T, f *front) {
	c := f.dial(t, client.Options{From: r.from})
	for _, line := range r.before {
		c.Do(line, "2")
	}
	want := r.reply
	if want == "" {
		want = "235 2.7.0 Authentication successful"
	}
	if got := strings.Join(login(c, r.name), " / "); got != want {
		t.Fatalf("the client hears\n     %s\nwant %s", got, want)
	}
	c.Do("NOOP", "250 ")
	c.Do("QUIT", "221 ")
	c.ExpectEOF()
	heard := r.heard
	if !ours(f.System) && r.theirs != "" {
		heard = r.theirs
	}
	b := f.backends[r.name]
	b.Ended(0)
	got := said(b, 0)
	if r.name == "oauthbearer" && ours(f.System) { // with the host, for which a token may be meant
		got = strings.Replace(got, encodeToken(f.ports[r.name]), "{token}", 1)
	}
	if ours(f.System) { // it repeats the client's greeting
		heard = strings.Replace(heard, "{client}", "EHLO", 1)
	} else {
		heard = regexp.MustCompile(`\{client\} \S+`).ReplaceAllString(heard, hello)
	}
	if strings.Contains(heard, "{unknown}") { // whatever the resolver of this machine says
		got = strings.NewReplacer("[UNAVAILABLE]", "{unknown}", "[TEMPUNAVAIL]", "{unknown}").Replace(got)
	}
	if heard += " / NOOP / QUIT"; got != heard {
		t.Errorf("the backend hears\n     %s\nwant %s", got, heard)
	}
	log := r.log
	if log == "" {
		log = "Started proxying to <127.0.0.1> ({n.nnn} secs)"
	}
	f.WaitLine("proxy(" + r.name + ",127.0.0.1:" + itoa(f.ports[r.name]) + "): Disconnected by ")
	name := "Info: proxy(" + r.name + ",127.0.0.1:{backend}): "
	lines := slices.DeleteFunc(f.logOf(r.name), func(l string) bool { return strings.HasPrefix(l, "Warning: ") })
	if w := []string{name + log, name + "Disconnected by server ({n}s idle, in={n}, out={n})"}; !slices.Equal(lines, w) {
		t.Errorf("the log has\n     %s\nwant %s", strings.Join(lines, "\n     "), strings.Join(w, "\n     "))
	}
}
