package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/smtp"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/tlsfiles"
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

func TestData(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{})
	o := dial(t, config(r))
	o.do("MAIL FROM:<a@b>")
	o.do("RCPT TO:<a@b>")
	var answer smtp.Reply
	if r, e := o.data(func(r smtp.Reply) { answer = r }); e != nil || r.Code != 354 {
		t.Fatal(r, e)
	}
	var s smtp.DotStuffer
	body := strings.Repeat(".line\r\n", 100000)
	if refused, e := o.c.Write(s.Append(nil, []byte(body))); refused || e != nil {
		t.Fatal(refused, e)
	}
	if refused, e := o.c.EndData(s.Finish(nil)); refused || e != nil {
		t.Fatal(refused, e)
	}
	if e := o.c.WaitAll(); e != nil || answer.Code != 250 {
		t.Fatal(answer, e)
	}
	if m := r.WaitMessages(1); string(m[0].Data) != body {
		t.Errorf("%d octets arrived of %d", len(m[0].Data), len(body))
	}
	o.c.Close()
	if end := r.Ended(0).End; end != "QUIT" {
		t.Errorf("ended by %q", end)
	}
}

// What the relay says before it closes is heard, and before its leaving is.
func TestLastWords(t *testing.T) {
	leak.Check(t)
	last := relay.Close("554 5.7.1 last words")
	for range 20 {
		r := relay.Start(t, relay.Options{Script: relay.Script{relay.DATA: {last}, relay.NOOP: {last}}})
		o := dial(t, config(r))
		o.do("MAIL FROM:<a@b>")
		o.do("RCPT TO:<a@b>")
		var heard smtp.Reply
		answer, e := o.c.Data(func(r smtp.Reply) { heard = r }, func(smtp.Reply) { t.Error("an answer to a message") })
		if e != nil || answer.Code != 554 || heard.Code != 554 {
			t.Fatalf("%v, %v; heard %v", answer, e, heard)
		}
		if e := o.failure(); e.Kind != Lost || e.Waiting != 0 {
			t.Errorf("%v, %d waiting", e, e.Waiting)
		}

		o = dial(t, config(r))
		if got := o.do("NOOP"); got != "554 5.7.1 last words" {
			t.Error(got)
		}
	}
}

// Who sends a message may take longer than the relay has for an answer.
func TestSlowData(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{})
	cfg := config(r)
	cfg.CommandTimeout = 100 * time.Millisecond
	o := dial(t, cfg)
	o.do("MAIL FROM:<a@b>")
	o.do("RCPT TO:<a@b>")
	var answer smtp.Reply
	o.data(func(r smtp.Reply) { answer = r })
	select {
	case e := <-o.failed:
		t.Fatal(e)
	case <-time.After(3 * cfg.CommandTimeout):
	}
	o.c.EndData([]byte(".\r\n"))
	if e := o.c.WaitAll(); e != nil || answer.Code != 250 {
		t.Error(answer, e)
	}
}

// ... and then the relay's time begins.
func TestSlowDataAndNoAnswer(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.Dot: {relay.Silence()}}})
	cfg := config(r)
	cfg.CommandTimeout = 50 * time.Millisecond
	o := dial(t, cfg)
	o.do("MAIL FROM:<a@b>")
	o.do("RCPT TO:<a@b>")
	o.data(func(smtp.Reply) {})
	<-time.After(3 * cfg.CommandTimeout) // timers have gone off
	o.c.EndData([]byte(".\r\n"))
	if e := o.failure(); e.Kind != TimedOut {
		t.Error(e)
	}
}

