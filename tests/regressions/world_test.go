// Package regressions has a test for each fault of this kind of server that was once made:
// those of Dovecot's own history that touch the submission service, by its changelogs and
// advisories, and our own. history_test.go looks at whole sessions, auth_test.go at what
// reaches the auth service.
package regressions

import (
	"os"
	"path/filepath"
	"testing"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/testkit/authserver"
	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/config"
	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/fakemaster"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

func TestMain(m *testing.M) { os.Exit(dovetail.Main(m, 8)) }

// serve starts a server for alice and bob, whose relay is r, with more lines of
// configuration.
func serve(t *testing.T, r *relay.Relay, shared bool, config string) *dovetail.Server {
	t.Helper()
	var users []dovetail.User
	for _, name := range []string{"alice", "bob"} {
		users = append(users, dovetail.User{Name: name, Fields: []string{dovetail.Relay(r.Port)}})
	}
	return dovetail.Start(t, dovetail.Setup{Users: users, Shared: shared, Config: config})
}

func newRelay(t *testing.T, o relay.Options) *relay.Relay {
	t.Helper()
	o.Timeout = dovetail.Patience
	return relay.Start(t, o)
}

// envelope begins a message.
func envelope(c *client.Client) {
	c.Do("MAIL FROM:<alice@example.test>", "250")
	c.Do("RCPT TO:<bob@dest.test>", "250")
}

// message sends one.
func message(c *client.Client) {
	envelope(c)
	c.Do("DATA", "354")
	c.Send("hello", ".")
	c.ExpectCode("250")
}

// A front is a login process alone, with an auth service that keeps what it hears.
type front struct {
	addr string
	dir  string // of its sockets
	auth *authserver.Server
	svc  *fakemaster.Service
}

const nobody = 65534

func newFront(t *testing.T, conf map[string]string, o authserver.Options) *front {
	t.Helper()
	dir, err := os.MkdirTemp("", "dt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "login"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	values := map[string]string{"hostname": "front.test", "ssl": "no", "mail_max_userip_connections": "0", "disable_plaintext_auth": "no"}
	for k, v := range conf {
		values[k] = v
	}
	config.Start(t, filepath.Join(dir, "config"), values)
	f := &front{dir: filepath.Join(dir, "login"), auth: authserver.Start(t, filepath.Join(dir, "login"), o)}
	if err := os.Chmod(f.auth.Login, 0o777); err != nil {
		t.Fatal(err)
	}
	f.svc = fakemaster.New(t, system.Binary(t, "submission-login"))
	f.svc.Dir, f.svc.Login = dir, true
	f.svc.Env.ServiceName, f.svc.Env.ClientLimit = "submission-login", 100
	f.svc.Env.ConfigFile = filepath.Join(dir, "config")
	if os.Geteuid() == 0 {
		f.svc.Env.Restrict.UID, f.svc.Env.Restrict.GID = nobody, nobody
	}
	f.addr = f.svc.TCP(masterproto.Listener{Name: "submission"})
	f.svc.Start()
	return f
}

func (f *front) open(t *testing.T) *client.Client {
	t.Helper()
	c := client.Dial(t, f.addr, client.Options{Timeout: dovetail.Patience})
	c.ExpectCode("220")
	return c
}
