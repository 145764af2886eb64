package login

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"dovetail/internal/dovecot/authclient"
	"dovetail/internal/dovecot/handoff"
	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/pace"
	"dovetail/internal/process/service"
	"dovetail/internal/rawlog"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/server"
	"dovetail/internal/splice"
	"dovetail/internal/tlsconf"
)

const (
	loginTimeout = 180 * time.Second / pace.Haste // from accept to login (clause S1.6)

	maxParams     = 1025       // octets behind a command's name (clause S1.12)
	maxAuthParams = 12288 + 64 // of AUTH: an initial response (RFC 4954 section 4) and the mechanism
	maxAuthLine   = 8192       // of an answer to a challenge (clause S1.12)

	// What one read takes before the login on a plaintext connection. What a client sends
	// behind AUTH then fits the hand-over, as long as names are not longer than these.
	readSize   = 1000
	maxHelo    = 64
	maxSession = 100
)

// A session is one client. Its goroutine owns all fields without a comment.
type session struct {
	s       *process
	client  *service.Client
	view    *view
	viewErr error // there are no settings for this client; view is for the refusal
	log     sessionLog
	c       *server.Conn
	sock    *splice.Socket // the client's socket; under TLS c.Conn() is another one

	began    time.Time
	listener masterproto.Listener

	// What the login process, auth and logs take for the connection's ends, and the ends
	// of the socket.
	local, remote         netip.AddrPort
	realLocal, realRemote netip.AddrPort
	byHAProxy             bool
	id                    string // session ID

	tls        *tls.Conn // nil without
	quiet      bool      // no line about the disconnect
	noExtra    bool      // ... and only the reason in it
	tlsErr     string    // why the handshake failed, in OpenSSL's words
	handshake  bool      // it is going on, or it failed
	proxiedTLS bool      // a HAProxy header said TLS
	localName  string    // TLS server name
	certOK     bool      // the client has a valid certificate
	certBad    bool      // it has one that is not
	certUser   string

	helo       string // last valid EHLO or HELO name
	greeted    bool   // with any name
	esmtp      bool   // the last one was EHLO
	xclient    smtp.Xclient
	hasXclient bool

	auth      attempts
	events    *events
	forward   *splice.Stream // set by a hand-over that needs it
	workerPID uint32         // ... and by every one
	passing   *proxied       // set while a login at a backend goes on, and by one that worked

	ctx      context.Context
	hostname string // in a 421

	mu     sync.Mutex
	cancel context.CancelCauseFunc // guarded by mu; nil after the dialogue
	talk   *server.Conn            // guarded by mu; c, and nil after the dialogue
	phase  phase                   // guarded by mu: what the login timeout interrupts
	reason string                  // guarded by mu: why the session ended; the first one counts
	bare   bool                    // guarded by mu: the reason says "Disconnected" itself
}

// A phase says how the login timeout puts it (clause S1.6).
type phase uint8

const (
	commands phase = iota
	authenticating
	finishing
)

var timeoutText = [...]string{
	commands:       "Disconnected for inactivity.",
	authenticating: "Disconnected for inactivity during authentication.",
	finishing:      "Timeout while finishing login.",
}

// errClosed ends a session that has been answered for, or needs no answer.
var errClosed = errors.New("session is over")

// serve serves one client, which it takes, until it has logged in or gone.
func (s *process) serve(ctx context.Context, cl *service.Client) {
	se := s.newSession(ctx, cl)
	if !se.dialogue(ctx) {
		s.titles.gone(se)
		return
	}
	stream, over := se.afterLogin(ctx)
	if stream == nil {
		s.titles.gone(se)
		return
	}
	s.tidier.login()
	cl.Then(func() {
		stream.Run()
		over()
		s.titles.gone(se)
	})
}

func (s *process) newSession(ctx context.Context, cl *service.Client) *session {
	se := &session{s: s, client: cl, began: cl.Accepted, listener: cl.Listener}
	se.sock = splice.NewSocket(cl.Conn)
	se.ctx, se.cancel = context.WithCancelCause(ctx) // ended by dialogue
	se.realLocal, se.realRemote = addrPort(cl.Conn.LocalAddr()), addrPort(cl.Conn.RemoteAddr())
	se.local, se.remote = se.realLocal, se.realRemote
	if se.view, se.viewErr = s.view(addresses{se.local.Addr(), se.remote.Addr()}); se.viewErr != nil {
		se.view = s.base // for the refusal
	}
	se.hostname = se.view.hostname
	se.log = sessionLog{se}
	return se
}