// A refusal in the middle of the data stops the writing; no QUIT follows, which would be
// data.
func TestEarlyRefusal(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.Body: {relay.ReadThen(10000, relay.Reply("552 5.3.4 too big"))}}})
	o := dial(t, config(r))
	o.do("MAIL FROM:<a@b>")
	o.do("RCPT TO:<a@b>")
	answered := make(chan smtp.Reply, 1)
	o.data(func(r smtp.Reply) { answered <- r })
	line := bytes.Repeat([]byte("x"), 10000)
	if refused, e := o.c.Write(line); refused || e != nil {
		t.Fatal(refused, e)
	}
	if r := <-answered; r.Code != 552 {
		t.Error(r)
	}
	if refused, e := o.c.Write(line); !refused || e != nil {
		t.Fatal(refused, e)
	}
	if refused, e := o.c.EndData([]byte(".\r\n")); !refused || e != nil {
		t.Error(refused, e)
	}
	o.c.Abort()
	if end := r.Ended(0).End; end == "QUIT" {
		t.Errorf("ended by %q", end)
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

// The relay does not read: a write ends in time.
func TestStalledRelay(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.Body: {relay.Stall()}}})
	cfg := config(r)
	cfg.CommandTimeout = 200 * time.Millisecond
	o := dial(t, cfg)
	o.do("MAIL FROM:<a@b>")
	o.do("RCPT TO:<a@b>")
	o.data(func(smtp.Reply) { t.Error("a reply") })
	block := bytes.Repeat([]byte("x"), 1<<20)
	var e *Error
	for e == nil {
		_, e = o.c.Write(block)
	}
	if e.Kind != TimedOut {
		t.Errorf("%v, kind %d", e, e.Kind)
	}
}

type fixedAddrs []netip.Addr

func (a fixedAddrs) Lookup(context.Context, string) ([]netip.Addr, error) {
	if a == nil {
		return nil, errors.New("Name or service not known")
	}
	return a, nil
}

func TestAddresses(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{})
	cfg := config(r)
	cfg.Host = "relay.test"
	// Nobody listens at the first one.
	cfg.Resolver = fixedAddrs{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}
	dial(t, cfg)

	cfg.Resolver = fixedAddrs{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}
	_, e := Dial(t.Context(), cfg)
	if want := fmt.Sprintf("connect(127.0.0.3:%d) failed: Connection refused", r.Port); e == nil || e.Kind != ConnectFailed || e.Log != want {
		t.Errorf("%v, want %s", e, want)
	}
	cfg.Resolver = fixedAddrs(nil)
	_, e = Dial(t.Context(), cfg)
	if want := "dns_lookup(relay.test) failed: Name or service not known"; e == nil || e.Kind != LookupFailed || e.Log != want {
		t.Errorf("%v, want %s", e, want)
	}
	cfg.Host, cfg.Resolver = "[::1]", nil
	_, e = Dial(t.Context(), cfg)
	if want := fmt.Sprintf("connect([::1]:%d) failed: ", r.Port); e == nil || e.Kind != ConnectFailed || !strings.HasPrefix(e.Log, want) {
		t.Errorf("%v, want %s...", e, want)
	}
}

// Each answer to each step of Dial, and what becomes of it (clause S4.6).
func TestHandshakeFailures(t *testing.T) {
	steps := map[relay.Step]func(*Config){
		relay.Banner:   func(*Config) {},
		relay.EHLO:     func(*Config) {},
		relay.STARTTLS: func(cfg *Config) { cfg.Mode = StartTLS },
		relay.AUTH:     func(cfg *Config) { cfg.User, cfg.Password = "u", "secret" },
	}
	ca := tlsfiles.NewCA(t, "test CA")
	server := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, tlsfiles.Request{CN: "relay.test", Names: []string{"127.0.0.1"}}).TLS()}}
	for step, with := range steps {
		for name, tt := range map[string]struct {
			behaviour relay.Behaviour
			want      Kind
		}{
			"450":     {relay.Reply("450 4.0.0 later"), Refused},
			"554":     {relay.Reply("554 5.0.0 no"), Refused},
			"554s":    {relay.Reply("554-5.0.0 no", "554 5.0.0 never"), Refused},
			"421":     {relay.Reply("421 4.3.2 bye"), Closing},
			"530":     {relay.Reply("530 5.7.0 auth"), NeedsAuth},
			"354":     {relay.Reply("354 go"), Refused},
			"garbage": {relay.Raw("\x00\x01\r\n"), BadReply},
			"close":   {relay.Close(), Lost},
			"reset":   {relay.Reset(), Lost},
			"silence": {relay.Silence(), ConnectFailed},
			"half":    {relay.HalfLine("22"), ConnectFailed},
		} {
			t.Run(string(step)+"/"+name, func(t *testing.T) {
				leak.Check(t)
				r := relay.Start(t, relay.Options{TLS: server, Caps: []string{"PIPELINING", "AUTH PLAIN"}, Script: relay.Script{step: {tt.behaviour.Always()}}})
				cfg := config(r)
				cfg.TLS = &tls.Config{ServerName: "127.0.0.1", RootCAs: ca.Pool()}
				with(cfg)
				if tt.want == ConnectFailed {
					cfg.ConnectTimeout = 300 * time.Millisecond
				}
				c, e := Dial(t.Context(), cfg)
				if e == nil {
					c.Abort()
					t.Fatal("it is ready")
				}
				want := tt.want
				if step == relay.Banner && name == "reset" && e.Kind == ConnectFailed {
					want = ConnectFailed // the reset came before connect returned
				}
				if e.Kind != want || strings.Contains(e.Error(), "secret") {
					t.Errorf("%v: kind %d, want %d", e, e.Kind, want)
				}
			})
		}
	}
}

