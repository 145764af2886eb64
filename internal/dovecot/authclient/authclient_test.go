package authclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/process/event"
	"dovetail/internal/testkit/leak"
)

const timeout = 10 * time.Second

const greeting = "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tSCRAM-SHA-1\tmutual-auth\nMECH\tANONYMOUS\tanonymous\n" +
	"MECH\tX\tprivate\tdictionary\tactive\tforward-secrecy\tnew\nSPID\t4711\nCUID\t3\nCOOKIE\t000102030405060708090a0b0c0d0e0f\nDONE\n"

// A peer is the server's end of a connection, and says and hears what a test wants.
type peer struct {
	t *testing.T
	net.Conn
	br *bufio.Reader
}

func (p *peer) say(s string) {
	p.t.Helper()
	if _, err := io.WriteString(p, s); err != nil {
		p.t.Error(err)
	}
}

func (p *peer) hear(want string) {
	p.t.Helper()
	got, err := p.br.ReadString('\n')
	if got != want+"\n" {
		p.t.Errorf("server got %q, %v; want %q", got, err, want)
	}
}

// connect returns a Conn behind its handshake, and the peer.
func connect(t *testing.T) (*Conn, *peer) {
	t.Helper()
	l := listen(t, filepath.Join(t.TempDir(), "login"))
	type result struct {
		c   *Conn
		err error
	}
	made := make(chan result, 1)
	go func() { // ends with the handshake
		c, err := Dial(t.Context(), l.Addr().String(), 99)
		made <- result{c, err}
	}()
	p := accept(t, l)
	p.hear("VERSION\t1\t2")
	p.hear("CPID\t99")
	p.say(greeting)
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.c.Close() })
	return r.c, p
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func accept(t *testing.T, l net.Listener) *peer {
	t.Helper()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.SetDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &peer{t, nc, bufio.NewReader(nc)}
}

// The line that the real login process sends (clause P3.6), and others.
func TestRequestLine(t *testing.T) {
	local, remote := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::ffff:192.0.2.7")
	for _, c := range []struct {
		r    Request
		want string
	}{
		{Request{Service: "submission", Secured: SecuredTrusted, Session: "Mea0le9g8Ot/AAAB", LocalIP: local, RemoteIP: local,
			LocalPort: 12587, RemotePort: 60400, RealLocalIP: local, RealRemoteIP: local, RealLocalPort: 12587, RealRemotePort: 60400,
			HasInitial: true, Initial: []byte("AGFsaWNlAGFwYXNz")},
			"AUTH\t7\tPLAIN\tservice=submission\tsecured\tsession=Mea0le9g8Ot/AAAB\tlip=127.0.0.1\trip=127.0.0.1\tlport=12587\trport=60400\tresp=AGFsaWNlAGFwYXNz\n"},
		{Request{Service: "submission", FinalRespOK: true, Secured: SecuredTLS, NoPenalty: true, ValidClientCert: true, Debug: true,
			CertUsername: "a\tb", LocalIP: netip.MustParseAddr("fe80::1%eth0"), RemoteIP: remote, LocalPort: 1, RemotePort: 2,
			RealLocalIP: local, RealRemoteIP: netip.MustParseAddr("2001:db8::1"), RealLocalPort: 3, RealRemotePort: 4,
			LocalName: "x\ny", ClientID: "id\x00", ForwardFields: "a=b\tc=d"},
			"AUTH\t7\tPLAIN\tservice=submission\tfinal-resp-ok\tsecured=tls\tno-penalty\tvalid-client-cert\tdebug\tcert_username=a\x01tb\tlip=fe80::1\t" +
				"rip=192.0.2.7\tlport=1\trport=2\treal_lip=127.0.0.1\treal_rip=2001:db8::1\treal_lport=3\treal_rport=4\tlocal_name=x\x01ny\tclient_id=id\x010\tforward_fields=a=b\x01tc=d\n"},
		{Request{Service: "s", HasInitial: true}, "AUTH\t7\tPLAIN\tservice=s\tresp=\n"},
		{Request{Service: "s", HasInitial: true, Initial: []byte("=")}, "AUTH\t7\tPLAIN\tservice=s\tresp=\n"},
	} {
		got := string(c.r.append(nil, 7, "PLAIN"))
		if got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
		a, err := ParseAuth(strings.TrimSuffix(strings.TrimPrefix(got, "AUTH\t"), "\n"))
		if err != nil || a.ID != 7 || a.HasInitial != c.r.HasInitial || strings.ContainsAny(got[:len(got)-1], "\n\x00") {
			t.Errorf("%q: the server reads %+v, %v", got, a, err)
		}
	}
}

