package submission

import (
	"time"

	"dovetail/internal/smtp"
	"dovetail/internal/smtp/client"
	"dovetail/internal/submission/relay"
)

// connect makes sure that there is a relay. It is false at the session's end, which it
// brings about if the relay cannot be had.
func (se *session) connect() bool {
	if se.conn != nil {
		return true
	}
	done := se.waiting()
	defer done()
	se.connN++
	target := se.target.Next(se.connN, se.events.towards(se.target.Host()))
	label := target.Label()
	conn, e := target.Dial(se.ctx, se.xclientAttrs(), func(text string) { se.log.Warning("%s%s", label, text) }, se.rawRelay.Tap(se.rawlogFailed))
	if e != nil {
		if e.Kind != client.Cancelled {
			se.fatal(e, label, e.Codes)
		}
		return false
	}
	se.xclient = !se.target.Trusted() || se.target.XclientFirst()
	se.learn(conn)
	se.mu.Lock()
	if se.ended {
		se.mu.Unlock()
		conn.Close()
		return false
	}
	l := &link{label: label, codes: se.codes}
	se.conn, se.link, se.leftover = conn, l, nil
	se.mu.Unlock()
	conn.Start(client.Hooks{
		Go:     se.client.Go,
		Batch:  func() { se.flushClient(conn) },
		Idle:   func() { se.relayIdle(conn) },
		Failed: func(e *client.Error) { se.relayFailed(l, e) },
	})
	return true
}

// flushClient writes the replies that are ready, unless the owner waits for these and has
// more to write. By the relay's reader.
func (se *session) flushClient(conn *client.Conn) {
	if !se.quiet.Load() || conn.Waiting() > 0 {
		se.c.Flush()
	}
}

// A link is what is to be known when a connection to the relay ends.
type link struct {
	label string // names it in logs
	codes bool   // it announced ENHANCEDSTATUSCODES
	over  bool   // guarded by session.mu: its end was dealt with
}

// learn takes note of what the relay announced.
func (se *session) learn(conn *client.Conn) {
	caps := conn.Caps()
	se.codes = caps.Has(smtp.CapEnhancedStatusCodes)
	se.events.hasCodes(se.codes)
	se.relaySize = caps.Size
	if !se.capsSet {
		se.base = caps.Set
	}
}

// introduce says XCLIENT before the first MAIL of a connection (clause S4.3). A refusal is
// the answer to that MAIL, and the connection is given up.
func (se *session) introduce() (refusal smtp.Reply, e *client.Error) {
	if se.xclient {
		return refusal, nil
	}
	se.xclient = true
	done := se.waiting()
	defer done()
	refused, e := se.conn.Introduce(se.xclientAttrs())
	if e != nil {
		return refusal, e
	}
	se.learn(se.conn)
	if !refused.IsZero() {
		refusal = smtp.Forward(refused, se.codes, "")
		se.dropRelay()
	}
	return refusal, nil
}

// xclientAttrs are what a trusted relay is told.
func (se *session) xclientAttrs() []smtp.XclientAttr {
	var attrs []smtp.XclientAttr
	add := func(name, value string) {
		if value != "" {
			attrs = append(attrs, smtp.XclientAttr{Name: name, Value: value})
		}
	}
	helo := se.helo
	if helo == "" {
		helo = se.xhelo
	}
	add("HELO", helo)
	add("PROTO", "ESMTP")
	add("LOGIN", se.u.name)
	add("SESSION", se.id)
	if ip := se.u.remote.Addr(); ip.IsValid() {
		if port := se.u.remote.Port(); port != 0 {
			add("PORT", portText(port))
		}
		add("ADDR", smtp.XclientAddr(ip))
	}
	return attrs
}

// relayFailed deals with the end of a connection: between transactions the next one gets a
// new connection; otherwise the session is over. Whoever notices first calls it, the owner
// or the connection's reader.
func (se *session) relayFailed(l *link, e *client.Error) {
	se.mu.Lock()
	if l.over || se.quitting {
		se.mu.Unlock()
		return
	}
	l.over = true
	// What waits for an answer is lost, and so is an open transaction; but not one whose
	// message was answered already.
	open := (e.Waiting > 0 || se.tx.isOpen()) && e.Kind != client.Cancelled
	se.failing = se.failing || open
	se.mu.Unlock()
	if open {
		se.events.endAll(ending{server: aborted, relay: lost, failure: e})
		se.fatal(e, l.label, l.codes)
		return
	}
	se.log.Debug("%sConnection lost between transactions: %v", l.label, e)
}

// broken deals with an error of the connection, and is false.
func (se *session) broken(e *client.Error) bool {
	se.relayFailed(se.link, e)
	return false
}

// fatal ends the session because of the relay.
func (se *session) fatal(e *client.Error, label string, codes bool) {
	f := relay.Fail(e, se.u.hostname, label, codes)
	for _, line := range f.Errors {
		se.log.Error("%s", line)
	}
	se.end(f.Reason, f.Reply)
}

// relayIdle closes a connection that was not used for submission_relay_max_idle_time.
func (se *session) relayIdle(conn *client.Conn) {
	se.mu.Lock()
	open := se.tx.isOpen()
	se.mu.Unlock()
	if !open {
		conn.CloseIfIdle()
	}
}

// live says whether there is a connection; one that is over is forgotten.
func (se *session) live() bool {
	if se.conn == nil {
		return false
	}
	e := se.conn.Err()
	if e == nil {
		return true
	}
	se.relayFailed(se.link, e)
	se.forgetRelay()
	return false
}

// need says whether there is a relay to send a command to, and connects if there is none. It
// is false at the session's end.
func (se *session) need() bool { return se.live() || !se.over() && se.connect() }

func (se *session) forgetRelay() (conn *client.Conn) {
	se.mu.Lock()
	defer se.mu.Unlock()
	conn = se.conn
	se.conn = nil
	if se.link != nil {
		se.link.over = true
	}
	return conn
}

// dropRelay gives the connection up where the relay waits for something that will not come.
func (se *session) dropRelay() {
	if conn := se.forgetRelay(); conn != nil {
		conn.Abort()
	}
}

// closeRelay says good-bye, if the relay is there to hear it, and waits until its reader is
// done, which may just be writing to the client.
func (se *session) closeRelay() {
	conn := se.forgetRelay()
	if conn == nil {
		return
	}
	conn.Close()
	timer := time.NewTimer(readerEnds)
	defer timer.Stop()
	select {
	case <-conn.Ended():
	case <-timer.C:
	}
}

// readerEnds is how long the end of a connection's reader is waited for: it may be stuck
// with a client that takes no replies.
const readerEnds = time.Second
