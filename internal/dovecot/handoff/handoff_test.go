package handoff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/leak"
)

var login = Request{
	Tag: 7, AuthPID: 101, AuthID: 3, ClientPID: 102, Cookie: Cookie{1, 2, 3, 15: 16},
	Local:  netip.MustParseAddrPort("127.0.0.1:587"),
	Remote: netip.MustParseAddrPort("[2001:db8::9]:60400"),
	Flags:  Secured | TLS, Session: "Mea0le9g8Ot/AAAB",
	Payload: Submission{Helo: "me.test", ProxiedHelo: "me.test", Pending: []byte("NOOP\r\n")}.Append(nil),
}

// worker listens on a socket and serves one connection with serve, in a goroutine that the
// test waits for.
func worker(t *testing.T, serve func(conn *net.UnixConn)) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "submission")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends when the client is served, or l is closed
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		serve(c.(*net.UnixConn))
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

// tcpPair returns both ends of a TCP connection.
func tcpPair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func lend(t *testing.T, c syscall.Conn) Descriptor {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return rc
}

// say has a line go from one end to the other.
func say(t *testing.T, from io.Writer, to net.Conn, line string) {
	t.Helper()
	_ = to.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(from, line); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(line))
	if _, err := io.ReadFull(to, b); err != nil || string(b) != line {
		t.Fatalf("got %q and %v, want %q", b, err, line)
	}
}

// A client goes over: the worker has what was sent, and talks to the client, which still
// does when the login process has closed its copy.
func TestClientGoesOver(t *testing.T) {
	leak.Check(t)
	got := make(chan *Login, 1)
	path := worker(t, func(conn *net.UnixConn) {
		l, err := Receive(t.Context(), conn)
		if err != nil {
			t.Error(err)
		} else if err := l.Reply(OK, 4711); err != nil {
			t.Error(err)
		}
		got <- l
	})
	client, server := tcpPair(t)
	reply, err := Send(t.Context(), path, login, lend(t, server))
	if want := (Reply{Tag: 7, PID: 4711}); err != nil || reply != want {
		t.Fatalf("reply %+v, error %v", reply, err)
	}
	l := <-got
	if l == nil {
		t.FailNow()
	}
	defer l.Client.Close()
	if fmt.Sprint(l.Request) != fmt.Sprint(login) {
		t.Errorf("received %+v\nwant %+v", l.Request, login)
	}
	sub := ParseSubmission(l.Payload)
	if sub.Helo != "me.test" || sub.ProxiedHelo != "me.test" || string(sub.Pending) != "NOOP\r\n" {
		t.Errorf("payload %+v", sub)
	}
	server.Close()
	say(t, l.Client, client, "235 2.7.0 Logged in.\r\n")
	say(t, client, l.Client, "QUIT\r\n")
	if _, ok := l.Client.(*net.TCPConn); !ok {
		t.Errorf("client is a %T", l.Client)
	}
}

// Behind TLS one end of a socket pair goes over.
func TestSocketPairGoesOver(t *testing.T) {
	leak.Check(t)
	near, far, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	got := make(chan *Login, 1)
	path := worker(t, func(conn *net.UnixConn) {
		l, err := Receive(t.Context(), conn)
		if err != nil {
			t.Error(err)
		} else if err := l.Reply(OK, 1); err != nil {
			t.Error(err)
		}
		got <- l
	})
	if _, err := Send(t.Context(), path, login, far); err != nil {
		t.Fatal(err)
	}
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	if err := far.Close(); err != net.ErrClosed {
		t.Errorf("closed twice: %v", err)
	}
	l := <-got
	if l == nil {
		t.FailNow()
	}
	say(t, near, l.Client, "NOOP\r\n")
	l.Client.Close()
	if _, err := near.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the worker closed: %v", err)
	}
}

