package imap

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/tlsfiles"
)

// A step of a scripted server: it wants a line ("" is none), in which $ is the tag, and
// sends an answer.
type step struct{ want, send string }

// serve returns the client's end of a connection to a server that follows the steps. The
// server reads on afterwards, until the client closes; with "close" as the last answer it
// closes itself.
func serve(t testing.TB, steps ...step) net.Conn {
	t.Helper()
	server, client := socketPair(t)
	done := make(chan struct{})
	go func() { // ends with the steps and the client's end
		defer close(done)
		defer server.Close()
		play(t, server, steps)
	}()
	t.Cleanup(func() {
		client.Close()
		<-done
	})
	return client
}

func play(t testing.TB, server net.Conn, steps []step) {
	br := bufio.NewReader(server)
	for _, s := range steps {
		tag := ""
		if s.want != "" {
			l, err := br.ReadString('\n')
			if err != nil {
				t.Errorf("%q was expected: %v", s.want, err)
				return
			}
			if l = strings.TrimSuffix(l, "\r\n"); strings.HasPrefix(s.want, "$ ") {
				tag, _, _ = strings.Cut(l, " ")
			}
			if want := strings.Replace(s.want, "$", tag, 1); l != want {
				t.Errorf("client sent %q, want %q", l, want)
				return
			}
		}
		if s.send == "close" {
			return
		}
		_, _ = io.WriteString(server, strings.ReplaceAll(s.send, "$", tag))
	}
	_, _ = io.Copy(io.Discard, br)
}

// socketPair returns two ends of a TCP connection: a pipe would have no buffer.
func socketPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if b, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if a, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

const greeting = "* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN URLAUTH] ready\r\n"

