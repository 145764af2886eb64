// Package front runs a login process alone, under a fake master, with config and auth
// services of the test kit.
package front

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/testkit/authserver"
	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/config"
	"dovetail/internal/testkit/fakemaster"
)

// A Front is a login process and what is around it.
type Front struct {
	Addr    string // where it listens
	Dir     string // of its sockets, where the chroot would be
	Auth    *authserver.Server
	Config  *config.Server
	Values  map[string]string // what Config answers
	Service *fakemaster.Service
}

const (
	nobody   = 65534
	patience = 20 * time.Second
)

// Start is New, and starts a process.
func Start(t testing.TB, path string, conf map[string]string, o authserver.Options, args ...string) *Front {
	t.Helper()
	f := New(t, path, conf, o, args...)
	f.Service.Start()
	return f
}

// New makes all that the program at path needs, for as long as the test runs: conf is more
// settings than the least. Service.Start starts it, with args.
func New(t testing.TB, path string, conf map[string]string, o authserver.Options, args ...string) *Front {
	t.Helper()
	dir, err := os.MkdirTemp("", "dt") // not t.TempDir: sockets have short names
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
	f := &Front{Dir: filepath.Join(dir, "login")}
	f.Values = map[string]string{"hostname": "front.test", "ssl": "no", "mail_max_userip_connections": "0", "disable_plaintext_auth": "no"}
	for k, v := range conf {
		f.Values[k] = v
	}
	f.Config = config.Start(t, filepath.Join(dir, "config"), f.Values)
	f.Auth = authserver.Start(t, f.Dir, o)
	if err := os.Chmod(f.Auth.Login, 0o777); err != nil {
		t.Fatal(err)
	}
	f.Service = fakemaster.New(t, path, args...)
	f.Service.Dir, f.Service.Login = dir, true
	f.Service.Env.ServiceName, f.Service.Env.ClientLimit = "submission-login", 100
	f.Service.Env.ConfigFile = filepath.Join(dir, "config")
	if os.Geteuid() == 0 {
		f.Service.Env.Restrict.UID, f.Service.Env.Restrict.GID = nobody, nobody
	}
	f.Addr = f.Service.TCP(masterproto.Listener{Name: "submission"})
	return f
}

// Open connects a client, which has read the greeting.
func (f *Front) Open(t testing.TB) *client.Client {
	t.Helper()
	c := client.Dial(t, f.Addr, client.Options{Timeout: patience})
	c.ExpectCode("220")
	return c
}
