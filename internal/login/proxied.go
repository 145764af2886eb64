package login

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"dovetail/internal/dovecot/ipc"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/login/proxy"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/server"
	"dovetail/internal/splice"
)

const (
	reconnectWait = time.Second             // between two attempts (clause S9.9)
	reconnectMin  = 1100 * time.Millisecond // of the timeout must be left for another one
	startTTL      = 5                       // of a client that brings none (clause S9.2)
	idleAtEnd     = 2 * time.Second         // at a shutdown: a proxied session so quiet is cut

	unavailable = "Account is temporarily unavailable."
)

// proxied is a session that is passed on to a backend.
type proxied struct {
	target *proxy.Target
	sent   uint64 // to the backend, before octets were passed
	stream *splice.Stream

	mu    sync.Mutex
	ended string // guarded by mu: why this process ended it
}

// proxy logs the client in at the backend that the passdb names (clause S9).
func (se *session) proxy(cmd *server.Command) error {
	t, err := proxy.Parse(se.auth.fields, se.auth.user, se.view.set.ProxyTimeout)
	if err == nil && t.Addr == se.realLocal && t.DestUser == se.auth.user && t.Master == "" {
		err = errors.New("Proxying loops to itself") //lint:ignore ST1005 Dovecot's words
	}
	if err != nil {
		se.log.error(fmt.Sprintf("proxy(%s): %s", sanitise(se.auth.user), err))
		se.refused(cmd, refuseUnavailable)
		return nil
	}
	se.setPhase(finishing)
	began := time.Now()
	b, reconnects, err := se.dialBackend(&t, began)
	if err == nil {
		return se.proxyStart(cmd, &t, b, time.Since(began), reconnects)
	}
	var f *proxy.Failure
	if !errors.As(err, &f) {
		return errClosed // the session has been ended meanwhile
	}
	if !f.IsAuth() {
		se.log.error(se.proxyName(&t) + ": " + f.After(time.Since(began), reconnects))
		se.refused(cmd, refuseUnavailable)
		return nil
	}
	if se.view.set.AuthVerbose {
		se.log.line(se.proxyName(&t) + ": Login failed: " + f.Text)
	}
	se.auth.proxyFailed = true
	if f.Reply.Code == 421 {
		se.end("Server closed the connection: "+f.Reply.String(), f.Reply)
		return errClosed
	}
	se.refused(cmd, refusal{f.Reply, failNone, f.Text})
	return nil
}

var refuseUnavailable = refusal{smtp.NewReply(454, "4.7.0", unavailable), failNone, unavailable}

func (se *session) proxyName(t *proxy.Target) string {
	return fmt.Sprintf("proxy(%s,%s)", sanitise(se.auth.user), t.Addr)
}

// dialBackend tries until it works, cannot work, or the time is over.
func (se *session) dialBackend(t *proxy.Target, began time.Time) (b *proxy.Backend, reconnects int, err error) {
	ttl := uint32(startTTL)
	if se.xclient.HasTTL {
		ttl = se.xclient.TTL
	}
	if ttl <= 1 {
		return nil, 0, &proxy.Failure{Text: "Aborting due to remote server: TTL reached zero - proxies appear to be looping?"}
	}
	p := se.s
	offer := &proxy.Offer{Hostname: se.view.hostname, Attrs: se.offered(t, ttl-1), Outgoing: p.outgoing, Source: t.SourceIP}
	ctx, cancel := context.WithDeadline(se.ctx, began.Add(t.Timeout))
	defer cancel()
	stop := se.c.Watch(func() { se.end("Connection closed", smtp.Reply{}) })
	defer stop()
	for {
		if !t.SourceIP.IsValid() {
			offer.Source = p.hosts.Source(se.view.sources)
		}
		down, done := p.hosts.Begin(t.Addr, t.DownAfter)
		if down {
			done(false)
			return nil, reconnects, &proxy.Failure{Text: "Host is down"}
		}
		b, err = proxy.Dial(ctx, t, offer)
		var f *proxy.Failure
		isFailure := errors.As(err, &f)
		done(err == nil || isFailure && f.IsAuth())
		if !isFailure || !f.Retry || reconnects >= int(se.view.set.ProxyMaxReconnects) ||
			time.Until(began.Add(t.Timeout)) < reconnectMin {
			return b, reconnects, err
		}
		se.s.log.Debug("%s: %s - reconnecting (attempt #%d)", se.proxyName(t), f.After(time.Since(began), reconnects), reconnects+1)
		select {
		case <-time.After(reconnectWait):
		case <-ctx.Done():
			return nil, reconnects, context.Cause(ctx)
		}
		reconnects++
	}
}

// offered is what the backend may be told in XCLIENT, in Dovecot's order (clause S9.2).
func (se *session) offered(t *proxy.Target, ttl uint32) []smtp.XclientAttr {
	helo, proto := se.helo, "SMTP"
	if helo == "" {
		helo = "[UNAVAILABLE]"
	}
	if se.esmtp {
		proto = "ESMTP"
	}
	if se.xclient.Helo != "" {
		helo = se.xclient.Helo
	}
	if se.xclient.Proto != "" {
		proto = se.xclient.Proto
	}
	attrs := []smtp.XclientAttr{{Name: "HELO", Value: helo}, {Name: "PROTO", Value: proto}}
	if t.NoAuth {
		attrs = append(attrs, smtp.XclientAttr{Name: "LOGIN", Value: t.DestUser})
	}
	attrs = append(attrs,
		smtp.XclientAttr{Name: "TTL", Value: strconv.FormatUint(uint64(ttl), 10)},
		smtp.XclientAttr{Name: "PORT", Value: strconv.Itoa(int(se.remote.Port()))},
		smtp.XclientAttr{Name: "ADDR", Value: smtp.XclientAddr(se.remote.Addr())},
		smtp.XclientAttr{Name: "SESSION", Value: se.id})
	if len(t.Forward) > 0 {
		var b []byte
		for i, f := range t.Forward {
			if i > 0 {
				b = append(b, '\t')
			}
			b = tabline.AppendEscaped(b, f)
		}
		attrs = append(attrs, smtp.XclientAttr{Name: "FORWARD", Value: base64.StdEncoding.EncodeToString(b)})
	}
	return attrs
}

