package authd

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"dovetail/internal/dovecot/authclient"
)

const (
	// requestTimeout is how long a request lives after its last activity: the client's
	// answer to a challenge, or the worker's claim, has to come by then (clause P3.16).
	requestTimeout = 150 * time.Second

	// maxPending is how many requests of one connection are kept at a time. One more
	// fails at once, temporarily.
	maxPending = 16384

	handshakeTimeout = 30 * time.Second
)

// A loginKind is what a socket is for.
type loginKind struct {
	claims bool // requests wait for a worker
	token  bool // DOVECOT-TOKEN alone
}

// A loginConn is a connection of a login process, or of another client that has its
// users' passwords checked.
type loginConn struct {
	srv    *Server
	kind   loginKind
	nc     net.Conn
	out    *outbox
	cid    uint32
	cookie authclient.Cookie
	ctx    context.Context // ends with the connection
	mechs  []*mechanism
	minor  uint32 // set by the handshake, as is pid
	pid    uint32

	mu       sync.Mutex
	requests map[uint32]*pending // guarded by mu; nil once the connection is over
}

// A pending is a request as the connection sees it.
type pending struct {
	conn   *loginConn
	id     uint32
	req    *request // its goroutine's, until finished is set
	ctx    context.Context
	cancel context.CancelFunc
	answer chan []byte // to challenge, one at most
	began  time.Time
	timer  *time.Timer

	// Guarded by conn.mu.
	asking    bool // a challenge is out, and may be answered once
	finished  bool // OK was sent: req waits for the worker
	touched   time.Time
	logPrefix string // of req, which is its goroutine's
}

// serveLogin answers on nc until it ends or ctx does.
func (s *Server) serveLogin(ctx context.Context, nc net.Conn, kind loginKind) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &loginConn{
		srv: s, kind: kind, nc: nc, out: newOutbox(nc), ctx: ctx,
		mechs: s.mechanisms, requests: map[uint32]*pending{},
	}
	if kind.token {
		c.mechs = []*mechanism{tokenMechanism()}
	}
	_, _ = rand.Read(c.cookie[:]) // never fails
	s.mu.Lock()
	s.lastCID++
	c.cid = s.lastCID
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	defer c.out.close()
	g := authclient.Greeting{PID: s.pid, CUID: c.cid, Cookie: c.cookie}
	for _, m := range c.mechs {
		g.Mechanisms = append(g.Mechanisms, m.Mechanism)
	}
	c.out.write(g.Append(nil))

	br := bufio.NewReaderSize(nc, authclient.MaxLine)
	if err := nc.SetReadDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return
	}
	if !c.handshake(br) {
		return
	}
	if kind.claims {
		if !s.addClient(c) {
			return
		}
		defer s.removeClient(c)
	}
	if s.protocols[0].set.debug {
		s.debugLog.Debug("auth client connected (pid=%d)", c.pid)
	}
	if err := nc.SetReadDeadline(time.Time{}); err != nil {
		return
	}
	err := c.serve(br)
	c.abort(err)
}

// handshake reads VERSION and CPID.
func (c *loginConn) handshake(br *bufio.Reader) bool {
	line, err := c.readLine(br)
	if err != nil {
		return false
	}
	if c.minor, err = authclient.ParseVersion(line); err != nil {
		if errors.Is(err, authclient.ErrVersion) {
			c.srv.log.Error("Authentication client not compatible with this server (mixed old and new binaries?)")
		} else {
			c.srv.log.Error("Authentication client sent invalid VERSION line: %s", wrongLine(line))
		}
		return false
	}
	if line, err = c.readLine(br); err != nil {
		return false
	}
	args, ok := strings.CutPrefix(line, "CPID\t")
	if !ok {
		c.srv.log.Error("BUG: Authentication client sent unknown handshake command: %s", wrongLine(line))
		return false
	}
	if c.pid, err = authclient.ParseCPID(args); err != nil {
		c.srv.log.Error("BUG: Authentication client said it's PID 0")
		return false
	}
	if !c.kind.claims {
		c.pid = 0 // it need not be unique, so it must not mean anything
	}
	return true
}

