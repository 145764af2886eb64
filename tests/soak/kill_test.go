package soak

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
)

// Each process is killed in turn under twenty busy clients: those whose session was in it
// lose it; nobody else notices more than a login that has to be tried again; no message is
// lost.
func TestKill(t *testing.T) {
	t.Parallel()
	rounds := 1
	if long {
		rounds = 5
	}
	for _, shared := range models() {
		t.Run(map[bool]string{true: "shared processes", false: "a process for each"}[shared], func(t *testing.T) {
			t.Parallel()
			r := relay.Start(t, relay.Options{})
			sv := dovetail.Start(t, dovetail.Setup{Shared: shared, Users: []dovetail.User{
				{Name: "alice", Fields: []string{dovetail.Relay(r.Port)}}, {Name: "bob", Fields: []string{dovetail.Relay(r.Port)}},
			}})
			c := gather(t, &server{clear: sv.Addr, tls: sv.TLSAddr, trust: sv.TLSConfig()}, 20, dovetail.Password, "alice", "bob")
			c.round()
			c.allow("before")
			killed := map[string]int{}
			for range rounds {
				for _, service := range []string{"log", "anvil", "auth", "config", "submission-login", "submission"} {
					c.kill(sv, service)
					killed[service]++
				}
			}
			c.stop()
			sent, delivered := c.o.check(t, r)
			if delivered < sent/2 || sent < 100 {
				t.Errorf("%d of %d messages delivered", delivered, sent)
			}
			t.Logf("%d messages, %d answered with 250; killed: %v", sent, delivered, killed)
			sv.Until(t, "no client is left", func() bool {
				out, _ := sv.Ask(t, "who")
				return !strings.Contains(out, "alice") && !strings.Contains(out, "bob")
			})
		})
	}
}

// kill kills a process of a service.
func (c *crowd) kill(sv *dovetail.Server, service string) {
	c.t.Helper()
	var pid int
	sv.Until(c.t, "there is a process of "+service, func() bool {
		out, _ := sv.Ask(c.t, "status")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 1 && f[1] == service {
				if n, err := strconv.Atoi(f[0]); err == nil && syscall.Kill(n, syscall.SIGKILL) == nil {
					pid = n
					return true
				}
			}
		}
		return false
	})
	sv.WaitLine(c.t, fmt.Sprintf("service(%s): child %d killed with signal 9", service, pid))
	c.round()
	switch service {
	case "submission", "submission-login": // whose clients it had are cut off
		c.allow("after the death of "+service, "closed", "reset", "cut", "421", "AUTH: \"451 4.7.0 ", "AUTH: \"454 4.7.0 ")
	case "auth":
		c.allow("after the death of "+service, "421", "AUTH: \"451 4.7.0 ", "AUTH: \"454 4.7.0 ")
	default:
		c.allow("after the death of " + service)
	}
}