// dialogue talks with the client until it is handed over (true) or gone.
func (se *session) dialogue(ctx context.Context) bool {
	panics := true
	defer func() {
		if !panics { // else OnPanic's function needs what this would take away
			se.forget()
		}
	}()
	o := server.Options{
		Hostname:      se.hostname,
		MaxParams:     maxParams,
		MaxAuthParams: maxAuthParams,
		ReadSize:      readSize,
	}
	if se.events = newEvents(se.s.stats, se.began); se.events != nil {
		se.events.from(se.local, se.remote)
		o.Watcher = se.events
	}
	raw := se.openRawlog()
	defer raw.Close()
	o.Tap = raw.Tap(se.rawlogFailed)
	se.c = server.New(se.sock, o)
	se.mu.Lock()
	se.talk = se.c
	se.mu.Unlock()
	timer := time.AfterFunc(loginTimeout-time.Since(se.began), se.timeout)
	stop := context.AfterFunc(ctx, se.shutdown)
	se.client.Droppable(se.queueFull)
	se.client.OnPanic(se.internalError)
	defer func() {
		if panics {
			se.internalError()
			se.log.disconnected()
			se.c.Close()
		}
		timer.Stop()
		stop()
		se.client.Droppable(nil)
	}()
	loggedIn := se.login()
	panics = false
	if loggedIn {
		se.client.OnPanic(nil) // it is not for us any more to tell the client something
		se.c.Drop()
		se.events.over(se.c.Stats())
		return true
	}
	se.c.Flush()
	se.log.disconnected() // before Close, which may take a second
	se.c.Close()
	se.events.over(se.c.Stats())
	return false
}

// forget gives up what only the dialogue needs: sessions that are passed on may stay for
// hours.
func (se *session) forget() {
	se.mu.Lock()
	cancel := se.cancel
	se.cancel, se.talk = nil, nil
	se.mu.Unlock()
	cancel(errClosed)
	se.c, se.ctx = nil, nil
}

// login talks with the client until it is handed over (true) or gone.
func (se *session) login() bool {
	if !se.admit() {
		return false
	}
	se.events.from(se.local, se.remote) // which a PROXY header may have changed
	se.s.titles.at(se, preLogin)
	if se.id == "" {
		se.id = sessionID(time.Now(), se.remote)
	}
	if (se.listener.SSL || se.s.implicitTLS) && !se.startTLS() {
		return false
	}
	if !se.awaitAuth() {
		return false
	}
	se.greet()
	for {
		cmd, err := se.c.Next()
		if err != nil {
			se.lost(err)
			return false
		}
		switch err := se.command(cmd); err {
		case nil:
		case errHandedOver:
			return true
		default:
			se.lost(err)
			return false
		}
	}
}

// admit asks the access sockets and reads the PROXY header. What fails here ends without
// an answer and without a line about the disconnect.
func (se *session) admit() bool {
	if se.viewErr != nil {
		se.internalError()
		return false
	}
	for _, path := range se.view.access {
		ok, err := handoff.AskAccess(se.ctx, path, "submission", se.sock.Raw)
		if err != nil {
			se.s.log.Error("%v", err)
		}
		if !ok {
			se.s.log.Info("access(%s): Client refused (rip=%s)", path, se.remote.Addr())
			se.quiet = true
			return false
		}
	}
	if se.listener.HAProxy && !se.readProxyHeader() {
		se.quiet = true
		return false
	}
	return true
}

// awaitAuth waits until there is an auth service, at most ten seconds.
func (se *session) awaitAuth() bool {
	if se.s.auth.Conn() != nil {
		se.auth.ready = true
		return true
	}
	ctx, cancel := context.WithTimeout(se.ctx, authAwait)
	defer cancel()
	stop := se.c.Watch(func() { se.end("Connection closed", smtp.Reply{}) })
	err := se.s.auth.Ready(ctx)
	stop()
	switch {
	case se.ctx.Err() != nil:
		return false // whatever ended it has said so
	case err != nil:
		se.s.log.Warning("Auth process not responding, delayed sending initial response (greeting)")
		se.end("Auth process broken", se.reply421("4.3.2", "Auth process broken"))
		return false
	}
	se.auth.ready = true
	return true
}

// openRawlog opens the files for what is said before the login; nil: none are wanted.
func (se *session) openRawlog() *rawlog.Log {
	l, err := rawlog.Open(se.s.rawlogDir)
	if err != nil {
		se.s.log.Error("%v", err)
	}
	return l
}

func (se *session) rawlogFailed(err error) { se.s.log.Error("%v", err) }

func (se *session) greet() {
	se.c.Send(smtp.NewReply(220, "", se.view.hostname+" "+se.log.greeting()))
}

