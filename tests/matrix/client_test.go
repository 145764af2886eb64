package matrix

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// A point is a place in the dialogue at which a client does something.
type point struct {
	name string
	// says leads there: what the client sends, and the codes of the replies that it waits
	// for before it sends more. A code "" is not waited for.
	says []exchange
	// rest completes what was begun, and codes are the replies that then come.
	rest  string
	codes []string

	before bool       // before the login
	ways   string     // of connecting: letters of "cts"; "" is all, in turn
	holds  relay.Step // the relay does not answer here, until it is told to
	blocks bool       // ... and the server reads no more of the client, until then
	whole  bool       // a message is with the relay in full
	data   bool       // what the client sends more is data of the message
}

type exchange struct{ send, code string }

const (
	mailFrom = "MAIL FROM:<alice@example.test>\r\n"
	rcptTo   = "RCPT TO:<bob@dest.test>\r\n"
)

var (
	envelope = []exchange{{mailFrom, "250"}, {rcptTo, "250"}}
	inData   = append(envelope[:2:2], exchange{"DATA\r\n", "354"})
	big      = strings.Repeat("0123456789abcdef0123456789abcdef\r\n", 12000) // more than is held back
)

func points() []point {
	auth := "AUTH PLAIN {plain}\r\n"
	return []point{
		{name: "before the greeting", before: true, ways: "h", rest: "PROXY TCP4 192.0.2.7 192.0.2.1 1000 587\r\n", codes: []string{"220"}},
		{name: "greeting", before: true, says: []exchange{{"", "220"}}, rest: auth, codes: []string{"235"}},
		{name: "half a command", before: true, says: []exchange{{"", "220"}, {"AUT", ""}}, rest: auth[3:], codes: []string{"235"}},
		{name: "EHLO", before: true, says: []exchange{{"", "220"}, {"EHLO x\r\n", "250"}}, rest: auth, codes: []string{"235"}},
		{name: "STARTTLS", before: true, ways: "c", says: []exchange{{"", "220"}, {"STARTTLS\r\n", "220"}}},
		{name: "half a handshake", before: true, ways: "c", says: []exchange{{"", "220"}, {"STARTTLS\r\n", "220"}, {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ""}}},
		{name: "handshake of nonsense", before: true, ways: "c", says: []exchange{{"", "220"}, {"STARTTLS\r\n", "220"}, {"what?\r\n", ""}}},
		{name: "AUTH", before: true, says: []exchange{{"", "220"}, {"AUTH PLAIN\r\n", "334"}}, rest: "{plain}\r\n", codes: []string{"235"}},
		{name: "AUTH LOGIN", before: true, says: []exchange{{"", "220"}, {"AUTH LOGIN\r\n", "334"}, {"eA==\r\n", "334"}}, rest: "*\r\n", codes: []string{"501"}},
		{name: "AUTH that takes its time", before: true, says: []exchange{{"", "220"}, {"AUTH PLAIN AHUAd3Jvbmc=\r\n", ""}}, rest: auth, codes: []string{"535", "235"}},
		{name: "login", says: nil},
		{name: "half a command after the login", says: []exchange{{"MAIL FR", ""}}, rest: mailFrom[7:] + "RSET\r\n", codes: []string{"250", "250"}},
		{name: "MAIL", says: envelope[:1], rest: "RSET\r\n", codes: []string{"250"}},
		{name: "MAIL without an answer", says: []exchange{{mailFrom, ""}}, holds: relay.MAIL, rest: "RSET\r\n", codes: []string{"250", "250"}},
		{name: "RCPT", says: envelope, rest: "RSET\r\n", codes: []string{"250"}},
		{name: "RCPT without an answer", says: []exchange{{mailFrom, "250"}, {rcptTo, ""}}, holds: relay.RCPT, rest: "RSET\r\n", codes: []string{"250", "250"}},
		{name: "DATA behind an open RCPT", says: []exchange{{mailFrom, "250"}, {rcptTo + "DATA\r\n", ""}}, holds: relay.RCPT, blocks: true, rest: "x\r\n.\r\n", codes: []string{"250", "354", "250"}},
		{name: "DATA", says: inData, rest: "x\r\n.\r\n", codes: []string{"250"}, data: true},
		{name: "body", says: append(inData[:3:3], exchange{"Subject: x\r\n\r\nhel", ""}), rest: "lo\r\n.\r\n", codes: []string{"250"}, data: true},
		{name: "half a line end", says: append(inData[:3:3], exchange{"hello\r", ""}), rest: "\n.\r\n", codes: []string{"250"}, data: true},
		{name: "half an end of data", says: append(inData[:3:3], exchange{"hello\r\n.", ""}), rest: "\r\n", codes: []string{"250"}, data: true},
		{name: "large body", says: append(inData[:3:3], exchange{big, ""}), rest: ".\r\n", codes: []string{"250"}, data: true},
		{name: "dot without an answer", says: append(inData[:3:3], exchange{"hello\r\n.\r\n", ""}), holds: relay.Dot, codes: []string{"250"}, whole: true},
		{name: "large body without an answer", says: append(inData[:3:3], exchange{big + ".\r\n", ""}), holds: relay.Dot, codes: []string{"250"}, whole: true},
		{name: "half a chunk", says: append(envelope[:2:2], exchange{"BDAT 10\r\nabc", ""}), rest: "defghijBDAT 0 LAST\r\n", codes: []string{"250", "250"}, data: true},
		{name: "chunk", says: append(envelope[:2:2], exchange{"BDAT 3\r\nabc", "250"}), rest: "BDAT 0 LAST\r\n", codes: []string{"250"}},
		{name: "large chunk", says: append(envelope[:2:2], exchange{fmt.Sprintf("BDAT %d\r\n%s", len(big), big), "250"}), rest: "BDAT 0 LAST\r\n", codes: []string{"250"}},
		{name: "last chunk without an answer", says: append(envelope[:2:2], exchange{"BDAT 3 LAST\r\nabc", ""}), holds: relay.BDAT, codes: []string{"250"}, whole: true},
		{name: "NOOP without an answer", says: []exchange{{"NOOP\r\n", ""}}, holds: relay.NOOP, codes: []string{"250"}},
		{name: "VRFY without an answer", says: []exchange{{"VRFY joe\r\n", ""}}, holds: relay.VRFY, codes: []string{"252"}},
		{name: "RSET without an answer", says: []exchange{{mailFrom, "250"}, {"RSET\r\n", ""}}, holds: relay.RSET, codes: []string{"250"}},
		{name: "QUIT without an answer", says: []exchange{{"QUIT\r\n", ""}}, holds: relay.QUIT},
	}
}

