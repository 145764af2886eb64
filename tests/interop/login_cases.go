package interop

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

func config(lines ...string) func(*system.Setup) {
	return func(s *system.Setup) { s.Config = append(s.Config, lines...) }
}

const (
	withMechanisms = "auth_mechanisms = plain login cram-md5 scram-sha-1 scram-sha-256"
	hello          = "Subject: hello\r\n\r\nbody\r\n..dot\r\n"
)

// users adds lines to the passwd-file.
func users(lines ...string) func(*system.Setup) {
	return func(s *system.Setup) { s.Users = append(s.Users, lines...) }
}

func all(fs ...func(*system.Setup)) func(*system.Setup) {
	return func(s *system.Setup) {
		for _, f := range fs {
			f(s)
		}
	}
}

// A way is how a client is protected.
type way struct {
	name string
	dial func(w *world, name string) *session
}

var ways = []way{
	{"plain", func(w *world, name string) *session {
		s := w.local(name)
		s.do("EHLO " + name + ".example.org")
		return s
	}},
	{"STARTTLS", func(w *world, name string) *session {
		s := w.dial(name, client.Options{From: "127.0.0.2"})
		s.do("EHLO " + name + ".example.org")
		s.startTLS()
		s.do("EHLO " + name + ".example.org")
		return s
	}},
	{"TLS", func(w *world, name string) *session {
		s := w.dial(name, client.Options{From: "127.0.0.2", TLS: w.inst.TLS()})
		s.do("EHLO " + name + ".example.org")
		return s
	}},
}

