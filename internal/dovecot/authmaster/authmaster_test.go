package authmaster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/testkit/leak"
)

// answer connects a Conn to a server that answers lines with f; an empty answer is none,
// and "close" closes.
func answer(t *testing.T, f func(line string) string) *Conn {
	t.Helper()
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() { // ends when the client closes
		defer close(done)
		defer there.Close()
		_, _ = io.WriteString(there, "VERSION\t1\t1\nSPID\t4711\n")
		br := bufio.NewReader(there)
		for first := true; ; first = false {
			l, err := br.ReadString('\n')
			if err != nil {
				return
			}
			if first {
				if l != "VERSION\t1\t1\n" {
					t.Errorf("client's version %q", l)
				}
				continue
			}
			switch out := f(strings.TrimSuffix(l, "\n")); out {
			case "":
			case "close":
				return
			default:
				if _, err := io.WriteString(there, out); err != nil {
					return
				}
			}
		}
	}()
	c, err := NewConn(t.Context(), here)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); <-done })
	return c
}

var cookie = Cookie{0xfe, 0xa8, 0x51, 0xb7, 0x54, 0x47, 0x8e, 0x1f, 0xc7, 0x45, 0x78, 0xc2, 0xff, 0x58, 0x6a, 0x82}

// The line that the real worker sends (clause P4.2), and what it gets (P4.4).
func TestRequest(t *testing.T) {
	leak.Check(t)
	for _, tc := range []struct {
		r           Request
		line, reply string
		user        User
		err         error
	}{
		{Request{29582, 1, cookie, 29583, true},
			"REQUEST\t1\t29582\t1\tfea851b754478e1fc74578c2ff586a82\tsession_pid=29583\trequest_auth_token",
			"USER\t1\talice\tuid=5055\tgid=5055\thome=/h/al\x01tice\tauth_mech=PLAIN\tauth_token=cf9e\n",
			User{"alice", fields("uid=5055", "gid=5055", "home=/h/al\tice", "auth_mech=PLAIN", "auth_token=cf9e")}, nil},
		{Request{1, 2, cookie, 0, false}, "REQUEST\t1\t1\t2\tfea851b754478e1fc74578c2ff586a82", "USER\t1\tbob\t\n", User{Name: "bob", Fields: fields()}, nil},
		{Request{1, 2, cookie, 0, false}, "REQUEST\t1\t1\t2\tfea851b754478e1fc74578c2ff586a82", "USER\t1\tbob\n", User{Name: "bob", Fields: fields()}, nil},
		{Request{1, 2, cookie, 0, false}, "REQUEST\t1\t1\t2\tfea851b754478e1fc74578c2ff586a82", "NOTFOUND\t1\n", User{}, ErrNotFound},
		{Request{1, 2, cookie, 0, false}, "REQUEST\t1\t1\t2\tfea851b754478e1fc74578c2ff586a82", "close", User{}, ErrLost},
		{Request{1, 2, cookie, 0, false}, "REQUEST\t1\t1\t2\tfea851b754478e1fc74578c2ff586a82", "nonsense\n", User{}, ErrLost},
		{Request{1, 2, cookie, 0, false}, "REQUEST\t1\t1\t2\tfea851b754478e1fc74578c2ff586a82", "USER\tx\n", User{}, ErrLost},
		{Request{1, 2, cookie, 0, false}, "REQUEST\t1\t1\t2\tfea851b754478e1fc74578c2ff586a82", "USER\t1\t" + strings.Repeat("x", 2*maxReply) + "\n", User{}, ErrLost},
	} {
		c := answer(t, func(line string) string {
			if line != tc.line {
				t.Errorf("got  %q\nwant %q", line, tc.line)
			}
			return tc.reply
		})
		u, err := c.Request(t.Context(), tc.r)
		if !errors.Is(err, tc.err) || !reflect.DeepEqual(u, tc.user) {
			t.Errorf("%.40q: %+v, %v", tc.reply, u, err)
		}
		id, back, err := ParseRequest(strings.TrimPrefix(tc.line, "REQUEST\t"))
		if id != 1 || back != tc.r || err != nil {
			t.Errorf("%q: the server reads %d, %+v, %v", tc.line, id, back, err)
		}
		c.Close()
	}
	c := answer(t, func(string) string { return "FAIL\t1\treason=Try \x01n later\n" })
	_, err := c.Request(t.Context(), Request{})
	if f := (*FailError)(nil); !errors.As(err, &f) || f.Reason() != "Try \n later" || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	if c.SPID() != 4711 {
		t.Errorf("SPID %d", c.SPID())
	}
}

