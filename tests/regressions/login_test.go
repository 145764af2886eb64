package regressions

import (
	"crypto/tls"
	"encoding/base64"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dovetail/internal/testkit/authserver"
	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// Every variable of the login line, and of the greeting, has the value that Dovecot gives it
// (clauses S10.1 and S1.1): for a login, a failure and a client that just leaves, in clear
// and under TLS.
func TestVariablesOfTheLoginLine(t *testing.T) {
	t.Parallel()
	theirs, ours := loginLines(t, system.Dovecot), loginLines(t, system.OursBoth)
	if len(theirs) < 10 {
		t.Fatalf("Dovecot has said little: %q", theirs)
	}
	if d := cmp.Diff(theirs, ours); d != "" {
		t.Errorf("Dovecot (-), ours (+):\n%s", d)
	}
}

func loginLines(t *testing.T, sys system.System) (lines []string) {
	t.Helper()
	inst := sys.Start(t, system.Setup{
		RelayPort: newRelay(t, relay.Options{}).Port,
		Unset:     []string{"login_greeting"},
		Users:     []string{"norm@else.test:{PLAIN}pw:12001:12001::{dir}/mail/norm::user=Alice@dest.test foo=bar", "Alice@dest.test:{PLAIN}x:12001:12001::{dir}/mail/norm::"},
		Config: []string{
			"login_log_format = %$ [%s]",
			"login_greeting = %l %r %s.",
			"login_log_format_elements = u=<%u> n=%n d=%d s=%s h=%h l=%l r=%r p=%p m=%m a=%a b=%b c=%c k=%k e=%e session=%{session} " +
				"rr=%{real_rip} rl=%{real_lip} rrp=%{real_rport} rlp=%{real_lport} ou=%{orig_user} on=%{orig_username} od=%{orig_domain} " +
				"au=%{auth_user} an=%{auth_username} ad=%{auth_domain} li=%{listener} ln=%{local_name} pp=%{passdb:foo} L=%Lu U=%Un x=%2.3r",
		},
	})
	conf := inst.TLS()
	conf.Certificates = nil
	conf.MaxVersion = tls.VersionTLS12 // with one cipher, so that both choose the same
	conf.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	for _, way := range []string{"clear", "TLS", "STARTTLS"} {
		for _, does := range []string{"login", "failure", "nothing"} {
			o, addr := client.Options{Timeout: dovetail.Patience}, inst.Addr()
			if way == "TLS" {
				o.TLS, addr = conf, inst.TLSAddr()
			}
			c := client.Dial(t, addr, o)
			lines = append(lines, way+" "+c.Line())
			if way == "STARTTLS" {
				c.Do("STARTTLS", "220")
				c.StartTLS(conf)
			}
			had := len(loginLog(inst))
			switch does {
			case "login":
				c.Plain("norm@else.test", "pw")
				inst.WaitFor(func([]string) bool { return len(loginLog(inst)) > had })
				c.Do("QUIT", "221")
			case "failure":
				c.Do("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00No@Body.test\x00x")), "535")
				c.Do("QUIT", "221")
				inst.WaitFor(func([]string) bool { return len(loginLog(inst)) > had })
			default:
				c.Do("QUIT", "221")
				inst.WaitFor(func([]string) bool { return len(loginLog(inst)) > had })
			}
			c.ExpectGone()
		}
	}
	return append(lines, loginLog(inst)...)
}

var varying = regexp.MustCompile(`\b(p|e|a|b|rrp|rlp|session)=[^,\]]+|\bin (\d+) secs`)

// loginLog are the lines about clients of the login process; what differs from run to run
// is left out, and so is our line about each failed attempt.
func loginLog(inst *system.Running) (lines []string) {
	for _, l := range inst.Log() {
		if strings.HasPrefix(l, "submission-login: Info: ") && !strings.Contains(l, ": Login attempt ") {
			lines = append(lines, varying.ReplaceAllString(l, "$1..."))
		}
	}
	return lines
}

// Whom an access socket does not want gets nothing, and the log says so (clause S1.21).
func TestAccessSockets(t *testing.T) {
	t.Parallel()
	f := newFront(t, map[string]string{"login_access_sockets": "access"}, authserver.Options{})
	l, err := net.Listen("unix", filepath.Join(f.Dir, "access"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Chmod(filepath.Join(f.Dir, "access"), 0o777); err != nil {
		t.Fatal(err)
	}
	answers := make(chan string, 1)
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 100)
			if n, _ := conn.Read(buf); n == 0 || !strings.Contains(string(buf[:n]), "submission") {
				t.Errorf("it asks %q", buf[:n])
			}
			_, _ = conn.Write([]byte(<-answers))
			conn.Close()
		}
	}()
	dial := func() *client.Client { return client.Dial(t, f.Addr, client.Options{Timeout: dovetail.Patience}) }
	for _, no := range []string{"0\n", ""} {
		answers <- no
		c := dial()
		if got := c.ExpectGone(); got != "" {
			t.Errorf("who is refused by %q gets %q", no, got)
		}
		f.Service.AwaitLog("Info: access(access): Client refused (rip=127.0.0.1)")
	}
	answers <- "1\n"
	c := dial()
	c.ExpectCode("220")
	c.Do("QUIT", "221")
}
