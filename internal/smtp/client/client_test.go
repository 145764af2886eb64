package client

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/smtp"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/relay"
)

const patience = 10 * time.Second

func config(r *relay.Relay) *Config {
	return &Config{
		Host: "127.0.0.1", Port: uint16(r.Port), Hostname: "host.test",
		ConnectTimeout: patience, CommandTimeout: patience,
	}
}

// An owner is what a session is to a connection.
type owner struct {
	t      *testing.T
	c      *Conn
	ends   sync.WaitGroup
	failed chan *Error
}

func dial(t *testing.T, cfg *Config) *owner {
	t.Helper()
	c, e := Dial(t.Context(), cfg)
	if e != nil {
		t.Fatalf("%v (kind %d)", e, e.Kind)
	}
	o := &owner{t: t, c: c, failed: make(chan *Error, 1)}
	c.Start(Hooks{Go: o.ends.Go, Failed: func(e *Error) { o.failed <- e }})
	t.Cleanup(func() { c.Close(); o.ends.Wait() })
	return o
}

// do sends a command that must be answered.
func (o *owner) do(line string) string {
	o.t.Helper()
	r, e := o.c.Do(line)
	if e != nil {
		o.t.Fatalf("%s: %v", line, e)
	}
	return r.String()
}

// data begins a message that the relay takes.
func (o *owner) data(final func(smtp.Reply)) (smtp.Reply, *Error) {
	o.t.Helper()
	return o.c.Data(func(r smtp.Reply) { o.t.Error("DATA:", r) }, final)
}

func (o *owner) failure() *Error {
	o.t.Helper()
	select {
	case e := <-o.failed:
		return e
	case <-time.After(patience):
		o.t.Fatal("the connection did not fail")
		return nil
	}
}

func TestDialog(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{})
	o := dial(t, config(r))
	if !o.c.Caps().Has(smtp.CapPipelining|smtp.CapChunking) || o.c.Caps().Size != 10240000 {
		t.Errorf("capabilities %+v", o.c.Caps())
	}
	if got := o.do("MAIL FROM:<a@b>"); got != "250 2.1.0 Ok" {
		t.Error(got)
	}
	o.c.Close()
	o.c.Close()
	if conn := r.Ended(0); conn.End != "QUIT" || len(conn.Violations) > 0 {
		t.Errorf("ended by %q, violations %q", conn.End, conn.Violations)
	}
}

// Commands leave in few writes, and each function hears its own reply.
func TestPipeline(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.RCPT: {
		relay.Reply("250 2.1.5 first"), relay.Reply("550-5.1.1 second", "550 5.1.1 more"), relay.Reply("250 third"),
	}}})
	writes := 0
	cfg := config(r)
	cfg.Tap = func(in bool, b []byte) {
		if !in && bytes.Contains(b, []byte("RCPT")) {
			writes++
		}
	}
	o := dial(t, cfg)
	var mu sync.Mutex
	var got []string
	note := func(r smtp.Reply) { mu.Lock(); got = append(got, r.String()); mu.Unlock() }
	o.c.Send([]byte("MAIL FROM:<a@b>"), note)
	for i := range 50 {
		o.c.Send(fmt.Appendf(nil, "RCPT TO:<%d@b>", i), note)
	}
	if e := o.c.WaitAll(); e != nil {
		t.Fatal(e)
	}
	want := []string{"250 2.1.0 Ok", "250 2.1.5 first", "550 5.1.1 second 5.1.1 more", "250 third", "250 2.1.5 Ok"}
	if !slices.Equal(got[:5], want) || len(got) != 51 {
		t.Errorf("%q", got)
	}
	if writes != 1 {
		t.Errorf("%d writes", writes)
	}
}

// Settle waits for what stands behind a message of several chunks, not for chunks of one
// that goes on.
func TestSettle(t *testing.T) {
	leak.Check(t)
	told := make(chan struct{})
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.BDAT: {relay.When(told, relay.Reply("250 2.0.0 first"))}}})
	o := dial(t, config(r))
	n := 0
	count := func(smtp.Reply) { n++ }
	piece := []byte(strings.Repeat(" ", ChunkRoom) + "x\r\n")
	o.c.Send([]byte("MAIL FROM:<a@b>"), count)
	o.c.Send([]byte("RCPT TO:<a@b>"), count)
	if e := o.c.Settle(); e != nil || n != 2 {
		t.Errorf("%d replies, %v", n, e)
	}
	o.c.Chunk(piece, false, count)
	if e := o.c.Settle(); e != nil || n != 2 {
		t.Errorf("%d replies, %v", n, e)
	}
	o.c.Chunk(piece, true, count)
	o.c.Send([]byte("MAIL FROM:<a@b>"), count)
	time.AfterFunc(20*time.Millisecond, func() { close(told) })
	if e := o.c.Settle(); e != nil || n != 5 {
		t.Errorf("%d replies, %v", n, e)
	}
}

