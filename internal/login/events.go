package login

import (
	"crypto/rand"
	"encoding/base64"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"dovetail/internal/dovecot/authclient"
	"dovetail/internal/dovecot/stats"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/server"
	"dovetail/internal/splice"
	"dovetail/internal/tlsconf"
)

// events tell the stats service of one session. Any goroutine may use them; the nil events
// tell nobody.
type events struct {
	stats *stats.Client
	began time.Time

	mu     sync.Mutex
	conn   stats.Scope    // guarded by mu: the dialogue
	client stats.Scope    // guarded by mu: the client, of whom a proxied session is told
	local  netip.AddrPort // guarded by mu
	remote netip.AddrPort // guarded by mu
	user   string         // guarded by mu
	id     string         // guarded by mu: of the dialogue, made when it is needed
	octets server.Stats   // guarded by mu: at the end
}

// newEvents is called before anything happens. c may be nil.
func newEvents(c *stats.Client, began time.Time) *events {
	if c == nil {
		return nil
	}
	e := &events{stats: c, began: began}
	e.conn.Begin(c, nil, stats.SMTPServer, e.connFields)
	e.client.Begin(c, nil, stats.Login, e.clientFields)
	return e
}

// from says who the client is; that may change.
func (e *events) from(local, remote netip.AddrPort) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.local != local || e.remote != remote {
		e.local, e.remote = local, remote
		e.conn.Changed()
		e.client.Changed()
	}
}

// connFields is called with mu held.
func (e *events) connFields(f *stats.Fields) {
	if e.id == "" {
		var b [16]byte
		rand.Read(b[:])
		e.id = base64.RawStdEncoding.EncodeToString(b[:])
	}
	f.Str("protocol", "smtp")
	f.Addr("remote_ip", e.remote.Addr())
	f.Int("remote_port", int64(e.remote.Port()))
	f.Str("connection_id", e.id)
	f.Str("session", e.id)
	if e.octets.In > 0 {
		f.Int("bytes_in", int64(e.octets.In))
	}
	if e.octets.Out > 0 {
		f.Int("bytes_out", int64(e.octets.Out))
	}
}

// clientFields is called with mu held.
func (e *events) clientFields(f *stats.Fields) {
	f.Addr("local_ip", e.local.Addr())
	f.Int("local_port", int64(e.local.Port()))
	f.Addr("remote_ip", e.remote.Addr())
	f.Int("remote_port", int64(e.remote.Port()))
	f.Str("service", "submission")
	f.Str("user", e.user)
}

// Started implements server.Watcher.
func (e *events) Started(cmd *server.Command) {
	if !e.stats.Wants(stats.ServerCommandStarted) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	_, known := grammar[cmd.Name]
	e.conn.Event(stats.ServerCommandStarted).Command(cmd.Verb, cmd.Params, known).Send(cmd.Began)
}

// Finished implements server.Watcher. A login that works ends as in Dovecot: the worker
// answers it, so here it is aborted.
func (e *events) Finished(cmd *server.Command, r smtp.Reply) {
	if !e.stats.Wants(stats.ServerCommandFinished) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	_, known := grammar[cmd.Name]
	e.conn.Event(stats.ServerCommandFinished).Reply(r).Command(cmd.Verb, cmd.Params, known).Send(cmd.Began)
}

// over tells of the end of the dialogue.
func (e *events) over(octets server.Stats) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.octets = octets
	e.conn.Changed()
	e.conn.Event(stats.ClientDisconnected).Str("reason", "Connection closed").Send(e.began)
	e.conn.End()
}

// authEvents tell of the logins of all sessions.
type authEvents struct {
	stats *stats.Client

	mu    sync.Mutex
	scope stats.Scope // guarded by mu
}

func (a *authEvents) begin(c *stats.Client) {
	a.stats = c
	a.scope.Begin(c, nil, stats.AuthClient, nil)
}

// A loginEvent is what is told of one login.
type loginEvent struct {
	se    *session
	req   *authclient.Request
	ex    *authclient.Exchange
	began time.Time
	err   string // of AuthRequestFinished
	user  string
}

func (a *authEvents) tell(n stats.Name, l *loginEvent) {
	if !a.stats.Wants(n) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.scope.Event(n)
	if l.err != "" {
		e.Str("error", l.err)
	}
	e.With(l.fields)
	if l.user != "" {
		e.Str("user", l.user)
	}
	e.Send(l.began)
}

