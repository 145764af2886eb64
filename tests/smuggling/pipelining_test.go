package smuggling

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
)

// kinds of relays: what they announce.
var kinds = map[string][]string{
	"everything":      {"PIPELINING", "SIZE 10000000", "8BITMIME", "ENHANCEDSTATUSCODES", "DSN", "VRFY", "CHUNKING"},
	"no CHUNKING":     {"PIPELINING", "ENHANCEDSTATUSCODES"},
	"no PIPELINING":   {"CHUNKING", "8BITMIME"},
	"nothing":         {},
	"and it is moody": {"PIPELINING", "ENHANCEDSTATUSCODES"},
}

// moods are those of a relay that does not take everything.
func moods() relay.Script {
	ok := relay.Behaviour{} // as usual
	no := relay.Reply("550 5.7.1 no")
	later := relay.Reply("450-4.2.1 not", "450 4.2.1 now")
	return relay.Script{
		relay.MAIL: {ok, no, ok, ok, later, ok, ok, no},
		relay.RCPT: {ok, ok, no, ok, later, ok, no, no, ok, ok, ok, later},
		relay.DATA: {ok, ok, ok, later, ok, ok, ok, no},
		relay.Dot:  {ok, no, ok, ok, later, ok, no}, // chunks would be as many as it happens
		relay.RSET: {ok, ok, relay.Reply("451 4.3.0 busy"), ok},
		relay.NOOP: {ok, later},
	}
}

// A side is one server with a relay of each kind.
func side(t *testing.T) (s *dovetail.Server, users map[string]string) {
	t.Helper()
	users = map[string]string{}
	var list []dovetail.User
	for kind, caps := range kinds {
		o := relay.Options{Caps: caps, Timeout: dovetail.Patience}
		if strings.Contains(kind, "moody") {
			o.Script = moods()
		}
		r := relay.Start(t, o)
		users[kind] = fmt.Sprint("u", len(list))
		list = append(list, dovetail.User{Name: users[kind], Fields: []string{dovetail.Relay(r.Port)}})
	}
	return dovetail.Start(t, dovetail.Setup{Shared: true, Users: list}), users
}

// lines that mean something, most of them.
var lines = []string{
	"NOOP", "NOOP", "RSET", "VRFY joe", "VRFY", "EHLO other.example", "HELO other.example", "EHLO", "ehlo [bad",
	"MAIL FROM:<alice@example.test>", "MAIL FROM:<alice@example.test>", "MAIL FROM:<alice@example.test> BODY=8BITMIME", "MAIL FROM:<bad", "MAIL FROM:<> SIZE=77",
	"RCPT TO:<bob@dest.test>", "RCPT TO:<bob@dest.test>", "RCPT TO:<carol@dest.test>", "RCPT TO:<bad", "RCPT TO:<d@dest.test> NOTIFY=NEVER",
	"AUTH PLAIN AHgAeA==", "STARTTLS", "XCLIENT ADDR=192.0.2.1", "FOO", "", " ", "NOOP\x00", strings.Repeat("x", 40), "VRFY " + strings.Repeat("y", 5000),
}

// step draws a command with its data.
func step(t *rapid.T) string {
	switch rapid.IntRange(0, 9).Draw(t, "what") {
	case 0, 1:
		return "DATA\r\n" + body(t) + "\r\n.\r\n"
	case 2:
		b := body(t)
		return fmt.Sprintf("BDAT %d LAST\r\n%s", len(b), b)
	case 3:
		b := body(t)
		return fmt.Sprintf("BDAT %d\r\n%s", len(b), b)
	case 4:
		return "MAIL FROM:<alice@example.test>\r\nRCPT TO:<bob@dest.test>\r\nDATA\r\n" + body(t) + "\r\n.\r\n"
	}
	return rapid.SampledFrom(lines).Draw(t, "line") + "\r\n"
}

func body(t *rapid.T) string {
	b := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"Subject: x", "\r\n", "\n", ".", "\r", "text\r\n", "NOOP\r\n", "..", "\x00", "RSET\r\n"}), 0, 8).Draw(t, "body"), "")
	if rapid.IntRange(0, 30).Draw(t, "large") == 0 {
		b += strings.Repeat("0123456789abcdef\r\n", 9000)
	}
	return b
}

// logins are ways to begin.
func login(t *rapid.T, user string) string {
	before := rapid.SampledFrom([]string{"", "EHLO x\r\n", "HELO x\r\nNOOP\r\n", "FOO\r\nMAIL FROM:<a@b>\r\n"}).Draw(t, "before")
	return before + rapid.SampledFrom([]string{
		"AUTH PLAIN " + dovetail.Plain(user) + "\r\n",
		"AUTH PLAIN\r\n" + dovetail.Plain(user) + "\r\n",
		"AUTH PLAIN !\r\nAUTH PLAIN " + dovetail.Plain(user) + "\r\n",
	}).Draw(t, "login")
}

