package relay

import (
	"crypto/tls"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/tlsfiles"
)

func TestAcceptsEverythingByDefault(t *testing.T) {
	leak.Check(t)
	r := Start(t, Options{})
	c := client.Dial(t, r.Addr, client.Options{})
	c.Expect("220 relay.test ESMTP ready")
	c.Send("EHLO me")
	c.Expect("250-relay.test", "250-PIPELINING", "250-SIZE 10240000", "250-8BITMIME", "250-ENHANCEDSTATUSCODES", "250-DSN", "250-VRFY", "250 CHUNKING")
	c.Send("MAIL FROM:<a@b> SIZE=3", "RCPT TO:<c@d>", "RCPT TO:<e@f>", "DATA")
	c.Expect("250 2.1.0 Ok", "250 2.1.5 Ok", "250 2.1.5 Ok", "354 End data with <CR><LF>.<CR><LF>")
	c.Write("x\r\n..y\n.z\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<g@h>\r\nBDAT 3\r\nabcBDAT 2 LAST\r\nde")
	c.Expect("250 2.0.0 Ok: queued as 12345", "250 2.1.0 Ok", "250 2.1.5 Ok", "250 2.0.0 Ok: bdat", "250 2.0.0 Ok: bdat")
	c.Do("AUTH PLAIN AGEAYg==", "235")
	c.Do("AUTH LOGIN", "334")
	c.Do("YQ==", "334")
	c.Do("Yg==", "235")
	c.Send("NOOP")
	c.Expect("250 2.0.0 Ok")
	c.Do("QUIT", "221")
	c.ExpectEOF()

	got := r.Ended(0)
	if got.End != "QUIT" || len(got.Violations) != 0 || !slices.Equal(got.Auth, []string{"\x00a\x00b", "a\x00b"}) {
		t.Errorf("ended %q, violations %q, auth %q", got.End, got.Violations, got.Auth)
	}
	want := []Message{
		{From: "<a@b> SIZE=3", Rcpts: []string{"<c@d>", "<e@f>"}, Data: []byte("x\r\n.y\n.z\r\n"), Wire: []byte("x\r\n..y\n.z\r\n.\r\n"), Size: 10, Accepted: true},
		{From: "<>", Rcpts: []string{"<g@h>"}, Data: []byte("abcde"), BDAT: []int64{3, 2}, Size: 5, Accepted: true},
	}
	if m := r.WaitMessages(2); !reflect.DeepEqual(m, want) {
		t.Errorf("messages\n%+v\nwant\n%+v", m, want)
	}
	if !strings.Contains(string(got.Received), "DATA\r\nx\r\n..y\n.z\r\n.\r\nMAIL FROM:<>\r\n") {
		t.Errorf("received %q", got.Received)
	}
	r.Stop()
}

// What a client must not do is noted.
func TestViolations(t *testing.T) {
	r := Start(t, Options{Caps: []string{"8BITMIME"}})
	c := client.Dial(t, r.Addr, client.Options{})
	c.Expect("220 relay.test ESMTP ready")
	c.Write("NOOP\nMAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\nNOO")
	c.Expect("250 2.0.0 Ok", "250 2.1.0 Ok", "503 5.5.1 nested MAIL")
	c.Close()
	got := r.Ended(0)
	all := strings.Join(got.Violations, "\n")
	for _, want := range []string{"bare LF", "behind NOOP before its answer", "MAIL before EHLO", "behind MAIL before", "MAIL in a transaction", "inside a line"} {
		if !strings.Contains(all, want) {
			t.Errorf("not noted: %s; noted\n%s", want, all)
		}
	}
}

// Every behaviour at a step, seen from the client.
func TestBehaviours(t *testing.T) {
	leak.Check(t)
	told := make(chan struct{})
	close(told)
	for _, c := range []struct {
		b    Behaviour
		see  string // what comes, up to its end
		then string // "open", "mute", "eof", "reset"
	}{
		{Reply("450-4.2.1 a", "450 4.2.1 b"), "450-4.2.1 a\r\n450 4.2.1 b\r\n", "open"},
		{Raw("garbage\x00\xff\r\n"), "garbage\x00\xff\r\n", "open"},
		{LongLine("250", 5000), "250 " + strings.Repeat("x", 4994) + "\r\n", "open"},
		{ManyLines("550", "no", 3), "550-no\r\n550-no\r\n550 no\r\n", "open"},
		{HalfLine("250 2.0"), "250 2.0", "mute"},
		{Silence(), "", "mute"},
		{Close(), "", "eof"},
		{Close("421 4.3.2 bye"), "421 4.3.2 bye\r\n", "eof"},
		{Reset(), "", "reset"},
		{After(time.Millisecond, Reply("250 late")), "250 late\r\n", "open"},
		{When(told, Reply("250 told")), "250 told\r\n", "open"},
		{Dribble(time.Hour, "250-more\r\n"), "250-more\r\n", "mute"},
		{Stall(), "", "mute"},
	} {
		t.Run(c.b.String()[:min(30, len(c.b.String()))], func(t *testing.T) {
			r := Start(t, Options{Script: Script{NOOP: {{}, c.b}}})
			cl := client.Dial(t, r.Addr, client.Options{})
			cl.ExpectCode("220")
			cl.Do("NOOP", "250 2.0.0 Ok") // the first time is the default
			cl.Send("NOOP")
			switch c.then {
			case "open":
				for _, l := range strings.SplitAfter(c.see, "\r\n") {
					if l != "" {
						cl.Expect(strings.TrimSuffix(l, "\r\n"))
					}
				}
				cl.Do("NOOP", "250 2.0.0 Ok") // and so is the third
			case "mute":
				if c.see != "" {
					got := make([]byte, len(c.see))
					if _, err := cl.Conn.Read(got); err != nil || string(got) != c.see {
						t.Errorf("got %q, %v", got, err)
					}
				}
				cl.ExpectSilence(20 * time.Millisecond)
			case "eof", "reset":
				if got := cl.ExpectGone(); got != c.see {
					t.Errorf("got %q, want %q", got, c.see)
				}
			}
			r.Stop()
		})
	}
}