// proxyStart answers the client and makes the session one that is passed on.
func (se *session) proxyStart(cmd *server.Command, t *proxy.Target, b *proxy.Backend, took time.Duration, reconnects int) error {
	message := fmt.Sprintf("%s: Started proxying to <%s>", se.proxyName(t), t.Addr.Addr())
	if t.Host != t.Addr.Addr().String() {
		message += " (" + sanitise(t.Host) + ")"
	}
	if t.SourceIP.IsValid() {
		message += " from " + t.SourceIP.String()
	}
	if t.DestUser != t.User {
		message += " as user " + sanitise(t.DestUser)
	}
	if t.Master != "" {
		message += " (master " + sanitise(t.Master) + ")"
	}
	message += fmt.Sprintf(" (%.3f secs", took.Seconds())
	if reconnects > 0 {
		message += fmt.Sprintf(", %d reconnects", reconnects)
	}
	se.log.line(message + ")")
	cmd.Reply(b.Reply)
	if err := se.c.Flush(); err != nil {
		b.Conn.Close()
		return err
	}
	sock := splice.NewSocket(b.TCP)
	server := splice.Plain(sock)
	if b.Conn != nil && b.Conn != netConn(b.TCP) {
		server = splice.End{Conn: b.Conn, Sock: sock}
	}
	se.passing = &proxied{target: t, sent: b.Sent, stream: &splice.Stream{
		Client: se.clientEnd(), Server: server, Go: se.client.Go,
		ToServer: append([]byte(nil), se.c.Buffered()...), ToClient: append([]byte(nil), b.Early...),
	}}
	return errHandedOver
}

// runProxy passes octets until one side ends, and logs that.
func (se *session) runProxy(ctx context.Context) {
	p, st := se.passing, se.passing.stream
	se.s.register(se)
	defer se.s.unregister(se)
	stop := context.AfterFunc(ctx, func() { // ends with the session
		for st.Idle() < idleAtEnd {
			time.Sleep(idleAtEnd / 4)
			if p.endedBy() != "" {
				return
			}
		}
		p.end("Process shutting down")
	})
	defer stop()
	st.Linger = func() {
		if d := proxy.Delay(se.view.set.ProxyMaxDisconnect); d > 0 {
			select {
			case <-time.After(d):
			case <-ctx.Done():
			}
		}
	}
	r := st.Run()
	reason := p.endedBy()
	if reason == "" {
		by := "client"
		if r.ByServer {
			by = "server"
		}
		if r.Err != nil {
			by += ": " + plainError(r.Err)
		}
		reason = "Disconnected by " + by
	} else {
		reason = "Disconnected by proxy: " + reason
	}
	p.end("done")
	se.log.line(fmt.Sprintf("%s: %s (%ds idle, in=%d, out=%d)",
		se.proxyName(p.target), reason, int(st.Idle()/time.Second), p.sent+st.In(), se.c.Stats().Out+st.Out()))
}

// end ends the session from outside.
func (p *proxied) end(reason string) {
	p.mu.Lock()
	if p.ended == "" {
		p.ended = reason
	}
	p.mu.Unlock()
	p.stream.Close()
}

func (p *proxied) endedBy() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// register makes a proxied session known to doveadm. The first one connects the process to
// the ipc service (clause P8.3).
func (s *process) register(se *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proxied == nil {
		s.proxied = map[*session]bool{}
		srv := ipc.NewServer(s, s.log)
		go srv.Run(s.proc.Context(), "ipc-proxy", os.Getpid()) // ends with the process
	}
	s.proxied[se] = true
}

func (s *process) unregister(se *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.proxied, se)
}

// List implements ipc.Sessions.
func (s *process) List() []ipc.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []ipc.Session
	for se := range s.proxied {
		list = append(list, se.ipcSession())
	}
	return list
}

// Kick implements ipc.Sessions.
func (s *process) Kick(match func(ipc.Session) bool) (count int) {
	s.mu.Lock()
	var kicked []*session
	for se := range s.proxied {
		if match(se.ipcSession()) {
			kicked = append(kicked, se)
		}
	}
	s.mu.Unlock()
	for _, se := range kicked {
		se.passing.end("Kicked by admin")
	}
	return len(kicked)
}

func (se *session) ipcSession() ipc.Session {
	t := se.passing.target
	s := ipc.Session{User: se.auth.user, Service: "submission", Source: se.remote.Addr(), Dest: t.Addr}
	for _, f := range t.Alt {
		s.Alt = append(s.Alt, ipc.Field{Name: f.Key, Value: f.Value})
	}
	return s
}

// sourceIPs reads login_source_ips. With a ? before them, addresses that are not this
// machine's are left out.
func sourceIPs(setting string) (ips []netip.Addr, err error) {
	list, onlyOurs := strings.CutPrefix(strings.TrimSpace(setting), "?")
	for _, w := range strings.Fields(strings.ReplaceAll(list, ",", " ")) {
		ip, perr := netip.ParseAddr(w)
		if perr != nil {
			return nil, fmt.Errorf("login_source_ips: %q is not an IP address", w)
		}
		if onlyOurs && !canBind(ip) {
			continue
		}
		ips = append(ips, ip.Unmap())
	}
	return ips, nil
}