// Where packets begin and end makes no difference: to all that is sent in one write the
// replies are the same, octet for octet, as when it comes in pieces.
func TestAnySplit(t *testing.T) {
	s, users := side(t)
	for kind, user := range users {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(rt *rapid.T) {
				sent := login(rt, user)
				for range rapid.IntRange(1, 12).Draw(rt, "steps") {
					sent += step(rt)
				}
				sent += "QUIT\r\n"
				cuts := rapid.SliceOfN(rapid.IntRange(1, min(len(sent)-1, 4000)), 0, 12).Draw(rt, "cuts")
				slices.Sort(cuts)
				whole := replies(t, s, sent, nil)
				if !strings.HasPrefix(whole, "220 ") || !strings.Contains(whole, "\n235 ") {
					rt.Fatalf("%.300q", whole)
				}
				if pieces := replies(t, s, sent, slices.Compact(cuts)); pieces != whole {
					rt.Fatalf("sent: %.2000q\ncut at %v:\n%.2000q\nwhole:\n%.2000q", sent, cuts, pieces, whole)
				}
			})
		})
	}
}

// Octet by octet.
func TestOctets(t *testing.T) {
	s, users := side(t)
	sent := "EHLO x\r\nAUTH PLAIN {plain}\r\nNOOP\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nSubject: x\r\n\r\n..dot\r\n.\rx\n.\n\r\n.\r\n" +
		"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 5\r\nab\r\ncBDAT 3 LAST\r\nd\r\nFOO\r\nQUIT\r\n"
	for kind, user := range users {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			sent := strings.ReplaceAll(sent, "{plain}", dovetail.Plain(user))
			var cuts []int
			for i := range len(sent) {
				cuts = append(cuts, i)
			}
			whole := replies(t, s, sent, nil)
			if octets := replies(t, s, sent, cuts[1:]); octets != whole {
				t.Errorf("octet by octet:\n%q\nwhole:\n%q", octets, whole)
			}
			if strings.Count(whole, "\n") < 20 {
				t.Errorf("%q", whole)
			}
		})
	}
}

// replies sends text, cut at the offsets, and returns all that comes until the end.
func replies(t *testing.T, s *dovetail.Server, text string, cuts []int) string {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(dovetail.Patience)); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() { // ends with the connection
		b, err := io.ReadAll(conn)
		if err != nil {
			b = append(b, err.Error()...)
		}
		got <- string(b)
	}()
	from := 0
	for _, to := range append(cuts, len(text)) {
		if from > 0 {
			awaitRead(t, conn)
		}
		if _, err := io.WriteString(conn, text[from:to]); err != nil {
			break // the server has ended it; what it said tells why
		}
		from = to
	}
	return <-got
}

// MAIL, a hundred recipients and the message in one write.
func TestHundredRecipients(t *testing.T) {
	s, users := side(t)
	for kind, user := range users {
		if strings.Contains(kind, "moody") {
			continue
		}
		for _, way := range []dovetail.Way{dovetail.Clear, dovetail.TLS} {
			t.Run(fmt.Sprint(kind, " ", way), func(t *testing.T) {
				t.Parallel()
				c := s.Login(t, way, user)
				text := "MAIL FROM:<alice@example.test>\r\n"
				for i := range 100 {
					text += fmt.Sprintf("RCPT TO:<%d@dest.test>\r\n", i)
				}
				c.Write(text + "BDAT 4 LAST\r\nx\r\n\n" + "QUIT\r\n")
				for range 102 {
					c.ExpectCode("250")
				}
				c.ExpectCode("221")
				c.ExpectEOF()
			})
		}
	}
}

// Three whole transactions in one write, and the login, too.
func TestThreeTransactions(t *testing.T) {
	for kind, caps := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := relay.Start(t, relay.Options{Caps: caps, Timeout: dovetail.Patience})
			s := dovetail.Start(t, dovetail.Setup{Users: []dovetail.User{{Name: "alice", Fields: []string{dovetail.Relay(r.Port)}}}})
			for n, way := range []dovetail.Way{dovetail.Clear, dovetail.TLS, dovetail.StartTLS} {
				c := s.Greeted(t, way)
				text := "AUTH PLAIN " + dovetail.Plain("alice") + "\r\n"
				for i := range 3 {
					text += fmt.Sprintf("MAIL FROM:<%d@a>\r\nRCPT TO:<x@b>\r\nRCPT TO:<y@b>\r\n", i)
					if i == 1 {
						text += "BDAT 3\r\n1\r\nNOOP\r\nBDAT 3 LAST\r\n2\r\n"
					} else {
						text += fmt.Sprintf("DATA\r\nm%d\r\n.\r\n", i)
					}
				}
				c.Write(text + "QUIT\r\n")
				c.ExpectCode("235")
				for i := range 3 {
					codes := []string{"250", "250", "250", "354", "250"}
					if i == 1 {
						codes = []string{"250", "250", "250", "250", "250", "250"}
					}
					for _, code := range codes {
						c.ExpectCode(code)
					}
				}
				c.ExpectCode("221")
				c.ExpectEOF()
				all := r.WaitMessages(3 * (n + 1))[3*n:]
				for i, want := range []string{"m0\r\n", "1\r\n2\r\n", "m2\r\n"} {
					if got := WithoutHeader(all[i].Data); got != want || len(all[i].Rcpts) != 2 {
						t.Errorf("%v: message %d: %q to %q", way, i, got, all[i].Rcpts)
					}
				}
			}
		})
	}
}