// readLine returns a line without its line end. Errors but the end of the connection are
// logged.
func (c *loginConn) readLine(br *bufio.Reader) (string, error) {
	b, err := br.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		c.srv.log.Error("BUG: Auth client %d sent us more than %d bytes", c.pid, authclient.MaxLine)
	}
	if err != nil {
		return "", err
	}
	b = b[:len(b)-1]
	if n := len(b); n > 0 && b[n-1] == '\r' {
		b = b[:n-1]
	}
	line := string(b)
	clear(b) // it may hold a password
	return line, nil
}

func (s *Server) addClient(c *loginConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients[c.pid] != nil {
		s.log.Error("BUG: Authentication client gave a PID %d of existing connection", c.pid)
		return false
	}
	s.clients[c.pid] = c
	return true
}

func (s *Server) removeClient(c *loginConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c.pid)
}

func (s *Server) client(pid uint32) *loginConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients[pid]
}

// serve reads commands. It returns why it ended; io.EOF if the client left.
func (c *loginConn) serve(br *bufio.Reader) error {
	for {
		c.out.waitRoom(c.ctx)
		line, err := c.readLine(br)
		if err != nil {
			return err
		}
		word, args, ok := strings.Cut(line, "\t")
		switch {
		case ok && word == "AUTH":
			c.debug("client in: %s", line, authLine)
			err = c.auth(args)
		case ok && word == "CONT":
			c.debug("client in: %s", line, contLine)
			err = c.cont(args)
		case ok && word == "CANCEL":
			c.debug("client in: %s", line, nil)
			var id uint32
			if id, err = authclient.ParseCancel(args); err == nil {
				c.remove(id)
			} else {
				c.srv.log.Error("BUG: Authentication client sent %s", err)
			}
		default:
			c.srv.log.Error("BUG: Authentication client sent unknown command: %s", wrongLine(line))
			err = errMistake
		}
		if err != nil {
			return errMistake
		}
	}
}

// errMistake: the client sent what ends the connection; it was logged.
var errMistake = errors.New("client made a mistake")

// debug logs a line, in which hide replaces what is secret.
func (c *loginConn) debug(format, line string, hide func(c *loginConn, line string) string) {
	if !c.srv.protocols[0].set.debug {
		return
	}
	if hide != nil {
		line = hide(c, line)
	}
	c.srv.debugLog.Debug(format, line)
}

const (
	hidden    = "<hidden>"
	sensitive = " (previous base64 data may contain sensitive data)"
)

// wrongLine is what the log says of a line that has no place: its first word. What follows
// may be part of a response.
func wrongLine(line string) string {
	n := 0
	for n < len(line) && n < 32 && ('A' <= line[n] && line[n] <= 'Z' || line[n] == '-') {
		n++
	}
	if n < len(line) {
		return line[:n] + "..."
	}
	return line
}

// authLine hides the initial response.
func authLine(c *loginConn, line string) string {
	i := strings.Index(line, "\tresp=")
	if i < 0 {
		return line
	}
	if c.srv.protocols[0].set.debugPasswords {
		return line + sensitive
	}
	i += len("\tresp=")
	rest := ""
	if j := strings.IndexByte(line[i:], '\t'); j >= 0 {
		rest = line[i+j:]
	}
	return line[:i] + hidden + rest
}

// contLine hides the response, and as in Dovecot all before it.
func contLine(c *loginConn, line string) string {
	if c.srv.protocols[0].set.debugPasswords {
		return line + sensitive
	}
	word, _, _ := strings.Cut(line, "\t")
	return word + hidden
}

// send sends a reply, a line without its LF.
func (c *loginConn) send(line []byte) {
	if c.srv.protocols[0].set.debug {
		text := string(line)
		if !c.srv.protocols[0].set.debugPasswords {
			text = hidePass(text)
		}
		c.srv.debugLog.Debug("client passdb out: %s", text)
	}
	c.out.write(append(line, '\n'))
}

// hidePass hides the values of fields that have "pass" in their names.
func hidePass(line string) string {
	if !strings.Contains(line, "pass") {
		return line
	}
	f := strings.Split(line, "\t")
	for i, x := range f {
		if k, _, ok := strings.Cut(x, "="); ok && strings.Contains(k, "pass") {
			f[i] = k + "=" + hidden
		}
	}
	return strings.Join(f, "\t")
}

