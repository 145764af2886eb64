package standalone

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
)

// server runs one whose users alice and bob have a relay.
func server(t *testing.T, o dovetail.Setup) (*dovetail.Server, *relay.Relay) {
	t.Helper()
	r := relay.Start(t, relay.Options{})
	for _, name := range []string{"alice", "bob"} {
		o.Users = append(o.Users, dovetail.User{Name: name, Fields: []string{dovetail.Relay(r.Port)}})
	}
	return dovetail.Start(t, o), r
}

// One process that serves several users: kick ends the sessions that are meant with 421,
// in whatever state they are, and the others go on.
func TestKickOfSharedWorkers(t *testing.T) {
	s, _ := server(t, dovetail.Setup{Shared: true})
	for _, way := range []dovetail.Way{dovetail.Clear, dovetail.TLS} {
		t.Run(way.String(), func(t *testing.T) {
			alice, busy, bob := s.Login(t, way, "alice"), s.Login(t, way, "alice"), s.Login(t, way, "bob")
			busy.Do("MAIL FROM:<a@example.org>", "250")
			busy.Do("RCPT TO:<b@example.org>", "250")
			busy.Do("DATA", "354")
			busy.Send("Subject: never finished")
			var out string
			s.Until(t, "who lists both", func() bool {
				out, _ = s.Ask(t, "who")
				return regexp.MustCompile(`(?m)^alice +2 submission`).MatchString(out) && regexp.MustCompile(`(?m)^bob +1 submission`).MatchString(out)
			})
			pids := regexp.MustCompile(`\((\d+)\) \(127\.0\.0\.1\)`).FindAllStringSubmatch(out, -1)
			if len(pids) != 2 || pids[0][1] != pids[1][1] {
				t.Fatalf("not one process:\n%s", out)
			}
			for _, no := range [][]string{{"carol"}, {"alice", "192.0.2.0/24"}} {
				if out, status := s.Ask(t, append([]string{"kick"}, no...)...); status != 68 || !strings.Contains(out, "no users kicked") {
					t.Errorf("kick %q: %d %s", no, status, out)
				}
			}
			if out, status := s.Ask(t, "kick", "ALI*"); status != 0 || out != "kicked 2 sessions of: alice\n" {
				t.Errorf("kick: %d %s", status, out)
			}
			alice.ExpectCode("421 4.3.2")
			alice.ExpectEOF()
			busy.ExpectCode("421 4.3.2")
			busy.ExpectEOF()
			bob.Do("NOOP", "250")
			s.Until(t, "who has forgotten alice", func() bool {
				out, _ = s.Ask(t, "who")
				return !strings.Contains(out, "alice") && strings.Contains(out, "bob")
			})
			bob.Do("QUIT", "221")
			s.Until(t, "nobody", func() bool { out, _ = s.Ask(t, "who"); return !strings.Contains(out, "bob") })
		})
	}
}

// A reload ends no session, however long it lasts; the end of the master does, after half a
// minute. (The programs are in a hurry: the half minute is half a second.)
func TestReloadEndsNoSession(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			s, r := server(t, dovetail.Setup{Shared: shared, Hasty: true})
			sessions := []*client.Client{s.Login(t, dovetail.Clear, "alice"), s.Login(t, dovetail.TLS, "bob"), s.Login(t, dovetail.StartTLS, "alice")}
			for range 2 {
				if out, status := s.Ask(t, "reload"); status != 0 {
					t.Fatalf("reload: %d\n%s", status, out)
				}
				for range 4 { // two seconds, for what must not happen; nobody is idle
					time.Sleep(500 * time.Millisecond)
					for _, c := range sessions {
						c.Do("NOOP", "250")
					}
				}
			}
			for i, c := range sessions {
				c.Send("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", "x", ".")
				for _, code := range []string{"250", "250", "354", "250"} {
					c.ExpectCode(code)
				}
				r.WaitMessages(i + 1)
			}
			if out, status := s.Ask(t, "kick", "bob"); status != 0 {
				t.Errorf("kick after a reload: %d\n%s", status, out)
			}
			sessions[1].ExpectCode("421 4.3.2")
			if out, status := s.Ask(t, "stop"); status != 0 {
				t.Errorf("stop: %d\n%s", status, out)
			}
			sessions[0].ExpectCode("421 4.3.2")
		})
	}
}