// Requests do not wait for each other, and each gets its own answer.
func TestRequestsAtATime(t *testing.T) {
	leak.Check(t)
	const n = 100
	var mu sync.Mutex
	var held []string
	c := answer(t, func(line string) string {
		mu.Lock()
		defer mu.Unlock()
		f := strings.Split(line, "\t")
		held = append(held, "USER\t"+f[1]+"\tu"+f[3]+"\n")
		if len(held) < n {
			return ""
		}
		var out strings.Builder
		for i := range held {
			out.WriteString(held[len(held)-1-i])
		}
		return out.String()
	})
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() { // ends with its request
			defer wg.Done()
			u, err := c.Request(context.Background(), Request{AuthID: uint32(i + 1)})
			if err != nil || u.Name != fmt.Sprintf("u%d", i+1) {
				t.Errorf("request %d: %v, %v", i+1, u, err)
			}
		}()
	}
	wg.Wait()
}

// Who gave up is forgotten; the late answer harms nobody.
func TestRequestGivenUp(t *testing.T) {
	leak.Check(t)
	var first string
	c := answer(t, func(line string) string {
		id := strings.Split(line, "\t")[1]
		if first == "" {
			first = id
			return ""
		}
		return "USER\t" + first + "\told\nUSER\t" + id + "\tnew\n"
	})
	why := errors.New("client gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	go cancel(why) // ends at once
	if _, err := c.Request(ctx, Request{}); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
	if u, err := c.Request(t.Context(), Request{}); err != nil || u.Name != "new" {
		t.Errorf("%v, %v", u, err)
	}
}

func TestLookups(t *testing.T) {
	leak.Check(t)
	info := Info{Service: "submission", Session: "s", LocalName: "x\ty", LocalIP: netip.MustParseAddr("192.0.2.1"), RemoteIP: netip.MustParseAddr("192.0.2.2"),
		LocalPort: 1, RemotePort: 2, RealLocalIP: netip.MustParseAddr("::1"), RealRemoteIP: netip.MustParseAddr("::2"), RealLocalPort: 3, RealRemotePort: 4,
		Debug: true, ForwardFields: "a=b"}
	const line = "service=submission\tsession=s\tlocal_name=x\x01ty\tlip=192.0.2.1\trip=192.0.2.2\tlport=1\trport=2\treal_lip=::1\treal_rip=::2\treal_lport=3\treal_rport=4\tdebug\tforward_fields=a=b"
	replies := map[string]string{
		"USER\t1\tal\x01tice\t" + line: "USER\t1\talice\thome=/h\n",
		"PASS\t2\talice\t" + line:      "PASS\t2\tuser=other\tproxy=y\n",
		"LIST\t3\tuser=a*\t" + line:    "LIST\t3\ta\nLIST\t3\tb\x01t\n" + strings.Repeat("LIST\t3\tc\n", 3*listRoom) + "DONE\t3\t\n",
		"LIST\t4\tservice=s":           "LIST\t4\ta\nDONE\t4\tfail\n",
		"CACHE-FLUSH\t5\ta\tb":         "OK\t5\t7\n",
		"CACHE-FLUSH\t6":               "FAIL\t6\n",
		"LIST\t7\tservice=s":           strings.Repeat("LIST\t7\ta\n", 3*listRoom) + "DONE\t7\t\n",
		"USER\t8\tx\tservice=s":        "PASS\t8\tuser=x\n",
	}
	c := answer(t, func(l string) string {
		r, ok := replies[l]
		if !ok {
			t.Errorf("unexpected line %q", l)
		}
		return r
	})
	if u, err := c.User(t.Context(), "al\tice", info); err != nil || u.Name != "alice" || len(u.Fields) != 1 {
		t.Errorf("USER: %v, %v", u, err)
	}
	if u, err := c.Pass(t.Context(), "alice", info); err != nil || u.Name != "other" || !u.Fields.Has("proxy") {
		t.Errorf("PASS: %v, %v", u, err)
	}
	var names []string
	err := c.List(t.Context(), "a*", info, func(n string) bool { names = append(names, n); return true })
	if err != nil || len(names) != 2+3*listRoom || names[1] != "b\t" {
		t.Errorf("LIST: %d names, %v", len(names), err)
	}
	if err := c.List(t.Context(), "", Info{Service: "s"}, func(string) bool { return true }); !errors.As(err, new(*FailError)) {
		t.Errorf("LIST that fails: %v", err)
	}
	if n, err := c.CacheFlush(t.Context(), "a", "b"); n != 7 || err != nil {
		t.Errorf("CACHE-FLUSH: %d, %v", n, err)
	}
	if _, err := c.CacheFlush(t.Context()); !errors.As(err, new(*FailError)) {
		t.Errorf("CACHE-FLUSH: %v", err)
	}
	if err := c.List(t.Context(), "", Info{Service: "s"}, func(string) bool { return false }); err != nil {
		t.Errorf("LIST that is left: %v", err)
	}
	if _, err := c.User(t.Context(), "x", Info{Service: "s"}); err == nil {
		t.Error("PASS was taken for USER")
	}
	if _, err := c.User(t.Context(), "x", Info{}); err == nil {
		t.Error("a lookup without a service, which would cost the connection, was sent")
	}
	if _, err := c.User(t.Context(), strings.Repeat("x", MaxLine), Info{Service: "s"}); err == nil {
		t.Error("a line that would cost the connection was sent")
	}
	if c.Err() != nil {
		t.Errorf("connection: %v", c.Err())
	}
}

func TestHandshakeFails(t *testing.T) {
	leak.Check(t)
	for name, text := range map[string]string{
		"other version": "VERSION\t2\t0\nSPID\t1\n", "no version": "SPID\t1\n", "broken": "VERSION\t1\t1\nSPID\tx\n",
		"closed": "VERSION\t1\t1\n", "endless": strings.Repeat("X\n", 20),
	} {
		here, there := net.Pipe()
		go func() { // ends when the client closes
			_, _ = io.WriteString(there, text)
			there.Close()
		}()
		if _, err := NewConn(t.Context(), here); err == nil {
			t.Errorf("%s: a connection", name)
		}
	}
	here, there := net.Pipe()
	defer there.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := NewConn(ctx, here); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silence: %v", err)
	}
}

