package client

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"dovetail/internal/smtp"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/relay"
)

// notes is a Watcher that keeps what it heard.
type notes struct {
	mu    sync.Mutex
	heard []string
}

func (n *notes) note(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.heard = append(n.heard, fmt.Sprintf(format, args...))
}

func (n *notes) Connected(local, remote net.Addr) {
	n.note("connected %v", local != nil && remote != nil)
}
func (n *notes) Disconnected(in, out uint64) { n.note("disconnected %v", in > 0 && out > 0) }
func (n *notes) Sent(verb string)            { n.note("%s", verb) }

func (n *notes) Finished(verb string, began time.Time, r smtp.Reply, e *Error) {
	if e != nil {
		n.note("%s %v %v", verb, e, began.IsZero())
		return
	}
	n.note("%s %d %v", verb, r.Code, began.IsZero())
}

// Everything that is said to the relay is heard of, and what came of it.
func TestWatcher(t *testing.T) {
	leak.Check(t)
	n := &notes{}
	r := relay.Start(t, relay.Options{Caps: []string{"PIPELINING", "CHUNKING"}, Script: relay.Script{relay.RCPT: {relay.Reply("550 5.1.1 no")}}})
	cfg := config(r)
	cfg.Watcher = n
	o := dial(t, cfg)
	o.do("MAIL FROM:<a@b>")
	o.do("RCPT TO:<c@d>")
	if e := o.c.Chunk([]byte(string(make([]byte, ChunkRoom))+"x"), true, func(smtp.Reply) {}); e != nil {
		t.Fatal(e)
	}
	if e := o.c.WaitAll(); e != nil {
		t.Fatal(e)
	}
	o.c.Close()
	o.ends.Wait()
	want := []string{"connected true", "EHLO", "EHLO 250 false", "MAIL", "MAIL 250 false", "RCPT", "RCPT 550 false", "BDAT", "BDAT 250 false", "disconnected true"}
	if !slices.Equal(n.heard, want) {
		t.Errorf("%q", n.heard)
	}
}

// A message by DATA is two commands: one ends with the 354.
func TestWatcherOfData(t *testing.T) {
	leak.Check(t)
	n := &notes{}
	r := relay.Start(t, relay.Options{})
	cfg := config(r)
	cfg.Watcher = n
	o := dial(t, cfg)
	o.do("MAIL FROM:<a@b>")
	o.do("RCPT TO:<c@d>")
	n.heard = nil
	if _, e := o.data(func(smtp.Reply) {}); e != nil {
		t.Fatal(e)
	}
	if _, e := o.c.EndData([]byte("x\r\n.\r\n")); e != nil {
		t.Fatal(e)
	}
	if e := o.c.WaitAll(); e != nil {
		t.Fatal(e)
	}
	o.c.Close()
	o.ends.Wait()
	if want := []string{"DATA", "DATA 354 false", "", " 250 false", "disconnected true"}; !slices.Equal(n.heard, want) {
		t.Errorf("%q", n.heard)
	}
}

// A login of several steps is one command.
func TestWatcherOfLogin(t *testing.T) {
	leak.Check(t)
	n := &notes{}
	r := relay.Start(t, relay.Options{Caps: []string{"AUTH LOGIN"}})
	cfg := config(r)
	cfg.Watcher = n
	cfg.User, cfg.Password = "u", "p"
	c, e := Dial(t.Context(), cfg)
	if e != nil {
		t.Fatal(e)
	}
	c.Abort()
	want := []string{"connected true", "EHLO", "EHLO 250 false", "AUTH", "AUTH 235 false", "EHLO", "EHLO 250 false", "disconnected true"}
	if !slices.Equal(n.heard, want) {
		t.Errorf("%q", n.heard)
	}
}

// What waits when the connection ends is heard of, too.
func TestWatcherAtTheEnd(t *testing.T) {
	leak.Check(t)
	for name, tt := range map[string]struct {
		behaviour relay.Behaviour
		want      string
	}{
		"lost":    {relay.Close(), "connection lost"},
		"closing": {relay.Reply("421 4.3.2 bye"), "421 4.3.2 bye"},
	} {
		t.Run(name, func(t *testing.T) {
			n := &notes{}
			r := relay.Start(t, relay.Options{Script: relay.Script{relay.NOOP: {tt.behaviour}}})
			cfg := config(r)
			cfg.Watcher = n
			o := dial(t, cfg)
			o.c.Do("NOOP")
			o.c.Close()
			o.ends.Wait()
			want := []string{"connected true", "EHLO", "EHLO 250 false", "NOOP", "NOOP " + tt.want + " false", "disconnected true"}
			if !slices.Equal(n.heard, want) {
				t.Errorf("%q", n.heard)
			}
		})
	}
}