// A relay that always has something more to say, but never all, has the time of a step.
func TestSlowHandshake(t *testing.T) {
	leak.Check(t)
	dribble := relay.Dribble(20*time.Millisecond, "220-more\r\n")
	for step, want := range map[relay.Step]string{relay.Banner: "Connection timed out after 0 seconds", relay.EHLO: "SMTP handshake timed out after 0 seconds"} {
		r := relay.Start(t, relay.Options{Script: relay.Script{step: {dribble}}})
		cfg := config(r)
		cfg.ConnectTimeout = 200 * time.Millisecond
		if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != ConnectFailed || e.Log != want {
			t.Errorf("%s: %v", step, e)
		}
	}
}

func TestGreetingOtherThan220(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.Banner: {relay.Reply("250 hello")}}})
	if _, e := Dial(t.Context(), config(r)); e == nil || e.Kind != BadReply {
		t.Errorf("%v", e)
	}
}

func TestHELO(t *testing.T) {
	for _, code := range []string{"500 5.5.1 what", "502 5.5.1 no"} {
		r := relay.Start(t, relay.Options{Script: relay.Script{relay.EHLO: {relay.Reply(code)}}})
		o := dial(t, config(r))
		if o.c.Caps().Set != 0 || !slices.Equal(r.Commands(0, 2), []string{"EHLO host.test", "HELO host.test"}) {
			t.Errorf("%s: %q, capabilities %b", code, r.Commands(0, 2), o.c.Caps().Set)
		}
	}
}

func TestTLS(t *testing.T) {
	ca := tlsfiles.NewCA(t, "test CA")
	server := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, tlsfiles.Request{CN: "relay.test", Names: []string{"127.0.0.1"}}).TLS()}}
	client := func() *tls.Config { return &tls.Config{ServerName: "127.0.0.1", RootCAs: ca.Pool()} }
	for name, mode := range map[string]TLSMode{"starttls": StartTLS, "smtps": ImplicitTLS} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			r := relay.Start(t, relay.Options{TLS: server, Implicit: mode == ImplicitTLS})
			cfg := config(r)
			cfg.Mode, cfg.TLS = mode, client()
			o := dial(t, cfg)
			if got := o.do("NOOP"); got != "250 2.0.0 Ok" {
				t.Error(got)
			}
			o.c.Close()
			if conn := r.Ended(0); conn.TLS == nil || conn.End != "QUIT" {
				t.Errorf("TLS %v, ended by %q", conn.TLS != nil, conn.End)
			}

			cfg.TLS = &tls.Config{ServerName: "other.test", RootCAs: ca.Pool()}
			_, e := Dial(t.Context(), cfg)
			if e == nil || e.Kind != ConnectFailed || !strings.HasPrefix(e.Log, "SSL handshaking with 127.0.0.1:") {
				t.Errorf("wrong name: %v", e)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		r := relay.Start(t, relay.Options{})
		cfg := config(r)
		cfg.Mode, cfg.TLS = StartTLS, client()
		_, e := Dial(t.Context(), cfg)
		if e == nil || e.Kind != ConnectFailed || e.Log != "Requested STARTTLS, but server doesn't support it" {
			t.Errorf("%v", e)
		}
	})
	t.Run("broken", func(t *testing.T) {
		r := relay.Start(t, relay.Options{TLS: server, Script: relay.Script{relay.STARTTLS: {relay.BreakTLS()}}})
		cfg := config(r)
		cfg.Mode, cfg.TLS = StartTLS, client()
		if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != ConnectFailed {
			t.Errorf("%v", e)
		}
	})
	t.Run("injection", func(t *testing.T) {
		r := relay.Start(t, relay.Options{TLS: server, Script: relay.Script{relay.STARTTLS: {relay.Raw("220 go\r\n250 injected\r\n")}}})
		cfg := config(r)
		cfg.Mode, cfg.TLS = StartTLS, client()
		if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != BadReply && e.Kind != ConnectFailed {
			t.Errorf("%v", e)
		}
	})
}