// startTLS makes the connection one under TLS.
func (se *session) startTLS() bool {
	if se.view.tls == nil {
		se.s.log.Error("TLS is wanted on listener %s, but ssl = no", se.listener.Name)
		se.lost(io.EOF)
		return false
	}
	se.handshake = true
	under := tlsconf.NewTransport(se.sock)
	conn := tls.Server(under, se.s.tlsConfig(se))
	se.tls = conn
	err := conn.HandshakeContext(se.ctx)
	if name := tlsconf.CleanName(conn.ConnectionState().ServerName); name != "" {
		se.localName = name
	}
	if err != nil {
		se.tlsErr = tlsconf.HandshakeError(err, "SSL_accept", under)
		if se.ctx.Err() == nil {
			se.end("Connection closed: "+se.tlsErr, smtp.Reply{})
		}
		return false
	}
	se.handshake = false
	se.c.Upgrade(conn)
	se.helo, se.greeted, se.esmtp = "", false, false
	se.checkCertificate()
	return true
}

func (se *session) checkCertificate() {
	if se.view.certs == nil {
		return
	}
	state := se.tls.ConnectionState()
	switch err := se.view.certs.Check(state); err {
	case nil:
		se.certOK = true
		se.certUser = se.view.certs.Username(state)
	case tlsconf.ErrNoCert:
	default:
		se.certBad = true
		if se.view.set.Verbose {
			se.s.log.Info("%v", err)
		}
	}
}

// secured says whether passwords may pass in plain text (clause S1.18).
func (se *session) secured() authclient.Secured {
	switch {
	case se.tls != nil && !se.handshake, se.proxiedTLS:
		return authclient.SecuredTLS
	case se.view.isTrusted(se.realRemote.Addr()),
		!se.byHAProxy && se.realRemote.Addr() == se.realLocal.Addr():
		return authclient.SecuredTrusted
	}
	return authclient.NotSecured
}

// end ends the session from outside or inside: the first reason counts.
func (se *session) end(reason string, reply smtp.Reply) {
	se.setReason(reason)
	se.mu.Lock()
	c, cancel := se.talk, se.cancel
	se.mu.Unlock()
	if c != nil {
		c.Terminate(reply)
		cancel(errClosed)
	}
}

func (se *session) reply421(enhanced, text string) smtp.Reply {
	return smtp.Closing(enhanced, se.hostname, text)
}

// endBare ends the session without an answer; reason is the whole text for the log.
func (se *session) endBare(reason string) {
	se.mu.Lock()
	if se.reason == "" {
		se.reason, se.bare = reason, true
	}
	se.mu.Unlock()
	se.end(reason, smtp.Reply{})
}

func (se *session) timeout() {
	se.mu.Lock()
	p := se.phase
	se.mu.Unlock()
	se.end(timeoutText[p], se.reply421("4.4.2", timeoutText[p]))
}

func (se *session) internalError() {
	se.end("Internal error", se.reply421("4.3.0", "Internal error occurred. Refer to server log for more information."))
}

func (se *session) shutdown() {
	se.end("Shutting down", se.reply421("4.3.2", "Shutting down"))
}

func (se *session) queueFull() {
	se.end("Connection queue full", se.reply421("4.0.0", "Connection queue full"))
}

// setPhase says how far the client is. One whose login is being finished is not dropped for
// others (clause P1.7.4).
func (se *session) setPhase(p phase) {
	se.mu.Lock()
	was := se.phase
	se.phase = p
	se.mu.Unlock()
	switch {
	case p == finishing:
		se.client.Droppable(nil)
	case was == finishing:
		se.client.Droppable(se.queueFull)
	}
}

// lost notes why nothing more can be read.
func (se *session) lost(err error) {
	reason := "Connection closed"
	switch {
	case se.c.TooManyBad():
		reason = "Too many invalid commands."
	case se.cutOff():
		se.tlsErr = "Connection closed"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errClosed), errors.Is(err, server.ErrTerminated):
	default:
		reason += ": " + plainError(err)
	}
	se.setReason(reason)
}

// cutOff says whether the client left without closing TLS.
func (se *session) cutOff() bool {
	if se.tls == nil {
		return false
	}
	t, ok := se.tls.NetConn().(*tlsconf.Transport)
	return ok && t.Ended()
}

func (se *session) setReason(reason string) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.reason == "" {
		se.reason = reason
	}
}

// sessionID makes the ID of a client that brings none (clause P3.19).
func sessionID(now time.Time, remote netip.AddrPort) string {
	var b [24]byte
	var us [8]byte
	binary.LittleEndian.PutUint64(us[:], uint64(now.UnixMicro()))
	copy(b[:6], us[:])
	binary.LittleEndian.PutUint16(b[6:], remote.Port())
	id := append(b[:8], remote.Addr().Unmap().AsSlice()...)
	return base64.StdEncoding.EncodeToString(id)
}

// addrPort is the invalid AddrPort for what has no address, as Unix sockets.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return netip.AddrPort{}
}