func connect(t testing.TB, steps ...step) *Conn {
	t.Helper()
	c, err := New(context.Background(), serve(t, steps...), Options{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestGreeting(t *testing.T) {
	for greeting, want := range map[string]string{
		"* OK hello\r\n": "", "* ok [CAPABILITY X] hello\n": "", "* PREAUTH hello\r\n": "",
		"* BYE [UNAVAILABLE] too many\r\n": "IMAP server answered BYE [UNAVAILABLE] too many",
		"* NO x\r\n":                       "IMAP server broke the protocol: greeting \"NO\"",
		"220 mx ESMTP\r\n":                 "IMAP server broke the protocol: '2' where '*' should be",
		"":                                 "unexpected EOF",
		"* OK hel":                         "unexpected EOF",
		"* OK " + strings.Repeat("x", maxLine) + "\r\n": "IMAP server broke the protocol: a line of more than 16384 octets",
	} {
		c, err := New(context.Background(), serve(t, step{"", greeting}, step{"", "close"}), Options{})
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%.30q: %v, want %q", greeting, err, want)
		}
		if err == nil {
			if c.Preauth != strings.Contains(greeting, "PREAUTH") {
				t.Errorf("%q: preauth %v", greeting, c.Preauth)
			}
			c.Close()
		}
	}
}

// The way to log in that fits the server is taken.
func TestLogin(t *testing.T) {
	for _, c := range []struct {
		what, user, password string
		steps                []step
		err                  string
	}{
		{"initial response", "alice", "pass", []step{{"", greeting}, {"$ AUTHENTICATE PLAIN AGFsaWNlAHBhc3M=", "* x\r\n$ OK in\r\n"}}, ""},
		{"without", "alice", "pass", []step{{"", "* OK [CAPABILITY AUTH=PLAIN] x\r\n"}, {"$ AUTHENTICATE PLAIN", "* 1 EXISTS\r\n+ \r\n"}, {"AGFsaWNlAHBhc3M=", "A1 OK in\r\n"}}, ""},
		{"LOGIN", "al\"ice", `p\s`, []step{{"", "* OK x\r\n"}, {"$ CAPABILITY", "* CAPABILITY IMAP4rev1\r\n$ OK x\r\n"}, {`$ LOGIN "al\"ice" "p\\s"`, "$ OK in\r\n"}}, ""},
		{"LOGIN with literals", "älice", "pä", []step{{"", "* OK [CAPABILITY X] x\r\n"}, {"$ LOGIN {6}", "+ go\r\n"}, {"älice {3}", "+ go\r\n"}, {"pä", "A1 OK in\r\n"}}, ""},
		{"refused", "alice", "pass", []step{{"", greeting}, {"$ AUTHENTICATE PLAIN AGFsaWNlAHBhc3M=", "$ NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"}},
			"IMAP server answered NO [AUTHENTICATIONFAILED] Authentication failed."},
		{"refused early", "alice", "pass", []step{{"", "* OK [CAPABILITY AUTH=PLAIN] x\r\n"}, {"$ AUTHENTICATE PLAIN", "$ NO never\r\n"}}, "IMAP server answered NO never"},
		{"accepted too early", "alice", "pass", []step{{"", "* OK [CAPABILITY AUTH=PLAIN] x\r\n"}, {"$ AUTHENTICATE PLAIN", "$ OK fine\r\n"}}, "IMAP server broke the protocol: OK before the command was complete"},
		{"no way", "alice", "pass", []step{{"", "* OK [CAPABILITY LOGINDISABLED] x\r\n"}}, ErrNoLogin.Error()},
		{"bye", "alice", "pass", []step{{"", greeting}, {"$ AUTHENTICATE PLAIN AGFsaWNlAHBhc3M=", "* BYE out of memory\r\n"}, {"", "close"}}, "IMAP server answered BYE out of memory"},
		{"NUL", "alice", "sesa\x00me", []step{{"", greeting}}, "imap: NUL in user name or password"},
	} {
		conn := connect(t, c.steps...)
		err := conn.Login(context.Background(), c.user, c.password)
		if (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: %v, want %q", c.what, err, c.err)
		}
		if err != nil && strings.Contains(err.Error(), c.password) {
			t.Errorf("%s: the password shows: %v", c.what, err)
		}
	}
}

// What comes in clear behind the answer to STARTTLS is not taken for protected.
func TestStartTLS(t *testing.T) {
	pair := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "imap.example", Names: []string{"imap.example"}})
	config := &tls.Config{RootCAs: pair.Pool(), ServerName: "imap.example"}

	server, client := socketPair(t)
	done := make(chan struct{})
	go func() { // ends with the steps
		defer close(done)
		defer server.Close()
		play := func(conn net.Conn, want, send string) {
			l, _ := bufio.NewReader(conn).ReadString('\n')
			if strings.TrimSpace(l) != want {
				t.Errorf("client sent %q, want %q", l, want)
			}
			_, _ = io.WriteString(conn, send)
		}
		_, _ = io.WriteString(server, "* OK [CAPABILITY STARTTLS LOGINDISABLED] x\r\n")
		play(server, "A1 STARTTLS", "A1 OK go\r\n")
		conn := tls.Server(server, &tls.Config{Certificates: []tls.Certificate{pair.TLS()}})
		play(conn, "A2 CAPABILITY", "* CAPABILITY AUTH=PLAIN SASL-IR\r\nA2 OK x\r\n")
		play(conn, "A3 AUTHENTICATE PLAIN AGEAYg==", "A3 OK x\r\n")
		_, _ = io.Copy(io.Discard, conn)
	}()
	c, err := New(context.Background(), client, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.StartTLS(context.Background(), config); err != nil {
		t.Fatal(err)
	}
	if err := c.Login(context.Background(), "a", "b"); err != nil {
		t.Error(err)
	}
	c.Close()
	<-done

	c = connect(t, step{"", greeting}, step{"$ STARTTLS", "$ OK go\r\n* CAPABILITY AUTH=PLAIN\r\n"})
	if err := c.StartTLS(context.Background(), config); !errors.Is(err, ErrProtocol) {
		t.Errorf("data in clear: %v", err)
	}
	if _, err := c.Has(context.Background(), "X"); err == nil {
		t.Error("and the connection is used on")
	}
	c = connect(t, step{"", greeting}, step{"$ STARTTLS", "$ BAD no\r\n"})
	if err := c.StartTLS(context.Background(), config); err == nil || !strings.Contains(err.Error(), "BAD") {
		t.Errorf("no TLS: %v", err)
	}
}

func TestExamine(t *testing.T) {
	c := connect(t, step{"", greeting},
		step{`$ EXAMINE "a\"b&AOQ-&-"`, "* FLAGS (\\Seen)\r\n* 3 EXISTS\r\n* OK [PERMANENTFLAGS ()] x\r\n* OK [UIDVALIDITY 4294967295] UIDs valid\r\n$ OK [READ-ONLY] done\r\n"},
		step{`$ EXAMINE "none"`, "$ NO [NONEXISTENT] Mailbox doesn't exist: none (0.001 + 0.000 secs).\r\n"},
		step{`$ EXAMINE "x"`, "$ OK done\r\n"})
	ctx := context.Background()
	if v, err := c.Examine(ctx, `a"bä&`); v != 4294967295 || err != nil {
		t.Error(v, err)
	}
	var st *StatusError
	if _, err := c.Examine(ctx, "none"); !errors.As(err, &st) || st.Code != "NONEXISTENT" || st.Text != "Mailbox doesn't exist: none (0.001 + 0.000 secs)." {
		t.Error(err)
	}
	if v, err := c.Examine(ctx, "x"); v != 0 || err != nil {
		t.Error(v, err)
	}
	if _, err := c.Examine(ctx, "\xff"); !errors.Is(err, ErrName) {
		t.Error(err)
	}
}

// The forms in which message data comes, and what may stand around it.
func TestFetch(t *testing.T) {
	for _, c := range []struct {
		what, answer, data string
		err                string // of Fetch, or of reading
	}{
		{"literal", "* 1 FETCH (UID 7 BODY[TEXT] {5}\r\nhello)\r\n$ OK x\r\n", "hello", ""},
		{"quoted", "* 1 FETCH (UID 7 BODY[TEXT] \"he\\\"llo\")\r\n$ OK x\r\n", `he"llo`, ""},
		{"NIL", "* 1 FETCH (UID 7 BODY[TEXT] NIL)\r\n$ OK x\r\n", "", ""},
		{"empty", "* 1 FETCH (UID 7 BODY[TEXT] {0}\r\n)\r\n$ OK x\r\n", "", ""},
		{"literal8", "* 1 FETCH (UID 7 BODY[TEXT] ~{3}\r\na\x00b)\r\n$ OK x\r\n", "a\x00b", ""},
		{"UID behind", "* 1 FETCH (BODY[TEXT] {2}\r\nhi UID 7)\r\n$ OK x\r\n", "hi", ""},
		{"origin", "* 1 FETCH (UID 7 BODY[TEXT]<5> {2}\r\nhi)\r\n$ OK x\r\n", "hi", ""},
		{"fields", "* 1 FETCH (UID 7 BODY[HEADER.FIELDS (\"a]b\")] {2}\r\nhi)\r\n$ OK x\r\n", "hi", ""},
		{"quotes in fields", "* 1 FETCH (UID 7 BODY[HEADER.FIELDS (\"a\\\"]b\")] {2}\r\nhi)\r\n$ OK x\r\n", "hi", ""},
		{"among others", "* 3 EXISTS\r\n* 1 FETCH (FLAGS (\\Seen))\r\n* OK [ALERT] {5}\r\n* 1 FETCH (FLAGS (\\Seen (a {2}\r\nxx)) UID 7 X-A NIL BODY[TEXT] {2}\r\nhi MODSEQ (5))\r\n* 2 FETCH (FLAGS ())\r\n$ OK x\r\n", "hi", ""},
		{"LF alone", "* 1 FETCH (UID 7 BODY[TEXT] {2}\nhi)\n$ OK x\n", "hi", ""},
		{"none", "* 1 EXISTS\r\n$ OK x\r\n", "", ErrNotFound.Error()},
		{"refused", "$ NO [SERVERBUG] not now\r\n", "", "IMAP server answered NO [SERVERBUG] not now"},
		{"refused afterwards", "* 1 FETCH (UID 7 BODY[TEXT] {2}\r\nhi)\r\n$ NO disk\r\n", "hi", "IMAP server answered NO disk"},
		{"another message", "* 1 FETCH (UID 8 BODY[TEXT] {2}\r\nhi)\r\n$ OK x\r\n", "", "IMAP server broke the protocol: message 8, but 7 was asked for"},
		{"another message behind", "* 1 FETCH (BODY[TEXT] {2}\r\nhi UID 8)\r\n$ OK x\r\n", "hi", "IMAP server broke the protocol: message 8, but 7 was asked for"},
		{"too short", "* 1 FETCH (UID 7 BODY[TEXT] {2}\r\nhello)\r\n$ OK x\r\n", "he", "IMAP server broke the protocol: "},
		{"too long", "* 1 FETCH (UID 7 BODY[TEXT] {20}\r\nhello)\r\n$ OK x\r\nclose", "hello)\r\n$ OK x\r\nclose", "unexpected EOF"},
		{"twice", "* 1 FETCH (UID 7 BODY[TEXT] {2}\r\nhi)\r\n* 1 FETCH (UID 7 BODY[TEXT] {2}\r\nhi)\r\n$ OK x\r\n", "hi", "IMAP server broke the protocol: the same data twice"},
		{"wrong tag", "B9 OK x\r\n", "", "IMAP server broke the protocol: answer \"B9\" \"OK\""},
		{"bye", "* BYE going\r\nclose", "", "IMAP server answered BYE going"},
		{"size", "* 1 FETCH (UID 7 BODY[TEXT] {99999999999999999999}\r\n", "", `IMAP server broke the protocol: literal of "99999999999999999999" octets`},
		{"negative", "* 1 FETCH (UID 7 BODY[TEXT] {-1}\r\n", "", `IMAP server broke the protocol: literal of "-1" octets`},
		{"deep", "* 1 FETCH (X " + strings.Repeat("(", 100) + "\r\n", "", "IMAP server broke the protocol: lists in lists"},
		{"flood", strings.Repeat("* X "+strings.Repeat("x", 1000)+"\r\n", 1100), "", "IMAP server broke the protocol: an answer of more than 1048576 octets"},
		{"long line", "* 1 FETCH (X " + strings.Repeat("x", maxLine) + "\r\n", "", "IMAP server broke the protocol: a line of more than 16384 octets"},
		{"huge literal elsewhere", "* 1 FETCH (X {9999999999}\r\n", "", "IMAP server broke the protocol: an answer of more than 1048576 octets"},
		{"continuation", "+ go\r\n", "", "IMAP server broke the protocol: continuation that nobody asked for"},
	} {
		answer, closes := strings.CutSuffix(c.answer, "close")
		steps := []step{{"", greeting}, {"$ UID FETCH 7 (UID BODY.PEEK[TEXT])", answer}}
		if closes {
			steps = append(steps, step{"", "close"})
			c.data = strings.TrimSuffix(c.data, "close")
		} else {
			steps = append(steps, step{"$ UID FETCH 9 (UID BODY.PEEK[]<5.4294967295>)", "* 2 FETCH (UID 9 BODY[]<5> {2}\r\nyo)\r\n$ OK x\r\n"})
		}
		func() {
			// What breaks the protocol ends the script before its last step.
			client := serve(quiet{t}, steps...)
			conn, err := New(context.Background(), client, Options{Timeout: 10 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			body, err := conn.Fetch(context.Background(), 7, Part{Section: "TEXT"})
			var data []byte
			if err == nil {
				data, err = io.ReadAll(body)
				if int(body.Size) < len(data) {
					t.Errorf("%s: size %d", c.what, body.Size)
				}
			}
			if c.what == "too long" {
				c.data = strings.ReplaceAll(c.data, "$", "A1")
			}
			if string(data) != c.data || (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
				t.Errorf("%s: %q, %v, want %q, %q", c.what, data, err, c.data, c.err)
			}
			// The connection is usable, or says why not.
			var st *StatusError
			usable := err == nil || errors.Is(err, ErrNotFound) || errors.As(err, &st) && st.Status == "NO"
			body, err = conn.Fetch(context.Background(), 9, Part{Partial: true, Offset: 5})
			if (err == nil) != usable {
				t.Errorf("%s: and then: %v", c.what, err)
			}
			if err == nil {
				if data, err := io.ReadAll(body); string(data) != "yo" || err != nil {
					t.Errorf("%s: and then %q, %v", c.what, data, err)
				}
			}
		}()
	}
}

// quiet is a test whose scripts may end before their last step.
type quiet struct{ testing.TB }

func (quiet) Errorf(string, ...any) {}

// URLFETCH in both forms.
func TestURLFetch(t *testing.T) {
	const url = "imap://a@mx/INBOX/;UID=1;URLAUTH=submit+b:internal:01"
	for _, c := range []struct{ what, caps, command, answer, data, err string }{
		{"plain", "URLAUTH", `URLFETCH "` + url + `"`, "* URLFETCH \"" + url + "\" {2}\r\nhi\r\n$ OK x\r\n", "hi", ""},
		{"URL as literal", "URLAUTH", `URLFETCH "` + url + `"`, "* URLFETCH {53}\r\n" + url + " \"hi\"\r\n$ OK x\r\n", "hi", ""},
		{"URL as atom", "URLAUTH", `URLFETCH "` + url + `"`, "* URLFETCH " + url + " \"hi\"\r\n$ OK x\r\n", "hi", ""},
		{"refused", "URLAUTH", `URLFETCH "` + url + `"`, "* URLFETCH \"" + url + "\" NIL\r\n$ OK x\r\n", "", ErrRefused.Error()},
		{"no word", "URLAUTH", `URLFETCH "` + url + `"`, "$ OK x\r\n", "", ErrRefused.Error()},
		{"bad", "URLAUTH", `URLFETCH "` + url + `"`, "$ BAD Invalid arguments.\r\n", "", "IMAP server answered BAD Invalid arguments."},
		{"binary", "URLAUTH=BINARY", `URLFETCH ("` + url + `" BODY)`, "* URLFETCH \"" + url + "\" (BODY ~{3}\r\nh\x00i)\r\n$ OK x\r\n", "h\x00i", ""},
		{"binary, quoted name", "URLAUTH=BINARY", `URLFETCH ("` + url + `" BODY)`, "* URLFETCH \"" + url + "\" (\"BODY\" {2}\r\nhi)\r\n$ OK x\r\n", "hi", ""},
		{"binary, refused", "URLAUTH=BINARY", `URLFETCH ("` + url + `" BODY)`, "* URLFETCH \"" + url + "\" NIL\r\n$ OK x\r\n", "", ErrRefused.Error()},
		{"binary, refused in a list", "URLAUTH=BINARY", `URLFETCH ("` + url + `" BODY)`, "* URLFETCH \"" + url + "\" (BODY NIL)\r\n$ OK x\r\n", "", ErrRefused.Error()},
		{"another URL", "URLAUTH", `URLFETCH "` + url + `"`, "* URLFETCH \"" + url + "2\" {2}\r\nhi\r\n$ OK x\r\n", "", "IMAP server broke the protocol: data of another URL than was asked for"},
		{"another item", "URLAUTH=BINARY", `URLFETCH ("` + url + `" BODY)`, "* URLFETCH \"" + url + "\" (BINARY {2}\r\nhi)\r\n$ OK x\r\n", "", `IMAP server broke the protocol: item "BINARY", but BODY was asked for`},
		{"junk behind", "URLAUTH", `URLFETCH "` + url + `"`, "* URLFETCH \"" + url + "\" {2}\r\nhi there\r\n$ OK x\r\n", "hi", "IMAP server broke the protocol: \" there\" where a line should end"},
	} {
		conn := connect(t, step{"", "* OK [CAPABILITY " + c.caps + "] x\r\n"}, step{"$ " + c.command, c.answer})
		body, err := conn.URLFetch(context.Background(), url)
		var data []byte
		if err == nil {
			data, err = io.ReadAll(body)
		}
		if string(data) != c.data || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: %q, %v, want %q, %q", c.what, data, err, c.data, c.err)
		}
	}
}

// A silent server costs its timeout, and a context ends every wait at once, also in the
// middle of data.
func TestWaitsEnd(t *testing.T) {
	leak.Check(t)
	conn, err := New(context.Background(), serve(t, step{"", greeting}, step{"$ LOGOUT", ""}), Options{Timeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var ne net.Error
	if err := conn.Logout(context.Background()); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("silent: %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	conn = connect(t, step{"", greeting}, step{"$ UID FETCH 1 (UID BODY.PEEK[])", "* 1 FETCH (UID 1 BODY[] {10}\r\nhello"})
	body, err := conn.Fetch(ctx, 1, Part{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(body, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Fetch(ctx, 2, Part{}); err == nil || errors.Is(err, ErrProtocol) {
		t.Errorf("a command amid data: %v", err)
	}
	why := errors.New("client is gone")
	cancel(why)
	if _, err := body.Read(make([]byte, 5)); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := conn.Fetch(context.Background(), 2, Part{}); !errors.Is(err, why) {
		t.Errorf("and then: %v", err)
	}
	conn = connect(t, step{"", greeting}, step{"$ UID FETCH 1 (UID BODY.PEEK[])", "* 1 FETCH (UID 1 BODY[] {10}\r\nhello"})
	if body, err = conn.Fetch(context.Background(), 1, Part{}); err != nil {
		t.Fatal(err)
	}
	body.Close()
	if _, err := body.Read(make([]byte, 5)); err == nil || err == io.EOF {
		t.Errorf("closed: %v", err)
	}
	if err := conn.Logout(context.Background()); err == nil {
		t.Error("the connection is used on after data that was not read")
	}
}

func TestEncodeName(t *testing.T) {
	for in, want := range map[string]string{
		"INBOX": "INBOX", "a&b": "a&-b", "Entwürfe": "Entw&APw-rfe", "~peter/mail/台北/日本語": "~peter/mail/&U,BTFw-/&ZeVnLIqe-", "😀": "&2D3eAA-", "a\tb": "a&AAk-b", "": "", "ü&ü": "&APw-&-&APw-",
	} {
		if got, err := EncodeName(in); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
}

// Whatever a server sends, the client ends, and holds no more than its bounds.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{
		"* OK [CAPABILITY URLAUTH] x\r\nA1 OK x\r\nA2 OK [UIDVALIDITY 5] x\r\n* 1 FETCH (UID 7 BODY[] {5}\r\nhello)\r\nA3 OK x\r\n* URLFETCH \"imap://x\" {2}\r\nhi\r\nA4 OK\r\n",
		"* PREAUTH x\r\n* CAPABILITY URLAUTH=BINARY\r\nA1 OK x\r\nA2 NO x\r\n* 1 FETCH (FLAGS (\\A (b {1}\r\nx)) BODY[A \"]\"]<4> ~{2}\r\nab UID 7)\r\nA3 OK x\r\n* URLFETCH imap://x (BODY \"a\\\"b\")\r\nA4 BAD x\r\n",
		"* BYE x\r\n", "* OK x\r\n+ x\r\n", "* OK {5}\r\n",
	} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		c, err := New(context.Background(), &canned{r: bytes.NewReader(stream), piece: 1 + piece&63}, Options{})
		if err != nil {
			return
		}
		ctx := context.Background()
		_, _ = c.Has(ctx, "X")
		_, _ = c.Examine(ctx, "x")
		if body, err := c.Fetch(ctx, 7, Part{}); err == nil {
			n, _ := io.Copy(io.Discard, body)
			if uint64(n) > body.Size {
				t.Error("more than the size")
			}
		}
		if body, err := c.URLFetch(ctx, "imap://x"); err == nil {
			body.Close()
		}
		_ = c.Logout(ctx)
	})
}

// canned is a connection to a server that has said all it will say.
type canned struct {
	net.Conn
	r     io.Reader
	piece int
}

func (c *canned) Read(p []byte) (int, error)       { return c.r.Read(p[:min(len(p), c.piece)]) }
func (c *canned) Write(p []byte) (int, error)      { return len(p), nil }
func (c *canned) Close() error                     { return nil }
func (c *canned) SetDeadline(time.Time) error      { return nil }
func (c *canned) SetReadDeadline(time.Time) error  { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }
