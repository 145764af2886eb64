package urlauth

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/timedconn"
)

func base64Plain(user, password string) []byte {
	return base64.StdEncoding.AppendEncode(nil, []byte("\x00"+user+"\x00"+password))
}

// A step of a scripted service: the line it wants, and what it sends.
type step struct{ want, send string }

// service listens on a socket and plays steps with one client. It closes with the last.
func service(t testing.TB, steps ...step) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "urlauth") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	path = dir + "/s"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with the steps, or with the listener
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		br := bufio.NewReader(conn)
		for _, s := range steps {
			if s.want != "" {
				line, err := br.ReadString('\n')
				if err != nil || line != s.want+"\n" {
					t.Errorf("client sent %q, want %q (%v)", line, s.want, err)
					return
				}
			}
			if s.send == "wait" {
				_, _ = io.Copy(io.Discard, br)
				return
			}
			_, _ = io.WriteString(conn, s.send)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		os.RemoveAll(dir)
	})
	return path
}

var (
	alice     = Login{PID: 7, User: "al\tice", Session: "s", Token: "0123"}
	handshake = []step{{"VERSION\timap-urlauth\t2\t0", ""}, {"AUTH\tsubmission\t7\tal\x01tice\ts\t0123", "OK\n"}}
)

func TestHandshake(t *testing.T) {
	for answer, want := range map[string]string{
		"OK\n": "", "OK\r\n": "", "FAILED\n": ErrDenied.Error(), "NO\n": `imap-urlauth service broke the protocol: "NO" in answer to AUTH`, "": "unexpected EOF", "OK": "unexpected EOF",
		"OK\tx\n": `imap-urlauth service broke the protocol: "OK" in answer to AUTH`, "\n": `imap-urlauth service broke the protocol: "" in answer to AUTH`,
		strings.Repeat("x", maxReply) + "\n": "imap-urlauth service broke the protocol: a line of more than 16384 octets",
	} {
		c, err := Dial(context.Background(), service(t, handshake[0], step{handshake[1].want, answer}), alice)
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%.20q: %v, want %q", answer, err, want)
		}
		if err == nil {
			c.Close()
		}
		if err != nil && strings.Contains(err.Error(), alice.Token) {
			t.Errorf("the token shows: %v", err)
		}
	}
}

// What a service may answer to URL.
func TestFetch(t *testing.T) {
	for _, c := range []struct{ what, answer, data, err string }{
		{"data", "OK\t5\nhello\n", "hello", ""},
		{"nothing", "OK\t0\n", "", ""},
		{"more to say", "OK\thasnuls\tbpstruct=<(a\tb)>\t2\n\x00\n\n", "\x00\n", ""},
		{"no", "NO\n", "", "URL refused"},
		{"no, and why", "NO\terror=Bad \"x\":\x01r\x01n\x01tnot\n", "", `Bad "x":???not`},
		{"no, and something", "NO\tfoo=bar\n", "", "URL refused"},
		{"no size", "OK\n", "", `imap-urlauth service broke the protocol: "OK" in answer to URL`},
		{"bad size", "OK\t-5\n", "", `imap-urlauth service broke the protocol: size "-5"`},
		{"huge size", "OK\t9223372036854775808\n", "", `imap-urlauth service broke the protocol: size "9223372036854775808"`},
		{"other word", "MAYBE\t5\n", "", `imap-urlauth service broke the protocol: "MAYBE" in answer to URL`},
		{"too short", "OK\t5\nhel", "hel", "unexpected EOF"},
		{"no end", "OK\t5\nhello", "hello", "unexpected EOF"},
		{"too long", "OK\t5\nhello there\n", "hello", `imap-urlauth service broke the protocol: ' ' behind the data`},
	} {
		conn, err := Dial(context.Background(), service(t, append(slices.Clone(handshake), step{"USER\tbob", "OK\n"}, step{"URL\timap://x\tbody", c.answer})...), alice)
		if err != nil {
			t.Fatal(err)
		}
		body, err := conn.Fetch(context.Background(), "bob", "imap://x")
		var data []byte
		if err == nil {
			data, err = io.ReadAll(body)
		}
		if string(data) != c.data || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: %q, %v, want %q, %q", c.what, data, err, c.data, c.err)
		}
		conn.Close()
	}
}