var transports = [...]string{authclient.NotSecured: "insecure", authclient.SecuredTrusted: "trusted", authclient.SecuredTLS: "TLS"}

func (l *loginEvent) fields(f *stats.Fields) {
	r := l.req
	f.Int("id", int64(l.ex.ID()))
	f.Str("mechanism", r.Mechanism)
	f.Str("service", r.Service)
	f.Str("transport", transports[r.Secured])
	f.Str("session", r.Session)
	f.Addr("local_ip", r.LocalIP)
	f.Addr("remote_ip", r.RemoteIP)
	f.Int("local_port", int64(r.LocalPort))
	f.Int("remote_port", int64(r.RemotePort))
	f.Addr("real_local_ip", r.RealLocalIP)
	f.Addr("real_remote_ip", r.RealRemoteIP)
	f.Int("real_local_port", int64(r.RealLocalPort))
	f.Int("real_remote_port", int64(r.RealRemotePort))
	if r.LocalName != "" {
		f.Str("local_name", r.LocalName)
	}
	if l.se.tls != nil {
		state := l.se.tls.ConnectionState()
		cipher, bits, _ := tlsconf.Cipher(state)
		f.Str("tls_cipher", cipher)
		f.Int("tls_cipher_bits", int64(bits))
		f.Str("tls_pfs", tlsconf.KeyExchange(state))
		f.Str("tls_protocol", tlsconf.Version(state))
	}
}

// finished tells how an attempt ended.
func (l *loginEvent) finished(a *authEvents, reply authclient.Reply, lost bool) {
	l.user, _ = reply.Fields().Get("user")
	switch {
	case reply.Kind == authclient.Fail:
		l.err = "Authentication failed"
	case lost:
		l.err = "Internal failure"
	}
	a.tell(stats.AuthRequestFinished, l)
}

// proxyFields are those of a session that is logged in at a backend, or passed on.
func (e *events) proxyFields(ev *stats.Event, p *proxied) *stats.Event {
	source := ""
	if p.source.IsValid() {
		source = p.source.String()
	}
	at := p.at()
	ev.Str("source_ip", source).Addr("dest_ip", at.Addr()).Int("dest_port", int64(at.Port())).Str("dest_host", p.target.Host)
	if p.target.Master != "" {
		ev.Str("master_user", p.target.Master)
	}
	if p.sourcePort != 0 {
		ev.Int("source_port", int64(p.sourcePort))
	}
	return ev
}

func (e *events) proxyStarted(p *proxied, user string) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.user = user
	e.client.Changed()
	e.proxyFields(e.client.Event(stats.ProxyStarted), p).Send(p.began)
}

func (e *events) proxyEstablished(p *proxied, local net.Addr) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p.sourcePort = addrPort(local).Port()
	e.proxyFields(e.client.Event(stats.ProxyEstablished), p).Send(p.began)
}

// proxyFailed tells of a backend where no login was possible; why is as logs have it.
func (e *events) proxyFailed(p *proxied, why string) {
	if e == nil {
		return
	}
	for _, prefix := range []string{"Remote server sent invalid input: ", "Aborting due to remote server: "} {
		why = strings.TrimPrefix(why, prefix)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.proxyFields(e.client.Event(stats.ProxyFinished).Str("disconnect_side", "proxy").Str("error", why), p).Send(p.began)
	e.client.End()
}

// proxyFinished tells of the end of a session that was passed on; why is set if this process
// ended it.
func (e *events) proxyFinished(p *proxied, why string, r splice.Result) {
	if e == nil {
		return
	}
	side := "client"
	switch {
	case why != "":
		side = "proxy"
	case r.ByServer:
		side = "server"
	}
	if why == "" && r.Err != nil {
		why = plainError(r.Err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	ev := e.client.Event(stats.ProxyFinished).Str("disconnect_reason", why).Str("disconnect_side", side).
		Int("idle_secs", int64(p.stream.Idle()/time.Second)).
		Int("bytes_in", int64(p.sent+p.stream.In())).Int("bytes_out", int64(e.octets.Out+p.stream.Out()))
	e.proxyFields(ev, p).Send(p.began)
	e.client.End()
}
