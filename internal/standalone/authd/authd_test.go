package authd

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/conf"
	"dovetail/internal/process/event"
	"dovetail/internal/testkit/leak"
)

// load reads a configuration text; files are written below dir, for which @DIR@ stands.
func load(t *testing.T, dir, conf string, files ...[2]string) (Settings, error) {
	t.Helper()
	return settingsOf(t, dialog{conf: conf, files: files}.write(t, dir))
}

func newServer(t *testing.T, opt Options, conf string, files ...[2]string) (*Server, *memory) {
	t.Helper()
	set, err := load(t, shortTemp(t), conf, files...)
	if err != nil {
		t.Fatal(err)
	}
	var log memory
	opt.Log = event.New(&log, "", false)
	s, err := New(set, opt)
	if err != nil {
		t.Fatal(err)
	}
	return s, &log
}

// A client is a raw connection to a server.
type client struct {
	t *testing.T
	net.Conn
	br     *bufio.Reader
	cookie string
	ended  chan struct{}
}

// dial connects to s as by the listener of that name, over a pipe.
func dial(t *testing.T, s *Server, listener string, pid int) *client {
	t.Helper()
	here, there := net.Pipe()
	c := &client{t: t, Conn: here, br: bufio.NewReader(here), ended: make(chan struct{})}
	go func() { // ends when the client closes
		defer close(c.ended)
		s.Serve(context.Background(), there, listener, "/run/"+listener)
	}()
	hello := fmt.Sprintf("VERSION\t1\t2\nCPID\t%d\n", pid)
	last := "DONE"
	if strings.HasSuffix(listener, "master") || strings.HasSuffix(listener, "userdb") {
		hello, last = "VERSION\t1\t1\n", "SPID"
	}
	sent := make(chan error, 1)
	go func() { // ends when the server has read it
		_, err := io.WriteString(here, hello)
		sent <- err
	}()
	defer func() {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}()
	for {
		l := c.read()
		if v, ok := strings.CutPrefix(l, "COOKIE\t"); ok {
			c.cookie = v
		}
		if strings.HasPrefix(l, last) || l == "" {
			return c
		}
	}
}

func (c *client) read() string {
	l, err := c.br.ReadString('\n')
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(l, "\n")
}

func (c *client) write(line string) {
	c.t.Helper()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		c.t.Error(err)
	}
}

// ask sends a line and returns the next reply.
func (c *client) ask(line string) string {
	c.t.Helper()
	c.write(line)
	return c.read()
}

func (c *client) close() {
	c.Close()
	<-c.ended
}

func plainAuth(id int, user, pass string, more ...string) string {
	b := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + pass))
	return fmt.Sprintf("AUTH\t%d\tPLAIN\tservice=submission\trip=192.0.2.1%s\tresp=%s", id, strings.Join(more, ""), b)
}

const onePassdb = `
auth_failure_delay = 2 secs
passdb {
  driver = static
  args = password=right
}
userdb {
  driver = static
  args = uid=5001 gid=5001
}
`

// Settings that cannot be had are errors that name them and say what to do.
func TestUnsupported(t *testing.T) {
	for _, c := range []struct{ conf, want string }{
		{"passdb {\n driver = pam\n}\n", "passdb 1: driver pam is not supported by standalone, which has passwd-file and static: run the two programs under Dovecot (drop-in)"},
		{"passdb {\n driver = static\n args = password=x\n}\nuserdb {\n driver = sql\n args = /x\n}\n", "userdb 1: driver sql is not supported by standalone, which has passwd-file, static and prefetch: run"},
		{"auth_mechanisms = plain gssapi oauthbearer\n" + onePassdb, "auth_mechanisms: GSSAPI is not supported by standalone, which has PLAIN LOGIN CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256 EXTERNAL ANONYMOUS: run the two programs under Dovecot (drop-in)\nauth_mechanisms: OAUTHBEARER is"},
		{"auth_mechanisms =\n" + onePassdb, "No authentication mechanisms configured"},
		{"auth_mechanisms = anonymous\nauth_anonymous_username =\n" + onePassdb, "anonymous_username not set"},
		{"", "No passdbs specified in configuration file. PLAIN mechanism needs one"},
		{"auth_policy_server_url = http://localhost/\nauth_policy_hash_nonce = x\n" + onePassdb, "auth_policy_server_url is not supported by standalone"},
		{"auth_krb5_keytab = /x\n" + onePassdb, "auth_krb5_keytab is not supported by standalone"},
		{"auth_use_winbind = yes\n" + onePassdb, "auth_use_winbind is not supported by standalone"},
		{"passdb {\n driver = passwd-file\n}\n", "passdb 1: passdb passwd-file: Missing args"},
		{"passdb {\n driver = passwd-file\n args = foo=bar /x\n}\n", "Unknown setting: foo"},
		{"passdb {\n driver = passwd-file\n args = users\n}\n", "Unknown setting: users (the path must begin with /)"},
		{"passdb {\n driver = passwd-file\n args = scheme=OTP /x\n}\n", "unknown password scheme OTP"},
		{onePassdb + "userdb {\n driver = passwd-file\n args = users\n}\n", "must begin with /"},
		{onePassdb + "userdb {\n driver = static\n args = uid=nosuchuser\n}\n", "userdb 2: userdb static: Invalid uid: nosuchuser"},
		{onePassdb + "userdb {\n driver = static\n default_fields = gid=nosuchgroup\n}\n", "userdb 2: default_fields: userdb static: Invalid gid: nosuchgroup"},
		{"passdb {\n driver = static\n args = =x\n}\n", "key must not be empty"},
		{"passdb {\n driver = static\n args = password=x\n pass = yes\n}\n", "Last passdb can't have pass=yes"},
		{onePassdb + "passdb {\n driver = static\n master = yes\n deny = yes\n}\n", "passdb 2: Master passdb can't have deny=yes"},
	} {
		set, err := load(t, shortTemp(t), c.conf)
		if err == nil {
			_, err = New(set, Options{Log: event.New(&memory{}, "", false)})
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngot  %v\nwant %s", c.conf, err, c.want)
		}
	}
}

