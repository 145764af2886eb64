package burl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovetail/internal/conf/settings"
	"dovetail/internal/dovecot/urlauth"
	"dovetail/internal/imapurl"
	"dovetail/internal/process/event"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/mailbox"
	"dovetail/internal/tlsconf"
)

const token = ":internal:0123456789abcdef0123456789abcdef01234567"

// url is one that alice may read.
const url = "imap://bob@mx.test/INBOX/;UID=1;URLAUTH=submit+alice" + token

// lines is a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) log() *event.Log {
	return event.New(event.SinkFunc(func(level event.Level, _, text string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all = append(l.all, level.String()+": "+text)
	}), "", true)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.all, "\n")
}

// of returns a fetcher from a server.
func of(t testing.TB, fake *mailbox.Fake, mode string) (*Fetcher, *lines) {
	t.Helper()
	s, err := NewServer(settings.BURLServer{Host: "127.0.0.1", Port: fake.Port, SSL: mode, User: "submit"}, "pass", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := &lines{}
	f := New(Options{Reader: imapurl.Reader{User: "alice", Host: "mx.test", Port: 143}, Server: s, Log: l.log()})
	t.Cleanup(f.Release)
	return f, l
}

// fetch returns what url stands for, or the refusal's text.
func fetch(t testing.TB, f *Fetcher, url string) ([]byte, string) {
	t.Helper()
	u, err := imapurl.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	body, err := f.Fetch(ctx, url, u)
	var data []byte
	if err == nil {
		data, err = io.ReadAll(body)
		body.Close()
	}
	if err == nil {
		return data, ""
	}
	var r *Refusal
	if !errors.As(err, &r) {
		t.Fatalf("no refusal: %v", err)
	}
	return data, r.Error()
}

const unavailable = "451 4.4.1 IMAP server unavailable"

// One connection serves the URLs of a message; when that has ended meanwhile another one
// does, once.
func TestConnections(t *testing.T) {
	leak.Check(t)
	var gone atomic.Bool
	fake := mailbox.StartFake(t, mailbox.FakeBehaviour{Fetch: func(n int, tag, url string, w io.Writer) bool {
		data := []byte(fmt.Sprint("number ", n))
		if gone.Load() {
			return false
		}
		if n == 3 {
			return false
		}
		mailbox.Answer(w, tag, url, len(data), data)
		return true
	}})
	f, log := of(t, fake, "no")
	if !f.Works() {
		t.Error("it works")
	}
	for i, want := range []string{"number 1", "number 2", "number 4"} {
		if got, refusal := fetch(t, f, url); string(got) != want {
			t.Errorf("fetch %d: %q %s", i, got, refusal)
		}
	}
	if n := fake.Logins(); n != 2 {
		t.Errorf("%d logins", n)
	}
	f.Release()
	if _, refusal := fetch(t, f, url); refusal != "" || fake.Logins() != 3 {
		t.Errorf("after Release: %s, %d logins", refusal, fake.Logins())
	}
	gone.Store(true)
	if _, refusal := fetch(t, f, url); refusal != unavailable || fake.Logins() != 4 {
		t.Errorf("gone: %s, %d logins", refusal, fake.Logins())
	}
	f.Release()
	if got := log.String(); !strings.HasPrefix(got, "Debug: burl: URLs with URLAUTH are fetched by an IMAP server: dovetail_burl_imap_host is set\nError: burl: ") || strings.Contains(got, "pass") {
		t.Errorf("log: %s", got)
	}
}

// Whatever the server does amiss, there is no end of the data, and the next URL is fetched
// by a new connection.
func TestServerAmiss(t *testing.T) {
	leak.Check(t)
	data := bytes.Repeat([]byte("0123456789\r\n"), 1000)
	for name, c := range map[string]struct {
		does  func(tag, url string, w io.Writer) bool
		reply string
		log   string
	}{
		"closes": {func(tag, url string, w io.Writer) bool { return false }, unavailable, "unexpected EOF"},
		"closes inside": {func(tag, url string, w io.Writer) bool {
			fmt.Fprintf(w, "* URLFETCH %q (BODY {%d}\r\n%s", url, 2*len(data), data)
			return false
		}, unavailable, "unexpected EOF"},
		"closes behind": {func(tag, url string, w io.Writer) bool {
			fmt.Fprintf(w, "* URLFETCH %q (BODY {%d}\r\n%s", url, len(data), data)
			return false
		}, unavailable, "unexpected EOF"},
		"no tag": {func(tag, url string, w io.Writer) bool {
			fmt.Fprintf(w, "* URLFETCH %q (BODY {%d}\r\n%s)\r\n", url, len(data), data)
			return false
		}, unavailable, "unexpected EOF"},
		"silent": {func(tag, url string, w io.Writer) bool { return true }, unavailable, "timeout"},
		"silent inside": {func(tag, url string, w io.Writer) bool {
			fmt.Fprintf(w, "* URLFETCH %q (BODY {%d}\r\n%s", url, 2*len(data), data)
			return true
		}, unavailable, "timeout"},
		"says more":       {func(tag, url string, w io.Writer) bool { mailbox.Answer(w, tag, url, len(data)+1, data); return true }, unavailable, "broke the protocol"},
		"says less":       {func(tag, url string, w io.Writer) bool { mailbox.Answer(w, tag, url, len(data)-1, data); return true }, unavailable, "broke the protocol"},
		"says a lot less": {func(tag, url string, w io.Writer) bool { mailbox.Answer(w, tag, url, 5, data); return true }, unavailable, "broke the protocol"},
		"far too much": {func(tag, url string, w io.Writer) bool {
			fmt.Fprintf(w, "* URLFETCH %q (BODY {99999999999999999999}\r\n", url)
			return true
		}, unavailable, "broke the protocol"},
		"another URL": {func(tag, url string, w io.Writer) bool {
			mailbox.Answer(w, tag, url+"x", 5, []byte("hello"))
			return true
		}, unavailable, "broke the protocol"},
		"twice": {func(tag, url string, w io.Writer) bool {
			fmt.Fprintf(w, "* URLFETCH %q (BODY {5}\r\nhello)\r\n* URLFETCH %q (BODY {5}\r\nhello)\r\n%s OK\r\n", url, url, tag)
			return true
		}, unavailable, "the same data twice"},
		"NO behind": {func(tag, url string, w io.Writer) bool {
			fmt.Fprintf(w, "* URLFETCH %q (BODY {5}\r\nhello)\r\n%s NO [SERVERBUG] sorry\r\n", url, tag)
			return true
		}, unavailable, "answered NO [SERVERBUG] sorry"},
		"BYE": {func(tag, url string, w io.Writer) bool { io.WriteString(w, "* BYE idle\r\n"); return false }, unavailable, "answered BYE idle"},
		"NIL": {func(tag, url string, w io.Writer) bool {
			fmt.Fprintf(w, "* URLFETCH %q NIL\r\n%s OK\r\n", url, tag)
			return true
		}, "554 5.6.6 IMAP URLAUTH resolution failed", ""},
		"nothing": {func(tag, url string, w io.Writer) bool { fmt.Fprintf(w, "%s OK\r\n", tag); return true }, "554 5.6.6 IMAP URLAUTH resolution failed", ""},
		"NO":      {func(tag, url string, w io.Writer) bool { fmt.Fprintf(w, "%s NO no\r\n", tag); return true }, "554 5.6.6 IMAP URLAUTH resolution failed", ""},
		"BAD":     {func(tag, url string, w io.Writer) bool { fmt.Fprintf(w, "%s BAD url\r\n", tag); return true }, "554 5.6.6 IMAP URLAUTH resolution failed", ""},
		"busy":    {func(tag, url string, w io.Writer) bool { fmt.Fprintf(w, "%s NO [INUSE] later\r\n", tag); return true }, unavailable, "answered NO [INUSE] later"},
	} {
		t.Run(name, func(t *testing.T) {
			fake := mailbox.StartFake(t, mailbox.FakeBehaviour{Fetch: func(n int, tag, url string, w io.Writer) bool {
				if n > 1 {
					mailbox.Answer(w, tag, url, len(data), data)
					return true
				}
				return c.does(tag, url, w)
			}})
			f, log := of(t, fake, "no")
			f.timeout = 200 * time.Millisecond
			if _, got := fetch(t, f, url); got != c.reply {
				t.Errorf("%s, want %s", got, c.reply)
			}
			if c.log != "" && !strings.Contains(log.String(), c.log) {
				t.Errorf("log: %s", log)
			}
			if got, refusal := fetch(t, f, url); !bytes.Equal(got, data) {
				t.Errorf("afterwards: %d octets, %s", len(got), refusal)
			}
			f.Release()
		})
	}
}

// A server that cannot be logged in to is told of in the log, without the password.
func TestLoginAmiss(t *testing.T) {
	for name, c := range map[string]struct {
		b    mailbox.FakeBehaviour
		mode string
		log  string
	}{
		"BYE":              {mailbox.FakeBehaviour{Greeting: "* BYE full\r\n"}, "no", "answered BYE full"},
		"no IMAP":          {mailbox.FakeBehaviour{Greeting: "220 mx ESMTP\r\n"}, "no", "broke the protocol"},
		"refused":          {mailbox.FakeBehaviour{Login: "NO [AUTHENTICATIONFAILED] no pass"}, "no", "login of submit: IMAP server answered NO [AUTHENTICATIONFAILED]"},
		"no URLAUTH":       {mailbox.FakeBehaviour{Caps: "IMAP4rev1 AUTH=PLAIN SASL-IR"}, "no", "it has no URLAUTH"},
		"no login":         {mailbox.FakeBehaviour{Caps: "IMAP4rev1 URLAUTH LOGINDISABLED"}, "no", "neither AUTH=PLAIN nor LOGIN"},
		"no STARTTLS":      {mailbox.FakeBehaviour{}, "starttls", "STARTTLS: IMAP server answered BAD"},
		"PREAUTH in clear": {mailbox.FakeBehaviour{Greeting: "* PREAUTH hello\r\n"}, "starttls", "before STARTTLS"},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			fake := mailbox.StartFake(t, c.b)
			f, log := of(t, fake, "no")
			f.o.Server.set.SSL = c.mode
			if _, got := fetch(t, f, url); got != unavailable {
				t.Error(got)
			}
			if !strings.Contains(log.String(), "Error: burl: IMAP server "+fake.Addr+": ") || !strings.Contains(log.String(), c.log) {
				t.Errorf("log: %s", log)
			}
			if c.mode == "starttls" && strings.Contains(fake.Commands(), "AUTHENTICATE") {
				t.Error("the password went in clear")
			}
		})
	}
}