func TestScriptsPerConnection(t *testing.T) {
	r := Start(t, Options{Scripts: []Script{{Banner: {Close("421 first")}}, {MAIL: {Reply("550 5.1.8 no").Always()}}}})
	client.Dial(t, r.Addr, client.Options{}).ExpectCode("421 first")
	for range 2 {
		c := client.Dial(t, r.Addr, client.Options{})
		c.ExpectCode("220")
		c.Do("EHLO x", "250")
		c.Do("MAIL FROM:<a@b>", "550 5.1.8 no")
		c.Do("MAIL FROM:<a@b>", "550 5.1.8 no")
		c.Do("RCPT TO:<a@b>", "503")
	}
	if n := len(r.Conns()); n != 3 {
		t.Errorf("%d connections", n)
	}
}

func TestRefusedMessageIsKeptAsRefused(t *testing.T) {
	r := Start(t, Options{Script: Script{Dot: {Reply("554 5.7.1 spam")}, BDAT: {Reply("250 ok"), Reply("452 4.3.1 full"), Reply("421 gone").Early()}}})
	c := client.Dial(t, r.Addr, client.Options{})
	c.ExpectCode("220")
	c.Send("EHLO x", "MAIL FROM:<a@b>", "RCPT TO:<c@d>")
	c.Reply()
	c.Reply()
	c.Reply()
	c.Do("DATA", "354")
	c.Do("x\r\n.", "554 5.7.1 spam")
	c.Send("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "BDAT 1")
	c.Write("a")
	c.ExpectCode("250 2.1.0")
	c.ExpectCode("250 2.1.5")
	c.ExpectCode("250 ok")
	c.Write("BDAT 1 LAST\r\nb")
	c.ExpectCode("452 4.3.1 full")
	c.Do("BDAT 100 LAST", "421 gone") // before its octets
	for i, m := range r.WaitMessages(2) {
		if m.Accepted || m.Size == 0 {
			t.Errorf("message %d: %+v", i, m)
		}
	}
}

func TestTLS(t *testing.T) {
	leak.Check(t)
	ca := tlsfiles.NewCA(t, "ca")
	good := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, tlsfiles.Request{Names: []string{"relay.test"}}).TLS()}}
	other := &tls.Config{Certificates: []tls.Certificate{tlsfiles.SelfSigned(t, tlsfiles.Request{Names: []string{"relay.test"}}).TLS()}}
	config := &tls.Config{RootCAs: ca.Pool(), ServerName: "relay.test"}
	start := func(s Script, implicit bool) (*Relay, *client.Client) {
		r := Start(t, Options{TLS: good, Implicit: implicit, Script: s})
		o := client.Options{}
		if implicit {
			o.TLS = config
		}
		c := client.Dial(t, r.Addr, o)
		c.ExpectCode("220")
		return r, c
	}

	r, c := start(nil, false)
	if !slices.Contains(c.Do("EHLO x", "250"), "250 STARTTLS") {
		t.Error("STARTTLS is not announced")
	}
	c.Do("STARTTLS", "220")
	c.StartTLS(config)
	if slices.Contains(c.Do("EHLO x", "250"), "250 STARTTLS") {
		t.Error("STARTTLS is announced inside TLS")
	}
	if got := r.Conn(0); got.TLS == nil || got.TLS.ServerName != "relay.test" {
		t.Errorf("TLS: %+v", got.TLS)
	}
	r.Stop()

	r, c = start(nil, true)
	c.Do("NOOP", "250")
	r.Stop()

	for name, b := range map[string]Behaviour{"garbage": BreakTLS(), "certificate": OtherTLS(other)} {
		r, c = start(Script{STARTTLS: {b}}, false)
		c.Do("STARTTLS", "220")
		if err := c.TryStartTLS(config); err == nil {
			t.Errorf("%s: the handshake succeeds", name)
		}
		r.Stop()
	}
	r, c = start(Script{STARTTLS: {Reply("454 4.7.0 not now")}}, false)
	c.Do("STARTTLS", "454 4.7.0 not now")
	c.Do("NOOP", "250")
	r.Stop()
}
