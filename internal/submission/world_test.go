package submission

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovetail/internal/dovecot/authmaster"
	"dovetail/internal/dovecot/config"
	"dovetail/internal/dovecot/handoff"
	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/service"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/server"
	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/fakemaster"
	"dovetail/internal/testkit/relay"
)

// The test binary is the program that the fake master starts.
func TestMain(m *testing.M) {
	if slices.Contains(os.Environ(), "DOVECOT_CHILD_PROCESS=1") {
		commands["PANIC"] = func(*session, *server.Command) bool { panic("asked for") }
		commands["PANICTHERE"] = func(se *session, cmd *server.Command) bool {
			return se.send([]byte("NOOP"), func(smtp.Reply) { panic("asked for, in the relay's reader") })
		}
		service.Main(Program())
	}
	os.Exit(m.Run())
}

const testUID = 12001 // nobody's; only root can become it

// A world is a worker process with everything around it: master, config and auth services,
// login processes. Everybody's settings are its Config; a session can have its own.
type world struct {
	t      testing.TB
	svc    *fakemaster.Service
	child  *fakemaster.Child
	socket string
	config map[string]string

	ids    *atomic.Uint32
	mu     *sync.Mutex
	logins map[uint32]login // guarded by mu: by auth ID
}

// A login is what the auth service knows.
type login struct {
	user   string
	fields []string
	fail   string // "NOTFOUND" or "FAIL"
}

// newWorld starts a worker that serves many clients.
func newWorld(t testing.TB, conf map[string]string) *world {
	t.Helper()
	return newWorldWith(t, conf, func(*world) {})
}

// newWorldWith is newWorld with more around the worker.
func newWorldWith(t testing.TB, conf map[string]string, more func(*world)) *world {
	t.Helper()
	w := &world{t: t, config: map[string]string{"hostname": "host.test", "submission_relay_host": "127.0.0.1"}, logins: map[uint32]login{}, ids: new(atomic.Uint32), mu: new(sync.Mutex)}
	for k, v := range conf {
		w.config[k] = v
	}
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w.svc = fakemaster.New(t, path)
	w.svc.Dir = t.TempDir()
	if err := os.Chmod(w.svc.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w.svc.Environ = []string{"GORACE=atexit_sleep_ms=0"}
	w.svc.Env.ClientLimit = 1000
	w.svc.Env.Hostname, w.svc.Env.HostDomain = "machine", "machine.test"
	w.svc.Env.ConfigFile = filepath.Join(w.svc.Dir, "config")
	w.listen("config", w.serveConfig)
	w.listen("auth-master", w.serveAuth)
	more(w)
	w.socket = w.svc.Unix(masterproto.Listener{Name: "submission"})
	w.child = w.svc.Start()
	w.child.AwaitCount(1000)
	return w
}

// in returns the world for a subtest.
func (w *world) in(t testing.TB) *world {
	here := *w
	here.t = t
	return &here
}

// listen serves connections on a socket in the worker's directory until the test ends.
func (w *world) listen(name string, serve func(net.Conn)) {
	w.t.Helper()
	l, err := net.Listen("unix", filepath.Join(w.svc.Dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	var ends sync.WaitGroup
	ends.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			ends.Go(func() { // ends with the process
				defer c.Close()
				serve(c)
			})
		}
	})
	w.t.Cleanup(func() { l.Close() })
}

func (w *world) serveConfig(c net.Conn) {
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "REQ") {
			c.Write(config.Answer{Values: w.config}.Append(nil))
		}
	}
}

func (w *world) serveAuth(c net.Conn) {
	c.Write(authmaster.AppendGreeting(nil, uint32(os.Getpid())))
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		args, ok := strings.CutPrefix(lines.Text(), "REQUEST\t")
		if !ok {
			continue
		}
		id, r, err := authmaster.ParseRequest(args)
		if err != nil {
			return
		}
		w.mu.Lock()
		l := w.logins[r.AuthID]
		w.mu.Unlock()
		out := []string{"USER", fmt.Sprint(id), l.user}
		if l.fail != "" {
			out = []string{l.fail, fmt.Sprint(id)}
		}
		c.Write(tabline.Append(nil, append(out, l.fields...)...))
	}
}

// A visit is how a client comes.
type visit struct {
	user    string // "" is alice
	fields  []string
	fail    string
	flags   handoff.Flags
	helo    string
	xhelo   string
	pending string
	session string // "" is "sess"
	auth    uint32 // process ID of the auth service that let it in; 0 is the present one
}

// log in makes a connection and hands its other end to the worker.
func (w *world) login(v visit) *client.Client {
	w.t.Helper()
	c, err := w.tryLogin(v)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) tryLogin(v visit) (*client.Client, error) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	defer theirs.Close()
	if v.user == "" {
		v.user = "alice"
	}
	if v.session == "" {
		v.session = "sess"
	}
	if v.auth == 0 {
		v.auth = uint32(os.Getpid())
	}
	id := w.ids.Add(1)
	fields := v.fields
	if os.Geteuid() == 0 && !slices.ContainsFunc(fields, func(f string) bool { return strings.HasPrefix(f, "uid=") }) {
		fields = append([]string{fmt.Sprint("uid=", testUID), fmt.Sprint("gid=", testUID)}, fields...)
	}
	w.mu.Lock()
	w.logins[id] = login{v.user, fields, v.fail}
	w.mu.Unlock()
	raw, err := theirs.(*net.TCPConn).SyscallConn()
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err = handoff.Send(ctx, w.socket, handoff.Request{
		AuthPID: v.auth, AuthID: id, ClientPID: 4711,
		Local:   netip.MustParseAddrPort("192.0.2.1:587"),
		Remote:  netip.MustParseAddrPort("192.0.2.7:1234"),
		Flags:   v.flags | handoff.Secured,
		Session: v.session,
		Payload: handoff.Submission{Helo: v.helo, ProxiedHelo: v.xhelo, Pending: []byte(v.pending)}.Append(nil),
	}, raw)
	return client.New(w.t, ours), err
}

// open logs in with a relay of its own, and reads the greeting.
func (w *world) open(r *relay.Relay, fields ...string) *client.Client {
	w.t.Helper()
	c := w.login(visit{fields: append(fields, port(r))})
	c.Expect("235 2.7.0 Logged in.")
	return c
}

// awaitEnd waits until the session is over, but for what its relay connection has to say
// goodbye.
func (w *world) awaitEnd(session string) { w.svc.AwaitLog("<" + session + ">: Info: Disconnected: ") }

func port(r *relay.Relay) string { return fmt.Sprint("submission_relay_port=", r.Port) }

// begin opens a transaction with one recipient.
func begin(c *client.Client) {
	c.Do("MAIL FROM:<alice@example.org>", "250 2.1.0")
	c.Do("RCPT TO:<bob@example.net>", "250 2.")
}

// body returns a message without its Received header, which it checks a little.
func body(t testing.TB, m relay.Message) string {
	t.Helper()
	head, rest, ok := strings.Cut(string(m.Data), "+0000\r\n")
	if !ok || !strings.HasPrefix(head, "Received: from ") || strings.Count(head, "\r\n") > 4 {
		t.Fatalf("no Received header: %.300q", m.Data)
	}
	return rest
}
