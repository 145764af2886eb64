package burl

import (
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

const verification = "URLAUTH verification failed"

// Access is checked when an URL is used: what was right when it was made may not be now.
// The session goes on, and nothing is delivered.
func TestCheckedAtUse(t *testing.T) {
	for _, sys := range []system.System{system.Dovecot, system.OursBoth} {
		t.Run(sys.String(), func(t *testing.T) {
			t.Parallel()
			w := start(t, sys, system.Setup{}, relay.Options{})
			ours := sys.IsOurs()
			for _, box := range []string{"INBOX", "gone", "reset", "renewed"} {
				w.alice.Append(t, box, simple, parts)
			}
			mint := func(box, more string) string { return w.alice.Mint(t, rump("alice", box, 1, more, "alice")) }
			good := mint("INBOX", "")
			soon := time.Now().Add(2 * time.Second).UTC()
			expires := mint("INBOX", ";EXPIRE="+soon.Format(time.RFC3339))
			gone, reset, renewed := mint("gone", ""), mint("reset", ""), mint("renewed", "")
			expunged := w.alice.Mint(t, rump("alice", "INBOX", 2, "", "alice"))
			c := w.login(w.alice)
			n := 0
			check := func(when string, want map[string]string) {
				t.Helper()
				for url, why := range want {
					got := burl(c, url)
					if why == "" {
						if n++; !strings.HasPrefix(got, "250 2.0.0 Ok") {
							t.Errorf("%s: %s: %s", when, url, got)
						}
						continue
					}
					for _, alternative := range strings.Split(why, "|") {
						if strings.HasSuffix(got, ": "+alternative) || got == alternative {
							why = ""
						}
					}
					if why != "" || !strings.HasPrefix(got, "554 5.6.6 ") {
						t.Errorf("%s: %s\n got %s\nwant %s", when, url, got, why)
					}
					if got := bdat(c, "BURL "+good+" LAST"); got != "503 5.5.0 Previous data chunk failed, issue RSET first" {
						t.Errorf("%s: afterwards: %s", when, got)
					}
				}
			}
			ok := map[string]string{good: "", gone: "", reset: "", renewed: "", expunged: ""}
			if time.Now().Before(soon) {
				ok[expires] = ""
			}
			check("at first", ok)

			w.alice.Raw(t, "SELECT INBOX", `UID STORE 2 +FLAGS.SILENT (\Deleted)`, "EXPUNGE", "DELETE gone", `RESETKEY "reset"`, "DELETE renewed", "CREATE renewed")
			w.alice.Append(t, "renewed", simple)
			time.Sleep(time.Until(soon.Add(time.Second)))
			noBox := "Invalid URLAUTH: Mailbox doesn't exist: gone"
			if ours { // imap-urlauth does not tell
				noBox = verification
			}
			check("afterwards", map[string]string{
				good: "", gone: noBox, reset: verification, renewed: verification, expires: "URLAUTH has expired", expunged: "Message not found|554 5.6.6 IMAP URLAUTH resolution failed",
				plain("gone", 1, ""): "Mailbox doesn't exist: gone", plain("INBOX", 2, ""): "Message not found|Message was expunged", plain("INBOX;UIDVALIDITY=1", 1, ""): "Invalid UIDVALIDITY",
				plain("INBOX", 1, ""): "",
			})
			w.alice.Raw(t, "RESETKEY")
			check("with all keys reset", map[string]string{good: verification})
			if got := len(w.relay.Messages()); got != n {
				t.Errorf("%d messages, want %d", got, n)
			}
		})
	}
}

// A user gets nothing that his own IMAP session, or a token made for him, would not give
// him.
func TestNothingOfOthers(t *testing.T) {
	w := start(t, system.OursBoth, system.Setup{Config: strings.Split(`mail_plugins = acl
protocol imap {
  mail_plugins = acl imap_acl
}
plugin {
  acl = vfile
  acl_shared_dict = file:{dir}/mail/shared.db
}
namespace inbox {
  inbox = yes
  separator = /
}
namespace shared {
  type = shared
  prefix = shared/%%u/
  separator = /
  location = maildir:{dir}/mail/%%u/Maildir:INDEXPVT={dir}/mail/%u/shared/%%u
  list = children
  subscriptions = no
}`, "\n")}, relay.Options{})
	secret, shared := []byte("Subject: secret\r\n\r\nof bob\r\n"), []byte("Subject: shared\r\n\r\nby bob\r\n")
	w.alice.Append(t, "INBOX", simple)
	w.bob.Append(t, "INBOX", secret)
	w.bob.Append(t, "open", shared)
	w.bob.Raw(t, "SETACL open alice lr")
	c := w.login(w.alice)

	// The URL's user does not matter, and the own INBOX is what it is.
	const of = "imap://bob%40example.test@" + host
	for n, url := range []string{of + "/INBOX/;UID=1", plain("inbox", 1, ""), plain("INBOX", 1, "")} {
		if got := burl(c, url); !strings.HasPrefix(got, "250 2.0.0 Ok") || string(w.body(n+1)) != string(simple) {
			t.Errorf("%s: %s", url, got)
		}
	}
	// What was shared can be read, as by IMAP; the rest cannot.
	if got := burl(c, plain("shared/bob%40example.test/open", 1, "")); !strings.HasPrefix(got, "250 2.0.0 Ok") || string(w.body(4)) != string(shared) {
		t.Errorf("shared: %s", got)
	}
	token := w.bob.Mint(t, rump("bob@example.test", "INBOX", 1, "", "carol"))
	mine := w.bob.Mint(t, rump("bob@example.test", "open", 1, "", "alice"))
	_, mac, _ := strings.Cut(mine, ":internal:")
	urls := []string{
		plain("shared/bob%40example.test/INBOX", 1, ""), plain("shared/bob%40example.test", 1, ""), plain("shared%2Fbob%40example.test%2FINBOX", 1, ""),
		plain("../bob/Maildir", 1, ""), plain("..%2F..%2Fbob%2FMaildir", 1, ""), plain("%2E%2E/bob", 1, ""), plain("../../bob@example.test/Maildir/INBOX", 1, ""), plain("./INBOX/../../bob", 1, ""),
		plain("%2F", 1, ""), plain("%2Fetc%2Fpasswd", 1, ""), plain("~bob", 1, ""), plain("~bob%2FMaildir", 1, ""), plain("~%2F..%2Fbob", 1, ""), plain("INBOX%00", 1, ""), plain("INBOX%2F..%2F..%2Fbob", 1, ""),
		plain("%26AC8-bob", 1, ""), plain("&AC8-bob", 1, ""), plain("%26AC4ALg-%2Fbob", 1, ""), plain("+AC8-bob", 1, ""), plain("%C0%AFbob", 1, ""), plain("%EF%BC%8Fbob", 1, ""), plain("INBOX%0D%0AX%20LOGOUT", 1, ""), plain("%22%20(INBOX", 1, ""), plain("%7B5+%7DINBOX", 1, ""),
		plain("INBOX", 1, "/;SECTION=%5D%0D%0AX%20SELECT%20INBOX"), plain("INBOX", 1, "/;SECTION=HEADER.FIELDS%20(%22%0D%0A%22)"),
		of + "/INBOX/;UID=1;URLAUTH=submit+alice:internal:" + mac, of + "/INBOX/;UID=1;URLAUTH=submit+alice:internal:" + strings.Repeat("0", 42), // of another message, of none
		token, strings.Replace(token, "submit+carol", "submit+alice", 1), strings.Replace(token, "submit+carol", "submit+CAROL", 1),
		strings.Replace(mine, "/open/", "/INBOX/", 1), strings.Replace(mine, "/open/", "/%6Fpen/", 1), mine + "00", strings.Replace(mine, ";UID=1", ";UID=01", 1),
		strings.Replace(mine, "bob%40example.test@", "alice@", 1), strings.Replace(mine, "bob%40example.test@", "nobody@", 1), strings.Replace(mine, "bob%40example.test@", "bob%40example.test%00@", 1),
		strings.Replace(mine, "bob%40example.test@", "..%2Fbob%40example.test@", 1), strings.Replace(mine, "bob%40example.test@", "bob%40example.test%09x@", 1),
		strings.Replace(mine, "internal", "other", 1), strings.Replace(mine, "submit+alice", "anonymous", 1), strings.Replace(mine, "submit+alice", "authuser", 1), strings.Replace(mine, "submit+alice", "user+alice", 1),
		strings.Replace(mine, "submit+alice", "submit+alic%65", 1), strings.Replace(mine, host, "other.test", 1), strings.Replace(mine, host, host+":144", 1),
	}
	for _, access := range []string{"anonymous", "authuser", "user+alice", "submit+bob%40example.test"} {
		urls = append(urls, w.bob.Mint(t, strings.Replace(rump("bob@example.test", "INBOX", 1, "", "x"), "submit+x", access, 1)))
	}
	for _, url := range urls {
		if got := burl(c, url); got[0] != '5' {
			t.Errorf("%s: %s", url, got)
		}
	}
	if got := burl(c, mine); !strings.HasPrefix(got, "250 2.0.0 Ok") || string(w.body(5)) != string(shared) {
		t.Errorf("with a token: %s", got)
	}
	if got := len(w.relay.Messages()); got != 5 {
		t.Errorf("%d messages", got)
	}
	for _, line := range w.Log() {
		if strings.Contains(line, "Panic") || strings.Contains(line, " Error: ") && !strings.Contains(line, "auth") {
			t.Errorf("log: %s", line)
		}
	}
}
