package proxy

import (
	"fmt"
	"strings"
	"testing"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// A tier is a frontend, or the backend if it is the last one.
type tier struct {
	sys    system.System
	fields string // with which the passdb sends users on
}

// tina is known to the last tier alone; the others send whom they do not know on.
var tina = "tina:{PLAIN}wonder:12001:12001::{dir}/mail/tina::"

// onward is a passdb that sends everybody on.
func onward(port int, fields string) []string {
	return []string{"passdb onward {", "  driver = static", fmt.Sprintf("  args = nopassword=y proxy=y host=127.0.0.1 port=%d %s", port, fields), "}"}
}

// tiers starts servers, the last one with a sink behind it, and returns the first one and
// the sink.
func tiers(t *testing.T, list ...tier) (*front, *relay.Relay) {
	t.Helper()
	for _, x := range list {
		x.sys.Need(t)
	}
	sink := relay.Start(t, relay.Options{})
	var f *front
	for i := len(list) - 1; i >= 0; i-- {
		setup := system.Setup{RelayPort: sink.Port, Config: []string{fmt.Sprintf("hostname = tier%d.example.test", i), "login_trusted_networks = 127.0.0.0/8"}}
		if i == len(list)-1 {
			setup.Users = []string{tina}
		} else {
			next := f.Port
			if strings.Contains(list[i].fields, "ssl=") {
				next = f.TLSPort
			}
			setup.Config = append(setup.Config, onward(next, list[i].fields)...)
		}
		f = &front{t: t, Running: list[i].sys.Start(t, setup)}
	}
	return f, sink
}

var tierCases = []struct {
	name string
	list []tier
}{
	{"ours before Dovecot", []tier{{system.OursLogin, ""}, {system.Dovecot, ""}}},
	{"ours before Dovecot, STARTTLS", []tier{{system.OursLogin, "starttls=any-cert"}, {system.Dovecot, ""}}},
	{"standalone before Dovecot, TLS", []tier{{system.Standalone, "ssl=any-cert"}, {system.Dovecot, ""}}},
	{"Dovecot before ours", []tier{{system.Dovecot, ""}, {system.OursBoth, ""}}},
	{"Dovecot before standalone, TLS", []tier{{system.Dovecot, "ssl=any-cert"}, {system.Standalone, ""}}},
	{"Dovecot before standalone, STARTTLS", []tier{{system.Dovecot, "starttls=any-cert"}, {system.Standalone, ""}}},
	{"ours before ours", []tier{{system.OursLogin, ""}, {system.OursBoth, ""}}},
	{"three of ours", []tier{{system.Standalone, "starttls=any-cert"}, {system.OursLogin, "ssl=any-cert"}, {system.Standalone, ""}}},
	{"Dovecot between ours", []tier{{system.Standalone, ""}, {system.Dovecot, "starttls=any-cert"}, {system.OursBoth, ""}}},
}

// Messages pass tiers to the octet, and the last one's Received header has the client's own
// address, and behind ours its greeting.
func TestTiers(t *testing.T) {
	for _, tc := range tierCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f, sink := tiers(t, tc.list...)
			for i, from := range []string{"127.0.0.7", "127.0.0.8"} {
				var c *client.Client
				if i == 0 {
					c = tlsClient(t, f, from, "client.example")
				} else {
					c = f.dial(t, client.Options{From: from, TLS: f.TLS()})
					c.Do("EHLO client.example", "250")
				}
				c.Plain("tina", "wonder")
				send(c)
				c.Do("QUIT", "221")
				got := arrived(t, sink.WaitMessages(i + 1)[i].Data)
				helo := "client.example"
				if last := len(tc.list) - 2; !ours(tc.list[last].sys) { // Dovecot says its own name
					helo = fmt.Sprintf("tier%d.example.test", last)
				}
				if want := "Received: from " + helo + " ([" + from + "])"; !strings.HasPrefix(got, want) {
					t.Errorf("header\n     %s\nwant %s", got, want)
				}
			}
		})
	}
}

// What comes in by way of a load balancer has the client's address all the way to the last
// Received header: HAProxy with TLS ended there, with TLS passed through, and in clear.
func TestHAProxy(t *testing.T) {
	for _, fronts := range []system.System{system.OursLogin, system.Standalone} {
		t.Run(fronts.String(), func(t *testing.T) {
			t.Parallel()
			fronts.Need(t)
			sink := relay.Start(t, relay.Options{})
			back := system.OursBoth.Start(t, system.Setup{RelayPort: sink.Port, Users: []string{tina}, Config: []string{"login_trusted_networks = 127.0.0.1"}})
			plain, ended, through := system.Hold(t), system.Hold(t), system.Hold(t)
			f := &front{t: t, Running: fronts.Start(t, system.Setup{Config: append(onward(back.Port, ""),
				"haproxy_trusted_networks = 127.0.0.1",
				"service submission-login {",
				fmt.Sprintf("  inet_listener plain {\n    port = %d\n    haproxy = yes\n  }", plain.Number),
				fmt.Sprintf("  inet_listener ended {\n    port = %d\n    haproxy = yes\n  }", ended.Number),
				fmt.Sprintf("  inet_listener through {\n    port = %d\n    haproxy = yes\n    ssl = yes\n  }", through.Number),
				"}",
			)})}
			for i, way := range []struct {
				name, bind, server string
				tls                bool
			}{
				{"ended", "ssl crt DIR/both.pem", fmt.Sprintf("127.0.0.1:%d send-proxy-v2-ssl", ended.Number), true},
				{"through", "", fmt.Sprintf("127.0.0.1:%d send-proxy-v2", through.Number), true},
				{"starttls", "", fmt.Sprintf("127.0.0.1:%d send-proxy-v2", plain.Number), false},
				{"version 1", "", fmt.Sprintf("127.0.0.1:%d send-proxy", plain.Number), false},
			} {
				lb := startHAProxy(t, "listen submission\n\tbind 127.0.0.1:PORT "+way.bind+"\n\tserver s "+way.server+"\n",
					map[string]string{"both.pem": string(f.Cert.Cert) + string(f.Cert.Key)})
				from := fmt.Sprintf("127.0.0.%d", 20+i)
				o := client.Options{From: from}
				if way.tls {
					o.TLS = f.TLS()
				}
				c := client.Dial(t, lb.Addr(), o)
				c.ExpectCode("220 ")
				announced := strings.Join(c.Do("EHLO client.example", "250"), "\n")
				if strings.Contains(announced, "STARTTLS") == way.tls || strings.Contains(announced, "AUTH PLAIN") != way.tls {
					t.Errorf("%s: %s", way.name, announced)
				}
				if !way.tls {
					c.Do("STARTTLS", "220")
					c.StartTLS(f.TLS())
					c.Do("EHLO client.example", "250")
				}
				c.Plain("tina", "wonder")
				send(c)
				c.Do("QUIT", "221")
				got := arrived(t, sink.WaitMessages(i + 1)[i].Data)
				if want := "Received: from client.example ([" + from + "])"; !strings.HasPrefix(got, want) {
					t.Errorf("%s: header\n     %s\nwant %s", way.name, got, want)
				}
				if line := f.WaitLine(", rip=" + from + ", "); way.tls && !strings.Contains(line, ", TLS, ") {
					t.Errorf("%s: %s", way.name, line)
				}
				back.WaitLine(", rip=" + from + ", ")
			}
		})
	}
}