func TestHandshake(t *testing.T) {
	c, _ := connect(t)
	want := []Mechanism{
		{"PLAIN", Plaintext}, {"SCRAM-SHA-1", MutualAuth}, {"ANONYMOUS", Anonymous},
		{"X", Private | Dictionary | Active | ForwardSecrecy},
	}
	if got := c.Mechanisms(); !reflect.DeepEqual(got, want) {
		t.Errorf("mechanisms %v", got)
	}
	if m, ok := c.Find("scram-sha-1"); !ok || m.Name != "SCRAM-SHA-1" {
		t.Errorf("found %v", m)
	}
	if c.SPID() != 4711 || c.Cookie().String() != "000102030405060708090a0b0c0d0e0f" {
		t.Errorf("SPID %d, cookie %s", c.SPID(), c.Cookie())
	}
}

// What is no greeting is no connection.
func TestHandshakeFails(t *testing.T) {
	for name, text := range map[string]string{
		"other version": strings.Replace(greeting, "1\t2", "2\t0", 1),
		"no version":    strings.Replace(greeting, "VERSION", "VERSON", 1),
		"no mechanism":  "VERSION\t1\t2\nSPID\t1\nCUID\t1\nCOOKIE\t000102030405060708090a0b0c0d0e0f\nDONE\n",
		"no cookie":     "VERSION\t1\t2\nMECH\tPLAIN\nSPID\t1\nDONE\n",
		"short cookie":  "VERSION\t1\t2\nMECH\tPLAIN\nCOOKIE\t00\n",
		"bad SPID":      "VERSION\t1\t2\nSPID\tx\n",
		"bad MECH":      "VERSION\t1\t2\nMECH\n",
		"closed":        "VERSION\t1\t2\nMECH\tPL",
		"endless":       strings.Repeat("MECH\tPLAIN\n", maxHandshakeLines+1),
	} {
		here, there := net.Pipe()
		go func() { // ends when the client closes
			defer there.Close()
			_, _ = bufio.NewReader(there).ReadString('\n')
			go io.Copy(io.Discard, there) //nolint:errcheck // ends with the pipe
			_, _ = io.WriteString(there, text)
		}()
		if c, err := NewConn(t.Context(), here, 1); err == nil {
			t.Errorf("%s: a connection", name)
			c.Close()
		}
	}
	here, there := net.Pipe()
	defer there.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := NewConn(ctx, here, 1); !errors.Is(err, why) {
		t.Errorf("given up: %v", err)
	}
}

