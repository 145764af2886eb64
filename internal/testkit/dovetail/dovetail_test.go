package dovetail

import (
	"os"
	"slices"
	"testing"

	"dovetail/internal/testkit/relay"
)

func TestMain(m *testing.M) { os.Exit(Main(m, 8)) }

// A message passes in each way; afterwards everything is as before; a goroutine of a
// client that is there is found.
func TestServer(t *testing.T) {
	r := relay.Start(t, relay.Options{})
	s := Start(t, Setup{Shared: true, Users: []User{{"alice", []string{Relay(r.Port)}}}})
	idle := s.Idle(t, "alice")
	for _, w := range []Way{Clear, TLS, StartTLS} {
		c := s.Login(t, w, "alice")
		c.Send("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", "x", ".", "QUIT")
		for _, code := range []string{"250", "250", "354", "250", "221"} {
			c.ExpectCode(code)
		}
	}
	if n := len(r.WaitMessages(3)); n != 3 {
		t.Errorf("%d messages", n)
	}
	s.Settled(t, idle)

	c := s.Login(t, Clear, "alice")
	if now := s.Census(); slices.Equal(now, idle) {
		t.Errorf("with a client: %q", now)
	}
	if n := len(s.Goroutines(t, "submission-login")); n == 0 {
		t.Error("no goroutines")
	}
	c.Do("NOOP", "250") // the worker has it
	found := false
	for _, g := range s.Goroutines(t, "submission") {
		found = found || isSession(g)
	}
	if !found {
		t.Error("the client's goroutine is not seen")
	}
}
