package system

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestTokenOfOwnMessage(t *testing.T) {
	r := Dovecot.Start(t, Setup{
		Config: []string{"imap_urlauth_host = imap.example.test", "mail_attribute_dict = file:%h/dovecot-attributes", "imap_metadata = yes"},
		Files:  map[string]File{"mail/alice/Maildir/new/1.M1P1.host": {Data: "Subject: x\n\nx\n", UID: UID}},
	})
	i := r.IMAP(t, "alice", "wonder")
	const url = "BURL imap://alice@imap.example.test/INBOX/;UID=1;URLAUTH=submit+alice:internal:"
	token := i.Token(url)
	t.Log(i.c.Dialogue())
	if !regexp.MustCompile(`^01[0-9a-f]{40}$`).MatchString(token) || strings.HasPrefix(token, "010000") {
		t.Errorf("token %q", token)
	}
	if again := i.Token(url); again != token {
		t.Errorf("token %q, and then %q", token, again)
	}
	i.Close()
	r.Stop()
}
