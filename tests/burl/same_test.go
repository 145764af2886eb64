package burl

import (
	"slices"
	"strings"
	"testing"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// The same commands are answered in the same way by Dovecot's programs and by ours: where
// BURL may stand, what its arguments may be, and which refusal comes first.
func TestSameAsDovecot(t *testing.T) {
	url := plain("INBOX", 1, "")
	const mail, rcpt, none = "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "imap://imap.example.test/INBOX/;UID=77"
	scripts := [][]string{
		{"BURL", "BURL foo", "BURL " + url, "BURL " + url + " FOO", "NOOP"},
		{mail, "BURL", rcpt, "BURL " + url + " LAST"},
		{mail, "BURL " + url + " LAST"},
		{mail, "RCPT TO:<nobody@relay>", "BURL " + url, rcpt},
		{mail, rcpt, "BURL  " + url, "RSET"},
		{mail, rcpt, "BURL " + url + "  LAST", "BURL " + url + " LAST"},
		{mail, rcpt, "BURL " + url + " LAST x", "BDAT 0 LAST"},
		{mail, rcpt, "BURL " + url + " LASTx"},
		{mail, rcpt, "BURL " + url + " last"},
		{mail, rcpt, "BURL " + none, "BURL foo", "BURL", "BURL " + url + " x", "BDAT x", "DATA x", "MAIL FROM:<a@b>", "RSET", "BURL " + url},
		{mail, rcpt, "BURL " + url, "DATA", "BURL " + url + " LAST"},
		{mail, rcpt, "BURL " + url, rcpt, "VRFY x", "EHLO x", "BURL " + url},
		{mail, rcpt, "BURL " + url, "RSET", mail, rcpt, "BURL " + url + " LAST"},
		{mail + " BODY=BINARYMIME", rcpt, "BURL " + url + " LAST"},
		{mail + " SIZE=10", rcpt, "BURL " + url + " LAST"},
		{mail, rcpt, "BURL " + url, "QUIT"},
	}
	answers := map[system.System][][]string{}
	systems := []system.System{system.Dovecot, system.OursBoth}
	for _, sys := range systems {
		w := start(t, sys, system.Setup{}, relay.Options{Caps: append([]string{"BINARYMIME"}, relay.DefaultCaps...)})
		w.alice.Append(t, "INBOX", simple)
		for _, script := range scripts {
			c := w.login(w.alice)
			var got []string
			for _, line := range script {
				c.Send(line)
				got = append(got, strings.Join(c.Reply(), "|"))
			}
			c.Close()
			answers[sys] = append(answers[sys], got)
		}
	}
	for i, want := range answers[system.Dovecot] {
		for j, got := range answers[system.OursBoth][i] {
			if got != want[j] {
				t.Errorf("%q, %s\n got %s\nwant %s", scripts[i][:j], scripts[i][j], got, want[j])
			}
		}
	}
}

// What EHLO says of BURL, before the login and after it.
func TestAnnounced(t *testing.T) {
	for name, config := range map[string][]string{
		"usual":          nil,
		"port":           {"imap_urlauth_port = 1143"},
		"any host":       {"imap_urlauth_host = *"},
		"exotic":         {"submission_client_workarounds = exotic-backend", "submission_backend_capabilities = DSN"},
		"exotic with it": {"submission_client_workarounds = exotic-backend", "submission_backend_capabilities = BURL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var want []string
			for _, sys := range []system.System{system.Dovecot, system.OursBoth} {
				w := start(t, sys, system.Setup{Config: config}, relay.Options{})
				c := client.Dial(t, w.Addr(), client.Options{})
				c.ExpectCode("220")
				got := []string{line(c.Do("EHLO x", "250"))}
				c.Plain("alice", "wonder")
				got = append(got, line(c.Do("EHLO x", "250")))
				c.Close()
				if sys == system.Dovecot {
					want = got
				} else if !slices.Equal(got, want) {
					t.Errorf("%v: %q, want %q", sys, got, want)
				}
			}
			if !strings.HasPrefix(want[1], "BURL imap imap://") {
				t.Errorf("%q", want)
			}
		})
	}
}

// line is what a reply to EHLO says of BURL.
func line(reply []string) string {
	for _, l := range reply {
		if strings.HasPrefix(l[4:], "BURL") {
			return l[4:]
		}
	}
	return ""
}