// A visit is a cell: one client at one point.
type visit struct {
	point
	s    *dovetail.Server
	r    *relay.Relay
	told chan struct{} // closed: the relay answers
	c    *client.Client
	user string
	way  dovetail.Way
	port system.Port
	does string
}

// reach brings the client to its point.
func (v *visit) reach(t *testing.T) {
	v.told = make(chan struct{})
	o := relay.Options{Listener: v.port.Listen(t), Timeout: dovetail.Patience, Script: relay.Script{}}
	if v.holds == relay.Dot {
		o.Caps = []string{"PIPELINING", "ENHANCEDSTATUSCODES", "VRFY"}
	}
	if v.holds != "" {
		answer := "250 2.0.0 held"
		switch v.holds {
		case relay.VRFY:
			answer = "252 2.0.0 joe"
		case relay.QUIT:
			answer = "221 2.0.0 bye"
		}
		o.Script[v.holds] = []relay.Behaviour{relay.When(v.told, relay.Reply(answer))}
	}
	v.r = relay.Start(t, o)
	switch {
	case v.ways == "h":
		v.c = client.Dial(t, v.s.HAProxy, client.Options{Timeout: dovetail.Patience})
	case v.before && v.way == dovetail.StartTLS: // reads the greeting
		v.c = v.s.Greeted(t, v.way)
	case v.before:
		v.c = v.s.Connect(t, v.way)
	default:
		v.c = v.s.Login(t, v.way, v.user)
	}
	for _, x := range v.says {
		if x.send == "" && v.way == dovetail.StartTLS {
			continue // it was read before the handshake
		}
		if x.send != "" {
			v.c.Write(v.fill(x.send))
		}
		if x.code != "" {
			v.c.ExpectCode(x.code)
		}
	}
	if v.holds != "" { // the relay has the command
		v.s.Until(t, "the relay has "+string(v.holds), func() bool { return v.atHold() })
	}
}

func (v *visit) atHold() bool {
	conns := v.r.Conns()
	if len(conns) == 0 {
		return false
	}
	last := conns[len(conns)-1]
	verb := string(v.holds)
	if v.holds == relay.Dot {
		return len(last.Messages) > 0
	}
	n := len(last.Lines)
	return n > 0 && strings.HasPrefix(last.Lines[n-1], verb)
}

func (v *visit) fill(text string) string {
	return strings.ReplaceAll(text, "{plain}", dovetail.Plain(v.user))
}

// tell lets the relay answer.
func (v *visit) tell() {
	select {
	case <-v.told:
	default:
		close(v.told)
	}
}

// accepted are the messages that the relay took.
func (v *visit) accepted() (list []relay.Message) {
	for _, m := range v.r.Messages() {
		if m.Accepted {
			list = append(list, m)
		}
	}
	return list
}

// What a client does at a point.
var deeds = []struct {
	name string
	do   func(t *testing.T, v *visit)
}{
	{"closes", func(t *testing.T, v *visit) { v.c.Close(); v.left(t) }},
	{"resets", func(t *testing.T, v *visit) { v.c.Reset(); v.left(t) }},
	{"half-closes", func(t *testing.T, v *visit) {
		v.c.CloseWrite()
		if v.whole {
			v.tell()
			v.c.ExpectCode("250")
		}
		v.c.ExpectGone()
		v.left(t)
	}},
	{"floods with commands", func(t *testing.T, v *visit) { v.flood(strings.Repeat("NOOP\r\n", 20000)); v.c.Close(); v.left(t) }},
	{"floods with nonsense", func(t *testing.T, v *visit) {
		v.flood(strings.Repeat("\x00\xff\r\n", 20000))
		v.c.Close()
		v.left(t)
	}},
	{"floods without a line end", func(t *testing.T, v *visit) { v.flood(strings.Repeat("x", 2<<20)); v.c.Close(); v.left(t) }},
	{"hurries", func(t *testing.T, v *visit) { v.hurry(t) }},
}

