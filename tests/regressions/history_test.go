package regressions

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/authserver"
	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
)

func TestClientLeavesDuringAUTH(t *testing.T) {
	t.Parallel()
	s := serve(t, newRelay(t, relay.Options{}), true, "auth_failure_delay = 3 s\n")
	idle := s.Idle(t, "alice")
	for _, w := range []dovetail.Way{dovetail.Clear, dovetail.TLS, dovetail.StartTLS} {
		c := s.Greeted(t, w)
		c.Send("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00alice\x00wrong"))) // takes its time
		c.Close()
		c = s.Greeted(t, w)
		c.Do("AUTH LOGIN", "334")
		c.Reset()
	}
	other := s.Login(t, dovetail.Clear, "bob")
	message(other)
	other.Do("QUIT", "221")
	s.Settled(t, idle)
}

func TestBadAUTHLineOverTLS(t *testing.T) {
	t.Parallel()
	s := serve(t, newRelay(t, relay.Options{}), true, "")
	for _, w := range []dovetail.Way{dovetail.TLS, dovetail.StartTLS} {
		for line, code := range map[string]string{
			"\x00": "500", "\xff\xfe": "500", "!": "501", "": "535", "*": "501", strings.Repeat("A", 8193): "500", strings.Repeat("A", 100000): "500", "A A": "501",
		} {
			c := s.Greeted(t, w)
			c.Do("AUTH PLAIN", "334")
			c.Send(line)
			if got := c.Reply()[0]; !strings.HasPrefix(got, code) {
				t.Errorf("%v: %.20q: %q", w, line, got)
			}
			c.Do("NOOP", "250")
			c.Plain("alice", dovetail.Password)
			c.Do("NOOP", "250")
			c.Close()
		}
	}
}

func TestTruncatedUTF8(t *testing.T) {
	t.Parallel()
	s := serve(t, newRelay(t, relay.Options{}), true, "")
	try := func(c *client.Client) {
		for _, bad := range []string{"\xc3", "\xe2\x82", "\xf0\x9f\x98", "\x80", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff"} {
			for _, line := range []string{"NOOP " + bad, "NOOP a" + bad, bad, "EHLO " + bad} {
				c.Do(line, "500 5.5.2 Invalid command syntax")
				c.Do("NOOP", "250") // or too many are bad
			}
		}
	}
	c := s.Greeted(t, dovetail.Clear)
	try(c)
	c.Plain("alice", dovetail.Password)
	try(c)
	c.Do("MAIL FROM:<\xc3@b>", "500 5.5.2 Invalid command syntax")
	c.Do("MAIL FROM:<\xc3\xa9@b>", "501 5.5.4 Invalid FROM: Invalid character in localpart")
	// It may also be cut by the packet, and is whole then.
	c.WriteSplit("NOOP \xc3\xa9\r\n", 6)
	if got := c.Reply()[0]; strings.HasPrefix(got, "500") {
		t.Errorf("%q", got)
	}
}

func TestRCPTWithAnEmptyQuotedLocalPart(t *testing.T) {
	t.Parallel()
	r := newRelay(t, relay.Options{})
	s := serve(t, r, true, "")
	c := s.Login(t, dovetail.Clear, "alice")
	c.Do(`MAIL FROM:<""@example.test>`, "250")
	c.Do(`RCPT TO:<""@dest.test>`, "250")
	c.Do(`RCPT TO:<" "@dest.test>`, "250")
	c.Do(`RCPT TO:<"\">`, "501 5.5.4 Invalid TO: ")
	c.Do(`RCPT TO:<"">`, "501 5.5.4 Invalid TO: ")
	c.Do(`RCPT TO:<"@dest.test>`, "501 5.5.4 Invalid TO: ")
	c.Do("DATA", "354")
	c.Send("x", ".")
	c.ExpectCode("250")
	m := r.WaitMessages(1)[0]
	if got := fmt.Sprint(m.From, m.Rcpts); got != `<""@example.test>[<""@dest.test> <" "@dest.test>]` {
		t.Errorf("%s", got)
	}
}