// auth handles an AUTH line. An error ends the connection.
func (c *loginConn) auth(args string) error {
	a, err := authclient.ParseAuth(args)
	bug := func(format string, args ...any) error {
		c.srv.log.Error("BUG: Authentication client %d %s", c.pid, fmt.Sprintf(format, args...))
		return errMistake
	}
	if errors.Is(err, authclient.ErrAuthBroken) {
		return bug("sent broken AUTH request")
	}
	var mech *mechanism
	for _, m := range c.mechs {
		if strings.EqualFold(m.Name, a.Mechanism) {
			mech = m
		}
	}
	switch {
	case mech == nil && c.kind.token:
		return bug("requested invalid authentication mechanism %s (DOVECOT-TOKEN required)", sanitize(a.Mechanism, 64))
	case mech == nil:
		return bug("requested unsupported authentication mechanism %s", sanitize(a.Mechanism, 64))
	case err != nil:
		return bug("sent AUTH parameters after 'resp'")
	}
	p := &pending{conn: c, id: a.ID, answer: make(chan []byte, 1), began: time.Now()}
	p.ctx, p.cancel = context.WithCancel(c.ctx)
	r := c.srv.newRequest(p.ctx, a.ID)
	r.mech, r.pend, r.clientPID = mech, p, c.pid
	p.req, p.logPrefix = r, r.mechPrefix()
	// The service decides what a certificate's name is for, so it comes first.
	r.service, _ = a.Fields.Get("service")
	if !a.Fields.Has("service") {
		p.cancel()
		return bug("didn't specify service in request")
	}
	r.chooseService()
	for _, f := range a.Fields {
		r.importAuth(f)
	}
	if ok, err := c.add(p); !ok {
		p.cancel()
		if err != nil {
			return bug("sent a duplicate ID %d", a.ID)
		}
		c.srv.log.Error("Authentication client %d has more than %d requests at a time", c.pid, maxPending)
		c.out.write(fmt.Appendf(nil, "FAIL\t%d\tcode=%s\n", a.ID, authclient.CodeTempFail))
		return nil
	}
	set := r.auth.set
	if set.requireCert && !r.validCert {
		p.refuse("", "Client didn't present valid SSL certificate")
		return nil
	}
	if set.requireCert && set.userFromCert && !r.certUsername {
		p.refuse("", "SSL certificate didn't contain username")
		return nil
	}
	var initial []byte
	has := a.HasInitial
	switch {
	case !has:
	case a.Initial == "" && c.minor < 2: // Exim sends it when there is none
		has = false
	case a.Initial == "", a.Initial == "=":
		initial = []byte{}
	default:
		if initial, err = base64.StdEncoding.DecodeString(a.Initial); err != nil {
			p.refuse(authclient.CodeInvalidBase64, "Invalid base64 data in initial response")
			return nil
		}
	}
	go p.run(initial, has) // ends with the request, at the latest with the connection
	return nil
}

// add takes a request in; an error says that its ID is in use.
func (c *loginConn) add(p *pending) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests[p.id] != nil {
		return false, errMistake
	}
	if len(c.requests) >= maxPending || c.requests == nil {
		return false, nil
	}
	c.requests[p.id] = p
	p.touched = time.Now()
	p.timer = time.AfterFunc(requestTimeout, p.timeout)
	return true, nil
}

// remove ends a request, if there is one, without a reply.
func (c *loginConn) remove(id uint32) {
	c.mu.Lock()
	p := c.requests[id]
	c.mu.Unlock()
	if p != nil {
		p.end()
	}
}

// end takes the request out and cancels what it does; false: it was out.
func (p *pending) end() bool {
	c := p.conn
	c.mu.Lock()
	in := c.requests[p.id] == p
	if in {
		delete(c.requests, p.id)
	}
	c.mu.Unlock()
	p.timer.Stop()
	p.cancel()
	return in
}

// touch puts off the timeout.
func (p *pending) touch() {
	p.conn.mu.Lock()
	defer p.conn.mu.Unlock()
	p.touched = time.Now()
	p.timer.Reset(requestTimeout)
}

