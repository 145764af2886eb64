package authd

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dovetail/internal/dovecot/authclient"
	"dovetail/internal/dovecot/authmaster"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/event"
	"dovetail/internal/testkit/instance"
)

// A whole login, with the packages that the two programs use, against our service and
// against Dovecot's.
func TestClientsOfBothServices(t *testing.T) {
	const settings = `
auth_mechanisms = plain login scram-sha-256
passdb {
  driver = static
  args = password=right custom=%u
}
`
	t.Run("ours", func(t *testing.T) {
		dir := shortTemp(t)
		path := dialog{conf: settings + "userdb {\n driver = static\n args = uid=8 gid=8 home=@DIR@\n}\n"}.write(t, dir)
		start(t, dir, path, Options{Log: event.New(&memory{}, "", false)})
		wholeLogin(t, filepath.Join(dir, "run/login/login"), filepath.Join(dir, "run/auth-master"))
	})
	t.Run("Dovecot's", func(t *testing.T) {
		i := instance.Start(t, settings)
		wholeLogin(t, i.Socket("login/login"), i.Socket("auth-master"))
	})
}

func wholeLogin(t *testing.T, login, master string) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	pid := uint32(os.Getpid())
	c := authclient.NewClient(login, pid, nil)
	defer c.Close()
	if err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	m, err := authmaster.Dial(ctx, master)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.SPID() != c.Conn().SPID() {
		t.Errorf("SPID %d on one socket, %d on the other", m.SPID(), c.Conn().SPID())
	}
	names := ""
	for _, mech := range c.Mechanisms() {
		names += fmt.Sprintf("%s %d, ", mech.Name, mech.Flags)
	}
	if want := fmt.Sprintf("PLAIN %d, LOGIN %d, SCRAM-SHA-256 %d, ", authclient.Plaintext, authclient.Plaintext, authclient.MutualAuth); names != want {
		t.Errorf("mechanisms %s", names)
	}
	ip := netip.MustParseAddr("127.0.0.1")
	begin := func(mech, initial string, has bool) *authclient.Exchange {
		ex, err := c.Begin(&authclient.Request{
			Mechanism: mech, Service: "submission", Secured: authclient.SecuredTLS, NoPenalty: true, Session: "a\tsession",
			LocalIP: ip, RemoteIP: ip, LocalPort: 587, RemotePort: 4000, ForwardFields: "a=b\tc=d",
			HasInitial: has, Initial: []byte(base64.StdEncoding.EncodeToString([]byte(initial))),
		})
		if err != nil {
			t.Fatal(err)
		}
		return ex
	}
	next := func(ex *authclient.Exchange, want authclient.Kind) authclient.Reply {
		r, err := ex.Next(ctx)
		if err != nil || r.Kind != want {
			t.Fatalf("%+v %v, %v; want kind %d", r, r.Fields(), err, want)
		}
		return r
	}
	claim := func(ex *authclient.Exchange) (authmaster.User, error) {
		return m.Request(ctx, authmaster.Request{ClientPID: pid, AuthID: ex.ID(), Cookie: authmaster.Cookie(ex.Conn().Cookie()), SessionPID: pid, WantToken: true})
	}
	field := func(fs tabline.Fields, key string) string { v, _ := fs.Get(key); return v }

	ex := begin("PLAIN", "\x00Alice\x00right", true)
	r := next(ex, authclient.OK)
	if field(r.Fields(), "user") != "alice" || field(r.Fields(), "original_user") != "Alice" || field(r.Fields(), "forward_a") != "b" || field(r.Fields(), "custom") != "alice" {
		t.Errorf("OK with %v", r.Fields())
	}
	u, err := claim(ex)
	if err != nil || u.Name != "alice" || field(u.Fields, "uid") != "8" || len(field(u.Fields, "auth_token")) != 40 || field(u.Fields, "auth_user") != "Alice" {
		t.Errorf("claimed %+v, %v", u, err)
	}
	ex.HandedOver()
	ex.Close()
	if _, err := claim(ex); !errors.As(err, new(*authmaster.FailError)) {
		t.Errorf("claimed twice: %v", err)
	}

	ex = begin("login", "", false)
	if got := next(ex, authclient.Continue).Challenge; got != "VXNlcm5hbWU6" {
		t.Errorf("challenge %q", got)
	}
	if err := ex.Continue([]byte("Ym9i")); err != nil {
		t.Fatal(err)
	}
	next(ex, authclient.Continue)
	if err := ex.Continue([]byte("cmlnaHQ=")); err != nil {
		t.Fatal(err)
	}
	next(ex, authclient.OK)
	ex.Close() // cancelled: nobody can claim it
	mark := begin("PLAIN", "", false)
	next(mark, authclient.Continue)
	mark.Close()
	if _, err := claim(ex); !errors.As(err, new(*authmaster.FailError)) {
		t.Errorf("claimed although cancelled: %v", err)
	}

	ex = begin("PLAIN", "\x00alice\x00wrong", true)
	if r := next(ex, authclient.Fail); field(r.Fields(), "user") != "alice" || r.Fields().Has("code") {
		t.Errorf("FAIL with %v", r.Fields())
	}
	ex.Close()

	// One client's nonsense does not hurt the others.
	other := begin("PLAIN", "", false)
	next(other, authclient.Continue)
	if _, err := c.Begin(&authclient.Request{Mechanism: "NOSUCH", Service: "submission"}); !errors.Is(err, authclient.ErrMechanism) {
		t.Errorf("%v", err)
	}
	if _, err := c.Begin(&authclient.Request{Mechanism: "PLAIN", Service: "submission", HasInitial: true, Initial: []byte("A\tAA")}); !errors.Is(err, authclient.ErrBase64) {
		t.Errorf("%v", err)
	}
	if err := other.Continue([]byte(base64.StdEncoding.EncodeToString([]byte("\x00carol\x00right")))); err != nil {
		t.Fatal(err)
	}
	next(other, authclient.OK)
	if u, err := claim(other); err != nil || u.Name != "carol" {
		t.Errorf("%v, %v", u, err)
	}
	other.HandedOver()
	other.Close()

	info := authmaster.Info{Service: "submission", RemoteIP: ip}
	if u, err := m.User(ctx, "dave", info); err != nil || u.Name != "dave" || field(u.Fields, "uid") != "8" {
		t.Errorf("USER: %v, %v", u, err)
	}
	if _, err := m.User(ctx, "da ve", info); !errors.Is(err, authmaster.ErrNotFound) {
		t.Errorf("USER: %v", err)
	}
	if u, err := m.Pass(ctx, "dave", info); err != nil || u.Name != "dave" || field(u.Fields, "custom") != "dave" {
		t.Errorf("PASS: %v, %v", u, err)
	}
	if n, err := m.CacheFlush(ctx); n != 0 || err != nil {
		t.Errorf("CACHE-FLUSH: %d, %v", n, err)
	}
}