// One session serves several users; a refusal costs nothing.
func TestSession(t *testing.T) {
	leak.Check(t)
	ctx := context.Background()
	c, err := Dial(ctx, service(t, append(slices.Clone(handshake),
		step{"USER\tnobody", "NO\n"}, step{"USER\tbob", "OK\n"}, step{"URL\tu1\tbody", "OK\t1\na\n"}, step{"URL\tu2\tbody", "NO\n"}, step{"URL\tu3\tbody", "OK\t0\n"},
		step{"END", "OK\n"}, step{"USER\tcarol", "OK\n"}, step{"URL\tu4\tbody", "OK\t1\nb\n"}, step{"END", "OK\n"}, step{"USER\tnobody", "NO\n"}, step{"USER\tcarol", "OK\n"},
		step{"URL\tu5\tbody", "OK\t9\nb"}, step{"", "wait"})...), alice)
	if err != nil {
		t.Fatal(err)
	}
	get := func(user, url, want, wantErr string) {
		t.Helper()
		body, err := c.Fetch(ctx, user, url)
		var data []byte
		if err == nil {
			data, err = io.ReadAll(body)
		}
		if string(data) != want || (err == nil) != (wantErr == "") || err != nil && err.Error() != wantErr {
			t.Errorf("%s of %s: %q, %v", url, user, data, err)
		}
	}
	get("nobody", "u0", "", "no such user")
	get("bob", "u1", "a", "")
	get("bob", strings.Repeat("u", MaxRequest-len("URL\t\tbody\n")+1), "", ErrTooLong.Error())
	get("bob", "u2", "", "URL refused")
	get("bob", "u3", "", "")
	get("carol", "u4", "b", "")
	get("nobody", "u4", "", "no such user")
	body, err := c.Fetch(ctx, "carol", "u5")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Fetch(ctx, "carol", "u6"); err == nil {
		t.Error("another URL amid the data of one")
	}
	body.Close()
	if _, err := c.Fetch(ctx, "carol", "u6"); err == nil {
		t.Error("the session is used on after data that was not read")
	}
	if _, err := body.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("closed: %v", err)
	}
}

// Silence costs the timeout, and a context ends all.
func TestWaits(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	c := newConn(near, 20*time.Millisecond)
	go func() { _, _ = io.Copy(io.Discard, far) }() // ends with far
	if _, err := c.Fetch(context.Background(), "bob", "u"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	c, err := Dial(context.Background(), service(t, append(slices.Clone(handshake), step{"USER\tbob", "OK\n"}, step{"URL\tu\tbody", "OK\t10\nhello"}, step{"", "wait"})...), alice)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	body, err := c.Fetch(ctx, "bob", "u")
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("client is gone")
	cancel(why)
	if _, err := io.ReadAll(body); !errors.Is(err, why) {
		t.Error(err)
	}
}

// Open as root needs nothing that is not there; without the sockets there is no way.
func TestNoSockets(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.HasIMAP() || s.HasURLAuth() {
		t.Error("sockets from nowhere")
	}
	if _, _, err := s.IMAP(context.Background(), alice); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	if _, err := s.URLAuth(context.Background(), alice); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}

// Settings and what the userdb says become the program's environment; what is about the
// process does not, and no field can forge another variable.
func TestEnvironment(t *testing.T) {
	env := Environment(map[string]string{"mail_location": "maildir:~/a", "plugin": "quota", "plugin/quota": "maildir", "mail_plugins": "acl", "ssl_cert": "a\nb"}, "alice",
		tabline.ParseFields([]string{"uid=5", "home=/h", "mail=maildir:~/b", "quota_rule=*:bytes=1", "mail_plugins+= quota", "flag", "auth_token=secret", "master_user=boss", "a=b=c", "x\x00y=1", "nul=\x00", "ld_preload=/tmp/x"}),
		"192.0.2.1", "")
	want := []string{"A=b=c", "DOVECONF_ENV=1", "FLAG=yes", "HOME=/h", "IP=192.0.2.1", "LOCAL_IP=", "MAIL_LOCATION=maildir:~/b", "MAIL_PLUGINS=acl quota", "MASTER_USER=boss", "PLUGIN/A=b=c", "PLUGIN/FLAG=yes",
		"PLUGIN/MAIL_LOCATION=maildir:~/b", "PLUGIN/MASTER_USER=boss", "PLUGIN/QUOTA=maildir", "PLUGIN/QUOTA_RULE=*:bytes=1", "PLUGIN=quota", "QUOTA_RULE=*:bytes=1", "SSL_CERT=a\nb", "STATS_WRITER_SOCKET_PATH=", "USER=alice"}
	if !slices.Equal(env, want) {
		t.Errorf("got  %q\nwant %q", env, want)
	}
}

func TestExecFails(t *testing.T) {
	leak.Check(t)
	const want = "imap program: fork/exec /nonexistent/imap: no such file or directory"
	if _, err := Exec(Program{Path: "/nonexistent/imap"}); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	nc, err := Exec(Program{Path: "/bin/true"})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := nc.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a program that says nothing: %d octets, %v", n, err)
	}
	nc.Close()
}

// authServer is an auth service for tokens: it greets with greeting, and answers each line
// with what answer returns; "" closes the connection.
func authServer(t *testing.T, greeting string, answer func(n int, line string) string) string {
	path := filepath.Join(t.TempDir(), "tokenlogin")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with l
		for n := 0; ; {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, greeting)
			for lines := bufio.NewScanner(c); lines.Scan(); {
				if strings.HasPrefix(lines.Text(), "AUTH\t") {
					n++
					reply := answer(n, lines.Text())
					if reply == "" {
						break
					}
					_, _ = io.WriteString(c, reply)
				}
			}
			c.Close()
		}
	}()
	return path
}

