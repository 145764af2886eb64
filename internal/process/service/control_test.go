package service_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/testkit/echoclient"
)

// Under our own master single sessions can be ended: by user, by network, or both. The
// others go on, and so does the process.
func TestKickOfSessions(t *testing.T) {
	s := self(t)
	s.Control = true
	s.Env.ClientLimit = 10
	addr := s.TCP(tcpListener())
	c := s.Start()
	if got := c.Hear(); got != masterproto.ControlReady {
		t.Fatalf("the process says %q", got)
	}
	user := func(name, ip string) *echoclient.Session {
		x := echoclient.Connect(t, addr)
		x.Want("USER "+name+" "+ip, "250 "+name)
		return x
	}
	alice, alice2, bob, early := user("alice", "192.0.2.7"), user("Alice", "::ffff:198.51.100.1"), user("bob", "192.0.2.8"), echoclient.Connect(t, addr)
	for _, o := range []struct{ order, answer string }{
		{"KICK\t1\tcarol\t", "1\t0"},
		{"KICK\t2\talice\t10.0.0.0/8", "2\t0"},
		{"KICK\t3\talice\tno network", "3\t0"},
		{"NONSENSE\t4\tx", "4"},
		{"KICK\t5\tali*\t192.0.2.0/24", "5\t1"},
	} {
		if got := c.Ask(o.order); got != o.answer {
			t.Errorf("%q: %q, want %q", o.order, got, o.answer)
		}
	}
	alice.Ends("421 4.3.2 Shutting down")
	alice2.Want("x", "250 x")
	if got := c.Ask("KICK\t6\t\t198.51.100.1"); got != "6\t1" {
		t.Errorf("by address: %q", got)
	}
	alice2.Ends("421 4.3.2 Shutting down")
	bob.Want("DEAF", "250 what?")
	if got := c.Ask("KICK\t7\t\t"); got != "7\t1" { // who has not logged in is nobody's session
		t.Errorf("everybody: %q", got)
	}
	bob.Ends("")
	s.AwaitLog("echo: Warning: a kicked session did not end within 100ms")
	early.Want("x", "250 x")
	early.Want("QUIT", "221 Bye")
	c.AwaitCount(10)
	if !c.Running() {
		t.Error("the process ended")
	}
	s.AwaitLog("echo: Error: control channel: KICK: not a network")
}

// Packets that are none are said to be none, and do no harm.
func TestControlIsChecked(t *testing.T) {
	s := self(t)
	s.Control = true
	s.TCP(tcpListener())
	c := s.Start()
	c.Hear()
	for _, bad := range []string{"KICK", "KICK\tx", "KICK\t1\t" + strings.Repeat("y", 2*masterproto.MaxControl)} {
		c.Tell(bad)
		s.AwaitLog(fmt.Sprintf("echo: Error: control channel: invalid packet: %.100q", bad))
	}
	if got := c.Ask("KICK\t8\t\t"); got != "8\t0" {
		t.Errorf("then %q", got)
	}
}

// A reload of our own master is the dead pipe without the end of the control channel:
// sessions go on. When the master ends, they have the usual time.
func TestReloadOfOwnMaster(t *testing.T) {
	s := self(t)
	s.Control = true
	s.Environ = []string{"SERVICE_TEST_DELAY=10ms", "GORACE=atexit_sleep_ms=0"}
	addr := s.TCP(tcpListener())
	c := s.Start()
	c.Hear()
	x := echoclient.Connect(t, addr)
	s.Die()
	c.AwaitNoListeners()
	time.Sleep(100 * time.Millisecond) // for what must not happen
	x.Want("still here", "250 still here")
	c.Orphan()
	x.Ends("421 4.3.2 Shutting down")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// The control channel may break first.
func TestEndOfOwnMaster(t *testing.T) {
	s := self(t)
	s.Control = true
	addr := s.TCP(tcpListener())
	c := s.Start()
	c.Hear()
	x := echoclient.Connect(t, addr)
	c.Orphan()
	x.Want("x", "250 x")
	s.Die()
	x.Ends("421 4.3.2 Shutting down")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}