// One login: AUTH, OK, the worker's claim.
func BenchmarkLogin(b *testing.B) {
	s, _ := fuzzServer()
	dir, err := os.MkdirTemp("", "authd")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"login", "auth-master"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		go func() { // ends with the connection
			if nc, err := l.Accept(); err == nil {
				s.Serve(context.Background(), nc, name, "")
			}
		}()
	}
	s.protocols[0].set.debug, s.protocols[0].set.verbose = false, false
	ctx := context.Background()
	c, err := authclient.Dial(ctx, filepath.Join(dir, "login"), 7)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	m, err := authmaster.Dial(ctx, filepath.Join(dir, "auth-master"))
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	req := &authclient.Request{Mechanism: "PLAIN", Service: "submission", Session: "Mea0le9g8Ot/AAAB", RemoteIP: netip.MustParseAddr("192.0.2.1"),
		HasInitial: true, Initial: []byte(base64.StdEncoding.EncodeToString([]byte("\x00alice\x00right")))}
	b.ReportAllocs()
	for b.Loop() {
		ex, err := c.Begin(req)
		if err != nil {
			b.Fatal(err)
		}
		if r, err := ex.Next(ctx); err != nil || r.Kind != authclient.OK {
			b.Fatal(r, err)
		}
		if _, err := m.Request(ctx, authmaster.Request{ClientPID: 7, AuthID: ex.ID(), Cookie: authmaster.Cookie(c.Cookie())}); err != nil {
			b.Fatal(err)
		}
		ex.HandedOver()
		ex.Close()
	}
}
