// Package mailbox fills mailboxes of an IMAP server for tests, reads them, and has tokens
// made for URLs: all as an IMAP client that is not ours (go-imap), but for GENURLAUTH,
// which it does not know.
package mailbox

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// An Account is a user of an IMAP server.
type Account struct {
	Addr, User, Password string
}

const timeout = time.Minute

func (a Account) login(t testing.TB) *imapclient.Client {
	t.Helper()
	c, err := imapclient.DialInsecure(a.Addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Login(a.User, a.Password).Wait(); err != nil {
		t.Fatalf("login of %s: %v", a.User, err)
	}
	return c
}

// Append puts messages into a mailbox, which it makes if need be. They get the UIDs that
// follow those that are there.
func (a Account) Append(t testing.TB, mailbox string, messages ...[]byte) {
	t.Helper()
	c := a.login(t)
	defer c.Close()
	if !strings.EqualFold(mailbox, "INBOX") {
		_ = c.Create(mailbox, nil).Wait() // it may be there
	}
	for _, m := range messages {
		cmd := c.Append(mailbox, int64(len(m)), nil)
		if _, err := cmd.Write(m); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := cmd.Wait(); err != nil {
			t.Fatalf("append to %s: %v", mailbox, err)
		}
	}
}

// Fetch returns what FETCH gives: a section (of the form of imap.FetchItemBodySection) of
// the message with the UID.
func (a Account) Fetch(t testing.TB, mailbox string, uid uint32, section imap.FetchItemBodySection) []byte {
	t.Helper()
	c := a.login(t)
	defer c.Close()
	if _, err := c.Select(mailbox, &imap.SelectOptions{ReadOnly: true}).Wait(); err != nil {
		t.Fatal(err)
	}
	section.Peek = true
	messages, err := c.Fetch(imap.UIDSetNum(imap.UID(uid)), &imap.FetchOptions{BodySection: []*imap.FetchItemBodySection{&section}}).Collect()
	if err != nil || len(messages) != 1 {
		t.Fatalf("fetch: %d messages, %v", len(messages), err)
	}
	return messages[0].FindBodySection(&section)
}

// Mint returns the URL with URLAUTH that the server makes of a rump.
func (a Account) Mint(t testing.TB, rump string) string {
	t.Helper()
	answer := a.Raw(t, `GENURLAUTH "`+rump+`" INTERNAL`)
	_, url, ok := strings.Cut(answer, "* GENURLAUTH ")
	if !ok {
		t.Fatalf("no URL for %s: %s", rump, answer)
	}
	line, _, _ := strings.Cut(url, "\r\n")
	return strings.Trim(line, `"`)
}

// Raw logs in, sends commands, and returns all that the server answered to them.
func (a Account) Raw(t testing.TB, commands ...string) string {
	t.Helper()
	conn, err := net.Dial("tcp", a.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(timeout))
	br := bufio.NewReader(conn)
	var out strings.Builder
	for i, cmd := range append([]string{fmt.Sprintf("LOGIN %s %s", a.User, a.Password)}, commands...) {
		fmt.Fprintf(conn, "T%d %s\r\n", i, cmd)
		for l := ""; !strings.HasPrefix(l, fmt.Sprintf("T%d ", i)); {
			if l, err = br.ReadString('\n'); err != nil {
				t.Fatalf("%s: %v", cmd, err)
			}
			if i > 0 {
				out.WriteString(l)
			}
		}
	}
	return out.String()
}
