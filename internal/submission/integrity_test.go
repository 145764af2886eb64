package submission

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
)

// randomBody makes a message of odd lines.
func randomBody(r *rand.Rand, size int) []byte {
	pieces := []string{"\r\n", "\n", "\r", ".", "..", "\r\n.", "\r\n.\r", "\n.", "\r.", "\x00", "\x00.", "\x80\xff", "text", " ", strings.Repeat("long", 300), "\r\n.\r\nMAIL FROM:<x@y>\r\n"}
	var b []byte
	for len(b) < size {
		if r.IntN(3) == 0 {
			b = append(b, pieces[r.IntN(len(pieces))]...)
		} else {
			b = append(b, fmt.Sprintf("line %d\r\n", r.IntN(1000))...)
		}
	}
	return b[:size]
}

// normalised is what a message is at the relay: each bare LF is CRLF.
func normalised(b []byte) []byte {
	return bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
}

// throughDATA is what a relay without CHUNKING has: with a CRLF at the end, and where a CR
// or line end, perhaps NULs, and a dot come together, CRLF and the dot.
func throughDATA(b []byte) []byte {
	var out []byte
	b = normalised(b)
	if len(b) > 0 && !bytes.HasSuffix(b, []byte("\r\n")) {
		b = append(b, "\r\n"...)
	}
	for i := 0; i < len(b); {
		j := i
		for j < len(b) && b[j] == 0 {
			j++
		}
		if j < len(b) && b[j] == '.' && (i == 0 || b[i-1] == '\n' || b[i-1] == '\r') {
			if i > 0 && b[i-1] == '\r' {
				out = append(out, '\n')
			}
			i = j
		}
		out = append(out, b[i:j]...)
		if j < len(b) {
			out = append(out, b[j])
		}
		i = j + 1
	}
	return out
}

// stuff is what a client sends behind DATA, with the end. The message ends with CRLF.
func stuff(b []byte) []byte {
	b = bytes.ReplaceAll(b, []byte("\r\n."), []byte("\r\n.."))
	if len(b) > 0 && b[0] == '.' {
		b = append([]byte("."), b...)
	}
	return append(b, ".\r\n"...)
}

// Each message that was answered with 250 is at the relay once, as it was; each that was
// refused is not there, unless the relay took it and its answer was lost.
func TestIntegrity(t *testing.T) {
	messages := 1000
	if testing.Short() {
		messages = 100
	}
	const clients = 8
	w := newWorld(t, nil)
	for _, caps := range [][]string{nil, {"PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"}} {
		chunking := caps == nil
		t.Run(fmt.Sprint("chunking=", chunking), func(t *testing.T) {
			w := w.in(t)
			r := relay.Start(t, relay.Options{Caps: caps, Scripts: spiteful(100, messages)})
			var mu sync.Mutex
			sent := map[string]*attempt{}
			var ends sync.WaitGroup
			for n := range clients {
				ends.Go(func() { // ends with its messages
					rnd := rand.New(rand.NewPCG(uint64(n), 1))
					for i := 0; i < messages/clients/2; {
						i += oneSession(t, w, r, rnd, fmt.Sprintf("%d-%d", n, i), min(20, messages/clients/2-i), func(id string, a *attempt) {
							mu.Lock()
							sent[id] = a
							mu.Unlock()
						})
					}
				})
			}
			ends.Wait()
			checkTurns(t, r)
			taken := map[string]int{}
			for _, m := range r.Messages() {
				id := strings.TrimSuffix(strings.TrimPrefix(strings.Fields(m.From)[0], "<"), "@a>")
				a := sent[id]
				if a == nil {
					t.Fatalf("nobody sent %q: %.300q", m.From, m.Data)
				}
				if !m.Accepted {
					continue
				}
				taken[id]++
				want := normalised(a.body)
				if !chunking {
					want = throughDATA(a.body)
				}
				if got := body(t, m); got != string(want) {
					t.Errorf("%s (%d octets by %s) arrived as %d octets; the first difference is at %d", id, len(want), a.how, len(got), diff(got, string(want)))
				}
				if len(m.Rcpts) != a.rcpts {
					t.Errorf("%s: %d recipients of %d", id, len(m.Rcpts), a.rcpts)
				}
			}
			delivered := 0
			for id, a := range sent {
				switch n := taken[id]; {
				case a.code == "250" && n != 1:
					t.Errorf("%s was answered 250 and is there %d times", id, n)
				case a.code != "250" && a.code != "" && a.code != "421" && n != 0:
					t.Errorf("%s was answered %s and is there %d times", id, a.code, n)
				case n > 1:
					t.Errorf("%s is there %d times", id, n)
				}
				if a.code == "250" {
					delivered++
				}
			}
			if delivered < len(sent)/2 || delivered == len(sent) {
				t.Errorf("%d of %d delivered: no good test", delivered, len(sent))
			}
			t.Logf("%d messages, %d delivered, %d relay connections", len(sent), delivered, len(r.Conns()))
		})
	}
	awaitFiles(t, w)
}

