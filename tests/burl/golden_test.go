package burl

import (
	"os"
	"strings"
	"testing"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// golden is what Dovecot's own worker answers to URLs of all kinds (clauses S7.3 to S7.7):
// internal/imapurl records it.
const golden = "../../internal/imapurl/testdata/burl-2.3.19.1.txt"

const (
	auth     = `554 5.6.6 IMAP URLAUTH resolution failed: Failed to fetch URLAUTH "{url}": `
	noBox    = "554 5.6.6 IMAP URL resolution failed: Mailbox doesn't exist: "
	badToken = "010000000000000000000000000000000000000000"
)

// differ are the URLs to which we answer otherwise, and why.
var differ = map[string]string{
	// It loses letters that are %-encoded in a host.
	"imap://%69map.example%2Etest/INBOX/;UID=1": "250 2.0.0 Ok: bdat",
	// A line end in a name ends its line.
	"imap://imap.example.test/a%0Ab/;UID=1":                                                    noBox + "a?b",
	"imap://imap.example.test/a%0D%0A250%20x/;UID=1":                                           noBox + "a??250 x",
	"imap://imap.example.test/%7Falice/;UID=1":                                                 noBox + "?alice",
	"imap://alice@imap.example.test/INBOX/;UID=1;URLAUTH=submit+a%0D%0A250%20x:internal:{bad}": auth + "No 'submit+a??250 x' access allowed for user alice",
	// -1 is no time for it.
	"imap://alice@imap.example.test/INBOX/;UID=1;EXPIRE=1969-12-31T23:59:59Z;URLAUTH=submit+alice:internal:{bad}": auth + "URLAUTH has expired",
	// imap-urlauth does not say why it refuses.
	"imap://alice@imap.example.test/none/;UID=1;URLAUTH=submit+alice:internal:{bad}":                auth + "URLAUTH verification failed",
	"imap://alice@imap.example.test/INBOX;UIDVALIDITY=1/;UID=1;URLAUTH=submit+alice:internal:{bad}": auth + "URLAUTH verification failed",
}

// Our worker answers the same, but where Dovecot's dies.
func TestGolden(t *testing.T) {
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, system.OursWorker, system.Setup{}, relay.Options{Discard: true})
	w.alice.Append(t, "INBOX", simple)
	var rumps []string
	for _, l := range strings.Split(string(text), "\n") {
		if url, _, _ := strings.Cut(l, "\t"); strings.HasSuffix(url, ":internal:{token}") {
			rumps = append(rumps, `GENURLAUTH "`+strings.TrimSuffix(url, ":internal:{token}")+`" INTERNAL`)
		}
	}
	tokens := strings.ReplaceAll(w.alice.Raw(t, rumps...), `"`, "")
	c, n := w.login(w.alice), 0
	for line := range strings.Lines(string(text)) {
		url, want, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if url == "" || url[0] == '#' {
			continue
		}
		n++
		full := strings.ReplaceAll(url, "{bad}", badToken)
		want = strings.ReplaceAll(want, "{bad}", badToken)
		if rump, ok := strings.CutSuffix(full, "{token}"); ok {
			_, token, _ := strings.Cut(tokens, "* GENURLAUTH "+rump)
			token, _, _ = strings.Cut(token, "\r\n")
			full = rump + token
		}
		dies := want == "{dies}"
		if other, ok := differ[url]; ok {
			want = strings.ReplaceAll(other, "{url}", full)
		}
		if got := answer(c, full); got != want && !(dies && strings.HasPrefix(got, "554 5.6.6 ")) {
			t.Errorf("%s\n got %s\nwant %s", full, got, want)
		}
	}
	if n < 100 {
		t.Errorf("%d lines", n)
	}
}

// answer is burl's for many of them: one round trip for what goes before.
func answer(c *client.Client, url string) string {
	c.Send("RSET", "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@example.test>")
	c.ExpectCode("250")
	c.ExpectCode("250")
	c.ExpectCode("250")
	return bdat(c, "BURL "+url+" LAST")
}
