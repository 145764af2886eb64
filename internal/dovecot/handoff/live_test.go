package handoff

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/fdpass"
	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/tlsfiles"
	"dovetail/internal/testkit/wiretest"
)

// To record testdata anew, as root: go test -run Real -record ./internal/dovecot/handoff
var recording = flag.Bool("record", false, "write what a private real Dovecot says to testdata")

// keep writes golden bytes, with -record.
func keep(t *testing.T, i *instance.Instance, name string, b []byte) {
	t.Helper()
	if !*recording {
		return
	}
	for path, data := range map[string][]byte{"testdata/" + name: b, "testdata/version": []byte(i.Version + "\n")} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// message is record and data, for the golden files.
type message struct {
	Request
	inode uint64
}

func parseMessage(b []byte) (message, error) {
	if len(b) < recordSize {
		return message{}, io.ErrUnexpectedEOF
	}
	rec, err := parseRecord(b[:recordSize])
	if err != nil {
		return message{}, err
	}
	if len(b) != recordSize+int(rec.dataSize) {
		return message{}, io.ErrUnexpectedEOF
	}
	return message{parseRequest(rec, b[recordSize:]), rec.inode}, nil
}

func (m message) append(b []byte) []byte {
	b, err := m.Request.append(b, m.inode)
	if err != nil {
		panic(err)
	}
	return b
}

// The golden files were sent by the real submission-login and the real submission.
func TestBytesOfDovecot(t *testing.T) {
	wiretest.Golden(t, "testdata/login-*.bin", parseMessage, message.append)
	wiretest.Golden(t, "testdata/reply-*.bin", parseReply, Reply.append)
	wiretest.Golden(t, "testdata/script-request.bin", parseScriptRequest, ScriptRequest.append)
	wiretest.Golden(t, "testdata/script-answer.bin", parseScriptAnswer, func(a ScriptAnswer, b []byte) []byte {
		return tabline.Append(b, append([]string{a.User}, a.Fields...)...)
	})
	// TestAskAccess compares ours with the same text.
	if b, err := os.ReadFile("testdata/access-request.bin"); err != nil || string(b) != "submission\n" {
		t.Errorf("access request %q, %v", b, err)
	}
}

// smtp is a client's connection that is talked on line by line.
type smtp struct {
	net.Conn
	br *bufio.Reader
	t  *testing.T
}

func dialSMTP(t *testing.T, addr string, conf *tls.Config) *smtp {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if conf != nil {
		conn = tls.Client(conn, conf)
	}
	return &smtp{conn, bufio.NewReader(conn), t}
}

func (s *smtp) say(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s, text); err != nil {
		s.t.Fatal(err)
	}
}

// want reads a whole reply and compares its beginning.
func (s *smtp) want(code string) {
	s.t.Helper()
	for {
		line, err := s.br.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, code[:min(3, len(line))]) {
			s.t.Fatalf("got %q, %v; want %s", line, err, code)
		}
		if len(line) > 3 && line[3] == ' ' {
			if !strings.HasPrefix(line, code) {
				s.t.Fatalf("got %q, want %s", line, code)
			}
			return
		}
	}
}

