// Package burl tests BURL with real mailboxes: the worker under Dovecot, mail put there by
// go-imap, tokens of Dovecot's GENURLAUTH. What the relay gets is compared with what FETCH
// gives, and what is refused with what Dovecot's own worker says.
package burl

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/mailbox"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }

const host = "imap.example.test"

// works is the configuration with which BURL works.
var works = []string{"imap_urlauth_host = " + host, "mail_attribute_dict = file:%h/dovecot-attributes", "imap_metadata = yes"}

// A world is a system with a relay and the mailboxes of its users.
type world struct {
	*system.Running
	t          testing.TB
	relay      *relay.Relay
	alice, bob mailbox.Account
}

// start runs a system with BURL.
func start(t testing.TB, sys system.System, o system.Setup, r relay.Options) *world {
	t.Helper()
	w := &world{t: t, relay: relay.Start(t, r)}
	o.Config = append(append([]string{}, works...), o.Config...)
	o.RelayPort = w.relay.Port
	w.Running = sys.Start(t, o)
	w.alice, w.bob = w.account("alice", "wonder"), w.account("bob@example.test", "bpass")
	return w
}

func (w *world) account(user, password string) mailbox.Account {
	return mailbox.Account{Addr: fmt.Sprintf("127.0.0.1:%d", w.IMAPPort), User: user, Password: password}
}

// login opens a session of the submission service.
func (w *world) login(a mailbox.Account) *client.Client {
	w.t.Helper()
	c := client.Dial(w.t, w.Addr(), client.Options{Timeout: time.Minute})
	c.ExpectCode("220")
	c.Plain(a.User, a.Password)
	return c
}

// before is what EHLO says of BURL before the login.
func (w *world) before() string {
	w.t.Helper()
	c := client.Dial(w.t, w.Addr(), client.Options{})
	defer c.Close()
	c.ExpectCode("220")
	return line(c.Do("EHLO x", "250"))
}

// begin opens a transaction, whatever there was before.
func begin(c *client.Client) {
	c.Do("RSET", "250")
	c.Do("MAIL FROM:<alice@example.test>", "250")
	c.Do("RCPT TO:<bob@dest.test>", "250")
}

// burl sends one BURL LAST, and returns the whole answer on one line.
func burl(c *client.Client, url string) string {
	begin(c)
	return bdat(c, "BURL "+url+" LAST")
}

func bdat(c *client.Client, line string) string {
	c.Send(line)
	return strings.Join(c.Reply(), "|")
}

// body is the latest message that the relay has, without its Received header.
func (w *world) body(n int) []byte {
	w.t.Helper()
	m := w.relay.WaitMessages(n)[n-1]
	_, rest, ok := bytes.Cut(m.Data, []byte("+0000\r\n"))
	if !ok || !m.Accepted {
		w.t.Fatalf("message %d: accepted %v, %.300q", n, m.Accepted, m.Data)
	}
	return rest
}

// plain is an URL without URLAUTH.
func plain(mailbox string, uid int, more string) string {
	return fmt.Sprintf("imap://%s/%s/;UID=%d%s", host, mailbox, uid, more)
}

// rump is what a token can be made for, by owner for reader.
func rump(owner, mailbox string, uid int, more, reader string) string {
	return fmt.Sprintf("imap://%s@%s/%s/;UID=%d%s;URLAUTH=submit+%s", strings.ReplaceAll(owner, "@", "%40"), host, mailbox, uid, more, strings.ReplaceAll(reader, "@", "%40"))
}

// A mail is a message that a mailbox is filled with.
var (
	simple = []byte("Subject: hello\r\nFrom: a@b\r\n\r\nbody of alice\r\n.dot line\r\n")
	parts  = []byte("Subject: parts\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\npreamble\r\n--b\r\n\r\nfirst\r\n.\r\n..\r\n--b\r\n" +
		"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + strings.Repeat("\x80\xff\xc3\xa4 \r\n.\xe4\r\n", 500) +
		"\r\n--b\r\nContent-Type: text/plain\r\n\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\ninner text\r\n--b--\r\n")
	base64ed = []byte("Subject: encoded\r\nMIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat("AAH/gA==\r\n", 2000))
)

// large is a message of n octets and a little.
func large(n int) []byte {
	const line = "0123456789 the quick brown fox jumps over the lazy dog 0123456789 .\r\n"
	b := bytes.NewBuffer(make([]byte, 0, n+200))
	b.WriteString("Subject: large\r\n\r\n")
	for b.Len() < n {
		fmt.Fprintf(b, "%09d ", b.Len())
		b.WriteString(line)
	}
	return b.Bytes()
}
