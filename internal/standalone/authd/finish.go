package authd

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"dovetail/internal/dovecot/authclient"
)

// run runs a request's mechanism and replies.
func (p *pending) run(initial []byte, has bool) {
	defer func() {
		if v := recover(); v != nil { // a bug in one request is that request's
			p.conn.srv.logPanic(v)
			if p.end() {
				p.conn.send(fmt.Appendf(nil, "FAIL\t%d\tcode=%s", p.id, authclient.CodeTempFail))
			}
		}
	}()
	r := p.req
	if !r.penaltyWait() {
		return // cancelled
	}
	final, out := r.runMechanism(initial, has)
	r.inUserdb = false
	if out == succeeded {
		out = r.success(final)
	}
	switch out {
	case failed:
		p.failure()
	case internalFailure:
		r.internalFailure = true
		p.failure()
	case succeeded:
		p.succeed()
	case aborted:
		p.end()
	}
	if p.ctx.Err() != nil && !r.successful {
		p.end()
	}
}

// logPanic logs a bug of ours, with where it is.
func (s *Server) logPanic(v any) {
	stack := strings.Join(strings.Fields(string(debug.Stack())), " ")
	s.log.Panic("%s", sanitize(fmt.Sprintf("%v: %s", v, stack), 3000))
}

// success is what follows on a mechanism that succeeded; final is its last message.
func (r *request) success(final []byte) outcome {
	if r.failed || !r.passdbSuccess {
		return failed // the password was right, but something else was not
	}
	r.successful = true
	r.logDebugFinished()
	r.delay()
	if len(final) > 0 {
		if r.finalRespOK {
			r.extra.add("resp", encode(final), false)
		} else if _, ok := r.pend.ask(final); !ok { // one more round, of which nothing is read
			return aborted
		}
	}
	temporary, err := r.finishProxy()
	if err != nil {
		r.internalFailure = r.internalFailure || temporary
		r.dropProxy()
		return failed
	}
	return succeeded
}

func (r *request) logDebugFinished() {
	r.logDebug("auth(%s): Auth request finished", r.identity())
}

// succeed sends OK, and keeps the request for the worker if one is to come.
func (p *pending) succeed() {
	r, c := p.req, p.conn
	if r.lastPenalty != 0 && c.srv.penalty != nil {
		r.penaltySet(0)
	}
	for _, k := range []string{"nologin", "proxy"} { // the login process wants bare words
		if r.extra.has(k) {
			r.extra.add(k, "", false)
		}
	}
	b := fmt.Appendf(nil, "OK\t%d", p.id)
	b = appendField(b, "user", r.user)
	b = r.appendExtra(b)
	if !c.kind.claims || r.extra.has("nologin") || r.extra.has("proxy") {
		if p.end() {
			c.send(b)
		}
		return
	}
	prefix := r.mechPrefix()
	c.mu.Lock()
	in := c.requests[p.id] == p
	if in {
		p.finished, p.touched, p.logPrefix = true, time.Now(), prefix
		p.timer.Reset(requestTimeout)
	}
	c.mu.Unlock()
	if in {
		c.send(b)
	}
}

// appendExtra adds the fields that go to the client.
func (r *request) appendExtra(b []byte) []byte {
	if len(r.extra.list) > 0 {
		b = append(b, '\t')
		b = r.extra.append(b)
	}
	if r.hasOriginal && (r.original != r.user || r.user == "") && !r.extra.has("original_user") {
		b = appendField(b, "original_user", r.original)
	}
	if r.masterUser != "" && !r.extra.has("auth_user") {
		b = appendField(b, "auth_user", r.masterUser)
	}
	if a := r.auth.set.anonymous; a != "" && r.user == a {
		b = append(b, "\tanonymous"...)
	}
	if r.pend.conn.kind.claims && r.extra.has("proxy") {
		if !r.extra.has("pass") && r.hasPassword {
			b = appendField(b, "pass", r.password)
		}
		if r.masterUser != "" && !r.extra.has("master") {
			b = appendField(b, "master", r.masterUser)
		}
	}
	return b
}

// failure sends FAIL, after auth_failure_delay.
func (p *pending) failure() {
	r, c := p.req, p.conn
	r.dropProxy()
	r.extra.remove("nologin")
	b := fmt.Appendf(nil, "FAIL\t%d", p.id)
	switch {
	case r.user != "":
		b = appendField(b, "user", r.user)
	case r.hasOriginal:
		b = appendField(b, "user", r.original)
	}
	code := ""
	switch {
	case r.internalFailure:
		code = authclient.CodeTempFail
	case r.masterUser != "": // the master user is right, but may not be that user
		code = authclient.CodeAuthzFail
	case r.result == passUserDisabled:
		code = authclient.CodeUserDisabled
	case r.result == passExpired:
		code = authclient.CodePassExpired
	}
	noDelay := r.extra.has("nodelay")
	if noDelay {
		b = append(b, "\tnodelay"...)
	}
	if code != "" {
		b = appendField(b, "code", code)
	}
	b = r.appendExtra(b)
	if !r.successful {
		r.logDebugFinished()
	}
	if !p.end() { // cancelled meanwhile
		return
	}
	if noDelay {
		c.send(b)
		return
	}
	if c.srv.penalty != nil {
		r.penaltySet(r.lastPenalty + 1)
	}
	c.srv.failures.add(delayed{time.Now().Add(r.auth.set.failureDelay), c, b})
}

// flushEvery is how often delayed failures are looked at. All that are due then leave in
// random order, so that an order says nothing about why they failed.
const flushEvery = 500 * time.Millisecond

// A delayed is a failure that waits to be sent.
type delayed struct {
	due  time.Time
	conn *loginConn
	line []byte
}

// A delayQueue holds failures; its zero value is ready. Its size is bounded by the rate of
// logins: maxDelayed at most, beyond which they are not delayed.
type delayQueue struct {
	mu      sync.Mutex
	waiting []delayed // guarded by mu
	timer   *time.Timer
}

const maxDelayed = 200_000

func (q *delayQueue) add(d delayed) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) >= maxDelayed {
		go d.conn.send(d.line) // ends at once: sending does not wait
		return
	}
	q.waiting = append(q.waiting, d)
	if q.timer == nil {
		q.timer = time.AfterFunc(flushEvery, q.tick)
	}
}

func (q *delayQueue) tick() {
	now := time.Now()
	q.mu.Lock()
	var due []delayed
	q.waiting = slices.DeleteFunc(q.waiting, func(d delayed) bool {
		if d.due.After(now) {
			return false
		}
		due = append(due, d)
		return true
	})
	if len(q.waiting) > 0 {
		q.timer.Reset(flushEvery)
	} else {
		q.timer = nil
	}
	q.mu.Unlock()
	send(due)
}

// flush sends all at once.
func (q *delayQueue) flush() {
	q.mu.Lock()
	due := q.waiting
	q.waiting = nil
	if q.timer != nil {
		q.timer.Stop()
		q.timer = nil
	}
	q.mu.Unlock()
	send(due)
}

func send(due []delayed) {
	rand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	for _, d := range due {
		d.conn.send(d.line)
	}
}