// A relay without PIPELINING gets one command at a time, and chunks one by one.
func TestNoPipelining(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{Caps: []string{"CHUNKING"}})
	o := dial(t, config(r))
	n := 0
	count := func(smtp.Reply) { n++ }
	o.c.Send([]byte("MAIL FROM:<a@b>"), count)
	o.c.Send([]byte("RCPT TO:<a@b>"), count)
	for i := range 3 {
		if e := o.c.Chunk([]byte(strings.Repeat(" ", ChunkRoom)+"x\r\n"), i == 2, count); e != nil {
			t.Fatal(e)
		}
	}
	if e := o.c.WaitAll(); e != nil || n != 5 {
		t.Fatalf("%d replies, %v", n, e)
	}
	o.c.Close()
	if conn := r.Ended(0); len(conn.Violations) > 0 || !slices.Equal(conn.Messages[0].BDAT, []int64{3, 3, 3}) {
		t.Errorf("violations %q, messages %+v", conn.Violations, conn.Messages)
	}
}

func TestFailures(t *testing.T) {
	for name, tt := range map[string]struct {
		behaviour relay.Behaviour
		want      Kind
		log       string
		quit      bool
	}{
		"421":         {relay.Reply("421 4.3.2 relay.test down"), Closing, "421 4.3.2 relay.test down", true},
		"530":         {relay.Reply("530 5.7.0 auth"), NeedsAuth, "530 5.7.0 auth", true},
		"garbage":     {relay.Raw("what?\r\n"), BadReply, "Invalid command reply: Invalid status code in reply", true},
		"8 bit":       {relay.Raw("250 caf\xc3\xa9\r\n"), BadReply, "Invalid command reply: Encountered stray 0xc3 in reply text", true},
		"two codes":   {relay.Raw("250-a\r\n251 b\r\n"), BadReply, "Invalid command reply: Inconsistent status codes in reply", true},
		"two replies": {relay.Raw("250 2.0.0 Ok\r\n250 2.0.0 more\r\n"), BadReply, "Unexpected reply: 250 2.0.0 more", true},
		"close":       {relay.Close(), Lost, "", false},
		"reset":       {relay.Reset(), Lost, "Connection lost: read((conn:127.0.0.1:*) failed: Connection reset by peer", false},
		"half a line": {relay.Close("250-x"), Lost, "", false},
		"silence":     {relay.Silence(), TimedOut, "Command timed out, disconnecting", true},
		"half line":   {relay.HalfLine("250 2.0"), TimedOut, "Command timed out, disconnecting", true},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			r := relay.Start(t, relay.Options{Script: relay.Script{relay.NOOP: {tt.behaviour}}})
			cfg := config(r)
			if tt.want == TimedOut {
				cfg.CommandTimeout = 50 * time.Millisecond
			}
			o := dial(t, cfg)
			_, doErr := o.c.Do("NOOP")
			if doErr == nil { // the first of two replies
				doErr = o.failure()
			} else if e := o.failure(); e != doErr {
				t.Errorf("Failed hears %v, Do %v", e, doErr)
			}
			got := strings.ReplaceAll(doErr.Log, fmt.Sprint(":", r.Port, ",id=0)"), ":*")
			if got == "" && !doErr.Reply.IsZero() {
				got = doErr.Reply.Split().String()
			}
			if doErr.Kind != tt.want || got != tt.log {
				t.Errorf("kind %d %q, want %d %q", doErr.Kind, got, tt.want, tt.log)
			}
			if end := r.Ended(0).End; (end == "QUIT") != tt.quit {
				t.Errorf("ended by %q", end)
			}
			o.c.Send([]byte("NOOP"), func(smtp.Reply) { t.Error("a reply after the end") })
			if e := o.c.Flush(); e != doErr {
				t.Errorf("Flush after the end: %v", e)
			}
		})
	}
}