// What the configuration's checks know of mechanisms is what there is.
func TestMechanismsOfChecks(t *testing.T) {
	var names []string
	for _, m := range allMechanisms() {
		names = append(names, m.Name)
	}
	if !slices.Equal(names, conf.OwnMechanisms) {
		t.Errorf("there are %q, the checks know %q", names, conf.OwnMechanisms)
	}
}

// Two login processes do not have the same process ID, unless one is gone.
func TestCPIDIsUnique(t *testing.T) {
	s, log := newServer(t, Options{}, onePassdb)
	defer s.Close()
	a := dial(t, s, "login", 7)
	a.ask("CONT\t9\tAAAA")
	b := dial(t, s, "login", 7)
	if got := b.read(); got != "" {
		t.Errorf("the second got %q", got)
	}
	b.close()
	c := dial(t, s, "auth-client", 7) // there it does not matter
	if got := c.ask(plainAuth(1, "alice", "right")); got != "OK\t1\tuser=alice" {
		t.Error(got)
	}
	c.close()
	a.close()
	d := dial(t, s, "login", 7)
	if got := d.ask(plainAuth(1, "alice", "right")); got != "OK\t1\tuser=alice" {
		t.Error(got)
	}
	d.close()
	if got := log.get(); got[0] != "Error: BUG: Authentication client gave a PID 7 of existing connection" {
		t.Error(got)
	}
}

// A client that reads nothing is not read from any more, and costs bounded memory.
func TestClientThatDoesNotRead(t *testing.T) {
	leak.Check(t)
	s, _ := newServer(t, Options{}, onePassdb)
	defer s.Close()
	path := filepath.Join(shortTemp(t), "login")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan struct{})
	go func() { // ends when the client closes
		defer close(served)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		s.Serve(context.Background(), nc, "login", path)
	}()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "VERSION\t1\t2\nCPID\t7\n"); err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("CONT\t1\tAAAA\n", 1000))
	sent := 0
	for { // until the server has had enough
		if err := c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Write(line)
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if sent > 64<<20 {
			t.Fatal("the server takes everything")
		}
	}
	c.Close()
	<-served
}

// Expensive hashes of a flood hold up neither cheap ones nor lookups.
func TestFloodOfHashes(t *testing.T) {
	const argon = "{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$5VQ1ORpnnTpZ2WskV0fYWg$Pu3HN7t0GtrzZwHgSIt66CwdO4gB/eNJCHY2W78dyPc"
	s, _ := newServer(t, Options{Memory: 64 << 20}, `
passdb {
  driver = passwd-file
  args = @DIR@/users
}
userdb {
  driver = passwd-file
  args = @DIR@/users
}
`, [2]string{"users", "slow:" + argon + ":1:1\nquick:{PLAIN}x:5001:5001\n"})
	defer s.Close()
	c := dial(t, s, "login", 7)
	m := dial(t, s, "auth-master", 0)
	const flood = 40
	for i := range flood {
		c.write(plainAuth(i+1, "slow", "x"))
	}
	if got := c.ask(plainAuth(100, "quick", "x")); got != "OK\t100\tuser=quick" {
		t.Errorf("behind the flood came %q", got)
	}
	if got := m.ask("USER\t1\tquick\tservice=submission"); got != "USER\t1\tquick\tuid=5001\tgid=5001" {
		t.Error(got)
	}
	c.close() // who left is not hashed for
	m.close()
}

// auth-userdb with mode 0666 tells a stranger only about users with his uid (clause P4.8).
func TestRestrictedUserdb(t *testing.T) {
	s, log := newServer(t, Options{}, onePassdb)
	defer s.Close()
	ask := func(k masterKind, lines ...string) (out []string) {
		here, there := net.Pipe()
		defer here.Close()
		go s.serveMaster(context.Background(), there, k) // ends with the pipe
		br := bufio.NewReader(here)
		for range 2 {
			if _, err := br.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.WriteString(here, "VERSION\t1\t1\n"); err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			if _, err := io.WriteString(here, l+"\n"); err != nil {
				t.Fatal(err)
			}
			got, err := br.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, strings.TrimSuffix(got, "\n"))
		}
		return out
	}
	lines := []string{"USER\t1\talice\tservice=submission", "PASS\t2\talice\tservice=submission", "LIST\t3"}
	k := masterKind{lookupsOnly: true, restricted: true, uid: 5001, path: "/run/auth-userdb"}
	want := []string{"USER\t1\talice\tuid=5001\tgid=5001", "FAIL\t2", "DONE\t3\tfail"}
	if text := diff(want, ask(k, lines...)); text != "" {
		t.Error(text)
	}
	k.uid = 4999
	if text := diff([]string{"FAIL\t1"}, ask(k, lines[0])); text != "" {
		t.Error(text)
	}
	k.restricted = false
	if got := ask(k, lines[:2]...); got[0] != want[0] || got[1] != "PASS\t2\tuser=alice" {
		t.Error(got)
	}
	found := false
	for _, l := range log.get() {
		found = found || strings.Contains(l, "client doesn't have lookup permissions for this user: userdb uid (5001) doesn't match peer uid (4999) (to bypass this check, set: service auth { unix_listener /run/auth-userdb { mode=0777 } })")
	}
	if !found {
		t.Errorf("%q", log.get())
	}
}