// checkTurns wants the relay to have had its commands in order.
func checkTurns(t *testing.T, r *relay.Relay) {
	t.Helper()
	for _, c := range r.Conns() {
		for _, v := range c.Violations {
			if !strings.HasPrefix(v, "the connection ended inside a line") && !strings.HasPrefix(v, "TLS handshake: ") {
				t.Errorf("violation: %s; the connection's lines: %q", v, c.Lines)
			}
		}
	}
}

type attempt struct {
	body  []byte
	how   string
	rcpts int    // that were accepted
	code  string // of the answer to the message; "" if none came
}

func diff(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// spiteful makes scripts for n connections, of which each does one thing amiss, at some
// place.
func spiteful(n, messages int) []relay.Script {
	r := rand.New(rand.NewPCG(uint64(messages), 2))
	does := []relay.Behaviour{
		relay.Reply("450 4.2.0 later"), relay.Reply("554 5.7.1 no"), relay.Reply("421 4.3.2 bye"), relay.Close(), relay.Reset(),
		relay.After(20e6, relay.Reply("451 4.3.0 slowly")), relay.Raw("garbage\r\n"), relay.HalfLine("25"),
	}
	steps := []relay.Step{relay.MAIL, relay.RCPT, relay.DATA, relay.Body, relay.Dot, relay.BDAT, relay.RSET}
	var out []relay.Script
	for range n {
		step := steps[r.IntN(len(steps))]
		list := make([]relay.Behaviour, 1+r.IntN(8))
		for i := range list {
			list[i] = relay.Reply("250 2.0.0 Ok")
			if step == relay.DATA || step == relay.Body {
				list[i] = relay.Reply("354 go")
			}
		}
		list[len(list)-1] = does[r.IntN(len(does))]
		if step == relay.BDAT { // a refused chunk is followed by refusals (RFC 3030 section 2)
			list[len(list)-1] = list[len(list)-1].Always()
		}
		if step == relay.Body {
			list = []relay.Behaviour{list[len(list)-1].Drained()}
		}
		out = append(out, relay.Script{step: list})
	}
	return append(out, relay.Script{})
}

// oneSession sends up to n messages, and returns how many it tried.
func oneSession(t *testing.T, w *world, r *relay.Relay, rnd *rand.Rand, name string, n int, keep func(string, *attempt)) int {
	c := w.login(visit{fields: []string{port(r), "submission_relay_command_timeout=500 ms"}})
	defer c.Close()
	if code := nextCode(t, c.TryLine); code != "235" {
		t.Errorf("login: %q", code)
		return n
	}
	for i := range n {
		a := &attempt{body: randomBody(rnd, sizeOf(rnd))}
		id := fmt.Sprint(name, "-", i)
		if !sendOne(t, c, rnd, id, a, keep) {
			return i + 1
		}
	}
	return n
}

func sizeOf(rnd *rand.Rand) int {
	switch rnd.IntN(50) {
	case 0:
		return rnd.IntN(2 << 20)
	case 1, 2, 3:
		return 100<<10 + rnd.IntN(100<<10) // about what is held
	}
	return rnd.IntN(16 << 10)
}

// sendOne sends a message and notes what was answered. It is false at the session's end.
func sendOne(t *testing.T, c *client.Client, rnd *rand.Rand, id string, a *attempt, keep func(string, *attempt)) bool {
	command := func(lines string) string {
		if c.TryWrite(lines) != nil {
			return ""
		}
		return nextCode(t, c.TryLine)
	}
	ended := func(code string) bool { return code == "" || code == "421" }
	code := command("MAIL FROM:<" + id + "@a>\r\n")
	if code != "250" {
		return !ended(code)
	}
	for i := range 1 + rnd.IntN(5) {
		if code = command(fmt.Sprintf("RCPT TO:<%d@b>\r\n", i)); ended(code) {
			return false
		}
		if code == "250" {
			a.rcpts++
		}
	}
	if a.rcpts == 0 {
		return !ended(command("RSET\r\n"))
	}
	keep(id, a)
	if rnd.IntN(2) == 0 {
		a.how = "DATA"
		a.body = append(bytes.TrimRight(a.body, "\r"), "\r\n"...)
		if code = command("DATA\r\n"); code == "354" {
			code = command(string(stuff(a.body)))
		}
		a.code = code
		return !ended(code)
	}
	a.how = "BDAT"
	for rest := a.body; ; {
		n := len(rest)
		if n > 0 && rnd.IntN(2) == 0 {
			n = rnd.IntN(n)
		}
		last := ""
		if n == len(rest) {
			last = " LAST"
		}
		code = command(fmt.Sprintf("BDAT %d%s\r\n%s", n, last, rest[:n]))
		rest = rest[n:]
		if last != "" || code != "250" {
			break
		}
	}
	a.code = code
	if code != "250" && !ended(code) { // perhaps a chunk in the middle
		code = command("RSET\r\n")
	}
	return !ended(code)
}

// Each combination of five octets that matter is one message, however it comes and goes,
// and what looks like a command in it never is one.
func TestSmuggling(t *testing.T) {
	w := newWorld(t, nil)
	var combinations []string
	var grow func(s string, left int, octets ...string)
	grow = func(s string, left int, octets ...string) {
		if left == 0 {
			if len(octets) == 3 || strings.Contains(s, "\x00") {
				combinations = append(combinations, s)
			}
			return
		}
		for _, o := range octets {
			grow(s+o, left-1, octets...)
		}
	}
	grow("", 5, "\r", "\n", ".")
	grow("", 4, "\r", "\n", ".", "\x00")
	send := func(c *client.Client, i int, data string) {
		if i%4 == 0 { // each piece waits until the one before has arrived
			c.WriteSplit(data, 1+i/4%5)
		} else {
			c.Write(data)
		}
	}
	for _, caps := range [][]string{nil, {"PIPELINING"}} {
		for _, inbound := range []string{"DATA", "BDAT"} {
			t.Run(fmt.Sprint(inbound, " to ", caps), func(t *testing.T) {
				w := w.in(t)
				r := relay.Start(t, relay.Options{Caps: caps})
				c := w.open(r)
				var want []string
				for _, combination := range combinations {
					m := "a" + combination + "MAIL FROM:<evil@x>\r\nRCPT TO:<evil@y>\r\nDATA\r\nevil\r\n"
					// What a client may not send within DATA ends it: the rest is commands then.
					if inbound == "DATA" && strings.Contains(combination, "\r\n.\r\n") {
						continue
					}
					sent := m
					if inbound == "DATA" {
						sent = m + ".\r\n"
						// CRLF and a dot: the client stuffs, or we unstuff what it should have.
						m = strings.ReplaceAll(m, "\r\n.", "\r\n")
						c.Send("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")
						send(c, len(want), sent)
					} else {
						c.Send("MAIL FROM:<a@b>", "RCPT TO:<c@d>", fmt.Sprintf("BDAT %d LAST", len(sent)))
						send(c, len(want), sent)
					}
					c.ExpectCode("250")
					c.ExpectCode("250")
					if inbound == "DATA" {
						c.Expect("354 OK")
					}
					c.ExpectCode("250")
					if caps == nil {
						want = append(want, string(normalised([]byte(m))))
					} else {
						want = append(want, string(throughDATA([]byte(m))))
					}
				}
				c.Do("QUIT", "221")
				got := r.WaitMessages(len(want))
				if len(got) != len(want) {
					t.Fatalf("%d messages, want %d", len(got), len(want))
				}
				for i, m := range got {
					if b := body(t, m); b != want[i] || m.From != "<a@b>" {
						t.Errorf("%q from %s, want %q", b, m.From, want[i])
					}
					if server, rest := relay.Smuggled(m.Wire); server != "" && caps != nil {
						t.Errorf("%q: a server that ends data at %s sees %q behind it", m.Wire, server, rest)
					}
				}
				if slices.ContainsFunc(r.Conn(0).Lines, func(l string) bool { return strings.Contains(l, "evil") }) {
					t.Error("a command in data was run")
				}
			})
		}
	}
}

// Packets do not matter: any split of a dialogue gives the same replies.
func TestSplits(t *testing.T) {
	w := newWorld(t, nil)
	dialogue := "EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<no>\r\nDATA\r\nx\r\n..\r\n.\r\nVRFY\r\nNOOP\r\nMAIL FROM:<a@b> SIZE=5\r\nRCPT TO:<c@d>\r\n" +
		"BDAT 7\r\nBDAT 1\nBDAT 0\r\nNOOP\r\nBDAT 2 LAST\r\nxyMAIL FROM:<>\r\nRSET\r\nBDAT 3\r\nabcfoo\r\nRSET\r\nMAIL FROM:<a@b>\nRCPT TO:<c@d>\nDATA\n\r\n.\r\nQUIT\r\n"
	want := ""
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 40 {
		r := relay.Start(t, relay.Options{})
		c := w.in(t).open(r)
		var at []int
		switch {
		case i == 1:
			for n := range len(dialogue) {
				at = append(at, n)
			}
		case i > 1:
			for range 1 + rnd.IntN(10) {
				at = append(at, rnd.IntN(len(dialogue)))
			}
			slices.Sort(at)
		}
		c.WriteSplit(dialogue, at...)
		got := c.ExpectGone()
		if i == 0 {
			want = got
			if strings.Count(want, "\n") < 25 || !strings.HasSuffix(want, "221 2.0.0 Bye\r\n") {
				t.Fatalf("%q", want)
			}
		}
		if got != want {
			t.Fatalf("split at %v: %q\nwant %q", at, got, want)
		}
		if i == 0 {
			for n, m := range r.WaitMessages(3) {
				if b := body(t, m); b != []string{"x\r\n.\r\n", "BDAT 1\r\nxy", "\r\n"}[n] {
					t.Errorf("message %d: %q", n, b)
				}
			}
		}
	}
}