// Each way in which a worker can fail has its error.
func TestSendErrors(t *testing.T) {
	cases := map[string]struct {
		reply []byte
		want  error
		says  string
	}{
		"closed":     {nil, ErrBusy, "process_limit"},
		"short":      {[]byte{7, 0, 0, 0, 0, 0}, ErrBusy, "6 of 12 bytes"},
		"wrong tag":  {Reply{Tag: 8}.append(nil), ErrTag, "unknown tag 8"},
		"refused":    {Reply{Tag: 7, Status: InternalError, PID: 9}.append(nil), ErrRefused, "status 1"},
		"odd status": {Reply{Tag: 7, Status: 77}.append(nil), ErrRefused, "status 77"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path := worker(t, func(conn *net.UnixConn) {
				if l, err := Receive(t.Context(), conn); err != nil {
					t.Error(err)
				} else {
					l.Client.Close()
				}
				_, _ = conn.Write(c.reply)
			})
			_, server := tcpPair(t)
			_, err := Send(t.Context(), path, login, lend(t, server))
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A worker that says nothing is waited for until the context ends, and sees the login
// process leave.
func TestSendEndsWithItsContext(t *testing.T) {
	leak.Check(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("client left")
	path := worker(t, func(conn *net.UnixConn) {
		l, err := Receive(t.Context(), conn)
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Client.Close()
		cancel(gone)
		if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("worker reads %v", err)
		}
		if err := l.Reply(OK, 1); err != ErrLoginGone {
			t.Errorf("reply: %v", err)
		}
	})
	_, server := tcpPair(t)
	if _, err := Send(ctx, path, login, lend(t, server)); !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	_, server := tcpPair(t)
	_, err := Send(t.Context(), filepath.Join(t.TempDir(), "submission"), login, lend(t, server))
	if !errors.Is(err, syscall.ENOENT) {
		t.Errorf("got %v", err)
	}
}

// The session id and the payload have 1218 bytes together, not one more; Room says so.
func TestDataBound(t *testing.T) {
	r := login
	r.Payload = make([]byte, r.Room())
	b, err := r.append(nil, 1)
	if err != nil || len(b) != recordSize+MaxData {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	r.Payload = append(r.Payload, 0)
	if _, err := r.append(nil, 1); err == nil {
		t.Error("one byte more was taken")
	}
	r = Request{Session: "a\x00b"}
	if _, err := r.append(nil, 1); err == nil {
		t.Error("a NUL in the session id was taken")
	}
	r = Request{Session: strings.Repeat("x", 2000)}
	if r.Room() != 0 {
		t.Errorf("room %d", r.Room())
	}
}

// What a login process may and may not send, as the real worker has it (clause P5.5).
func TestReceive(t *testing.T) {
	good, err := login.append(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	data := func(s string) []byte {
		r := login.record(uint32(len(s)), 0)
		return append(r.append(nil), s...)
	}
	cases := map[string]struct {
		b       []byte
		fds     int
		inode   bool // put the right one in
		session string
		payload string
		says    string // of the error; "" if it is accepted
	}{
		"good":          {good, 1, true, login.Session, string(login.Payload), ""},
		"two fds":       {good, 2, true, "", "", "more than one descriptor"},
		"no NUL":        {data("abc"), 1, true, "abc", "", ""},
		"session only":  {data("abc\x00"), 1, true, "abc", "", ""},
		"no data":       {data(""), 1, true, "", "", ""},
		"wrong inode":   {good, 1, false, "", "", "the record says 0"},
		"no fd":         {good, 0, true, "", "", "no descriptor"},
		"cut record":    {good[:50], 1, false, "", "", "after 50 of 96"},
		"cut data":      {good[:100], 1, true, "", "", "after 100 of 135"},
		"too much":      {append(bytes.Clone(good), 'x'), 1, true, "", "", "more than the 135 bytes"},
		"huge":          {bytes.Repeat([]byte{9}, 4000), 1, false, "", "", "unknown family"},
		"nothing":       {nil, 0, false, "", "", "EOF"},
		"large data":    {data(strings.Repeat("x", MaxData+1)), 1, true, "", "", "at most 1218"},
		"largest data":  {data(strings.Repeat("x", MaxData)), 1, true, strings.Repeat("x", MaxData), "", ""},
		"not a socket ": {good, -1, true, "", "", "passed descriptor"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			near, far, err := SocketPair()
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			b, fds := bytes.Clone(c.b), []int{}
			for range c.fds {
				fds = append(fds, far.fd)
			}
			if c.fds < 0 {
				var p [2]int
				if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
					t.Fatal(err)
				}
				defer syscall.Close(p[1])
				far.Close()
				far.fd = p[0]
				fds = append(fds, p[0])
			}
			defer far.Close()
			if c.inode {
				ino, err := inode(far.fd)
				if err != nil {
					t.Fatal(err)
				}
				copy(b[88:], record{inode: ino}.append(nil)[88:])
			}
			path := worker(t, func(conn *net.UnixConn) {
				if len(b) > 0 {
					if _, _, err := conn.WriteMsgUnix(b, syscall.UnixRights(fds...), nil); err != nil {
						t.Error(err)
					}
				}
			})
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			l, err := Receive(t.Context(), conn.(*net.UnixConn))
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("error %v", err)
				}
				if (err == io.EOF) != (len(b) == 0) {
					t.Errorf("%d bytes came, and the error is %v", len(b), err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			l.Client.Close()
			if l.Session != c.session || string(l.Payload) != c.payload {
				t.Errorf("session %q payload %q", l.Session, l.Payload)
			}
		})
	}
}

// A connection that sends nothing, or not all, holds the worker only as long as its context.
func TestReceiveEndsWithItsContext(t *testing.T) {
	leak.Check(t)
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	path := worker(t, func(conn *net.UnixConn) {
		_, _ = conn.Write(make([]byte, 10))
		cancel()
		<-release
	})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := Receive(ctx, conn.(*net.UnixConn)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release)
}

func TestCookie(t *testing.T) {
	const hex = "fea851b754478e1fc74578c2ff586a82"
	c, err := ParseCookie(hex)
	if err != nil || c.String() != hex {
		t.Errorf("%v %v", c, err)
	}
	for _, bad := range []string{"", hex[1:], hex + "0", "zz" + hex[2:]} {
		if _, err := ParseCookie(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// A worker's full backlog is waited for, half a second and not for ever.
func TestFullBacklog(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "submission")
	l, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(l)
	if err := errors.Join(syscall.Bind(l, &syscall.SockaddrUnix{Name: path}), syscall.Listen(l, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := connect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := connect(t.Context(), path); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("with a full backlog: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := connect(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("without a context: %v", err)
	}
	accepted := make(chan int, 1)
	go func() { // ends with the connection that waits
		fd, _, err := syscall.Accept(l)
		if err != nil {
			t.Error(err)
		}
		accepted <- fd
	}()
	second, err := connect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	syscall.Close(<-accepted)
}

// BenchmarkHandOver is one client over both halves in one process.
func BenchmarkHandOver(b *testing.B) {
	path := filepath.Join(b.TempDir(), "submission")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() { // ends when l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			login, err := Receive(context.Background(), c.(*net.UnixConn))
			if err != nil {
				b.Error(err)
				return
			}
			if err := login.Reply(OK, 1); err != nil {
				b.Error(err)
			}
			login.Client.Close()
			c.Close()
		}
	}()
	near, far, err := SocketPair()
	if err != nil {
		b.Fatal(err)
	}
	defer near.Close()
	defer far.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Send(context.Background(), path, login, far); err != nil {
			b.Fatal(err)
		}
	}
}
