package submission

import (
	"fmt"
	"strings"
	"testing"

	"dovetail/internal/testkit/relay"
)

const connectionLost = "421 4.4.0 host.test Lost connection to relay server (connection lost)"

// A trusted relay that closes right behind its reply to XCLIENT: MAIL is answered. If it
// does so once, that may be by the next connection.
func TestRelayClosesBehindXclient(t *testing.T) {
	w := newWorld(t, map[string]string{"submission_relay_trusted": "yes"})
	closes := relay.Script{relay.XCLIENT: {relay.Close("220 relay.test again")}}
	for range 10 { // sometimes the end is noticed late
		r := relay.Start(t, relay.Options{Caps: []string{"PIPELINING", "XCLIENT ADDR"}, Script: closes})
		c := w.open(r)
		c.Send("MAIL FROM:<a@b>")
		c.Expect(connectionLost)
		c.ExpectEOF()

		r = relay.Start(t, relay.Options{Caps: []string{"PIPELINING", "XCLIENT ADDR"}, Scripts: []relay.Script{closes, {}}})
		c = w.open(r)
		c.Send("MAIL FROM:<a@b>")
		if answer := c.Line(); answer != connectionLost && answer != "250 2.1.0 2.1.0 Ok" {
			t.Errorf("MAIL: %q", answer)
		}
		c.Close()
	}
}

// If the connection ends behind that EHLO, and MAIL goes to another one, then as its first
// MAIL would.
func TestMailBeginsAgain(t *testing.T) {
	w := newWorld(t, map[string]string{"submission_relay_trusted": "yes"})
	caps := []string{"PIPELINING", "8BITMIME", "XCLIENT ADDR"}
	again := 0
	for range 30 {
		r := relay.Start(t, relay.Options{Caps: caps, Scripts: []relay.Script{
			{relay.EHLO: {{}, relay.Close("250-relay.test", "250-PIPELINING", "250-8BITMIME", "250 XCLIENT ADDR")}}, {},
		}})
		c := w.open(r, "submission_backend_capabilities=8BITMIME")
		c.Do("NOOP", "250") // connects
		c.Send("MAIL FROM:<a@b> BODY=8BITMIME")
		switch answer := c.Line(); answer[:3] {
		case "250": // the one behind had it
			again++
			if lines := r.Conn(1).Lines; fmt.Sprint(lines) != "[EHLO host.test XCLIENT ADDR=192.0.2.7 EHLO host.test MAIL FROM:<a@b> BODY=8BITMIME]" {
				t.Errorf("%q", lines)
			}
		case "421": // the end was noticed late
		default:
			t.Error(answer)
		}
		c.Close()
	}
	t.Logf("%d of 30 by another connection", again)
}

// The relay's answer to DATA or EHLO's RSET counts, also if it closes behind it.
func TestRelayClosesBehindItsAnswer(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 10 { // sometimes the end is noticed late
		r := relay.Start(t, relay.Options{
			Caps: []string{"PIPELINING", "ENHANCEDSTATUSCODES"},
			Scripts: []relay.Script{
				{relay.DATA: {relay.Close("554 5.7.1 no spam here")}},
				{relay.RSET: {relay.Close("250 2.0.0 forgotten")}},
				{},
			},
		})
		c := w.open(r)
		c.Do("EHLO x", "250")
		begin(c)
		c.Do("DATA", "354")
		c.Write(strings.Repeat("spam\r\n", 1+i%2*50000) + ".\r\n")
		c.Expect("554 5.7.1 no spam here")
		w.svc.AwaitLog("Info: Failed to relay message: from=<alice@example.org>, size=" + fmt.Sprint(6*(1+i%2*50000)) + ", nrcpt=1, reply=`554 5.7.1 no spam here'")
		r.Ended(0)
		awaitSockets(t, w, 4) // one is the client's; the worker has noticed
		begin(c)
		c.Do("EHLO x", "250")
		r.Ended(1)
		awaitSockets(t, w, 4)
		begin(c)
		c.Do("QUIT", "221")
		c.Close()
	}
}

