package smuggling

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
)

func TestMain(m *testing.M) {
	_ = flag.Set("rapid.nofailfile", "true") // the seed is enough to see a failure again
	os.Exit(dovetail.Main(m, 8))
}

// hidden is a transaction that nobody asked for.
const hidden = "MAIL FROM:<smuggler@evil.test>\r\nRCPT TO:<victim@dest.test>\r\nDATA\r\nsmuggled\r\n"

// A letter is a message to be sent: the octets behind DATA, without the end, or in chunks.
type letter struct {
	text  string
	end   int   // offset in text behind the string that could be an end; then come hidden commands
	split []int // offsets in text where a packet, or a chunk, ends
}

// How a client sends a letter.
type manner uint8

const (
	byDATA     manner = iota
	byBDAT            // one chunk; the packets are split
	byChunks          // a chunk for each piece
	numManners = iota
)

func (m manner) String() string { return [...]string{"DATA", "BDAT", "chunks"}[m] }

// words are all strings of n octets out of an alphabet.
func words(alphabet string, n int) []string {
	list := []string{""}
	for range n {
		var longer []string
		for _, w := range list {
			for _, c := range []byte(alphabet) {
				longer = append(longer, w+string(c))
			}
		}
		list = longer
	}
	return list
}

// fives are the 243 strings of five octets out of CR, LF and dot.
var fives = words("\r\n.", 5)

// withNUL are the fives with a NUL at each place, and all of five octets where NUL is one of
// the alphabet.
func withNUL() []string {
	seen := map[string]bool{}
	var list []string
	add := func(w string) {
		if !seen[w] && strings.Contains(w, "\x00") {
			seen[w] = true
			list = append(list, w)
		}
	}
	for _, w := range fives {
		for i := range len(w) + 1 {
			add(w[:i] + "\x00" + w[i:])
		}
	}
	for _, w := range words("\r\n.\x00", 5) {
		add(w)
	}
	return list
}

// places are what can stand before such a string: the start of the message, and text.
var places = []string{"", "Subject: x\r\n\r\ntext"}

// content is what a message sent by DATA says, and what of it stands behind its end: CRLF
// dot CRLF ends it, and a dot behind CRLF is one too many (RFC 5321 section 4.5.2).
func content(sent string) (text, behind string, ended bool) {
	text, behind, ended = strings.Cut("\r\n"+sent, "\r\n.\r\n")
	text = strings.ReplaceAll(text, "\r\n.", "\r\n")
	if ended {
		text += "\r\n"
	}
	return strings.TrimPrefix(text, "\r\n"), behind, ended
}

func TestModel(t *testing.T) {
	for _, c := range []struct{ sent, text, behind, normal, harmless string }{
		{"a\r\n.\r\nb", "a\r\n", "b", "a\r\n", "a\r\n"},
		{".\r\nb", "", "b", "", ""},
		{"..\r\nb", ".\r\nb", "", ".\r\nb", ".\r\nb\r\n"},
		{"\n\n.\n", "\n\n.\n", "", "\r\n\r\n.\r\n", "\r\n\r\n.\r\n"},
		{"a\r.\rb", "a\r.\rb", "", "a\r.\rb", "a\r\n.\rb\r\n"},
		{"a\r\x00.", "a\r\x00.", "", "a\r\x00.", "a\r\n.\r\n"},
		{"a\n.\r\nb", "a\n.\r\nb", "", "a\r\n.\r\nb", "a\r\n.\r\nb\r\n"},
	} {
		text, behind, _ := content(c.sent)
		if text != c.text || behind != c.behind || Normal(text) != c.normal || Harmless(text) != c.harmless {
			t.Errorf("%q: %q %q %q %q", c.sent, text, behind, Normal(text), Harmless(text))
		}
	}
}

// A post sends letters in one session, to a relay of its own.
type post struct {
	name    string
	manner  manner
	relay   relay.Options
	letters []letter
	way     dovetail.Way
}

// letters makes one of each string, at each place, with hidden commands behind it. splits
// says at how many octets of the string each of them is split; nil: nowhere.
func letters(strs []string, splits []int) (list []letter) {
	for _, place := range places {
		for _, s := range strs {
			text := place + s + hidden
			if len(splits) == 0 {
				list = append(list, letter{text, len(place + s), nil})
			}
			for _, n := range splits {
				list = append(list, letter{text, len(place + s), []int{len(place) + n}})
			}
		}
	}
	return list
}

// every octet of five.
var everywhere = []int{0, 1, 2, 3, 4, 5}

func posts() (all []post) {
	data, chunking := []string{"PIPELINING", "8BITMIME"}, []string{"PIPELINING", "8BITMIME", "CHUNKING"}
	// Split at every boundary, in each manner, to both kinds of relay.
	for m := range manner(numManners) {
		all = append(all,
			post{"split, to DATA", m, relay.Options{Caps: data}, letters(fives, everywhere), dovetail.Clear},
			post{"split, to BDAT", m, relay.Options{Caps: chunking}, letters(fives, everywhere), dovetail.Clear},
			post{"with NUL, to DATA", m, relay.Options{Caps: data}, letters(withNUL(), nil), dovetail.TLS},
			post{"with NUL, to BDAT", m, relay.Options{Caps: chunking}, letters(withNUL(), nil), dovetail.Clear})
	}
	// To relays that are more generous about the end of a message.
	for _, e := range relay.Sloppy {
		for _, m := range []manner{byDATA, byBDAT} {
			all = append(all, post{"to " + e.Name, m, relay.Options{Caps: data, EndOfData: e}, letters(append(fives, nulsNear...), nil), dovetail.Clear})
		}
	}
	// Where a large message is cut into pieces.
	for _, m := range []manner{byDATA, byBDAT} {
		for _, caps := range [][]string{data, chunking} {
			all = append(all, post{fmt.Sprint("large, to ", caps[len(caps)-1]), m, relay.Options{Caps: caps}, large(), dovetail.Clear})
		}
	}
	return all
}

