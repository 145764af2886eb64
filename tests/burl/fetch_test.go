package burl

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	goimap "github.com/emersion/go-imap/v2"

	"dovetail/internal/testkit/mailbox"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// relays are those that take BDAT and those that take DATA.
var relays = map[string][]string{"BDAT": nil, "DATA": {"PIPELINING", "SIZE 100000000", "8BITMIME", "ENHANCEDSTATUSCODES"}}

// What the relay gets is what FETCH gives, to the octet: whole messages, sections and parts
// of them, empty ones, with 8 bits; of the user by either kind of URL, and of
// another user. It needs no more than stock Dovecot 2.3, whose own worker cannot do the
// last.
func TestFetched(t *testing.T) {
	for name, caps := range relays {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, system.OursBoth, system.Setup{}, relay.Options{Caps: caps})
			messages := [][]byte{simple, parts, base64ed, large(1 << 20), []byte("Subject: x\r\n\r\n")}
			boxes := []string{"INBOX", "Entwürfe & more"}
			for _, a := range boxes {
				w.alice.Append(t, a, messages...)
				w.bob.Append(t, a, messages...)
			}
			type part struct {
				url     string
				section goimap.FetchItemBodySection
			}
			section := func(path ...int) goimap.FetchItemBodySection { return goimap.FetchItemBodySection{Part: path} }
			special := func(s goimap.PartSpecifier, path ...int) goimap.FetchItemBodySection {
				return goimap.FetchItemBodySection{Specifier: s, Part: path}
			}
			partial := func(s goimap.FetchItemBodySection, offset, size int64) goimap.FetchItemBodySection {
				s.Partial = &goimap.SectionPartial{Offset: offset, Size: size}
				return s
			}
			all := []part{{"", section()}, {"/;PARTIAL=0.10", partial(section(), 0, 10)}, {"/;SECTION=HEADER", special(goimap.PartSpecifierHeader)}, {"/;SECTION=TEXT", special(goimap.PartSpecifierText)},
				{"/;PARTIAL=1000000.1", partial(section(), 1000000, 1)}, {"/;SECTION=1", section(1)}, {"/;SECTION=9", section(9)},
				{"/;SECTION=HEADER.FIELDS%20(SUBJECT)", goimap.FetchItemBodySection{Specifier: goimap.PartSpecifierHeader, HeaderFields: []string{"SUBJECT"}}}}
			inParts := append([]part{{"/;SECTION=2", section(2)}, {"/;SECTION=2/;PARTIAL=100.333", partial(section(2), 100, 333)}, {"/;SECTION=2.MIME", special(goimap.PartSpecifierMIME, 2)},
				{"/;SECTION=3", section(3)}, {"/;SECTION=4", section(4)}, {"/;SECTION=4.HEADER", special(goimap.PartSpecifierHeader, 4)}, {"/;SECTION=4.1", section(4, 1)}}, all...)
			c, n := w.login(w.alice), 0
			for _, box := range boxes {
				in := strings.NewReplacer(" ", "%20", "&", "%26", "ü", "%C3%BC").Replace(box)
				for i := range messages {
					uid, ps := i+1, all
					if i == 1 {
						ps = inParts
					}
					if box != "INBOX" {
						ps = ps[:1]
					}
					for _, p := range ps {
						want := w.alice.Fetch(t, box, uint32(uid), p.section)
						urls := []string{plain(in, uid, p.url), w.alice.Mint(t, rump("alice", in, uid, p.url, "alice"))}
						if p.url == "" || i == 1 {
							urls = append(urls, w.bob.Mint(t, rump("bob@example.test", in, uid, p.url, "alice")))
						}
						for _, url := range urls {
							n++
							if got := burl(c, url); !strings.HasPrefix(got, "250 2.0.0 Ok") {
								t.Fatalf("%s: %s", url, got)
							}
							got := w.body(n)
							if caps != nil && len(want) > 0 && !bytes.HasSuffix(want, []byte("\r\n")) {
								got = bytes.TrimSuffix(got, []byte("\r\n")) // DATA cannot do without
							}
							if !bytes.Equal(got, want) {
								t.Errorf("%s: %d octets, want %d: %.100q", url, len(got), len(want), got)
							}
						}
					}
				}
			}
			if v := w.relay.Conns()[0].Violations; len(v) > 0 {
				t.Errorf("%q", v)
			}
			t.Logf("%d messages", n)
		})
	}
}