// flood sends much, and reads nothing.
func (v *visit) flood(text string) {
	_ = v.c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(v.c.Conn, text)
}

// left checks what follows when the client has gone: the relay's connection ends, and the
// relay took no message that was not complete.
func (v *visit) left(t *testing.T) {
	switch {
	case v.whole:
		v.tell()
		v.s.WaitLine(t, "("+v.user+")", "Successfully relayed message: ")
	case v.blocks:
		v.tell()
	case !v.before: // without an answer of the relay
		v.s.WaitLine(t, "("+v.user+")", "Info: Disconnected: ")
	}
	v.tell()
	for n := range v.r.Conns() {
		v.r.Ended(n)
	}
	if got, want := len(v.accepted()), map[bool]int{true: 1}[v.whole]; got > want {
		t.Errorf("the relay took %d messages, want %d\n%s", got, want, v.r.Transcript())
	}
}

// hurry sends what completes the point, a whole transaction more and QUIT in one write, and
// gets all replies in order.
func (v *visit) hurry(t *testing.T) {
	if v.rest == "" && v.codes == nil && v.holds == "" && v.before {
		return // there is nothing that could come early
	}
	if v.holds == relay.QUIT {
		_ = v.c.TryWrite(mailFrom + rcptTo)
		v.tell()
		v.c.ExpectCode("221")
		v.c.ExpectGone()
		return
	}
	login := ""
	codes := v.codes
	if v.before && (len(codes) == 0 || codes[len(codes)-1] != "235") {
		login, codes = "AUTH PLAIN {plain}\r\n", append(codes[:len(codes):len(codes)], "235")
	}
	v.c.Write(v.fill(v.rest + login + mailFrom + rcptTo + "DATA\r\nearly\r\n.\r\nQUIT\r\n"))
	v.tell()
	for _, code := range append(codes[:len(codes):len(codes)], "250", "250", "354", "250", "221") {
		v.c.ExpectCode(code)
	}
	v.c.ExpectGone()
	all := v.accepted()
	if len(all) == 0 || !strings.HasSuffix(string(all[len(all)-1].Data), "early\r\n") {
		t.Errorf("the early message: %+v", all)
	}
}

// visits are the cells for some deeds.
func visits(t *testing.T, pts []point, deeds []string) (all []*visit, users []dovetail.User) {
	for _, p := range pts {
		for _, deed := range deeds {
			v := &visit{point: p, port: system.Hold(t), user: fmt.Sprint("u", len(all)), way: dovetail.Way(len(all) % 3), does: deed}
			switch p.ways {
			case "c", "h":
				v.way = dovetail.Clear
			}
			all = append(all, v)
			users = append(users, dovetail.User{Name: v.user, Fields: []string{dovetail.Relay(v.port.Number)}})
		}
	}
	return all, users
}

// shortRelay is for the server that a flood has filled up: it reads nothing, and does not
// see that the client has gone, until the relay has answered.
const shortRelay = "submission_relay_command_timeout = 15 s\n"

// At each point each deed: nothing of it stays, and no half message is relayed.
func TestClientMatrix(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{true, false} {
		t.Run(map[bool]string{true: "shared processes", false: "a process for each"}[shared], func(t *testing.T) {
			var names []string
			for _, d := range deeds {
				names = append(names, d.name)
			}
			all, users := visits(t, points(), names)
			steady := relay.Start(t, relay.Options{})
			users = append(users, dovetail.User{Name: "steady", Fields: []string{dovetail.Relay(steady.Port)}})
			s := dovetail.Start(t, dovetail.Setup{Shared: shared, Users: users, Config: shortRelay + "auth_failure_delay = 1 s\n"})
			idle := s.Idle(t, "steady")
			t.Run("cells", func(t *testing.T) {
				for i, v := range all {
					v.s = s
					deed := deeds[i%len(deeds)]
					t.Run(v.name+"/"+deed.name, func(t *testing.T) {
						t.Parallel()
						defer v.onFailure(t)
						v.reach(t)
						deed.do(t, v)
					})
				}
			})
			s.Settled(t, idle)
			c := s.Login(t, dovetail.Clear, "steady")
			message(c, "x")
			c.Do("QUIT", "221")
			s.Settled(t, idle)
			if shared {
				s.NoSessions(t, "submission")
				s.NoSessions(t, "submission-login")
			}
		})
	}
}

func (v *visit) onFailure(t *testing.T) {
	if t.Failed() && v.r != nil {
		t.Logf("%v; log:\n%s\nrelay:\n%s", v.way, strings.Join(v.s.Lines("("+v.user+")"), "\n"), v.r.Transcript())
	}
}
