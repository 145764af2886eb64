package matrix

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/relay"
)

// A handover is a server whose worker does not run, so that clients wait between the login
// process and it.
type handover struct {
	s      *dovetail.Server
	worker int
	login  int
	idle   dovetail.Census
}

func newHandover(t *testing.T, hasty bool) *handover {
	t.Helper()
	r := relay.Start(t, relay.Options{})
	s := dovetail.Start(t, dovetail.Setup{Shared: true, Hasty: hasty, Users: []dovetail.User{{Name: "alice", Fields: []string{dovetail.Relay(r.Port)}}}})
	h := &handover{s: s, idle: s.Idle(t, "alice")}
	h.worker, h.login = s.Processes()["submission"][0], s.Processes()["submission-login"][0]
	t.Cleanup(func() { _ = syscall.Kill(h.worker, syscall.SIGCONT) })
	return h
}

func (h *handover) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(h.worker, s); err != nil {
		t.Fatal(err)
	}
}

func (h *handover) sockets() (n int) {
	for _, f := range leak.FilesOf(h.login) {
		if strings.Contains(f, " socket:") {
			n++
		}
	}
	return n
}

// begin logs a client in as far as the worker, which does not answer.
func (h *handover) begin(t *testing.T, w dovetail.Way) *client.Client {
	t.Helper()
	c := h.s.Greeted(t, w)
	had := h.sockets()
	c.Send("AUTH PLAIN " + dovetail.Plain("alice"))
	h.s.Until(t, "the login process calls the worker", func() bool { return h.sockets() > had })
	return c
}

// Clients that do something during the hand-over.
func TestClientsDuringTheHandOver(t *testing.T) {
	t.Parallel()
	h := newHandover(t, false)
	h.signal(t, syscall.SIGSTOP)
	var all, half, hurried []*client.Client
	for range 5 {
		for _, w := range []dovetail.Way{dovetail.Clear, dovetail.TLS, dovetail.StartTLS} {
			all = append(all, h.begin(t, w))
		}
	}
	for i, c := range all {
		switch i / 3 {
		case 0:
			c.Close()
		case 1:
			c.Reset()
		case 2:
			c.CloseWrite()
			half = append(half, c)
		case 3:
			c.Write(mailFrom + rcptTo + "DATA\r\nearly\r\n.\r\nQUIT\r\n")
			hurried = append(hurried, c)
		case 4:
			_ = c.Conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			_, _ = c.Conn.Write([]byte(strings.Repeat("NOOP\r\n", 200000)))
			c.Close()
		}
	}
	h.signal(t, syscall.SIGCONT)
	for _, c := range hurried {
		for _, code := range []string{"235", "250", "250", "354", "250", "221"} {
			c.ExpectCode(code)
		}
		c.ExpectGone()
	}
	for _, c := range half {
		c.ExpectGone()
	}
	h.s.Settled(t, h.idle)
	h.s.NoSessions(t, "submission")
	h.s.NoSessions(t, "submission-login")
}

// The time until the login includes the hand-over (clause S1.6).
func TestStallDuringTheHandOver(t *testing.T) {
	t.Parallel()
	h := newHandover(t, true)
	h.signal(t, syscall.SIGSTOP)
	for _, w := range []dovetail.Way{dovetail.Clear, dovetail.TLS} {
		began := time.Now()
		c := h.begin(t, w)
		c.Expect("421 4.4.2 " + host + " Timeout while finishing login.")
		c.ExpectGone()
		if took := time.Since(began); took < loginTime || took > loginTime+late {
			t.Errorf("%v: after %v", w, took)
		}
	}
	h.signal(t, syscall.SIGCONT)
	h.s.Settled(t, h.idle)
	h.s.NoSessions(t, "submission")
	h.s.NoSessions(t, "submission-login")
}
