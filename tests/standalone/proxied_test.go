package standalone

import (
	"regexp"
	"strings"
	"testing"

	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/need"
)

// front is a server whose users are at another one.
const front = `
passdb {
  driver = static
  args = proxy=y nopassword=y host=127.0.0.1 port=@BACKEND@
}
userdb {
  driver = static
  args = uid=65534 gid=65534
}
`

// Sessions that are proxied are listed, by dovetail and by doveadm, and can be kicked; both
// survive a reload. Dovecot's login process is asked as well.
func TestProxiedSessions(t *testing.T) {
	backend, _ := server(t, dovetail.Setup{Config: "login_trusted_networks = 127.0.0.0/8\n"})
	_, port, _ := strings.Cut(backend.Addr, ":")
	for name, more := range map[string]string{"our login": "", "their login": theirs} {
		t.Run(name, func(t *testing.T) {
			if more != "" {
				need.Root(t)
			}
			w := run(t, base+strings.ReplaceAll(front, "@BACKEND@", port)+more)
			alice, alice2, bob := w.login("alice"), w.login("alice"), w.login("bob")
			listed := func(what string, want ...string) {
				t.Helper()
				var out string
				w.until(what, func() bool {
					out, _ = w.ask("who")
					for _, line := range want {
						if !regexp.MustCompile(`(?m)^` + line + ` +submission +\(->127\.0\.0\.1:` + port + `\) \(127\.0\.0\.1\) *$`).MatchString(out) {
							return false
						}
					}
					return strings.Count(out, "->") == len(want)
				})
			}
			listed("all are listed", "alice +2", "bob +1")
			if out, _ := w.ask("who", "-1", "ali*"); strings.Count(out, "->127.0.0.1:"+port) != 2 {
				t.Errorf("who -1:\n%s", out)
			}
			if out := instanceDoveadm(t, w, "proxy", "list"); strings.Count(out, "127.0.0.1 127.0.0.1 "+port) != 3 || strings.Count(out, "username") != 1 {
				t.Errorf("doveadm proxy list:\n%s", out)
			}
			if out, status := w.ask("kick", "carol"); status != 68 {
				t.Errorf("kick of nobody: %d\n%s", status, out)
			}
			if out, status := w.ask("kick", "al*"); status != 0 || out != "kicked 2 sessions of: alice\n" {
				t.Errorf("kick: %d\n%s", status, out)
			}
			for _, s := range []*session{alice, alice2} {
				if got := s.hear(); got != "" && !strings.HasPrefix(got, "421 ") {
					t.Errorf("alice got %q", got)
				}
			}
			if got := bob.say("NOOP"); !strings.HasPrefix(got, "250 ") {
				t.Errorf("bob got %q", got)
			}
			listed("bob is left", "bob +1")
			if out, status := w.ask("reload"); status != 0 {
				t.Fatalf("reload: %d\n%s", status, out)
			}
			listed("bob after a reload", "bob +1")
			if got := instanceDoveadm(t, w, "proxy", "kick", "bob"); got != "1 connections kicked\n" {
				t.Errorf("doveadm proxy kick: %q", got)
			}
			if got := bob.hear(); got != "" && !strings.HasPrefix(got, "421 ") {
				t.Errorf("bob got %q", got)
			}
			listed("nobody is left")
		})
	}
}
