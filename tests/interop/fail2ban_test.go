package interop

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/fail2ban"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// A culprit is one way to fail to log in. Each comes from an address of its own, by which
// the matches of the filter are told apart.
type culprit struct {
	name string
	do   func(c *client.Client, w *system.Running)

	clear bool // without TLS
	// What the filter takes of Dovecot's log, in its two modes.
	normal, aggressive int
	// Our log has no > in a name, so that such names do not hide.
	hidden bool
}

var culprits = []culprit{
	{"wrong password", func(c *client.Client, _ *system.Running) {
		c.Do("AUTH PLAIN "+plain("alice", "bad"), "535")
		c.Do("QUIT", "221")
	}, false, 1, 1, false},
	{"unknown user", func(c *client.Client, _ *system.Running) {
		c.Do("AUTH PLAIN "+plain("nobody", "bad"), "535")
		c.Do("QUIT", "221")
	}, false, 1, 1, false},
	{"a user name of odd octets", func(c *client.Client, _ *system.Running) {
		// The name stands in the line as it is, and what follows it is not what the filter
		// wants to see; at least nobody else is blamed.
		c.Do("AUTH PLAIN "+plain("x>, rip=192.0.2.99, y=<\r\n\x01", "bad"), "535")
		c.Do("QUIT", "221")
	}, false, 0, 0, true},
	{"three times", func(c *client.Client, _ *system.Running) {
		for range 3 {
			c.Do("AUTH PLAIN "+plain("alice", "bad"), "535")
		}
		c.Close()
	}, false, 1, 1, false},
	{"wrong password and gone", func(c *client.Client, _ *system.Running) { c.Do("AUTH PLAIN "+plain("alice", "bad"), "535"); c.Close() }, false, 1, 1, false},
	{"wrong password in AUTH LOGIN", func(c *client.Client, _ *system.Running) {
		c.Do("AUTH LOGIN", "334")
		c.Do(b64("alice"), "334")
		c.Do(b64("bad"), "535")
		c.Do("QUIT", "221")
	}, false, 1, 1, false},
	{"too many bad commands after it", func(c *client.Client, _ *system.Running) {
		c.Do("AUTH PLAIN "+plain("alice", "bad"), "535")
		for range 11 {
			c.Send("FOO")
		}
		c.ExpectGone()
	}, false, 1, 1, false},
	{"plaintext without TLS", func(c *client.Client, _ *system.Running) {
		c.Do("AUTH PLAIN "+plain("alice", "wonder"), "523")
		c.Do("QUIT", "221")
	}, true, 1, 1, false},
	{"unsupported mechanism", func(c *client.Client, _ *system.Running) { c.Do("AUTH FOO", "504"); c.Do("QUIT", "221") }, false, 0, 0, false},
	{"cancelled", func(c *client.Client, _ *system.Running) {
		c.Do("AUTH PLAIN", "334")
		c.Do("*", "501")
		c.Do("QUIT", "221")
	}, false, 0, 1, false},
	{"gone inside AUTH", func(c *client.Client, _ *system.Running) { c.Do("AUTH PLAIN", "334"); c.Close() }, false, 0, 0, false},
	{"bad base64", func(c *client.Client, _ *system.Running) { c.Do("AUTH PLAIN !!!", "501"); c.Do("QUIT", "221") }, false, 0, 0, false},
	{"no attempt", func(c *client.Client, _ *system.Running) { c.Do("QUIT", "221") }, false, 0, 1, false},
	{"no attempt and gone", func(c *client.Client, _ *system.Running) { c.Close() }, false, 0, 1, false},
	{"nologin", func(c *client.Client, _ *system.Running) {
		c.Do("AUTH PLAIN "+plain("carol", "cpass"), "525")
		c.Do("QUIT", "221")
	}, false, 0, 0, false},
	{"temporary failure", func(c *client.Client, _ *system.Running) {
		c.Do("AUTH PLAIN "+plain("later", "x"), "454")
		c.Do("QUIT", "221")
	}, false, 0, 0, false},
	{"the backend refuses", func(c *client.Client, _ *system.Running) {
		c.Do("AUTH PLAIN "+plain("p1", "pw"), "535")
		c.Do("QUIT", "221")
	}, false, 1, 1, false},
	{"logged in", func(c *client.Client, _ *system.Running) {
		c.Do("AUTH PLAIN "+plain("alice", "wonder"), "235")
		c.Do("QUIT", "221")
	}, false, 0, 0, false},
}

// failingDay lets every culprit come once, and returns the log.
func failingDay(t *testing.T, sys system.System, culprits []culprit) (log string) {
	t.Helper()
	port := system.Hold(t)
	relay.Start(t, relay.Options{Caps: append([]string{"AUTH PLAIN"}, relay.DefaultCaps...), Listener: port.Listen(t), Scripts: []relay.Script{{relay.AUTH: {relay.Reply("535 5.7.8 no").Always()}}}})
	r := sys.Start(t, system.Setup{
		RelayPort: port.Number,
		Unset:     []string{"log_timestamp"},
		Config: []string{`log_timestamp = "%b %d %H:%M:%S "`, "passdb pf {", " driver = passwd-file", " args = {dir}/etc/pusers", "}",
			"passdb later {", " driver = checkpassword", " args = {dir}/etc/ck", " username_filter = later", "}"},
	})
	for i, x := range culprits {
		o := client.Options{From: address(i)}
		addr := r.Addr()
		if !x.clear {
			o.TLS, addr = r.TLS(), r.TLSAddr()
		}
		c := client.Dial(t, addr, o)
		c.ExpectCode("220")
		x.do(c, r)
		c.Close()
		r.WaitFor(func([]string) bool { return strings.Contains(r.WholeLog(), "rip="+address(i)+",") })
	}
	// The lines of sessions that the client left come a moment later.
	r.WaitFor(func([]string) bool {
		return strings.Count(r.WholeLog(), "submission-login: Info: Disconnected: ") >= len(culprits)-1
	})
	r.Stop()
	return r.WholeLog()
}

func address(i int) string { return fmt.Sprintf("127.0.1.%d", i+1) }

// checkFail2ban compares what the filter takes with what it takes of Dovecot.
func checkFail2ban(t *testing.T, sys system.System, culprits []culprit) {
	t.Helper()
	log := failingDay(t, sys, culprits)
	for _, mode := range []string{fail2ban.Normal, fail2ban.Aggressive} {
		got := fail2ban.Count(fail2ban.Matches(t, log, mode))
		for i, x := range culprits {
			want := x.normal
			if mode == fail2ban.Aggressive {
				want = x.aggressive
			}
			if x.hidden && sys.Login == system.Ours {
				want = 1
			}
			if got[address(i)] != want {
				t.Errorf("%s, %s: %d matches, want %d", x.name, mode, got[address(i)], want)
			}
			delete(got, address(i))
		}
		if len(got) > 0 {
			t.Errorf("%s: addresses nobody came from: %v", mode, slices.Sorted(maps.Keys(got)))
		}
	}
	if t.Failed() {
		t.Logf("log:\n%s", log)
	}
}

func TestFail2banTheirs(t *testing.T) {
	t.Parallel()
	checkFail2ban(t, system.Dovecot, culprits)
}

func TestFail2banOurs(t *testing.T) {
	t.Parallel()
	checkFail2ban(t, system.OursLogin, culprits)
}