// Octets that APPEND does not take but a maildir may have: NULs. What Dovecot's FETCH makes
// of them is what the relay gets, by each way.
func TestNULs(t *testing.T) {
	for name, caps := range relays {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, system.OursBoth, system.Setup{}, relay.Options{Caps: caps})
			var want []byte
			for _, a := range []mailbox.Account{w.alice, w.bob} {
				w.WriteFile("mail/"+a.User+"/Maildir/.nul/cur/1700000000.M1P1.host:2,", system.File{Data: "Subject: NUL\r\nContent-Transfer-Encoding: binary\r\n\r\na\x00b\r\n.\x00\r\n\x00.\r\n\x00\x00\r\n", UID: system.UID})
				want = a.Fetch(t, "nul", 1, goimap.FetchItemBodySection{})
			}
			c := w.login(w.alice)
			for i, url := range []string{plain("nul", 1, ""), w.alice.Mint(t, rump("alice", "nul", 1, "", "alice")), w.bob.Mint(t, rump("bob@example.test", "nul", 1, "", "alice"))} {
				if got := burl(c, url); !strings.HasPrefix(got, "250 2.0.0 Ok") {
					t.Fatalf("%s: %s", url, got)
				}
				if got := w.body(i + 1); !bytes.Equal(got, want) || !bytes.Contains(got, []byte{0x80}) {
					t.Errorf("%s: %q, want %q", url, got, want)
				}
			}
		})
	}
}

// BURL and BDAT make one message in any order, LAST at either; what stands between them
// does not matter.
func TestMixed(t *testing.T) {
	for name, caps := range relays {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, system.OursBoth, system.Setup{}, relay.Options{Caps: caps})
			big := large(400 << 10)
			w.alice.Append(t, "INBOX", simple, parts, big)
			w.bob.Append(t, "INBOX", parts)
			own, other := w.alice.Mint(t, rump("alice", "INBOX", 1, "", "alice")), w.bob.Mint(t, rump("bob@example.test", "INBOX", 1, "", "alice"))
			whole := plain("INBOX", 3, "")
			contents := map[string][]byte{own: simple, other: parts, whole: big, plain("INBOX", 2, "/;SECTION=3"): nil}
			c := w.login(w.alice)
			for n, chunks := range [][]string{
				{own, "abc\r\n"}, {"abc\r\n", own}, {"a\r\n", own, "b\r\n"}, {own, other, whole}, {whole, own, other}, {plain("INBOX", 2, "/;SECTION=3"), "x\r\n"}, {"x\r\n", plain("INBOX", 2, "/;SECTION=3")},
				{whole, "tail", ""}, {"", own, "", other, "", whole, ""}, {whole, whole, whole},
			} {
				begin(c)
				var want []byte
				for i, chunk := range chunks {
					last := ""
					if i == len(chunks)-1 {
						last = " LAST"
					}
					data, isURL := contents[chunk]
					if isURL {
						c.Send("burl " + chunk + strings.ToLower(last))
					} else {
						data = []byte(chunk)
						c.Write(fmt.Sprintf("BDAT %d%s\r\n%s", len(chunk), last, chunk))
					}
					want = append(want, data...)
					if last == "" {
						c.Expect(fmt.Sprintf("250 2.0.0 Added %d octets", len(data)))
						if len(want) < 64<<10 { // before the relay has a part of it
							c.Do("RCPT TO:<carol@dest.test>", "250")
						}
						c.Do("NOOP", "250")
					} else {
						c.ExpectCode("250 2.0.0 Ok")
					}
				}
				got := w.body(n + 1)
				if caps != nil && !bytes.HasSuffix(want, []byte("\r\n")) {
					got = bytes.TrimSuffix(got, []byte("\r\n"))
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%d: %d octets, want %d", n, len(got), len(want))
				}
			}
			// Pipelined in one write, and the next transaction behind it.
			n := len(w.relay.Messages())
			c.Write("MAIL FROM:<a@b>\r\nRCPT TO:<b@c>\r\nBURL " + own + "\r\nBDAT 3\r\nabcBURL " + other + " LAST\r\nMAIL FROM:<c@d>\r\nRCPT TO:<b@c>\r\nBURL " + own + " LAST\r\n")
			for _, want := range []string{"250", "250", fmt.Sprintf("250 2.0.0 Added %d octets", len(simple)), "250 2.0.0 Added 3 octets", "250 2.0.0 Ok", "250", "250", "250 2.0.0 Ok"} {
				c.ExpectCode(want)
			}
			if got, want := w.body(n+1), string(simple)+"abc"+string(parts); string(got) != want {
				t.Errorf("%q", got)
			}
			// DATA is no chunk.
			begin(c)
			c.Do("BURL "+own, "250 2.0.0 Added")
			c.Do("DATA", "503 5.5.0 Bad sequence of commands")
			if v := w.relay.Conns()[0].Violations; len(v) > 0 {
				t.Errorf("%q", v)
			}
		})
	}
}
