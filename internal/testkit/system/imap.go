package system

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"dovetail/internal/testkit/client"
)

// An IMAP is a session with the instance's IMAP service, which only a system with
// Dovecot's master has.
type IMAP struct {
	c *client.Client

	mu   sync.Mutex
	tags int
}

// IMAP logs in, and looks at the INBOX once.
func (r *Running) IMAP(t testing.TB, user, password string) *IMAP {
	t.Helper()
	if r.System.Master == Ours {
		t.Fatal("our master has no IMAP service")
	}
	i := &IMAP{c: client.Dial(t, fmt.Sprintf("127.0.0.1:%d", r.IMAPPort), client.Options{})}
	i.c.ExpectMatch(`^\* OK `)
	if ok, lines := i.Do(fmt.Sprintf("LOGIN %s %s", user, password)); !ok {
		t.Fatalf("IMAP login of %s: %s", user, lines)
	}
	i.Do("SELECT INBOX") // gives the messages their UIDs
	i.Do("UNSELECT")
	return i
}

// Close logs out.
func (i *IMAP) Close() { i.Do("LOGOUT") }

// Do sends a command and returns the lines of the answer, the tagged one last, and
// whether that is OK.
func (i *IMAP) Do(command string) (ok bool, lines []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.tags++
	tag := fmt.Sprintf("t%d ", i.tags)
	i.c.Send(tag + command)
	for {
		line := i.c.Line()
		lines = append(lines, line)
		if rest, mine := strings.CutPrefix(line, tag); mine {
			return strings.HasPrefix(rest, "OK"), lines
		}
	}
}

// Token returns the token (42 hex digits) that makes the URL, which stands behind a word
// and ends in ":internal:", a full URLAUTH URL. A URL that IMAP gives none for gets a
// token of the right form.
func (i *IMAP) Token(before string) string {
	_, url, _ := strings.Cut(before, " ")
	rump, ok := strings.CutSuffix(url, ":internal:")
	if !ok {
		return "not a rump URL: " + before
	}
	_, lines := i.Do(fmt.Sprintf("GENURLAUTH %q INTERNAL", rump))
	for _, l := range lines {
		if _, rest, ok := strings.Cut(l, rump+":internal:"); ok {
			return strings.TrimRight(rest, `"`)
		}
	}
	return "01" + strings.Repeat("0", 40)
}
