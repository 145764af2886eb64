package authclient

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"flag"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/wiretest"
)

// To record testdata anew, as root: go test -run Real -record ./internal/dovecot/authclient
var recording = flag.Bool("record", false, "write what a private real Dovecot says to testdata")

const goldenConf = `
auth_mechanisms = plain login cram-md5
auth_failure_delay = 0
passdb {
  driver = passwd-file
  args = @DIR@/users
}
`

const goldenUsers = `alice:{PLAIN}wonder
off:{PLAIN}x::::::nologin reason=Gone fishing
there:{PLAIN}x::::::proxy host=192.0.2.1 destuser=d@x ssl=any-cert
far:{PLAIN}x::::::allow_nets=10.0.0.0/8
`

// An attempt is one exchange, and what came of it.
type attempt struct {
	mechanism string
	initial   string
	next      []func(challenge string) string // answers to challenges
	kind      Kind
	fields    string // as they came, joined by spaces
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func always(s string) func(string) string { return func(string) string { return b64(s) } }

func cram(challenge string) string {
	mac := hmac.New(md5.New, []byte("wonder"))
	mac.Write([]byte(challenge))
	return b64("alice " + hex.EncodeToString(mac.Sum(nil)))
}

var goldenAttempts = []attempt{
	{"PLAIN", b64("\x00alice\x00wonder"), nil, OK, "user=alice"},
	{"plain", b64("\x00alice\x00wrong"), nil, Fail, "user=alice"},
	{"PLAIN", b64("\x00unknown\x00x"), nil, Fail, "user=unknown"},
	{"PLAIN", b64("\x00off\x00x"), nil, OK, "user=off nologin reason=Gone fishing"},
	{"PLAIN", b64("\x00there\x00x"), nil, OK, "user=there proxy host=192.0.2.1 destuser=d@x ssl=any-cert pass=x"},
	{"PLAIN", b64("\x00far\x00x"), nil, Fail, "user=far"},
	{"PLAIN", "", []func(string) string{always("\x00alice\x00wonder")}, OK, "user=alice"},
	{"PLAIN", b64("no NUL"), nil, Fail, ""},
	{"LOGIN", "", []func(string) string{always("alice"), always("wonder")}, OK, "user=alice"},
	{"CRAM-MD5", "", []func(string) string{cram}, OK, "user=alice"},
	{"CRAM-MD5", "", []func(string) string{always("alice 00000000000000000000000000000000")}, Fail, "user=alice"},
}

// converse makes the attempts and checks what comes of them.
func converse(t *testing.T, nc net.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	c, err := NewConn(ctx, nc, 4711)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var names []string
	for _, m := range c.Mechanisms() {
		names = append(names, m.Name)
	}
	if got := strings.Join(names, " "); got != "PLAIN LOGIN CRAM-MD5" || c.SPID() == 0 || c.Cookie() == (Cookie{}) {
		t.Errorf("mechanisms %s, SPID %d, cookie %v", got, c.SPID(), c.Cookie())
	}
	local, remote := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	for i, a := range goldenAttempts {
		e, err := c.Begin(&Request{
			Mechanism: a.mechanism, Service: "submission", Secured: SecuredTLS, NoPenalty: true, Session: "s" + string(rune('a'+i)),
			LocalIP: local, RemoteIP: remote, LocalPort: 587, RemotePort: 40000, RealLocalIP: local, RealRemoteIP: remote, RealLocalPort: 587, RealRemotePort: 40000,
			HasInitial: a.initial != "", Initial: []byte(a.initial),
		})
		if err != nil {
			t.Fatal(i, err)
		}
		r, err := e.Next(ctx)
		for _, answer := range a.next {
			if err != nil || r.Kind != Continue {
				t.Fatalf("attempt %d: %+v, %v; want a challenge", i, r, err)
			}
			challenge, _ := base64.StdEncoding.DecodeString(r.Challenge)
			if err := e.Continue([]byte(answer(string(challenge)))); err != nil {
				t.Fatal(i, err)
			}
			r, err = e.Next(ctx)
		}
		var fields []string
		for _, f := range r.Fields() {
			if f.HasValue {
				fields = append(fields, f.Key+"="+f.Value)
			} else {
				fields = append(fields, f.Key)
			}
		}
		if got := strings.Join(fields, " "); err != nil || r.Kind != a.kind || got != a.fields {
			t.Errorf("attempt %d: kind %d, %q, %v; want kind %d, %q", i, r.Kind, got, err, a.kind, a.fields)
		}
		e.Close()
	}
}

// What Dovecot said is understood, and we say what we said to it.
func TestGolden(t *testing.T) { converse(t, wiretest.Replay(t, "testdata/login.golden")) }

// TestRealAuth is the same with the real service, and records it.
func TestRealAuth(t *testing.T) {
	i := instance.Start(t, goldenConf)
	if err := os.WriteFile(i.Dir+"/users", []byte(goldenUsers), 0o644); err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("unix", i.Socket("login/login"))
	if err != nil {
		t.Fatal(err)
	}
	var tape wiretest.Tape
	converse(t, tape.Record(nc))
	if *recording && !t.Failed() {
		for path, text := range map[string]string{"testdata/login.golden": tape.String(), "testdata/version": i.Version + "\n"} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}