func TestAuth(t *testing.T) {
	long := strings.Repeat("p", 400)
	for name, tt := range map[string]struct {
		caps                   string
		user, master, password string
		want                   string // as the relay decodes it
		lines                  []string
	}{
		"plain":   {"AUTH PLAIN LOGIN", "u", "", "p", "\x00u\x00p", []string{"AUTH PLAIN AHUAcA=="}},
		"master":  {"AUTH LOGIN PLAIN", "u", "m", "p", "u\x00m\x00p", []string{"AUTH PLAIN dQBtAHA="}},
		"unknown": {"AUTH GSSAPI", "u", "", "p", "\x00u\x00p", []string{"AUTH PLAIN AHUAcA=="}},
		"long":    {"AUTH PLAIN", "u", "", long, "\x00u\x00" + long, []string{"AUTH PLAIN"}},
		"login":   {"AUTH LOGIN", "u", "", "p", "u\x00p", []string{"AUTH LOGIN"}},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			r := relay.Start(t, relay.Options{Caps: []string{"PIPELINING", tt.caps}})
			cfg := config(r)
			cfg.User, cfg.MasterUser, cfg.Password = tt.user, tt.master, tt.password
			dial(t, cfg)
			lines := r.Commands(0, 3)
			if lines[0] != "EHLO host.test" || lines[1] != tt.lines[0] || lines[len(lines)-1] != "EHLO host.test" {
				t.Errorf("%q", lines)
			}
			if got := r.Conn(0).Auth; len(got) == 0 || got[len(got)-1] != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
	t.Run("not offered", func(t *testing.T) {
		r := relay.Start(t, relay.Options{})
		cfg := config(r)
		cfg.User = "u"
		if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != ConnectFailed || e.Log != "Authentication not supported" {
			t.Errorf("%v", e)
		}
	})
	t.Run("refused", func(t *testing.T) {
		r := relay.Start(t, relay.Options{Caps: []string{"AUTH PLAIN"}, Script: relay.Script{relay.AUTH: {relay.Reply("535 5.7.8 bad")}}})
		cfg := config(r)
		cfg.User = "u"
		if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != Refused || e.Log != "Authentication failed: 535 5.7.8 bad" || e.Reply.Code != 535 {
			t.Errorf("%v", e)
		}
	})
}

// The tap, whose file the user may read, has nothing of what logs in.
func TestTapHasNoPassword(t *testing.T) {
	for name, tt := range map[string]struct {
		password  string
		challenge string // what it has of those
	}{
		"PLAIN":      {"p", ""},
		"PLAIN long": {strings.Repeat("p", 400), "334 <hidden>\r\n"},
		"LOGIN":      {"p", "334 <hidden>\r\n334 <hidden>\r\n"},
		"CRAM-MD5":   {"p", "334 <hidden>\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			mech, _, _ := strings.Cut(name, " ")
			script := relay.Script{}
			if mech == "CRAM-MD5" { // the relay takes its response for a command
				script[relay.AUTH] = []relay.Behaviour{relay.Reply("334 PDE+")}
				script[relay.Other] = []relay.Behaviour{relay.Reply("235 2.7.0 Authentication successful")}
			}
			r := relay.Start(t, relay.Options{Caps: []string{"AUTH " + mech}, Script: script})
			cfg := config(r)
			cfg.User, cfg.Password = "u", tt.password
			var tapped [2]strings.Builder
			cfg.Tap = func(in bool, b []byte) {
				if in {
					tapped[0].Write(b)
				} else {
					tapped[1].Write(b)
				}
			}
			o := dial(t, cfg)
			o.do("NOOP")
			o.c.Close()
			o.ends.Wait()
			ehlo := "250-relay.test\r\n250 AUTH " + mech + "\r\n"
			in := "220 relay.test ESMTP ready\r\n" + ehlo + tt.challenge + "235 2.7.0 Authentication successful\r\n" + ehlo + "250 2.0.0 Ok\r\n"
			out := "EHLO host.test\r\nAUTH " + mech + " <hidden>\r\nEHLO host.test\r\nNOOP\r\nQUIT\r\n"
			if got := strings.TrimSuffix(tapped[0].String(), "221 2.0.0 Bye\r\n"); got != in {
				t.Errorf("in:\n%s\nwant\n%s", got, in)
			}
			if got := tapped[1].String(); got != out {
				t.Errorf("out:\n%s\nwant\n%s", got, out)
			}
		})
	}
}