func TestRelayEHLOWith30Lines(t *testing.T) {
	t.Parallel()
	for _, n := range []int{30, 99, 150, 1000} {
		caps := []string{"PIPELINING", "8BITMIME", "CHUNKING"}
		for i := range n - len(caps) {
			caps = append(caps, fmt.Sprintf("X-EXT%d with %s", i, strings.Repeat("parameters ", 20)))
		}
		r := newRelay(t, relay.Options{Caps: caps})
		s := serve(t, r, true, "")
		c := s.Login(t, dovetail.Clear, "alice")
		if ehlo := strings.Join(c.Do("EHLO x", "250"), "|"); !strings.Contains(ehlo, "8BITMIME") || strings.Contains(ehlo, "X-EXT") {
			t.Errorf("%d lines: %q", n, ehlo)
		}
		c.Do("MAIL FROM:<a@b> BODY=8BITMIME", "250")
		c.Do("RCPT TO:<bob@dest.test>", "250")
		c.Do("DATA", "354")
		c.Send("x", ".")
		c.ExpectCode("250")
		if m := r.WaitMessages(1)[0]; m.BDAT == nil || !strings.Contains(m.From, "BODY=8BITMIME") {
			t.Errorf("%d lines: %q", n, m.From)
		}
	}
}

func TestRelayAUTHFailure(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]relay.Behaviour{
		"535":               relay.Reply("535 5.7.8 no"),
		"535 of many lines": relay.Reply("535-5.7.8 no", "535 5.7.8 never"),
		"454":               relay.Reply("454 4.7.0 later"),
		"334 and 535":       relay.Reply("334 bm8="),
		"close":             relay.Close("535 5.7.8 no"),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, relay.Options{Caps: []string{"AUTH PLAIN", "PIPELINING"}, Scripts: []relay.Script{{relay.AUTH: {answer}}, {}}})
			s := dovetail.Start(t, dovetail.Setup{Shared: true, Users: []dovetail.User{{Name: "alice", Fields: []string{
				dovetail.Relay(r.Port), "submission_relay_user=ruser", "submission_relay_password=verysecret",
			}}}})
			c := s.Login(t, dovetail.Clear, "alice")
			c.ExpectCode("421 4.4.0 sub.example.test Failed to ")
			c.ExpectEOF()
			c = s.Login(t, dovetail.Clear, "alice")
			message(c)
			if auth := r.Conn(1).Auth; len(auth) != 1 || auth[0] != "\x00ruser\x00verysecret" {
				t.Errorf("%q", auth)
			}
			s.WaitLine(t, "Authentication failed: ")
			if log := s.Log(); strings.Contains(log, "verysecret") || strings.Contains(log, base64.StdEncoding.EncodeToString([]byte("\x00ruser\x00verysecret"))) {
				t.Error("the log has the password")
			}
		})
	}
}

func TestQUITInsideATransaction(t *testing.T) {
	t.Parallel()
	for name, caps := range map[string][]string{"BDAT": {"PIPELINING", "CHUNKING"}, "DATA": {"PIPELINING"}} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, relay.Options{Caps: caps})
			s := serve(t, r, true, "")
			for _, inside := range []string{"MAIL", "RCPT", "chunk", "large chunk"} {
				c := s.Login(t, dovetail.Clear, "alice")
				c.Do("MAIL FROM:<alice@example.test>", "250")
				if inside != "MAIL" {
					c.Do("RCPT TO:<bob@dest.test>", "250")
				}
				if n := map[string]int{"chunk": 10, "large chunk": 300000}[inside]; n > 0 {
					c.Write(fmt.Sprintf("BDAT %d\r\n%s", n, strings.Repeat("x", n)))
					c.ExpectCode("250")
				}
				c.Do("QUIT", "221 2.0.0 Bye")
				c.ExpectEOF()
			}
			for n := range 4 {
				if conn := r.Ended(n); len(conn.Messages) > 0 {
					t.Errorf("connection %d: %+v", n, conn.Messages)
				}
			}
		})
	}
}

func TestDisconnectWithNOOPOrVRFYInFlight(t *testing.T) {
	t.Parallel()
	for _, step := range []relay.Step{relay.NOOP, relay.VRFY} {
		told := make(chan struct{})
		r := newRelay(t, relay.Options{Script: relay.Script{step: {relay.When(told, relay.Reply("252 2.0.0 late"))}}})
		s := serve(t, r, true, "")
		c := s.Login(t, dovetail.TLS, "alice")
		c.Send(string(step) + map[relay.Step]string{relay.VRFY: " joe"}[step])
		r.Commands(0, 2)
		c.Close()
		s.WaitLine(t, "submission(alice)", "Disconnected: Connection closed (unfinished "+string(step)+" command)")
		close(told)
		r.Ended(0)
		c = s.Login(t, dovetail.TLS, "bob")
		message(c)
	}
}