// nulsNear are what the relays of old take for an end.
var nulsNear = []string{"\n\x00.\r\n", "\n\x00.\n", "\r\x00.\r", "\r\x00.\n", "\n.\x00\r\n", "\n.\x00\n", "\r.\x00\r"}

// large are messages with each string near where what is held back ends, and some near
// where a later piece does.
func large() (list []letter) {
	line := strings.Repeat("x", 78) + "\r\n"
	for i, s := range fives {
		size := []int{128 << 10, 192 << 10}[i%2]
		before := size - 300 + (i*7)%310 // the Received header stands before it
		text := strings.Repeat(line, before/len(line))
		text += strings.Repeat("y", before-len(text))
		list = append(list, letter{text + s + hidden + strings.Repeat(line, 20), before + len(s), []int{before + i%6}})
	}
	return list
}

// Each message is one message, whatever stands in it.
func TestOneMessageEach(t *testing.T) {
	all := posts()
	var users []dovetail.User
	relays := make([]*relay.Relay, len(all))
	for i := range all {
		all[i].relay.Timeout = dovetail.Patience
		relays[i] = relay.Start(t, all[i].relay)
		users = append(users, dovetail.User{Name: fmt.Sprint("u", i), Fields: []string{dovetail.Relay(relays[i].Port)}})
	}
	s := dovetail.Start(t, dovetail.Setup{Shared: true, Users: users})
	t.Run("posts", func(t *testing.T) {
		for i, p := range all {
			t.Run(fmt.Sprint(p.manner, " ", p.name), func(t *testing.T) {
				t.Parallel()
				p.send(t, s.Login(t, p.way, fmt.Sprint("u", i)))
				conn := relays[i].Ended(0)
				p.check(t, conn)
			})
		}
	})
}

func (p *post) send(t *testing.T, c *client.Client) {
	for i, l := range p.letters {
		c.Send(fmt.Sprintf("MAIL FROM:<%d@ours.test>", i), "RCPT TO:<bob@dest.test>")
		c.Expect("250 2.1.0 2.1.0 Ok", "250 2.0.0 2.1.5 Ok")
		switch p.manner {
		case byDATA:
			c.Do("DATA", "354")
			text := l.text
			_, _, ended := content(text)
			if ended { // it is a true end, and what stood behind it would be commands
				text = text[:l.end] + "\r\nRSET\r\n"
			} else {
				text += "\r\n.\r\n"
			}
			write(t, c, text, l.split)
			c.ExpectCode("250")
			if ended {
				for c.Reply()[0] != "250 2.0.0 2.0.0 Ok" { // what stood before RSET was no command
				}
			}
		case byBDAT:
			c.Send(fmt.Sprintf("BDAT %d LAST", len(l.text)))
			write(t, c, l.text, l.split)
			c.ExpectCode("250")
		case byChunks:
			from := 0
			for _, to := range append(l.split[:len(l.split):len(l.split)], len(l.text)) {
				last := ""
				if to == len(l.text) {
					last = " LAST"
				}
				c.Write(fmt.Sprintf("BDAT %d%s\r\n%s", to-from, last, l.text[from:to]))
				c.ExpectCode("250")
				from = to
			}
		}
	}
	c.Do("QUIT", "221")
	c.ExpectEOF()
}

// check compares what the relay got with what was sent.
func (p *post) check(t *testing.T, conn relay.Conn) {
	if len(conn.Messages) != len(p.letters) {
		t.Errorf("%d messages arrived, %d were sent", len(conn.Messages), len(p.letters))
	}
	bad := 0
	for i, m := range conn.Messages[:min(len(conn.Messages), len(p.letters))] {
		text := p.letters[i].text
		if p.manner == byDATA {
			var ended bool
			if text, _, ended = content(text); !ended {
				text, _, _ = content(p.letters[i].text + "\r\n.\r\n")
			}
		}
		want := Normal(text)
		if m.BDAT == nil {
			want = Harmless(text)
			if server, rest := relay.Smuggled(m.Wire); server != "" {
				t.Errorf("%d %q: for the relay %q it ends before %.100q", i, p.letters[i].text, server, rest)
				bad++
			}
		}
		if got := WithoutHeader(m.Data); got != want {
			t.Errorf("%d %q: got\n%.300q, want\n%.300q", i, tail(p.letters[i].text), tail(got), tail(want))
			bad++
		}
		if from := fmt.Sprintf("<%d@ours.test>", i); !strings.HasPrefix(m.From, from) || len(m.Rcpts) != 1 || m.Rcpts[0] != "<bob@dest.test>" {
			t.Errorf("message %d is from %s to %q", i, m.From, m.Rcpts)
			bad++
		}
		if bad > 10 {
			t.Fatal("and so on")
		}
	}
	for _, line := range conn.Lines {
		if strings.Contains(line, "evil.test") || strings.Contains(line, "victim") {
			t.Errorf("the relay got the command %q", line)
		}
	}
	for _, v := range conn.Violations {
		t.Errorf("violation: %s", v)
	}
}

func tail(s string) string { return s[max(0, len(s)-200):] }