func loginCases() (cases []scenario) {
	// Each mechanism on each kind of connection, and then one message by DATA and one by BDAT.
	for _, way := range ways {
		for i, m := range mechanisms {
			cases = append(cases, scenario{
				name:  fmt.Sprintf("login %s %s %d", way.name, m.name, i),
				setup: config(withMechanisms),
				run: func(w *world) {
					s := way.dial(w, "c")
					had := logins(w.inst.Log())
					w.loggedIn(had, m.auth(s, "alice", "wonder"))
					s.message(hello)
					s.bdat("a\nb", "\r\n.\r\n", "\x00\xff")
					s.do("QUIT")
					s.gone()
				},
			})
		}
	}
	for i, m := range mechanisms {
		cases = append(cases, scenario{
			name:  fmt.Sprintf("wrong password %s %d", m.name, i),
			setup: config(withMechanisms),
			run: func(w *world) {
				s := w.local("c")
				m.auth(s, "alice", "wrong")
				m.auth(s, "nobody", "wrong")
				s.login("alice", "wonder")
				s.do("QUIT")
				s.gone()
			},
		})
	}
	cases = append(cases,
		scenario{
			name: "EXTERNAL with a client certificate",
			setup: config("auth_mechanisms = plain external", "ssl_ca = <{dir}/tls/ca.pem", "ssl_verify_client_cert = yes", "ssl_require_crl = no",
				"auth_ssl_username_from_cert = yes", "passdb static {", " driver = static", " args = nopassword=y", " mechanisms = external", "}"),
			run: func(w *world) {
				for i, way := range []way{ways[2], ways[1]} {
					s := way.dial(w, way.name)
					w.loggedIn(i, s.do("AUTH EXTERNAL ="))
					s.message(hello)
					s.bdat(hello)
					s.do("QUIT")
					s.gone()
				}
				s := ways[2].dial(w, "asked")
				s.do("AUTH EXTERNAL")
				w.loggedIn(2, s.do(""))
				s.do("QUIT")
				s.gone()
				s = ways[0].dial(w, "in clear")
				s.do("AUTH EXTERNAL =")
				s.do("QUIT")
				s.gone()
				without := w.inst.TLS()
				without.Certificates = nil
				s = w.dial("without", client.Options{From: "127.0.0.2", TLS: without})
				s.do("AUTH EXTERNAL =")
				s.do("QUIT")
				s.gone()
			},
		},
		scenario{
			name:  "certificate required",
			setup: config("ssl_ca = <{dir}/tls/ca.pem", "ssl_verify_client_cert = yes", "ssl_require_crl = no", "auth_ssl_require_client_cert = yes"),
			run: func(w *world) {
				s := w.local("in clear")
				s.do("AUTH PLAIN " + plain("alice", "wonder"))
				s.do("QUIT")
				s.gone()
				without := w.inst.TLS()
				without.Certificates = nil
				s = w.dial("without", client.Options{TLS: without})
				s.do("AUTH PLAIN " + plain("alice", "wonder"))
				s.do("QUIT")
				s.gone()
				s = w.dial("with", client.Options{TLS: w.inst.TLS()})
				s.login("alice", "wonder")
				s.do("QUIT")
				s.gone()
			},
		},
		scenario{
			name:  "OAUTHBEARER and XOAUTH2",
			setup: withTokens,
			run: func(w *world) {
				for _, m := range bearer {
					for _, way := range ways {
						s := way.dial(w, m.name+" "+way.name)
						had := logins(w.inst.Log())
						w.loggedIn(had, s.do("AUTH "+m.name+" "+m.initial("alice", token("alice", oauthKey, time.Now().Add(time.Hour)))))
						s.message(hello)
						s.bdat(hello)
						s.do("QUIT")
						s.gone()
						w.chapter(m.name + " " + way.name)
					}
					for _, x := range []struct{ name, token string }{
						{"of another key", token("alice", "x", time.Now().Add(time.Hour))},
						{"expired", token("alice", oauthKey, time.Now().Add(-time.Second))},
						{"of somebody else", token("bob@example.test", oauthKey, time.Now().Add(time.Hour))},
						{"that is none", "x"},
					} {
						s := w.dial(m.name+" "+x.name, client.Options{From: "127.0.0.2", TLS: w.inst.TLS()})
						had := logins(w.inst.Log())
						last := s.do("AUTH " + m.name + " " + m.initial("alice", x.token))
						if strings.HasPrefix(last[0], "334") {
							last = s.do("AQ==")
						}
						w.loggedIn(had, last)
						s.do("QUIT")
						s.gone()
						w.chapter(m.name + " " + x.name)
					}
				}
			},
		},
		scenario{
			name:  "disabled users",
			setup: config("passdb sh {", " driver = shadow", "}"), // which says so of locked passwords
			run: func(w *world) {
				s := w.local("c")
				s.login("daemon", "x")
				mechanisms[2].auth(s, "daemon", "x")
				s.login("alice", "wonder")
				s.do("QUIT")
				s.gone()
			},
		},
		scenario{
			name: "refused in each way",
			setup: all(config("passdb ck {", " driver = checkpassword", " args = {dir}/etc/ck", "}"), users(
				"off:{PLAIN}x:12001:12001::{dir}/mail/off::nologin=y reason=Gone_fishing",
				"there:{PLAIN}x:12001:12001::{dir}/mail/there::nologin=y host=192.0.2.1 reason=Try_there")),
			run: func(w *world) {
				s := w.local("c")
				s.login("off", "x")
				s.login("there", "x")
				s.login("carol", "cpass")
				s.login("erin", "epass")
				s.login("unknown", "x") // the checkpassword says: later
				s.do("AUTH PLAIN =")
				s.do("AUTH PLAIN")
				s.do("*")
				s.do("AUTH FOO")
				s.do("QUIT")
				s.gone()
				s = w.dial("not secured", client.Options{From: "127.0.0.2"})
				s.do("EHLO x")
				s.do("AUTH PLAIN " + plain("alice", "wonder"))
				s.do("QUIT")
				s.gone()
			},
		},
		scenario{
			name:  "userdb does not know the user",
			setup: config("passdb x {", " driver = static", " args = password=x", "}"),
			run: func(w *world) {
				s := w.local("c")
				s.send("AUTH PLAIN " + plain("zork", "x") + "\r\n")
				rest := s.c.ExpectGone() // Dovecot may lose the worker's answer
				if rest != "" && !strings.HasPrefix(rest, "451 4.7.0 Internal error occurred.") {
					s.add("S:", rest)
				}
				w.inst.WaitLine("Internal login failure")
			},
		},
		scenario{
			name: "settings from the userdb",
			setup: users("small:{PLAIN}x:12001:12001::{dir}/mail/small::userdb_submission_max_recipients=1 userdb_submission_max_mail_size=1000",
				"odd:{PLAIN}x:12001:12001::{dir}/mail/odd::userdb_hostname=odd.example.test"),
			run: func(w *world) {
				s := w.local("small")
				s.login("small", "x")
				s.do("MAIL FROM:<a@b> SIZE=1001")
				s.do("MAIL FROM:<a@b> SIZE=999")
				s.do("RCPT TO:<c@d>")
				s.do("RCPT TO:<e@f>")
				s.do("DATA")
				s.batch(1, strings.Repeat("x", 1000), ".")
				s.do("QUIT")
				s.gone()
				s = w.local("odd")
				s.login("odd", "x")
				s.do("HELO x")
				s.message(hello)
				s.do("QUIT")
				s.gone()
			},
		},
		scenario{
			name: "settings from the userdb that are wrong",
			setup: users(
				"uid:{PLAIN}x:1:12001::{dir}/mail/a::",
				"chroot:{PLAIN}x:12001:12001::{dir}/mail/a::userdb_chroot=/etc",
				"home:{PLAIN}x:12001:12001::rel/home::",
				"size:{PLAIN}x:12001:12001::{dir}/mail/a::userdb_submission_max_mail_size=xx",
				"enum:{PLAIN}x:12001:12001::{dir}/mail/a::userdb_submission_relay_ssl=what",
				"ssl:{PLAIN}x:12001:12001::{dir}/mail/a::userdb_ssl=what",
				"words:{PLAIN}x:12001:12001::{dir}/mail/a::userdb_submission_client_workarounds=what",
				"nice:{PLAIN}x:12001:12001::{dir}/mail/a::userdb_nice=x",
				"unknown:{PLAIN}x:12001:12001::{dir}/mail/a::userdb_foo=what",
				"host:{PLAIN}x:12001:12001::{dir}/mail/a::userdb_submission_relay_host=%Z%{foo}",
				"nothing:{PLAIN}x:::::userdb_home=/x"),
			run: func(w *world) {
				for _, user := range []string{"uid", "chroot", "home", "size", "enum", "ssl", "words", "nice", "unknown", "host", "nothing"} {
					s := ways[2].dial(w, user)
					if last := s.login(user, "x"); !strings.HasPrefix(last[0], "451") {
						s.do("QUIT")
					}
					s.gone()
					w.chapter(user)
				}
			},
		},
		scenario{
			name:  "user and address limit",
			setup: config("mail_max_userip_connections = 2"),
			run: func(w *world) {
				for i := range 3 {
					s := w.dial(fmt.Sprint(i), client.Options{})
					s.login("alice", "wonder")
					if i == 2 {
						s.gone()
						break
					}
					who := fmt.Sprintf("alice %d ", i+1)
					w.eventually("anvil to count", func() bool {
						return strings.Contains(strings.Join(strings.Fields(w.inst.Doveadm("who")), " "), who)
					})
				}
				other := w.dial("other address", client.Options{From: "127.0.0.3", TLS: w.inst.TLS()})
				other.login("alice", "wonder")
				other.do("QUIT")
				other.gone()
				other = w.local("other user")
				other.login("bob@example.test", "bpass")
				other.do("QUIT")
				other.gone()
			},
		},
		scenario{
			name:  "XCLIENT through the hand-over",
			setup: config("login_trusted_networks = 127.0.0.3", "submission_relay_trusted = yes"),
			relay: relayWithXclient,
			run: func(w *world) {
				s := w.dial("edge", client.Options{From: "127.0.0.3"})
				s.do("EHLO edge.example")
				s.do("XCLIENT ADDR=192.0.2.77 PORT=777 HELO=client.example PROTO=SMTP SESSION=abc TTL=3")
				s.login("alice", "wonder")
				s.message(hello)
				s.do("QUIT")
				s.gone()
				s = w.dial("edge6", client.Options{From: "127.0.0.3"})
				s.do("XCLIENT ADDR=IPV6:2001:db8::7 LOGIN=x NAME=y")
				s.do("EHLO later.example")
				s.login("alice", "wonder")
				s.message(hello)
				s.do("QUIT")
				s.gone()
			},
		},
	)
	// Input pipelined behind AUTH, up to what a hand-over holds.
	for _, octets := range []int{0, 6, 100, 500, 1000} {
		for _, way := range ways {
			cases = append(cases, scenario{
				name: fmt.Sprintf("%d octets pipelined behind AUTH, %s", octets, way.name),
				run: func(w *world) {
					s := way.dial(w, "c")
					var noops []string
					for left := octets; left >= 6; left -= 6 {
						line := "NOOP"
						if left < 12 { // the last fills up
							line += strings.Repeat(" ", left-6)
						}
						noops = append(noops, line)
					}
					lines := append([]string{"AUTH PLAIN " + plain("alice", "wonder")}, noops...)
					s.batch(len(lines), lines...)
					w.loggedIn(0, []string{"235"})
					s.do("QUIT")
					s.gone()
				},
			})
		}
	}
	return cases
}

var relayWithXclient = relay.Options{
	Caps: append(slices.Clone(relay.DefaultCaps), "XCLIENT NAME ADDR PORT PROTO HELO LOGIN SESSION TTL"),
}