// stateFinished is Dovecot's number for a request after its OK.
const stateFinished = 3

// timeout is called when nothing happened for too long.
func (p *pending) timeout() {
	p.conn.mu.Lock()
	secs, finished, prefix := int(time.Since(p.touched).Seconds()), p.finished, p.logPrefix
	p.conn.mu.Unlock()
	if !p.end() {
		return
	}
	switch {
	case finished: // the login process neither handed over nor cancelled
		p.conn.srv.log.Error("%sRequest %d.%d timed out after %d secs, state=%d", prefix, p.conn.pid, p.id, secs, stateFinished)
	case p.req.auth.set.verbose:
		p.conn.srv.log.Info("%sRequest timed out waiting for client to continue authentication (%d secs)", prefix, secs)
	}
}

// refuse fails a request at once.
func (p *pending) refuse(code, reason string) {
	p.req.mechInfo("%s", reason)
	p.refuseQuietly(code, reason)
}

func (p *pending) refuseQuietly(code, reason string) {
	b := fmt.Appendf(nil, "FAIL\t%d", p.id)
	if code != "" {
		b = appendField(b, "code", code)
	}
	b = appendField(b, "reason", reason)
	if p.end() {
		p.conn.send(b)
	}
}

// cont handles a CONT line.
func (c *loginConn) cont(args string) error {
	id, data, err := authclient.ParseCont(args)
	if err != nil {
		c.srv.log.Error("BUG: Authentication client sent %s", err)
		return err
	}
	c.mu.Lock()
	p := c.requests[id]
	asking, prefix := false, ""
	if p != nil {
		asking, prefix = p.asking, p.logPrefix
		p.asking = false
	}
	c.mu.Unlock()
	if p == nil {
		c.send(appendField(fmt.Appendf(nil, "FAIL\t%d", id), "reason", "Authentication request timed out"))
		return nil
	}
	fail := func(code, reason string) {
		if p.req.auth.set.verbose {
			c.srv.log.Info("%s%s", prefix, reason)
		}
		p.refuseQuietly(code, reason)
	}
	if !asking {
		fail("", "Unexpected continuation")
		return nil
	}
	answer, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		fail(authclient.CodeInvalidBase64, "Invalid base64 data in continued response")
		return nil
	}
	p.touch()
	p.answer <- answer // there is room: a challenge is answered once
	return nil
}

// ask sends a challenge and waits for the answer; false: there will be none.
func (p *pending) ask(challenge []byte) ([]byte, bool) {
	b := fmt.Appendf(nil, "CONT\t%d\t", p.id)
	b = base64.StdEncoding.AppendEncode(b, challenge)
	prefix := p.req.mechPrefix()
	p.conn.mu.Lock()
	p.asking, p.logPrefix = true, prefix
	p.conn.mu.Unlock()
	p.conn.send(b)
	select {
	case a := <-p.answer:
		return a, true
	case <-p.ctx.Done():
		return nil, false
	}
}

// abort ends the connection's requests. Pending ones are somebody's mistake.
func (c *loginConn) abort(err error) {
	c.mu.Lock()
	all := c.requests
	c.requests = nil
	c.mu.Unlock()
	for _, p := range all {
		p.timer.Stop()
		p.cancel()
	}
	if len(all) > 0 && !errors.Is(err, errMistake) && c.ctx.Err() == nil {
		why := "EOF"
		if !errors.Is(err, io.EOF) {
			why = errnoText(err)
		}
		c.srv.log.Error("auth client %d disconnected with %d pending requests: %s", c.pid, len(all), why)
	}
}

// claim gives a request that succeeded to a worker, once.
func (c *loginConn) claim(id uint32) (r *request, found bool) {
	c.mu.Lock()
	p := c.requests[id]
	if p == nil {
		c.mu.Unlock()
		return nil, false
	}
	if p.finished {
		r = p.req
	}
	delete(c.requests, id)
	c.mu.Unlock()
	p.timer.Stop()
	if r == nil {
		p.cancel()
	} else {
		// The connection may go away while the worker is served.
		r.ctx = c.srv.ctx
		p.cancel()
	}
	return r, true
}