func TestServerLines(t *testing.T) {
	if err := CheckVersion("VERSION\t1\t9"); err != nil {
		t.Error(err)
	}
	for _, l := range []string{"VERSION\t2\t0", "", "SPID\t1", "VERSION"} {
		if CheckVersion(l) == nil {
			t.Errorf("%q is a version", l)
		}
	}
	for _, l := range []string{"", "1\t2\t3", "x\t2\t3\t00", "1\t2\t3\tzz", "1\t2\t3\t000"} {
		if _, _, err := ParseRequest(l); err == nil {
			t.Errorf("%q is a request", l)
		}
	}
	if _, r, err := ParseRequest("1\t2\t3\t00\tsession_pid=x\tfoo\trequest_auth_token"); err != nil || !r.WantToken || r.SessionPID != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if l, err := ParseLookup("1\ta\x01tb\tservice=s"); err != nil || l.Name != "a\tb" || !l.Fields.Has("service") {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := ParseLookup("x\ta"); err == nil {
		t.Error("no ID")
	}
	if l, err := ParseList("7"); err != nil || l.ID != 7 {
		t.Errorf("%+v, %v", l, err)
	}
}

// Whatever a line holds, the reader and its callers end.
func FuzzReply(f *testing.F) {
	for _, l := range []string{"USER\t1\talice\tuid=1", "USER\t1\t\t", "NOTFOUND\t1", "FAIL\t1\treason=x", "FAIL\t1", "USER\t1", "PASS\t1\tuser=x", "DONE\t1\t", "x"} {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, line string) {
		fields := strings.Split(line, "\t")
		if len(fields) < 2 {
			return
		}
		for _, want := range []string{"USER", "PASS"} {
			u, err := userReply(fields, want)
			if err == nil && want == "USER" && u.Name == "" {
				t.Fatalf("%q: a user without a name", line)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\n\r") {
				t.Fatalf("%q: %q", line, err)
			}
		}
	})
}

func FuzzServerLine(f *testing.F) {
	f.Add("549191681\t29582\t1\tfea851b754478e1fc74578c2ff586a82\tsession_pid=29583\trequest_auth_token")
	f.Add("1\talice\tservice=submission\tforward_fields=a=b\x01tc=d")
	f.Fuzz(func(t *testing.T, args string) {
		if id, r, err := ParseRequest(args); err == nil && !strings.Contains(args, "=") {
			again, back, err := ParseRequest(strings.TrimSuffix(strings.TrimPrefix(string(r.append(nil, id)), "REQUEST\t"), "\n"))
			if err != nil || again != id || back != r {
				t.Fatalf("%q: %+v, then %+v, %v", args, r, back, err)
			}
		}
		_, _ = ParseLookup(args)
		_, _ = ParseList(args)
	})
}

func fields(words ...string) tabline.Fields {
	if len(words) == 0 {
		return tabline.Fields{}
	}
	return tabline.ParseFields(words)
}
