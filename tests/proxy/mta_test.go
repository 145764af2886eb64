package proxy

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// body has what an MTA or a proxy might change on its way.
var body = "From: alice@example.test\r\nTo: bob@dest.test\r\nSubject: octets\r\nMessage-ID: <x@example.test>\r\nDate: Tue, 24 Nov 2026 12:00:00 +0000\r\n" +
	"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
	".\r\n..\r\n.dot\r\n \t blanks \t\r\nGr\xc3\xbc\xc3\x9fe\r\n" + strings.Repeat("x", 900) + "\r\nFrom the beginning\r\n\r\n\r\n" + strings.Repeat("0123456789abcdef\r\n", 20000)

// send sends body by DATA.
func send(c *client.Client) {
	c.Do("MAIL FROM:<alice@example.test>", "250")
	c.Do("RCPT TO:<bob@dest.test>", "250")
	c.Do("DATA", "354")
	c.Write(strings.ReplaceAll("\r\n"+body, "\r\n.", "\r\n..")[2:] + ".\r\n")
	c.ExpectCode("250 2.0.0")
}

var received = regexp.MustCompile(`(?s)\AReceived: .*?\r\n[^ \t]`)

// arrived takes the newest Received header off a message and wants the rest to be body,
// behind further Received headers.
func arrived(t *testing.T, data []byte) (newest string) {
	t.Helper()
	var all []string
	rest := data
	for {
		at := received.FindIndex(rest)
		if at == nil {
			break
		}
		all = append(all, strings.ReplaceAll(string(rest[:at[1]-1]), "\r\n", " "))
		rest = rest[at[1]-1:]
	}
	if !bytes.Equal(rest, []byte(body)) {
		n := 0
		for n < len(rest) && n < len(body) && rest[n] == body[n] {
			n++
		}
		t.Errorf("the message is not what was sent: %d octets, want %d; from %d on: %.100q", len(rest), len(body), n, rest[n:])
	}
	if len(all) == 0 {
		t.Fatalf("no Received header: %.300q", data)
	}
	return all[0]
}

// tlsClient connects from an address, makes STARTTLS, and says hello.
func tlsClient(t *testing.T, f *front, from, helo string) *client.Client {
	t.Helper()
	c := f.dial(t, client.Options{From: from})
	c.Do("EHLO "+helo, "250")
	c.Do("STARTTLS", "220")
	c.StartTLS(f.TLS())
	c.Do("EHLO "+helo, "250")
	return c
}

const postfixCaps = "PIPELINING SIZE VRFY ENHANCEDSTATUSCODES 8BITMIME DSN CHUNKING"

// Postfix behind the frontend, without a login of its own: it knows the user, the client's
// address, name and greeting, and gets the message to the octet.
func TestPostfix(t *testing.T) {
	for _, sys := range []system.System{system.OursLogin, system.Standalone} {
		t.Run(sys.String(), func(t *testing.T) {
			t.Parallel()
			sys.Need(t)
			sink := relay.Start(t, relay.Options{Timeout: 30 * time.Second})
			mta := startPostfix(t, sink.Port, "smtpd_authorized_xclient_hosts=127.0.0.1", "smtpd_forbid_unauth_pipelining=yes")
			f := start(t, sys, []user{{name: "alice@example.test", bare: true, fields: fmt.Sprintf("proxy=y host=127.0.0.1 port=%d proxy_noauth=y", mta.Port)}},
				"submission_client_workarounds = exotic-backend", "submission_backend_capabilities = "+postfixCaps)
			c := f.dial(t, client.Options{From: "127.0.0.2"})
			announced := c.Do("EHLO c.example", "250")
			for _, l := range announced {
				if strings.Contains(l, "BURL") || strings.Contains(l, "BINARYMIME") {
					t.Errorf("announced: %s", l)
				}
			}
			c = tlsClient(t, f, "127.0.0.2", "client.example")
			if got := login(c, "alice@example.test"); !slices.Equal(got, []string{"235 2.7.0 Logged in."}) {
				t.Fatal(got)
			}
			send(c)
			c.Do("QUIT", "221")
			got := arrived(t, sink.WaitMessages(1)[0].Data)
			want := regexp.MustCompile(`^Received: from client\.example \((unknown|[a-z.]+) \[127\.0\.0\.2\]\) \t\(Authenticated sender: alice@example\.test\) \tby mta\.example\.test \(Postfix\) with ESMTPA id `)
			if !want.MatchString(got) {
				t.Errorf("header\n     %s\nwant %s", got, want)
			}
			if strings.Contains(got, "(localhost ") {
				t.Errorf("our own name is the client's: %s", got)
			}
			// The same host as ours has a name that is found in the file of hosts.
			c = f.dial(t, client.Options{})
			c.Do("EHLO [127.0.0.1]", "250")
			login(c, "alice@example.test")
			send(c)
			got = arrived(t, sink.WaitMessages(2)[1].Data)
			if want := "Received: from [127.0.0.1] (localhost [127.0.0.1]) "; !strings.HasPrefix(got, want) {
				t.Errorf("header\n     %s\nwant %s", got, want)
			}
			for _, l := range f.Log() {
				if strings.Contains(l, ": Warning: ") || strings.Contains(l, ": Error: ") {
					t.Errorf("log: %s", l)
				}
			}
		})
	}
}

// A Postfix that lets nobody say XCLIENT does not offer it; one that offers it, and then
// says no, is a failure that says what to do.
func TestXclientNotAllowed(t *testing.T) {
	sys := system.OursLogin
	sys.Need(t)
	sink := relay.Start(t, relay.Options{})
	mta := startPostfix(t, sink.Port)
	f := start(t, sys, []user{
		{name: "quiet", bare: true, fields: fmt.Sprintf("proxy=y host=127.0.0.1 port=%d proxy_noauth=y", mta.Port)},
		{name: "meant", bare: true, fields: fmt.Sprintf("proxy=y host=127.0.0.1 port=%d proxy_noauth=y proxy_not_trusted=y", mta.Port)},
		{name: "refused", fields: "proxy_noauth=y", relay: &relay.Options{Script: script(relay.XCLIENT, relay.Reply("550 5.7.0 not you"))}},
	}, "login_proxy_max_reconnects = 0")
	c := f.dial(t, client.Options{})
	c.Do("EHLO client.example", "250")
	if got := login(c, "quiet")[0]; got != "235 2.7.0 Logged in." {
		t.Error(got)
	}
	c.Do("MAIL FROM:<a@b.example>", "250")
	c.Do("RCPT TO:<c@d.example>", "554 5.7.1") // it does not know who has logged in
	f.WaitLine("Warning: proxy(quiet,127.0.0.1:" + itoa(mta.Port) + "): The backend offers no XCLIENT, so it hears neither who has logged in nor from where (allow it there for this server: login_trusted_networks")
	if got := login(f.dial(t, client.Options{}), "meant")[0]; got != "235 2.7.0 Logged in." {
		t.Error(got)
	}
	if got := login(f.dial(t, client.Options{}), "refused")[0]; got != unavailable {
		t.Error(got)
	}
	f.WaitLine("Error: proxy(refused,127.0.0.1:" + itoa(f.ports["refused"]) + "): Aborting due to remote server: XCLIENT failed: 550 5.7.0 not you (allow it there for this server: ")
	if n := count(f.Log(), "proxy(meant,") - count(f.Log(), ": Info: proxy(meant,"); n != 0 {
		t.Errorf("%d lines about a backend that is as it should be", n)
	}
}