// What a stranger could break the connection with is not sent.
func TestRefused(t *testing.T) {
	c, p := connect(t)
	ok := Request{Mechanism: "plain", Service: "submission"}
	for name, r := range map[string]struct {
		change func(*Request)
		want   error
	}{
		"mechanism":    {func(r *Request) { r.Mechanism = "NOSUCH" }, ErrMechanism},
		"mechanism 2":  {func(r *Request) { r.Mechanism = "PLAIN\tresp=" }, ErrMechanism},
		"mechanism 3":  {func(r *Request) { r.Mechanism = "" }, ErrMechanism},
		"tab":          {func(r *Request) { r.HasInitial, r.Initial = true, []byte("AAA\t") }, ErrBase64},
		"LF":           {func(r *Request) { r.HasInitial, r.Initial = true, []byte("AAA\n") }, ErrBase64},
		"escape":       {func(r *Request) { r.HasInitial, r.Initial = true, []byte("AAA\x01") }, ErrBase64},
		"NUL":          {func(r *Request) { r.HasInitial, r.Initial = true, []byte("AAA\x00") }, ErrBase64},
		"length":       {func(r *Request) { r.HasInitial, r.Initial = true, []byte("AAAAA") }, ErrBase64},
		"inner equals": {func(r *Request) { r.HasInitial, r.Initial = true, []byte("A=AA") }, ErrBase64},
		"three equals": {func(r *Request) { r.HasInitial, r.Initial = true, []byte("A===") }, ErrBase64},
		"8 bit":        {func(r *Request) { r.HasInitial, r.Initial = true, []byte("AAA\xe9") }, ErrBase64},
		"long initial": {func(r *Request) { r.HasInitial, r.Initial = true, []byte(strings.Repeat("A", MaxLine)) }, ErrTooLong},
		"long session": {func(r *Request) { r.Session = strings.Repeat("\x00", MaxLine/2) }, ErrTooLong},
	} {
		q := ok
		r.change(&q)
		if _, err := c.Begin(&q); !errors.Is(err, r.want) {
			t.Errorf("%s: %v, want %v", name, err, r.want)
		}
	}
	// The connection is as good as new, and nothing of this was sent.
	ex, err := c.Begin(&ok)
	if err != nil {
		t.Fatal(err)
	}
	defer ex.Close()
	p.hear(fmt.Sprintf("AUTH\t%d\tPLAIN\tservice=submission", ex.ID()))
	p.say(fmt.Sprintf("CONT\t%d\t\n", ex.ID()))
	if r := next(t, ex); r.Kind != Continue || r.Challenge != "" {
		t.Fatalf("%+v", r)
	}
	for _, bad := range []string{"A", "AA\t=", "AAAAA\n==", strings.Repeat("A", MaxLine)} {
		if err := ex.Continue([]byte(bad)); !errors.Is(err, ErrBase64) && !errors.Is(err, ErrTooLong) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	if err := ex.Continue([]byte("AAAA")); err != nil {
		t.Fatal(err)
	}
	p.hear(fmt.Sprintf("CONT\t%d\tAAAA", ex.ID()))
	if err := ex.Continue([]byte("AAAA")); err == nil {
		t.Error("a challenge was answered twice")
	}
}

func next(t *testing.T, ex *Exchange) Reply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	r, err := ex.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func begin(t *testing.T, c *Conn) *Exchange {
	t.Helper()
	ex, err := c.Begin(&Request{Mechanism: "PLAIN", Service: "s"})
	if err != nil {
		t.Fatal(err)
	}
	return ex
}

// A request that nobody will claim is cancelled (clause P3.15), and no other.
func TestCloseCancels(t *testing.T) {
	c, p := connect(t)
	for _, tc := range []struct {
		name, reply string
		handedOver  bool
		want        bool
	}{
		{"no answer yet", "", false, true},
		{"challenged", "CONT\t%d\tAAAA\n", false, true},
		{"failed", "FAIL\t%d\tuser=x\n", false, false},
		{"nobody takes the client", "OK\t%d\tuser=x\n", false, true},
		{"handed over", "OK\t%d\tuser=x\n", true, false},
		{"proxied", "OK\t%d\tuser=x\tproxy\thost=192.0.2.1\n", false, false},
		{"refused", "OK\t%d\tuser=x\tnologin\treason=no\n", false, false},
		{"a user named proxy", "OK\t%d\tuser=proxy\n", false, true},
	} {
		ex := begin(t, c)
		p.hear(fmt.Sprintf("AUTH\t%d\tPLAIN\tservice=s", ex.ID()))
		if tc.reply != "" {
			p.say(fmt.Sprintf(tc.reply, ex.ID()))
			next(t, ex)
		}
		if tc.handedOver {
			ex.HandedOver()
		}
		ex.Close()
		ex.Close()
		mark := begin(t, c)
		if tc.want {
			p.hear(fmt.Sprintf("CANCEL\t%d", ex.ID()))
		}
		p.hear(fmt.Sprintf("AUTH\t%d\tPLAIN\tservice=s", mark.ID()))
		mark.Close()
		p.hear(fmt.Sprintf("CANCEL\t%d", mark.ID()))
		if _, err := ex.Next(t.Context()); !errors.Is(err, ErrLost) && tc.reply == "" {
			t.Errorf("%s: Next after Close: %v", tc.name, err)
		}
	}
}

// An OK that came but was not looked at is cancelled, too.
func TestCloseOfAnUnreadOK(t *testing.T) {
	c, p := connect(t)
	ex, mark := begin(t, c), begin(t, c)
	p.hear("AUTH\t1\tPLAIN\tservice=s")
	p.hear("AUTH\t2\tPLAIN\tservice=s")
	p.say("OK\t1\tuser=x\nFAIL\t2\n")
	next(t, mark)
	ex.Close()
	p.hear("CANCEL\t1")
}

// One client's odd replies are its own.
func TestReplies(t *testing.T) {
	c, p := connect(t)
	a, b, d, e := begin(t, c), begin(t, c), begin(t, c), begin(t, c)
	p.say("OK\t99\tuser=nobody\nFAIL\t98\nCONT\t97\tAAAA\n" + // for exchanges that are over
		"CONT\t1\tAAAA\nCONT\t1\tBBBB\n" + // two challenges
		"CONT\t2\tno base64\n" +
		"OK\t3\tuser=" + strings.Repeat("x", 2*maxReply) + "\n" +
		"FAIL\t4\tuser=a\x01tb\treason=so \x01n it is\tcode=user_disabled\t\n")
	for name, ex := range map[string]*Exchange{"two challenges": a, "broken challenge": b, "long line": d} {
		r := next(t, ex)
		if code, _ := r.Fields().Get("code"); r.Kind != Fail || code != CodeTempFail {
			t.Errorf("%s: %+v", name, r)
		}
	}
	r := next(t, e)
	user, _ := r.Fields().Get("user")
	reason, _ := r.Fields().Get("reason")
	if r.Kind != Fail || user != "a\tb" || reason != "so \n it is" {
		t.Errorf("%+v", r.Fields())
	}
	long := begin(t, c)
	p.say("OK\t5\tuser=" + strings.Repeat("y", maxReply-20) + "\n")
	if user, _ := next(t, long).Fields().Get("user"); len(user) != maxReply-20 {
		t.Errorf("a line of %d bytes was cut to %d", maxReply, len(user))
	}
}

// A connection that is lost, or whose server talks nonsense, ends all exchanges.
func TestLost(t *testing.T) {
	leak.Check(t)
	for _, text := range []string{"", "HELLO\n", "OK\n", "OK\tx\n", "CONT\t1\n", "\n"} {
		c, p := connect(t)
		ex := begin(t, c)
		waiting := make(chan error, 1)
		go func() { // ends with the connection
			_, err := ex.Next(context.Background())
			waiting <- err
		}()
		if text == "" {
			p.Close()
		} else {
			p.say(text)
		}
		if err := <-waiting; !errors.Is(err, ErrLost) || !IsTemporary(err) {
			t.Errorf("%q: %v", text, err)
		}
		<-c.Done()
		if c.Err() == nil || c.lost() != 1 {
			t.Errorf("%q: %v, %d lost", text, c.Err(), c.lost())
		}
		if _, err := c.Begin(&Request{Mechanism: "PLAIN", Service: "s"}); !errors.Is(err, ErrLost) {
			t.Errorf("%q: Begin: %v", text, err)
		}
		if err := ex.Continue(nil); !errors.Is(err, ErrLost) {
			t.Errorf("%q: Continue: %v", text, err)
		}
		ex.Close()
		p.Close()
	}
}

func TestNextEndsWithContext(t *testing.T) {
	c, _ := connect(t)
	ex := begin(t, c)
	defer ex.Close()
	why := errors.New("client gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := ex.Next(ctx); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

// A command is one write: others' commands cannot get into it, and it costs one call.
type countingConn struct {
	net.Conn
	mu     sync.Mutex
	writes []string // guarded by mu
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.writes = append(c.writes, string(b))
	c.mu.Unlock()
	return c.Conn.Write(b)
}

func TestOneWriteForEachCommand(t *testing.T) {
	here, there := net.Pipe()
	go io.Copy(io.Discard, there) //nolint:errcheck // ends with the pipe
	go io.WriteString(there, greeting)
	nc := &countingConn{Conn: here}
	c, err := NewConn(t.Context(), nc, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	defer c.Close()
	nc.writes = nil
	ex, err := c.Begin(&Request{Mechanism: "PLAIN", Service: "s", HasInitial: true, Initial: []byte("c2VjcmV0")})
	if err != nil {
		t.Fatal(err)
	}
	ex.Close()
	if want := []string{"AUTH\t1\tPLAIN\tservice=s\tresp=c2VjcmV0\n", "CANCEL\t1\n"}; !reflect.DeepEqual(nc.writes, want) {
		t.Errorf("writes %q", nc.writes)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if b := string(c.wbuf[:cap(c.wbuf)]); strings.Contains(b, "c2VjcmV0") {
		t.Error("the password stays in the buffer")
	}
}

// Thousands of exchanges at a time each get their own replies.
func TestManyAtATime(t *testing.T) {
	leak.Check(t)
	c, p := connect(t)
	const n = 2000
	go func() { // ends when all is answered
		for range n {
			l, err := p.br.ReadString('\n')
			if err != nil {
				t.Error(err)
				return
			}
			f := strings.Split(l, "\t")
			p.say("CONT\t" + f[1] + "\t\nOK\t" + f[1] + "\tuser=u" + f[1] + "\n")
		}
	}()
	var wg sync.WaitGroup
	for range n {
		wg.Add(1)
		go func() { // ends with its exchange
			defer wg.Done()
			ex := begin(t, c)
			for {
				r, err := ex.Next(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				if r.Kind == OK {
					if u, _ := r.Fields().Get("user"); u != fmt.Sprintf("u%d", ex.ID()) {
						t.Errorf("exchange %d got %s", ex.ID(), u)
					}
					ex.HandedOver()
					ex.Close()
					return
				}
			}
		}()
	}
	wg.Wait()
	c.Close()
	p.Close()
}

// IDs are never 0 and never one that waits.
func TestIDsWrap(t *testing.T) {
	c, _ := connect(t)
	first := begin(t, c)
	c.mu.Lock()
	c.lastID = 1<<32 - 2
	c.mu.Unlock()
	if a, b := begin(t, c), begin(t, c); a.ID() != 1<<32-1 || b.ID() != 2 || first.ID() != 1 {
		t.Errorf("IDs %d, %d, %d", first.ID(), a.ID(), b.ID())
	}
}

type lines struct {
	mu   sync.Mutex
	text []string // guarded by mu
}

func (l *lines) Log(level event.Level, prefix, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, level.String()+": "+text)
}

func (l *lines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.text, "\n")
}

// A client waits for the service, says how long, and comes back when it does.
func TestClient(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "login")
	var log lines
	c := NewClient(path, 99, event.New(&log, "", false))
	defer c.Close()
	if s := c.State(); s.Ready || s.Ever || time.Since(s.Since) > time.Minute {
		t.Errorf("at first: %+v", s)
	}
	if _, err := c.Begin(&Request{Mechanism: "PLAIN", Service: "s"}); !errors.Is(err, ErrLost) {
		t.Errorf("Begin: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	if err := c.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ready: %v", err)
	}
	cancel()
	const noService = "Error: auth-client: dial unix"
	for deadline := time.Now().Add(timeout); !strings.Contains(log.all(), noService); time.Sleep(time.Millisecond) { // polling
		if time.Now().After(deadline) {
			t.Fatalf("no line %q", noService)
		}
	}
	for round := range 2 {
		l := listen(t, path)
		p := accept(t, l)
		p.say(greeting)
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		if err := c.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		if s := c.State(); !s.Ready || !s.Ever || s.Err != nil {
			t.Errorf("round %d: %+v", round, s)
		}
		if len(c.Mechanisms()) != 4 || c.Conn() == nil {
			t.Errorf("round %d: no mechanisms", round)
		}
		ex, err := c.Begin(&Request{Mechanism: "PLAIN", Service: "s"})
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		p.Close()
		if _, err := ex.Next(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("round %d: %v", round, err)
		}
		for deadline := time.Now().Add(timeout); c.State().Ready; time.Sleep(time.Millisecond) { // polling
			if time.Now().After(deadline) {
				t.Fatal("still ready")
			}
		}
		if s := c.State(); s.Err == nil || !s.Ever {
			t.Errorf("round %d: lost: %+v", round, s)
		}
	}
	c.Close()
	if err := c.Ready(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Ready after Close: %v", err)
	}
	seen := log.all()
	for _, want := range []string{"Info: auth-client: connected to the auth service again", "Warning: auth-client: Auth connection closed with 1 pending requests"} {
		if !strings.Contains(seen, want) {
			t.Errorf("no line %q in\n%s", want, seen)
		}
	}
	if n := strings.Count(seen, "\n") + 1; n > 10 {
		t.Errorf("%d lines for two rounds:\n%s", n, seen)
	}
}

// After a reload new exchanges go to the new service; those that had begun end where they
// were. The same service again is not bothered twice.
func TestRenew(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "login")
	var log lines
	l := listen(t, path)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	c := NewClient(path, 99, event.New(&log, "", false))
	defer c.Close()
	first := accept(t, l)
	first.hear("VERSION\t1\t2")
	first.hear("CPID\t99")
	first.say(greeting)
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	begun, err := c.Begin(&Request{Mechanism: "PLAIN", Service: "s"})
	if err != nil {
		t.Fatal(err)
	}
	first.hear("AUTH\t1\tPLAIN\tservice=s")

	c.Renew()
	same := accept(t, l)
	same.say(greeting)
	if _, err := same.br.ReadString('\n'); err != io.EOF {
		t.Errorf("the same service hears something: %v", err)
	}

	for deadline := time.Now().Add(timeout); c.renewing(); time.Sleep(time.Millisecond) { // polling
		if time.Now().After(deadline) {
			t.Fatal("it does not end")
		}
	}
	other := strings.Replace(greeting, "4711", "4712", 1)
	c.Renew()
	c.Renew() // is the same
	began := make(chan *Exchange, 1)
	go func() { // ends when the second service has greeted
		ex, err := c.Begin(&Request{Mechanism: "PLAIN", Service: "s"})
		if err != nil {
			t.Error(err)
		}
		began <- ex
	}()
	second := accept(t, l)
	second.say(other)
	second.hear("VERSION\t1\t2")
	second.hear("CPID\t99")
	second.hear("AUTH\t1\tPLAIN\tservice=s")
	fresh := <-began
	if s := c.State(); !s.Ready || s.Err != nil || c.Conn().SPID() != 4712 {
		t.Errorf("renewed: %+v", s)
	}
	first.say("OK\t1\tuser=old\n")
	second.say("OK\t1\tuser=new\n")
	for ex, want := range map[*Exchange]string{begun: "old", fresh: "new"} {
		r, err := ex.Next(t.Context())
		if got, _ := r.Fields().Get("user"); err != nil || got != want {
			t.Errorf("user %q, %v; want %s", got, err, want)
		}
		ex.Close()
	}
	first.hear("CANCEL\t1") // nobody claimed them
	second.hear("CANCEL\t1")
	c.Close()
	if _, err := first.br.ReadString('\n'); err != io.EOF {
		t.Errorf("the old connection: %v", err)
	}
	if len(log.text) > 0 {
		t.Errorf("log %q", log.text)
	}
}

// The connection may be lost while it is being renewed: nobody waits for ever.
func TestLostWhileRenewing(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "login")
	l := listen(t, path)
	go func() { // ends with l
		for n := 4711; ; n++ {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(nc, strings.Replace(greeting, "4711", fmt.Sprint(n), 1))
			time.AfterFunc(time.Duration(n%4)*time.Millisecond, func() { nc.Close() })
		}
	}()
	for range 30 {
		c := NewClient(path, 99, event.New(&lines{}, "", false))
		for range 10 {
			c.Renew()
			if ex, err := c.Begin(&Request{Mechanism: "PLAIN", Service: "s"}); err == nil {
				_, _ = ex.Next(t.Context())
				ex.Close()
			}
			time.Sleep(200 * time.Microsecond) // for another order of things
		}
		c.Close()
	}
}