// A message that the relay has refused, in whatever way, is no longer open when the next
// MAIL reaches it.
func TestNoNestedMail(t *testing.T) {
	data := []string{"PIPELINING", "ENHANCEDSTATUSCODES"}
	large := strings.Repeat("line\r\n", 100000)
	for name, tt := range map[string]struct {
		caps    []string
		script  relay.Script
		body    string
		answers string
	}{
		"DATA refused":                 {data, relay.Script{relay.DATA: {relay.Reply("452 4.3.1 full")}}, "x\r\n", "452 4.3.1 full"},
		"DATA refused, large":          {data, relay.Script{relay.DATA: {relay.Reply("554 5.7.1 no")}}, large, "554 5.7.1 no"},
		"a chunk refused":              {nil, relay.Script{relay.BDAT: {relay.Reply("452 4.3.1 full").Always()}}, large, "452 4.3.1 full"},
		"a chunk refused, late":        {nil, relay.Script{relay.BDAT: {relay.After(50e6, relay.Reply("452 4.3.1 full")), relay.Reply("503 5.5.1 failed").Always()}}, large[:199998], "452 4.3.1 full"},
		"the last of many refused":     {nil, relay.Script{relay.BDAT: {{}, relay.Reply("554 5.7.1 no")}}, large[:199998], "554 5.7.1 no"},
		"the end refused":              {data, relay.Script{relay.Dot: {relay.Reply("554 5.7.1 no")}}, "x\r\n", "554 5.7.1 no"},
		"the only chunk refused":       {nil, relay.Script{relay.BDAT: {relay.Reply("554 5.7.1 no")}}, "x\r\n", "554 5.7.1 no"},
		"the only chunk refused early": {nil, relay.Script{relay.BDAT: {relay.Reply("554 5.7.1 no").Early()}}, "x\r\n", "554 5.7.1 no"},
	} {
		for _, pipelined := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", pipelined), func(t *testing.T) {
				w := newWorld(t, nil)
				r := relay.Start(t, relay.Options{Caps: tt.caps, Scripts: []relay.Script{tt.script}})
				c := w.open(r)
				next := "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRSET\r\n"
				begin(c)
				c.Do("DATA", "354")
				if pipelined {
					c.Write(tt.body + ".\r\n" + next)
					c.Expect(tt.answers)
				} else {
					c.Write(tt.body + ".\r\n")
					c.Expect(tt.answers)
					c.Write(next)
				}
				c.Expect("250 2.1.0 Ok", "250 2.1.5 Ok", "250 2.0.0 Ok")
				c.Do("QUIT", "221")
				if v := r.Ended(0).Violations; len(v) > 0 {
					t.Errorf("%q\n%s", v, r.Transcript())
				}
			})
		}
	}
}

// A chunk that makes the message too large ends the transaction at a relay that had a part
// of it behind DATA. The client's goes on until RSET, and RCPT says so.
func TestRcptBehindARefusedChunk(t *testing.T) {
	w := newWorld(t, map[string]string{"submission_max_mail_size": "300 k"})
	for name, between := range map[string]string{"at once": "", "with another connection": "NOOP\r\n"} {
		t.Run(name, func(t *testing.T) {
			r := relay.Start(t, relay.Options{Caps: []string{"PIPELINING"}})
			c := w.in(t).open(r)
			begin(c)
			c.Write("BDAT 200000\r\n" + strings.Repeat("x", 200000))
			c.Expect("250 2.0.0 Added 200000 octets")
			c.Write("BDAT 200000\r\n" + strings.Repeat("x", 200000))
			c.Expect("552 5.2.3 Message size exceeds administrative limit")
			if between != "" {
				c.Write(between)
				c.Expect("250 2.0.0 OK")
			}
			c.Do("RCPT TO:<a@b>", "503 5.5.0 Previous data chunk failed, issue RSET first")
			c.Do("RSET", "250")
			begin(c)
			c.Do("QUIT", "221")
		})
	}
}