// A relay that does not know the password may not just say that all is well.
func TestScramWithoutProof(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{Caps: []string{"AUTH SCRAM-SHA-256"}, Script: relay.Script{relay.AUTH: {relay.Reply("235 2.7.0 welcome")}}})
	cfg := config(r)
	cfg.User, cfg.Password = "u", "p"
	if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != ConnectFailed || !strings.Contains(e.Log, "has not proved that it knows the password") {
		t.Errorf("%v", e)
	}
}

// XCLIENT with a user comes before AUTH; without, when Introduce says so.
func TestXclient(t *testing.T) {
	attrs := []smtp.XclientAttr{{Name: "HELO", Value: "h"}, {Name: "ADDR", Value: "192.0.2.1"}}
	caps := []string{"PIPELINING", "XCLIENT HELO ADDR", "AUTH PLAIN"}
	leak.Check(t)
	r := relay.Start(t, relay.Options{Caps: caps})
	cfg := config(r)
	cfg.User, cfg.Xclient = "u", attrs
	dial(t, cfg)
	want := []string{"EHLO host.test", "XCLIENT HELO=h ADDR=192.0.2.1", "EHLO host.test", "AUTH PLAIN AHUA", "EHLO host.test"}
	if got := r.Commands(0, 5); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}

	r = relay.Start(t, relay.Options{Caps: caps, Script: relay.Script{relay.XCLIENT: {relay.Reply("550 5.7.1 no")}, relay.EHLO: {relay.Reply("250-relay.test", "250-PIPELINING", "250 XCLIENT HELO"), relay.Reply("550 5.7.1 gone")}}})
	o := dial(t, config(r))
	o.c.Send([]byte("NOOP"), func(smtp.Reply) {})
	refused, e := o.c.Introduce(attrs)
	if e != nil || refused.String() != "550 5.7.1 gone" {
		t.Errorf("%v, %v", refused, e)
	}
	if got, want := r.Commands(0, 4), []string{"EHLO host.test", "NOOP", "XCLIENT HELO=h", "EHLO host.test"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// Dial ends when its context does, at whatever step it is.
func TestDialCancelled(t *testing.T) {
	for _, step := range []relay.Step{relay.Banner, relay.EHLO} {
		leak.Check(t)
		reached := make(chan struct{})
		r := relay.Start(t, relay.Options{Script: relay.Script{step: {relay.Silence()}}})
		ctx, cancel := context.WithCancel(t.Context())
		cfg := config(r)
		go func() { // ends with the connection
			defer close(reached)
			if step == relay.EHLO {
				r.Commands(0, 1)
			} else {
				r.Conn(0)
			}
			cancel()
		}()
		if _, e := Dial(ctx, cfg); e == nil || e.Kind != Cancelled {
			t.Errorf("%s: %v", step, e)
		}
		<-reached
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