// The real login process hands its clients to us: a worker on its socket gets records,
// data and clients of all kinds.
func TestRealLogin(t *testing.T) {
	cert, key := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "sub.example.test"}).Write(t, t.TempDir(), "tls")
	i := instance.Start(t, `
ssl = yes
ssl_cert = <`+cert+`
ssl_key = <`+key+`
listen = 127.0.0.1, ::1
login_trusted_networks = 127.0.0.0/8
service submission-login {
  service_count = 0
  inet_listener submissions {
    port = @PORT:tls@
    ssl = yes
  }
}
service submission {
  unix_listener login/submission {
    mode = 0
  }
}
`)
	_ = os.Remove(i.Socket("login/submission"))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: i.Socket("login/submission")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(i.Socket("login/submission"), 0o666); err != nil {
		t.Fatal(err)
	}
	insecure := &tls.Config{InsecureSkipVerify: true}
	plain := netip.MustParseAddrPort(i.Addr("submission"))
	six := netip.AddrPortFrom(netip.IPv6Loopback(), plain.Port())
	secure := netip.MustParseAddrPort(i.Addr("tls"))
	const auth = "AUTH PLAIN AGFsaWNlAHBhc3M=\r\n" // alice, pass
	cases := []struct {
		name    string
		addr    netip.AddrPort
		tls     bool
		xclient string
		ehlo    string
		auth    string
		want    Submission
		flags   Flags
		remote  string // of XCLIENT
		session string
	}{
		{"plain", plain, false, "", "me.test", auth, Submission{"me.test", "me.test", nil}, Secured, "", ""},
		{"pending", plain, false, "", "me.test", auth + "NOOP\r\nNOOP\r\n", Submission{"me.test", "me.test", []byte("NOOP\r\nNOOP\r\n")}, Secured, "", ""},
		{"no-ehlo", plain, false, "", "", auth, Submission{}, Secured, "", ""},
		{"ipv6", six, false, "", "six.test", auth, Submission{"six.test", "six.test", nil}, Secured, "", ""},
		{"tls", secure, true, "", "me.test", auth, Submission{"me.test", "me.test", nil}, Secured | TLS, "", ""},
		{"xclient", plain, false, "XCLIENT ADDR=192.0.2.9 PORT=1234 SESSION=outer HELO=other.test\r\n", "me.test", auth,
			Submission{"me.test", "other.test", nil}, Secured, "192.0.2.9:1234", "outer"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var conf *tls.Config
			if c.tls {
				conf = insecure
			}
			s := dialSMTP(t, c.addr.String(), conf)
			s.want("220")
			if c.xclient != "" {
				s.say(c.xclient)
				s.want("220")
			}
			if c.ehlo != "" {
				s.say("EHLO " + c.ehlo + "\r\n")
				s.want("250")
			}
			s.say(c.auth)
			_ = l.SetDeadline(time.Now().Add(20 * time.Second))
			conn, err := l.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			raw := peek(t, conn)
			keep(t, i, "login-"+c.name+".bin", raw)
			login, err := Receive(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			defer login.Client.Close()
			if m, err := parseMessage(raw); err != nil || !bytes.Equal(m.append(nil), raw) {
				t.Errorf("not the same again: %v\n%q", err, raw)
			}
			local := s.LocalAddr().(*net.TCPAddr).AddrPort()
			if c.remote != "" {
				local = netip.MustParseAddrPort(c.remote)
			}
			if login.Local != c.addr || login.Remote != local {
				t.Errorf("addresses %v and %v, want %v and %v", login.Local, login.Remote, c.addr, local)
			}
			if got := ParseSubmission(login.Payload); fmt.Sprintf("%q", got) != fmt.Sprintf("%q", c.want) {
				t.Errorf("payload %q, want %q", got, c.want)
			}
			if login.Flags != c.flags || login.Tag == 0 || login.AuthPID == 0 || login.ClientPID == 0 || login.Cookie == (Cookie{}) {
				t.Errorf("record %+v", login.Request)
			}
			if login.Session == "" || c.session != "" && login.Session != c.session {
				t.Errorf("session %q", login.Session)
			}
			if err := login.Reply(OK, 4711); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(login.Client, "235 2.7.0 Taken.\r\n"); err != nil {
				t.Fatal(err)
			}
			s.want("235 2.7.0 Taken.")
			i.WaitLog("mpid=4711")
			_, tcp := login.Client.(*net.TCPConn)
			if tcp == c.tls {
				t.Errorf("the client is a %T", login.Client)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		s := dialSMTP(t, plain.String(), nil)
		s.want("220")
		s.say(auth)
		conn, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		login, err := Receive(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		login.Client.Close()
		if err := login.Reply(InternalError, 1); err != nil {
			t.Fatal(err)
		}
		if _, err := s.br.ReadByte(); err != io.EOF {
			t.Errorf("client sees %v", err)
		}
		i.WaitLog("Internal login failure")
	})
}

// peek returns what has come on conn and leaves it there: the peer's bytes, before any
// code of ours has seen them.
func peek(t *testing.T, conn *net.UnixConn) []byte {
	t.Helper()
	rc, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2*(recordSize+MaxData))
	n := 0
	if err := rc.Read(func(fd uintptr) bool {
		n, _, err = syscall.Recvfrom(int(fd), b, syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	}); err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// auth is a connection to the auth service, as a login process has it.
type auth struct {
	net.Conn
	br     *bufio.Reader
	spid   uint32
	cookie Cookie
	nextID uint32
}

func dialAuth(t *testing.T, i *instance.Instance) *auth {
	t.Helper()
	conn, err := net.Dial("unix", i.Socket("login/login"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	a := &auth{Conn: conn, br: bufio.NewReader(conn)}
	fmt.Fprintf(conn, "VERSION\t1\t2\nCPID\t%d\n", os.Getpid())
	for {
		line, err := a.br.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		line = strings.TrimSuffix(line, "\n")
		word, rest, _ := strings.Cut(line, "\t")
		switch word {
		case "SPID":
			fmt.Sscan(rest, &a.spid)
		case "COOKIE":
			if a.cookie, err = ParseCookie(rest); err != nil {
				t.Fatal(err)
			}
		case "DONE":
			return a
		}
	}
}

// login logs alice in and returns what a hand-over says of it.
func (a *auth) login(t *testing.T) Request {
	t.Helper()
	a.nextID++
	fmt.Fprintf(a, "AUTH\t%d\tPLAIN\tservice=submission\tsecured\tsession=test\tlip=127.0.0.1\trip=127.0.0.1\tresp=AGFsaWNlAHBhc3M=\n", a.nextID)
	line, err := a.br.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, fmt.Sprintf("OK\t%d\t", a.nextID)) {
		t.Fatalf("auth says %q, %v", line, err)
	}
	return Request{
		AuthPID: a.spid, AuthID: a.nextID, ClientPID: uint32(os.Getpid()), Cookie: a.cookie,
		Local: netip.MustParseAddrPort("127.0.0.1:587"), Remote: netip.MustParseAddrPort("127.0.0.1:60400"),
		Flags: Secured, Session: "test", Payload: Submission{Helo: "me.test", Pending: []byte("NOOP\r\n")}.Append(nil),
	}
}

// relay accepts what a worker says to a relay, as little as is needed.
func relay(t *testing.T, i *instance.Instance, port string) {
	t.Helper()
	l, err := net.Listen("tcp", i.Addr(port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends when l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends when the worker closes
				defer c.Close()
				br := bufio.NewReader(c)
				fmt.Fprint(c, "220 relay\r\n")
				for {
					if _, err := br.ReadString('\n'); err != nil {
						return
					}
					fmt.Fprint(c, "250 OK\r\n")
				}
			}()
		}
	}()
}

// We hand clients to the real worker, plain ones and ends of socket pairs.
func TestRealWorker(t *testing.T) {
	i := instance.Start(t, `
submission_relay_host = 127.0.0.1
submission_relay_port = @PORT:relay@
`)
	relay(t, i, "relay")
	a := dialAuth(t, i)
	path := i.Socket("login/submission")
	greeted := func(t *testing.T, conn net.Conn) {
		t.Helper()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		s := &smtp{conn, bufio.NewReader(conn), t}
		s.want("235 2.7.0 Logged in.")
		s.want("250 2.0.0 OK") // of the pending NOOP
		s.say("QUIT\r\n")
		s.want("221")
	}
	t.Run("tcp", func(t *testing.T) {
		client, server := tcpPair(t)
		reply, err := Send(t.Context(), path, a.login(t), lend(t, server))
		if err != nil || reply.PID == 0 {
			t.Fatalf("%+v, %v", reply, err)
		}
		server.Close()
		greeted(t, client)
		i.WaitLog(fmt.Sprintf("submission(alice)<%d><test>: Info: Disconnected: Logged out", reply.PID))
	})
	t.Run("socket pair", func(t *testing.T) {
		near, far, err := SocketPair()
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		r := a.login(t)
		r.Flags |= TLS
		r.Tag = 99
		reply, err := Send(t.Context(), path, r, far)
		if err != nil || reply.Tag != 99 {
			t.Fatalf("%+v, %v", reply, err)
		}
		far.Close()
		greeted(t, near)
	})
	t.Run("refused", func(t *testing.T) {
		_, server := tcpPair(t)
		r := a.login(t)
		r.Cookie[3] ^= 1
		reply, err := Send(t.Context(), path, r, lend(t, server))
		if !errors.Is(err, ErrRefused) || reply.PID == 0 {
			t.Fatalf("%+v, %v", reply, err)
		}
	})
	for name, spoil := range map[string]byte{"ok": 0, "refused": 1} {
		t.Run("bytes of "+name, func(t *testing.T) {
			near, far, err := SocketPair()
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			defer far.Close()
			r := a.login(t)
			r.Tag = 0x01020304
			r.Cookie[3] ^= spoil
			ino, err := inode(far.fd)
			if err != nil {
				t.Fatal(err)
			}
			b, err := r.append(nil, ino)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := connect(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := fdpass.Send(conn, b, far.fd); err != nil {
				t.Fatal(err)
			}
			raw, err := io.ReadAll(conn)
			if err != nil {
				t.Fatal(err)
			}
			keep(t, i, "reply-"+name+".bin", raw)
			if reply, err := parseReply(raw); err != nil || reply.Tag != r.Tag || reply.Status != Status(spoil) {
				t.Errorf("%+v, %v", reply, err)
			}
		})
	}
	t.Run("malformed", func(t *testing.T) {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write(bytes.Repeat([]byte{1}, recordSize))
		if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%d, %v", n, err)
		}
	})
}
