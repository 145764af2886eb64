package authmaster

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"dovetail/internal/dovecot/authclient"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/wiretest"
)

// To record testdata anew, as root: go test -run Real -record ./internal/dovecot/authmaster
var recording = flag.Bool("record", false, "write what a private real Dovecot says to testdata")

const goldenConf = `
auth_failure_delay = 0
passdb {
  driver = passwd-file
  args = @DIR@/users
}
service auth {
  unix_listener auth-master {
    mode = 0600
  }
}
`

// The userdb is that of package instance.
const goldenUsers = "alice:{PLAIN}wonder::::::userdb_submission_max_recipients=7 userdb_name=b=c userdb_flag allow_nets=127.0.0.0/8\n"

const golden = "testdata/auth-master.golden"

func joined(fields tabline.Fields) string {
	var words []string
	for _, f := range fields {
		if f.HasValue {
			words = append(words, f.Key+"="+f.Value)
		} else {
			words = append(words, f.Key)
		}
	}
	return strings.Join(words, " ")
}

// converse claims the login, and another that nobody has made, and looks users up.
func converse(t *testing.T, nc net.Conn, r Request) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := NewConn(ctx, nc)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.SPID() == 0 {
		t.Error("no SPID")
	}
	u, err := c.Request(ctx, r)
	token, _ := u.Fields.Get("auth_token")
	home, _ := u.Fields.Get("home")
	const fields = "submission_max_recipients=7 name=b=c flag uid=8 gid=8 home=HOME"
	if got := strings.NewReplacer(token, "TOKEN", home, "HOME").Replace(joined(u.Fields)); err != nil || u.Name != "alice" || len(token) != 40 ||
		!strings.HasSuffix(home, "/mail/alice") || got != fields+" auth_mech=PLAIN auth_token=TOKEN" {
		t.Errorf("%s: %q, %v", u.Name, got, err)
	}
	var fail *FailError
	if _, err = c.Request(ctx, r); !errors.As(err, &fail) || joined(fail.Fields) != "" { // it is claimed
		t.Errorf("again: %v", err)
	}
	r.AuthID, r.Cookie[0] = r.AuthID+1, r.Cookie[0]^1
	if _, err = c.Request(ctx, r); !errors.As(err, &fail) || joined(fail.Fields) != "" {
		t.Errorf("with another cookie: %v", err)
	}
	info := Info{Service: "submission", Session: "s", LocalIP: netip.MustParseAddr("127.0.0.1"), RemoteIP: netip.MustParseAddr("127.0.0.2"), LocalPort: 587, RemotePort: 40000}
	if u, err = c.User(ctx, "alice", info); err != nil || u.Name != "alice" || strings.Replace(joined(u.Fields), home, "HOME", 1) != fields {
		t.Errorf("USER: %+v, %v", u, err)
	}
	if _, err = c.User(ctx, "unknown", info); err != ErrNotFound {
		t.Errorf("USER of nobody: %v", err)
	}
	if u, err = c.Pass(ctx, "alice", info); err != nil || u.Name != "alice" {
		t.Errorf("PASS: %+v, %v", u, err)
	}
	if err = c.List(ctx, "", info, func(string) bool { return true }); !errors.As(err, &fail) { // a static userdb knows no names
		t.Errorf("LIST: %v", err)
	}
}

// What Dovecot said is understood, and we say what we said to it.
func TestGolden(t *testing.T) {
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	r := Request{WantToken: true}
	var cookie string
	if _, err := fmt.Sscanf(string(text), "login %d %d %s by %d", &r.ClientPID, &r.AuthID, &cookie, &r.SessionPID); err != nil {
		t.Fatal(err)
	}
	if n, err := hex.Decode(r.Cookie[:], []byte(cookie)); n != len(r.Cookie) || err != nil {
		t.Fatal(n, err)
	}
	converse(t, wiretest.Replay(t, golden), r)
}

// TestRealAuth is the same with the real service, and records it.
func TestRealAuth(t *testing.T) {
	i := instance.Start(t, goldenConf)
	if err := os.WriteFile(i.Dir+"/users", []byte(goldenUsers), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	pid := uint32(os.Getpid())
	login, err := authclient.Dial(ctx, i.Socket("login/login"), pid)
	if err != nil {
		t.Fatal(err)
	}
	defer login.Close()
	ip := netip.MustParseAddr("127.0.0.1")
	e, err := login.Begin(&authclient.Request{Mechanism: "PLAIN", Service: "submission", Secured: authclient.SecuredTLS, LocalIP: ip, RemoteIP: ip,
		HasInitial: true, Initial: []byte(base64.StdEncoding.EncodeToString([]byte("\x00alice\x00wonder")))})
	if err != nil {
		t.Fatal(err)
	}
	if reply, err := e.Next(ctx); err != nil || reply.Kind != authclient.OK {
		t.Fatal(reply, err)
	}
	nc, err := net.Dial("unix", i.Socket("auth-master"))
	if err != nil {
		t.Fatal(err)
	}
	var tape wiretest.Tape
	r := Request{ClientPID: pid, AuthID: e.ID(), Cookie: Cookie(login.Cookie()), SessionPID: pid, WantToken: true}
	converse(t, tape.Record(nc), r)
	if *recording && !t.Failed() {
		head := fmt.Sprintf("login %d %d %x by %d\n", r.ClientPID, r.AuthID, r.Cookie, r.SessionPID)
		for path, text := range map[string]string{golden: head + tape.String(), "testdata/version": i.Version + "\n"} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}