func TestSecondEHLOWithABadDomain(t *testing.T) {
	t.Parallel()
	r := newRelay(t, relay.Options{})
	s := serve(t, r, true, "")
	c := s.Greeted(t, dovetail.Clear)
	c.Do("EHLO good.example", "250")
	c.Do("EHLO bad..example", "250")
	c.Plain("alice", dovetail.Password)
	for _, bad := range []string{"bad..example", "-", "[1.2.3.4", "[IPv6:zz]", "a b c", "_", strings.Repeat("x", 4000)} {
		c.Do("EHLO fine.example", "250")
		c.Do("EHLO "+bad, "250")
		message(c)
	}
	c.Do("EHLO", "501")
	for i, m := range r.WaitMessages(7) {
		from, _, _ := strings.Cut(strings.TrimPrefix(string(m.Data), "Received: from "), " ")
		if from != "unknown" && from != "a" && from != "_" && from != "-" && len(from) < 4000 || strings.Contains(from, "fine") {
			t.Errorf("message %d is from %.50q", i, from)
		}
	}
}

func TestClientLeavesMidMessageOverTLS(t *testing.T) {
	t.Parallel()
	for name, caps := range map[string][]string{"BDAT": {"PIPELINING", "CHUNKING"}, "DATA": {"PIPELINING"}} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, relay.Options{Caps: caps})
			s := serve(t, r, true, "")
			idle := s.Idle(t, "bob")
			for i, n := range []int{10, 5000, 200000, 1 << 20} {
				for _, half := range []bool{false, true} {
					c := s.Login(t, dovetail.TLS, "alice")
					envelope(c)
					c.Do("DATA", "354")
					c.Write(strings.Repeat("0123456\r\n", n/9))
					if half {
						c.CloseWrite()
						c.ExpectGone()
					} else {
						c.Reset()
					}
				}
				s.Until(t, "the sessions' ends", func() bool { return len(s.Lines("submission(alice)", "Disconnected: Connection closed")) >= 2*i+2 })
			}
			s.Settled(t, idle)
			if all := r.Messages(); len(all) > 0 {
				t.Errorf("the relay took %d messages", len(all))
			}
		})
	}
}

func TestSizesAt2To63And64(t *testing.T) {
	t.Parallel()
	for _, limit := range []string{"", "submission_max_mail_size = 0\n"} {
		for name, caps := range map[string][]string{"with SIZE": {"SIZE 0", "CHUNKING"}, "with a huge SIZE": {"SIZE 18446744073709551615"}, "without": {"PIPELINING"}} {
			t.Run(name+", "+strings.TrimSpace(limit), func(t *testing.T) {
				t.Parallel()
				r := newRelay(t, relay.Options{Caps: caps})
				s := serve(t, r, true, limit)
				for _, size := range []string{"9223372036854774783", "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616", "340282366920938463463374607431768211456", "-1", "+1", "0x10", ""} {
					c := s.Login(t, dovetail.Clear, "alice")
					c.Send("MAIL FROM:<a@b> SIZE=" + size)
					if got := c.Reply()[0]; got[0] == '2' && !strings.HasPrefix(size, "922337203685477") {
						t.Errorf("SIZE=%s: %s", size, got)
					}
					c.Do("RSET", "250")
					envelope(c)
					// What follows is the chunk, as far as the size is a number: never commands.
					c.Write("BDAT " + size + " LAST\r\nMAIL FROM:<hidden@b>\r\nNOOP\r\n")
					c.CloseWrite()
					got := c.ExpectGone()
					if got != "" && (got[0] == '2' || number(size) && strings.Contains(got, "\n2")) || !number(size) && !strings.HasPrefix(got, "50") {
						t.Errorf("BDAT %s: %q", size, got)
					}
				}
				for _, conn := range r.Conns() {
					for _, l := range conn.Lines {
						if strings.Contains(l, "SIZE=1023") || strings.Contains(l, "SIZE=-") || strings.HasPrefix(l, "BDAT") {
							t.Errorf("the relay got %.100q", l)
						}
					}
				}
			})
		}
	}
}

// number says whether a size is one, however large.
func number(size string) bool { return size != "" && strings.Trim(size, "0123456789") == "" }

