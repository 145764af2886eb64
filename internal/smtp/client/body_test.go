package client

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"dovetail/internal/smtp"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/relay"
)

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