const authGreeting = "VERSION\t1\t2\nMECH\tDOVECOT-TOKEN\nSPID\t7\nCUID\t1\nCOOKIE\t000102030405060708090a0b0c0d0e0f\nDONE\n"

// The connection serves one login after the other; a new one is made when it has ended.
func TestTokenLogins(t *testing.T) {
	path := authServer(t, authGreeting, func(n int, line string) string {
		id := strings.Split(line, "\t")[1]
		switch n {
		case 2:
			return "" // lost
		case 4:
			return "FAIL\t" + id + "\tuser=alice\n"
		case 5:
			return "FAIL\t" + id + "\tcode=temp_fail\n"
		case 6:
			return "OK\t" + id + "\tuser=bob\n"
		}
		return "OK\t" + id + "\tuser=alice\t\n"
	})
	h, err := openHandle(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &Sockets{token: h, busy: make(chan struct{}, 1)}
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for i, want := range []error{nil, nil, ErrDenied, errTempFail} { // the second one needs a new connection
		id, err := s.tokenLogin(ctx, Login{PID: 1, User: "alice"}, "imap")
		if !errors.Is(err, want) || err == nil && (id != 1 || s.auth.spid != 7 || s.auth.cookie[15] != 15) {
			t.Errorf("login %d: %d, %v; want %v", i, id, err, want)
		}
	}
	if _, err := s.tokenLogin(ctx, Login{PID: 1, User: "alice"}, "imap"); err == nil || err.Error() != `it knows user "alice" as "bob"` {
		t.Error(err)
	}
}

// What the auth service says is checked.
func TestTokenGreetings(t *testing.T) {
	for greeting, want := range map[string]string{
		"":                      "unexpected EOF",
		"VERSION\t2\t0\nDONE\n": `protocol version "2"`,
		"DONE\n":                "no logins with a token there",
		strings.Replace(authGreeting, "DOVECOT-TOKEN", "PLAIN", 1):          "no logins with a token there",
		strings.Replace(authGreeting, "COOKIE\t00", "COOKIE\t", 1):          "a bad COOKIE",
		strings.Replace(authGreeting, "SPID\t7", "SPID\t-1", 1):             `SPID "-1"`,
		"VERSION\t1\t2\n" + strings.Repeat("X\n", 200) + "DONE\n":           "a greeting without end",
		"VERSION\t1\t2\n" + strings.Repeat("X", 2*maxReply) + "\n" + "DONE": "bufio: buffer full",
	} {
		path := authServer(t, greeting, func(int, string) string { return "" })
		if greeting == "" {
			l, err := net.Listen("unix", path+"2")
			if err != nil {
				t.Fatal(err)
			}
			go func() { // ends with l
				if c, err := l.Accept(); err == nil {
					_, _ = c.Read(make([]byte, 100))
					c.Close()
				}
			}()
			defer l.Close()
			path += "2"
		}
		if _, err := dialToken(context.Background(), path, 1); err == nil || err.Error() != want {
			t.Errorf("%.40q: %v, want %s", greeting, err, want)
		}
	}
}

func FuzzTokenLogin(f *testing.F) {
	f.Add([]byte(authGreeting+"OK\t1\tuser=alice\t\n"), 3)
	f.Add([]byte(authGreeting+"FAIL\t1\tcode=temp_fail\n"), 1)
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		nc := timedconn.New(&canned{r: bytes.NewReader(stream), piece: 1 + piece&63}, Timeout)
		c := &tokenConn{nc: nc, br: bufio.NewReaderSize(nc, maxReply), pid: 1}
		if c.greet() != nil {
			return
		}
		if id, _, err := c.login(context.Background(), "imap", Login{User: "alice"}); err == nil && (id != 1 || !bytes.Contains(stream, []byte("user=alice"))) {
			t.Errorf("login %d", id)
		}
	})
}

func FuzzReplies(f *testing.F) {
	f.Add([]byte("OK\nOK\t5\nhello\nNO\terror=a\x01nb\nOK\nOK\nNO\n"), 3)
	f.Add([]byte("OK\nOK\thasnuls\t0\nOK\t1\nab"), 1)
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		c := newConn(&canned{r: bytes.NewReader(stream), piece: 1 + piece&63}, Timeout)
		for _, user := range []string{"a", "a", "b"} {
			body, err := c.Fetch(context.Background(), user, "imap://x")
			var refused *RefusedError
			if errors.As(err, &refused) && strings.ContainsFunc(refused.Text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("%q", refused.Text)
			}
			if err == nil {
				if n, err := io.Copy(io.Discard, body); uint64(n) > body.Size || err == nil && uint64(n) != body.Size {
					t.Errorf("%d octets of %d, %v", n, body.Size, err)
				}
			}
		}
	})
}

// canned is a connection to a service that has said all it will say.
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