// A session that ends while the server is waited for ends the wait.
func TestCancelled(t *testing.T) {
	leak.Check(t)
	asked := make(chan struct{})
	fake := mailbox.StartFake(t, mailbox.FakeBehaviour{Fetch: func(n int, tag, url string, w io.Writer) bool { close(asked); return true }})
	f, log := of(t, fake, "no")
	u, err := imapurl.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { // ends when the server was asked
		<-asked
		cancel()
	}()
	if _, err := f.Fetch(ctx, url, u); err == nil {
		t.Error("data from nowhere")
	}
	f.Release()
	if strings.Contains(log.String(), "Error") {
		t.Errorf("log: %s", log)
	}
}

// What is checked is checked before anybody is asked.
func TestNotAsked(t *testing.T) {
	fake := mailbox.StartFake(t, mailbox.FakeBehaviour{})
	f, _ := of(t, fake, "no")
	at := `554 5.6.6 IMAP URLAUTH resolution failed: Failed to fetch URLAUTH "`
	for in, want := range map[string]string{
		"imap://bob@mx.test/INBOX/;UID=1;URLAUTH=submit+bob" + token:                               "No 'submit+bob' access allowed for user alice",
		"imap://bob@mx.test/INBOX/;UID=1;URLAUTH=anonymous" + token:                                "No 'anonymous' access allowed for submission service",
		"imap://bob@mx.test/INBOX/;UID=1;URLAUTH=authuser" + token:                                 "No 'authuser' access allowed for submission service",
		"imap://bob@mx.test/INBOX/;UID=1;EXPIRE=2001-01-01T00:00:00Z;URLAUTH=submit+alice" + token: "URLAUTH has expired",
		"imap://bob@other.test/INBOX/;UID=1;URLAUTH=submit+alice" + token:                          "Invalid URL: Inappropriate host name",
		"imap://bob@mx.test:144/INBOX/;UID=1;URLAUTH=submit+alice" + token:                         "Invalid URL: Inappropriate server port",
		"imap://bob@mx.test/INBOX/;UID=1;URLAUTH=submit+alice":                                     "Invalid URL: Must be a full URLAUTH URL",
		"imap://bob@mx.test/%ff/;UID=1;URLAUTH=submit+alice" + token:                               "Invalid URLAUTH: Mailbox name is not UTF-8",
	} {
		if _, got := fetch(t, f, in); got != at+in+`": `+want {
			t.Errorf("%s\n got %s\nwant %s", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"imap://bob@mx.test/INBOX/;UID=1/;SECTION=X;URLAUTH=submit+alice" + token: "554 5.6.6 IMAP URLAUTH resolution failed",
		"imap://mx.test/INBOX/;UID=1":        "554 5.7.14 No IMAP access available",
		"imap://mx.test/%ff/;UID=1":          "554 5.6.6 IMAP URL resolution failed: Mailbox name is not UTF-8",
		"imap://other.test/INBOX/;UID=1":     "554 5.6.6 IMAP URL resolution failed: Inappropriate or missing host name",
		"imap://mx.test/INBOX":               "554 5.6.6 IMAP URL resolution failed: Invalid messagepart IMAP URL",
		"imap://mx.test/a/;UID=1/;SECTION=X": "554 5.6.6 IMAP URL resolution failed: Invalid section",
	} {
		if _, got := fetch(t, f, in); got != want {
			t.Errorf("%s\n got %s\nwant %s", in, got, want)
		}
	}
	if got := fake.Commands(); got != "" {
		t.Errorf("asked: %s", got)
	}
}

// Ways are closed without what they need, and the first of these is the reason.
func TestWays(t *testing.T) {
	dir := t.TempDir()
	nowhere, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer nowhere.sockets.Close()
	socket := filepath.Join(dir, "imap-urlauth")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	direct, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.sockets.Close()
	reader := imapurl.Reader{User: "alice", Host: "mx.test", Port: 143}
	login := urlauth.Login{Token: "x"}
	program := func() (urlauth.Program, error) { return urlauth.Program{}, errors.New("none") }
	for name, c := range map[string]struct {
		o         Options
		auth, own way
	}{
		"no host":       {Options{Attributes: true, Login: login, Services: direct, Program: program}, noWay, noWay},
		"nothing":       {Options{Reader: reader, Attributes: true, Login: login}, noWay, noWay},
		"no services":   {Options{Reader: reader, Attributes: true, Login: login, Services: nowhere}, noWay, noWay},
		"socket":        {Options{Reader: reader, Attributes: true, Login: login, Services: direct}, bySocket, noWay},
		"no attributes": {Options{Reader: reader, Login: login, Services: direct, Program: program}, noWay, byProgram},
		"no token":      {Options{Reader: reader, Attributes: true, Services: direct, Program: program}, noWay, byProgram},
		"chroot":        {Options{Reader: reader, Attributes: true, Login: login, Services: direct, Program: program, Chroot: true}, noWay, noWay},
		"server":        {Options{Reader: reader, Services: direct, Program: program, Server: &Server{}, Chroot: true}, byServer, noWay},
	} {
		f := New(c.o)
		auth, whyAuth := f.authWay()
		own, whyOwn := f.ownWay()
		if auth != c.auth || own != c.own || whyAuth == "" || whyOwn == "" || f.Works() != (auth != noWay || own != noWay) {
			t.Errorf("%s: %v (%s), %v (%s)", name, auth, whyAuth, own, whyOwn)
		}
	}
}

// A login that the imap service would not know as it is gets the program, and while that is
// not known nothing.
func TestDiffers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"token-login/tokenlogin", "login/imap"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	services, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer services.sockets.Close()
	asked, why, fails := 0, "", errors.New("nobody knows")
	l := &lines{}
	f := New(Options{
		Reader: imapurl.Reader{User: "alice", Host: "mx.test", Port: 143}, Login: urlauth.Login{Token: "x"}, Services: services, Log: l.log(),
		Program: func() (urlauth.Program, error) { return urlauth.Program{}, errors.New("as it happens") },
		Differs: func(context.Context) (string, error) { asked++; return why, fails },
	})
	own := "imap://mx.test/INBOX/;UID=1"
	for range 2 {
		if _, refusal := fetch(t, f, own); refusal != unavailable {
			t.Error(refusal)
		}
		why, fails = "it has a beard", nil
	}
	if _, refusal := fetch(t, f, own); refusal != unavailable || asked != 2 {
		t.Error(refusal, asked)
	}
	const failed = "Error: burl: IMAP session of the user: imap program: as it happens\n"
	want := "Error: burl: IMAP session of the user: nobody knows\nDebug: burl: URLs without URLAUTH are fetched by running imap: it has a beard\n" + failed + failed
	if got := l.String() + "\n"; got != want {
		t.Errorf("log\n%swant\n%s", got, want)
	}
}

// A program that does not start, or is no imap, is a temporary failure.
func TestProgramAmiss(t *testing.T) {
	for path, want := range map[string]string{"/nonexistent": "no such file or directory", "/bin/true": "unexpected EOF", "/bin/cat": "timeout"} {
		leak.Check(t)
		l := &lines{}
		f := New(Options{Reader: imapurl.Reader{User: "alice", Host: "mx.test", Port: 143}, Log: l.log(),
			Program: func() (urlauth.Program, error) { return urlauth.Program{Path: path}, nil }})
		f.timeout = 200 * time.Millisecond
		if _, got := fetch(t, f, "imap://mx.test/INBOX/;UID=1"); got != unavailable || !strings.Contains(l.String(), "Error: burl: IMAP session of the user: imap program: ") || !strings.Contains(l.String(), want) {
			t.Errorf("%s: %s\n%s", path, got, l)
		}
	}
}

func TestReadPassword(t *testing.T) {
	dir := t.TempDir()
	write := func(name, data string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(data), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		data string
		mode os.FileMode
		want string // password, or after ! what is wrong
	}{
		"good": {"pä ss\n", 0o600, "pä ss"}, "bare": {"pass", 0o400, "pass"}, "crlf": {"pass\r\n", 0o600, "pass"}, "longest": {strings.Repeat("x", maxPassword), 0o600, strings.Repeat("x", maxPassword)},
		"group": {"x", 0o640, "!has mode 0640 (want 0600 or 0400: for its owner alone)"}, "others": {"x", 0o604, "!has mode 0604"}, "empty": {"\n", 0o600, "!is empty"},
		"lines": {"a\nb\n", 0o600, "!has more than one line"}, "nul": {"a\x00b\n", 0o600, "!has more than one line"}, "long": {strings.Repeat("x", maxPassword+1), 0o600, "!has more than 1024 octets"},
	} {
		got, err := ReadPassword(write(name, c.data, c.mode))
		if why, bad := strings.CutPrefix(c.want, "!"); bad && (err == nil || !strings.Contains(err.Error(), why)) || !bad && (err != nil || got != c.want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err != nil && c.data != "x" && strings.Contains(err.Error(), strings.TrimSpace(c.data)) && strings.TrimSpace(c.data) != "" {
			t.Errorf("%s: the error shows the password: %v", name, err)
		}
	}
	for path, want := range map[string]string{"": "is not set", dir: "is no file", dir + "/none": "no such file"} {
		if _, err := ReadPassword(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if os.Geteuid() == 0 {
		path := write("foreign", "x", 0o600)
		if err := os.Chown(path, 12001, 12001); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadPassword(path); err == nil || !strings.Contains(err.Error(), "belongs to uid 12001 (want root)") {
			t.Error(err)
		}
	}
}

func TestWithoutTiming(t *testing.T) {
	for in, want := range map[string]string{
		"Mailbox doesn't exist: none (0.001 + 0.000 secs).": "Mailbox doesn't exist: none", "x (0.001 + 0.000 + 0.001 secs).": "x", "x": "x", "x (y secs).": "x (y secs).", " secs).": " secs).", "": "",
	} {
		if got := withoutTiming(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestServerPorts(t *testing.T) {
	ssl, errs := settings.Decode[settings.SSL](func(string) (string, bool) { return "", false })
	outgoing, _, err := tlsconf.NewOutgoing(ssl)
	if err != nil || len(errs) > 0 {
		t.Fatal(err, errs)
	}
	for mode, want := range map[string]string{"no": "IMAP server mx.test:143", "starttls": "IMAP server mx.test:143", "imaps": "IMAP server mx.test:993"} {
		got, err := NewServer(settings.BURLServer{Host: "mx.test", SSL: mode, User: "submit"}, "x", outgoing, nil)
		if err != nil || got.name() != want || (got.tls == nil) != (mode == "no") {
			t.Errorf("%s: %v, %v", mode, got, err)
		}
	}
	if _, err := NewServer(settings.BURLServer{Host: "mx.test", SSL: "no"}, "x", nil, nil); err == nil {
		t.Error("no user")
	}
}