func TestForwardTokensThatTryToBecomeOtherFields(t *testing.T) {
	t.Parallel()
	r := newRelay(t, relay.Options{})
	s := serve(t, r, true, "login_trusted_networks = 127.0.0.0/8\n")
	for _, forward := range []string{
		"user=bob", "nologin=y", "proxy=y\thost=192.0.2.1", "userdb_submission_relay_port=1", "\tuser=bob\t", "a=b\x01tuser=bob", "a=b\x01\tuser=bob", "=\t=\t=", "user",
		"forward_user=bob", "a=b\nAUTH\t1\tPLAIN", strings.Repeat("x=y\t", 1000), "a\x01\x01\x01", "pass=\x00", "original_user=bob", "auth_user=bob", "reason=x\tcode=temp_fail",
	} {
		c := s.Greeted(t, dovetail.Clear)
		encoded := strings.NewReplacer("+", "+2B", "=", "+3D").Replace(base64.StdEncoding.EncodeToString([]byte(forward)))
		c.Send("XCLIENT FORWARD=" + encoded)
		if got := c.Reply()[0]; !strings.HasPrefix(got, "220 ") && len(forward) < 700 {
			t.Errorf("%q: %s", forward, got)
		}
		c.Plain("alice", dovetail.Password)
		message(c)
		c.Do("QUIT", "221")
	}
	s.Until(t, "the sessions' ends", func() bool { return len(s.Lines("submission(alice)", "Disconnected: Logged out")) == 17 })
	if lines := s.Lines("bob"); len(lines) > 0 && !strings.Contains(lines[0], "Successfully relayed") {
		t.Errorf("%q", lines)
	}
}

func TestUserIPLimit(t *testing.T) {
	t.Parallel()
	s := serve(t, newRelay(t, relay.Options{}), false, "mail_max_userip_connections = 3\n")
	for _, w := range []dovetail.Way{dovetail.Clear, dovetail.TLS} {
		var open []*client.Client
		for range 3 {
			c := s.Login(t, w, "alice")
			c.Do("NOOP", "250") // the worker has told anvil
			open = append(open, c)
		}
		for range 2 {
			c := s.Greeted(t, w)
			c.Send("AUTH PLAIN " + dovetail.Plain("alice"))
			c.Expect("421 4.7.0 Maximum number of connections from user+IP exceeded (mail_max_userip_connections=3)")
			c.ExpectEOF()
		}
		s.Login(t, w, "bob").Do("QUIT", "221")
		open[0].Do("QUIT", "221")
		open[0].ExpectEOF()
		var again *client.Client
		s.Until(t, "there is room again", func() bool {
			c := s.Greeted(t, w)
			c.Send("AUTH PLAIN " + dovetail.Plain("alice"))
			line := c.Line()
			again = c
			return strings.HasPrefix(line, "235")
		})
		for _, c := range append(open[1:], again) {
			message(c)
			c.Do("QUIT", "221")
			c.ExpectEOF()
		}
		s.Until(t, "nobody is left", func() bool { return len(s.Processes()["submission"]) == 0 })
	}
}

// Under our master a malformed entry is an error at the start, and all is said. A config
// service that lets one pass, as Dovecot's does, is survived by the login process.
func TestMalformedTrustedNetworks(t *testing.T) {
	t.Parallel()
	f := newFront(t, map[string]string{"login_trusted_networks": "127.0.0.1/99 nonsense 127.0.0.0/8 ::/-1 1.2.3.4/x"}, authOptions)
	for range 3 {
		c := f.Open(t)
		c.Do("EHLO x", "250")
		c.Do("XCLIENT ADDR=192.0.2.7", "220") // the good entry counts
		c.Do("QUIT", "221")
	}
	f.Service.AwaitLog("login_trusted_networks: ")
	f.Service.AwaitLog("the entry is ignored")
}

// A reply of the relay comes while the client's next commands are on their way, in every
// order: nothing is lost. (Dovecot's worker aborted.)
func TestTransactionsBehindTheDot(t *testing.T) {
	t.Parallel()
	r := newRelay(t, relay.Options{Script: relay.Script{relay.BDAT: {relay.After(50*time.Millisecond, relay.Reply("250 2.0.0 slow"))}}})
	s := serve(t, r, true, "")
	c := s.Login(t, dovetail.Clear, "alice")
	envelope(c)
	c.Do("DATA", "354")
	c.Write("x\r\n.\r\nMAIL FROM:<a@b>\r\nRSET\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRSET\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\ny\r\n.\r\n")
	for _, code := range []string{"250 2.0.0 slow", "250", "250", "250", "250", "250", "250", "250", "354", "250"} {
		c.ExpectCode(code)
	}
	if n := len(r.WaitMessages(2)); n != 2 {
		t.Errorf("%d messages", n)
	}
}

var authOptions authserver.Options
