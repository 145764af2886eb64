package burl

import (
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/mailbox"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// A server that breaks off, or says another length than it sends, in the middle of what the
// relay has a part of already: the message comes to nothing, the client is told to come
// again, and after RSET the session goes on with what is right.
func TestBrokenOff(t *testing.T) {
	data := large(1 << 20)
	whole := string(data)
	amiss := map[string]func(tag, url string, w io.Writer) bool{
		"closes": func(tag, url string, w io.Writer) bool {
			fmt.Fprintf(w, "* URLFETCH %q (BODY {%d}\r\n", url, len(data))
			_, _ = w.Write(data[:len(data)/2])
			return false
		},
		"says more": func(tag, url string, w io.Writer) bool {
			mailbox.Answer(w, tag, url, len(data)+7, data)
			return false
		},
		"says less": func(tag, url string, w io.Writer) bool { mailbox.Answer(w, tag, url, len(data)-7, data); return true },
		"NO at the end": func(tag, url string, w io.Writer) bool {
			fmt.Fprintf(w, "* URLFETCH %q (BODY {%d}\r\n%s)\r\n%s NO [UNAVAILABLE] disk\r\n", url, len(data), data, tag)
			return true
		},
	}
	for name, caps := range relays {
		for what, does := range amiss {
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				var fail atomic.Bool
				fake := mailbox.StartFake(t, mailbox.FakeBehaviour{Fetch: func(n int, tag, url string, w io.Writer) bool {
					if fail.Load() {
						return does(tag, url, w)
					}
					mailbox.Answer(w, tag, url, len(data), data)
					return true
				}})
				w := start(t, system.Standalone, system.Setup{
					Config: []string{"dovetail_burl_imap_host = 127.0.0.1", fmt.Sprint("dovetail_burl_imap_port = ", fake.Port), "dovetail_burl_imap_ssl = no",
						"dovetail_burl_imap_user = submit", "dovetail_burl_imap_password_file = {dir}/etc/submit"},
					Files: map[string]system.File{"etc/submit": {Data: "pass\n", Mode: 0o600}},
				}, relay.Options{Caps: caps})
				c := w.login(w.alice)
				url := rump("alice", "INBOX", 1, "", "alice") + ":internal:" + badToken
				const later = "451 4.4.1 IMAP server unavailable"
				for n, chunks := range [][]string{{" LAST"}, {""}, {"BDAT", " LAST"}, {"ok", " LAST"}} {
					begin(c)
					for _, chunk := range chunks {
						fail.Store(chunk != "ok")
						switch chunk {
						case "BDAT":
							c.Write("BDAT 5\r\nhello")
							c.Expect("250 2.0.0 Added 5 octets")
						case "ok":
							c.Do("BURL "+url, "250 2.0.0 Added")
						default:
							if got := bdat(c, "BURL "+url+chunk); got != later {
								t.Errorf("%d: %s", n, got)
							}
						}
					}
					c.Write("BDAT 5 LAST\r\nhello")
					c.Expect("503 5.5.0 Previous data chunk failed, issue RSET first")
					c.Do("DATA", "503 ")
					c.Do("MAIL FROM:<x@y>", "503 5.5.0 MAIL already given")
				}
				if got := w.relay.Messages(); len(got) > 0 {
					t.Fatalf("%d messages, the first of %d octets", len(got), got[0].Size)
				}
				fail.Store(false)
				again(t, w, c, url, whole)
			})
		}
	}
}

// again sends a message in the session that has seen so much.
func again(t *testing.T, w *world, c *client.Client, url, want string) {
	t.Helper()
	if got := burl(c, url); !strings.HasPrefix(got, "250 2.0.0 Ok") {
		t.Fatal(got)
	}
	if got := string(w.body(1)); got != want {
		t.Errorf("%d octets, want %d", len(got), len(want))
	}
	w.WaitLine("Error: burl: ")
}
