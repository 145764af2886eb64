package submission

import (
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/relay"
)

// A shutdown tells everybody, and the relay.
func TestShutdown(t *testing.T) {
	w := newWorld(t, nil)
	r := relay.Start(t, relay.Options{})
	c := w.open(r)
	begin(c)
	w.child.Signal(15)
	c.Expect("421 4.3.2 host.test Shutting down")
	c.ExpectEOF()
	w.svc.AwaitLog("Info: Disconnected: Shutting down (state=RCPT TO)")
	if end := r.Ended(0).End; end != "QUIT" {
		t.Errorf("ended by %q", end)
	}
	if code := w.child.AwaitExit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// A message that the relay has when the process is stopped: its answer comes first, or the
// client would send it again. What the client sends meanwhile is not begun.
func TestShutdownAwaitsTheAnswer(t *testing.T) {
	for name, caps := range map[string][]string{"BDAT": nil, "DATA": {"PIPELINING"}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			answer := make(chan struct{})
			late := relay.When(answer, relay.Reply("250 2.0.0 late"))
			r := relay.Start(t, relay.Options{Caps: caps, Scripts: []relay.Script{{relay.BDAT: {late}, relay.Dot: {late}}}})
			c, idle := w.open(r), w.open(r)
			begin(c)
			c.Do("DATA", "354")
			c.Send("x", ".")
			r.WaitMessages(1)
			w.child.Signal(15)
			idle.Expect("421 4.3.2 host.test Shutting down") // at once
			c.ExpectSilence(300 * time.Millisecond)          // this session hears of it on its own
			c.Send("NOOP")
			c.ExpectSilence(50 * time.Millisecond)
			close(answer)
			c.ExpectCode("250 2.0.0")
			c.Expect("421 4.3.2 host.test Shutting down")
			c.ExpectEOF()
			w.svc.AwaitLog("Info: Successfully relayed message: ")
			if lines := r.Ended(0).Lines; slices.Contains(lines, "NOOP") {
				t.Errorf("%q", lines)
			}
			if code := w.child.AwaitExit(); code != 0 {
				t.Errorf("exit status %d", code)
			}
		})
	}
}

// ... if it comes in time.
func TestShutdownWithoutTheAnswer(t *testing.T) {
	w := newWorld(t, nil)
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.BDAT: {relay.Silence()}}})
	c := w.open(r)
	begin(c)
	c.Send("BDAT 1 LAST")
	c.Write("x")
	r.WaitMessages(1)
	w.child.Signal(15)
	c.Expect("421 4.3.2 host.test Shutting down")
	c.ExpectEOF()
	if code := w.child.AwaitExit(); code != 0 || strings.Contains(strings.Join(w.svc.Log(), "\n"), "did not end") {
		t.Errorf("exit status %d", code)
	}
}

// A bug in one session ends that session with 421, and hurts no other.
func TestPanic(t *testing.T) {
	for _, command := range []string{"PANIC", "PANICTHERE"} {
		t.Run(command, func(t *testing.T) {
			w := newWorld(t, nil)
			r := relay.Start(t, relay.Options{})
			other := w.open(r)
			begin(other)
			c := w.open(r)
			begin(c)
			c.Send(command)
			c.Expect("421 4.3.0 host.test " + internalError)
			c.ExpectEOF()
			w.svc.AwaitLog("Info: Disconnected: Internal error (unfinished " + command + " command) (state=RCPT TO)")
			w.svc.AwaitLog("asked for")
			other.Send("BDAT 1 LAST")
			other.Write("x")
			other.ExpectCode("250")
			other.Do("QUIT", "221")
			if code := w.child.AwaitExit(); code != 0 { // it retires
				t.Errorf("exit status %d", code)
			}
		})
	}
}

// The client sends a message and leaves at once: the relay's answer is still awaited, for the
// log.
func TestClientGoneBeforeTheAnswer(t *testing.T) {
	w := newWorld(t, nil)
	answer := make(chan struct{})
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.BDAT: {relay.When(answer, relay.Reply("250 2.0.0 late"))}}})
	c := w.open(r)
	begin(c)
	c.Send("BDAT 1 LAST")
	c.Write("x")
	r.Commands(0, 4)
	c.Close()
	close(answer)
	w.svc.AwaitLog("Info: Successfully relayed message: from=<alice@example.org>, size=1, ")
	w.svc.AwaitLog("Info: Disconnected: Connection closed")
	if end := r.Ended(0).End; end != "QUIT" {
		t.Errorf("ended by %q", end)
	}
}

// A client that leaves in the middle of a large message leaves no part of it behind.
func TestClientGoneInside(t *testing.T) {
	for name, caps := range map[string][]string{"BDAT": nil, "DATA": {"PIPELINING"}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := relay.Start(t, relay.Options{Caps: caps})
			c := w.open(r)
			begin(c)
			c.Do("DATA", "354")
			c.Write(strings.Repeat("line\r\n", 200000))
			r.Commands(0, 4) // the relay has a part
			c.Close()
			w.svc.AwaitLog("Info: Disconnected: Connection closed (unfinished DATA command) (state=DATA)")
			if conn := r.Ended(0); len(conn.Messages) > 0 && conn.Messages[0].Accepted {
				t.Error("the relay took it")
			}
		})
	}
}