// What comes while nothing waits is noticed.
func TestFailsWhileIdle(t *testing.T) {
	for name, tt := range map[string]struct {
		behaviour relay.Behaviour
		want      Kind
	}{
		"closes":   {relay.After(50*time.Millisecond, relay.Close()), Lost},
		"says 421": {relay.After(50*time.Millisecond, relay.Reply("421 4.4.2 timeout")), Closing},
		"talks":    {relay.After(50*time.Millisecond, relay.Reply("250 2.0.0 hello")), BadReply},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			// The answer to NOOP, and then that.
			r := relay.Start(t, relay.Options{Script: relay.Script{relay.NOOP: {relay.Reply("250 Ok"), tt.behaviour}}})
			o := dial(t, config(r))
			o.c.Send([]byte("NOOP"), func(smtp.Reply) {})
			o.c.appendOut([]byte("NOOP")) // which nobody waits for
			o.c.Flush()
			if e := o.failure(); e.Kind != tt.want {
				t.Errorf("%v, kind %d, want %d", e, e.Kind, tt.want)
			}
		})
	}
}

func TestIdleHook(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{})
	cfg := config(r)
	cfg.IdleTimeout = 50 * time.Millisecond
	c, e := Dial(t.Context(), cfg)
	if e != nil {
		t.Fatal(e)
	}
	idle := make(chan bool, 10)
	var ends sync.WaitGroup
	c.Start(Hooks{Go: ends.Go, Idle: func() { idle <- true }})
	for range 2 {
		<-idle
		if _, e := c.Do("NOOP"); e != nil {
			t.Fatal(e)
		}
	}
	<-idle
	c.Close()
	ends.Wait()
}

// A command that is sent when the idle time has just passed is not lost.
func TestCloseIfIdle(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{})
	for _, sent := range []bool{false, true} {
		cfg := config(r)
		cfg.IdleTimeout = 300 * time.Millisecond
		c, e := Dial(t.Context(), cfg)
		if e != nil {
			t.Fatal(e)
		}
		answered, told := make(chan smtp.Reply, 1), make(chan struct{})
		var ends sync.WaitGroup
		c.Start(Hooks{Go: ends.Go, Idle: sync.OnceFunc(func() {
			defer close(told)
			if sent {
				c.Send([]byte("NOOP"), func(r smtp.Reply) { answered <- r })
				c.CloseIfIdle()
				c.Flush()
				<-answered
			}
			c.CloseIfIdle() // nor is what came meanwhile a reason to close
		})})
		<-told
		if gone := c.Err() != nil; gone == sent {
			t.Errorf("a command was sent: %v; it is closed: %v", sent, gone)
		}
		c.Close()
		ends.Wait()
	}
}

// An idle connection to a plaintext relay holds no buffer.
func TestIdleHoldsNoBuffer(t *testing.T) {
	r := relay.Start(t, relay.Options{})
	o := dial(t, config(r))
	o.do("NOOP")
	if o.c.out != nil || o.c.raw == nil {
		t.Errorf("out %d octets, raw %v", cap(o.c.out), o.c.raw)
	}
}

func BenchmarkCommand(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with the connection
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.Write([]byte("220 x\r\n"))
		buf := make([]byte, 64<<10)
		ok := bytes.Repeat([]byte("250 2.0.0 Ok\r\n"), 1000)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if bytes.HasPrefix(buf, []byte("EHLO")) {
				c.Write([]byte("250-x\r\n250 PIPELINING\r\n"))
				continue
			}
			c.Write(ok[:bytes.Count(buf[:n], []byte{'\n'})*14])
		}
	}()
	c, e := Dial(b.Context(), &Config{Host: "127.0.0.1", Port: uint16(l.Addr().(*net.TCPAddr).Port), Hostname: "h", ConnectTimeout: patience, CommandTimeout: patience})
	if e != nil {
		b.Fatal(e)
	}
	var ends sync.WaitGroup
	c.Start(Hooks{Go: ends.Go})
	defer ends.Wait()
	defer c.Close()
	line, done := []byte("RCPT TO:<bob@example.org>"), func(smtp.Reply) {}
	b.ReportAllocs()
	for b.Loop() {
		for range 100 {
			c.Send(line, done)
		}
		c.WaitAll()
	}
}
