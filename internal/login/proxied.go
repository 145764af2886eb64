package login

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"dovetail/internal/dovecot/dns"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/login/proxy"
	"dovetail/internal/rawlog"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/server"
)

const (
	reconnectWait = time.Second             // between two attempts (clause S9.9)
	reconnectMin  = 1100 * time.Millisecond // of the timeout must be left for another one
	startTTL      = 5                       // of a client that brings none (clause S9.2)
	connectMost   = 5 * time.Second         // for an address, when there is another one to try

	unavailable = "Account is temporarily unavailable."

	dnsClient = "dns-client" // socket of the resolver, relative to the chroot
)

// proxy logs the client in at the backend that the passdb names (clause S9). pending is
// what the backend hears before what the client sent behind cmd; if there is any, cmd is
// part of it and gets no reply of its own.
func (se *session) proxy(cmd *server.Command, pending string) error {
	t, err := proxy.Parse(se.auth.fields, se.auth.user, se.view.set.ProxyTimeout)
	se.auth.fields = withoutSecrets(se.auth.fields) // log formats can show fields
	if err == nil && se.loops(&t) {
		err = errors.New("Proxying loops to itself") //lint:ignore ST1005 Dovecot's words
	}
	if err != nil {
		se.log.error(fmt.Sprintf("proxy(%s): %s", sanitise(se.auth.user), err))
		se.refused(cmd, refuseUnavailable)
		return nil
	}
	se.setPhase(finishing)
	p := &proxied{target: &t, addr: t.Addrs[0], began: time.Now()}
	se.passing = p
	se.s.register(se)
	b, err := se.dialBackend(p)
	t.Password = ""
	if err == nil {
		return se.proxyStart(cmd, p, b, pending)
	}
	se.s.unregister(p)
	se.events.proxyFailed(p, err.Error())
	p.rawlog.Close()
	var f *proxy.Failure
	if !errors.As(err, &f) {
		return errClosed // the session has been ended meanwhile
	}
	defer func() { se.passing = nil }()
	if !f.IsAuth() {
		se.log.error(se.proxyName() + f.After(time.Since(p.began), p.reconnects))
		se.refused(cmd, refuseUnavailable)
		return nil
	}
	if se.view.set.AuthVerbose {
		se.log.line(se.proxyName() + "Login failed" + p.who() + ": " + f.Text)
	}
	se.auth.proxyFailed = true
	if f.Reply.Code == 421 {
		se.passing = nil
		se.end("Server closed the connection: "+f.Reply.String(), f.Reply)
		return errClosed
	}
	se.refused(cmd, refusal{f.Reply, failNone, f.Text})
	return nil
}

var refuseUnavailable = refusal{smtp.NewReply(454, "4.7.0", unavailable), failNone, unavailable}

// withoutSecrets leaves out what nobody needs after proxy.Parse.
func withoutSecrets(fields tabline.Fields) tabline.Fields {
	return slices.DeleteFunc(slices.Clone(fields), func(f tabline.Field) bool { return f.Key == "pass" })
}

// loops says whether the backend would be ourselves, with the same user.
func (se *session) loops(t *proxy.Target) bool {
	return t.DestUser == se.auth.user && (slices.Contains(t.Addrs, se.local) || slices.Contains(t.Addrs, se.realLocal))
}

// proxyName begins the log lines about a proxied session: "proxy(user,ip:port): ".
func (se *session) proxyName() string {
	addr := se.passing.at()
	return fmt.Sprintf("proxy(%s,%s:%d): ", sanitise(se.auth.user), addr.Addr(), addr.Port())
}

// dialBackend tries until it works, cannot work, or the time is over. Each attempt goes
// through the host's addresses, those that failed last coming last.
func (se *session) dialBackend(p *proxied) (b *proxy.Backend, err error) {
	t := p.target
	ttl := uint32(startTTL)
	if se.xclient.HasTTL {
		ttl = se.xclient.TTL
	}
	if ttl <= 1 {
		return nil, &proxy.Failure{Text: "Aborting due to remote server: TTL reached zero - proxies appear to be looping?"}
	}
	offer := se.offer(p, ttl-1)
	ctx, cancel := context.WithDeadline(se.ctx, p.began.Add(t.Timeout))
	defer cancel()
	stop := se.c.Watch(func() { se.end("Connection closed", smtp.Reply{}) })
	defer stop()
	for {
		addrs := se.s.hosts.Order(t.Addrs)
		for i, addr := range addrs {
			b, err = se.dialAddr(ctx, p, offer, addr, len(addrs)-i-1)
			if i == len(addrs)-1 || !triesOn(err) {
				break
			}
			se.s.log.Debug("%s%v - trying the next address", se.proxyName(), err)
		}
		if !triesOn(err) || errors.Is(err, errDown) || p.reconnects >= int(se.view.set.ProxyMaxReconnects) ||
			time.Until(p.began.Add(t.Timeout)) < reconnectMin {
			return b, err
		}
		se.s.log.Debug("%s%v - reconnecting (attempt #%d)", se.proxyName(), err, p.reconnects+1)
		select {
		case <-time.After(reconnectWait):
		case <-ctx.Done():
		}
		if se.ctx.Err() != nil {
			return nil, context.Cause(se.ctx)
		}
		if ctx.Err() != nil {
			return nil, err // of the last attempt: the time is over
		}
		p.reconnects++
	}
}

// errDown is the failure of a host that is not tried at all.
var errDown = &proxy.Failure{Text: "Host is down", Retry: true}

// triesOn says whether another attempt, or another address, may do better.
func triesOn(err error) bool {
	var f *proxy.Failure
	return errors.As(err, &f) && f.Retry
}

// dialAddr makes one attempt at one address; others is how many addresses come behind it,
// for which some of the time is left.
func (se *session) dialAddr(ctx context.Context, p *proxied, offer *proxy.Offer, addr netip.AddrPort, others int) (*proxy.Backend, error) {
	p.move(addr)
	p.source = p.target.SourceIP
	if !p.source.IsValid() {
		p.source = se.s.hosts.Source(sameFamily(se.view.sources, addr.Addr()))
	}
	offer.Source = p.source
	login := se.s.hosts.Begin(addr, p.target.DownAfter)
	if login.Down {
		login.Failed()
		return nil, errDown
	}
	var most time.Duration // to connect
	if others > 0 {
		end, _ := ctx.Deadline()
		share := time.Until(end) / time.Duration(others+1)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, share)
		defer cancel()
		most = min(share, connectMost)
	}
	b, err := proxy.Dial(ctx, addr, p.target, offer, most)
	var f *proxy.Failure
	switch {
	case err == nil:
		p.host = login
		return b, nil
	case !errors.As(err, &f):
		login.GaveUp()
	case f.IsAuth():
		login.Answered()
	default:
		login.Failed()
	}
	p.rawlog.Close()
	p.rawlog = nil
	return nil, err
}

// sameFamily leaves out the addresses from which addr cannot be reached.
func sameFamily(sources []netip.Addr, addr netip.Addr) (usable []netip.Addr) {
	for _, s := range sources {
		if s.Is4() == addr.Is4() {
			usable = append(usable, s)
		}
	}
	return usable
}

// offer is what the backend may be told, its attributes in Dovecot's order (clause S9.2).
func (se *session) offer(p *proxied, ttl uint32) *proxy.Offer {
	t := p.target
	helo, proto := se.helo, "SMTP"
	if se.esmtp || !se.greeted {
		proto = "ESMTP"
	}
	if se.xclient.Helo != "" {
		helo = se.xclient.Helo
	}
	if se.xclient.Proto != "" {
		proto = se.xclient.Proto
	}
	o := &proxy.Offer{Hostname: se.view.hostname, Helo: helo, Esmtp: proto != "SMTP", Outgoing: se.s.outgoing}
	if helo == "" {
		helo = "[UNAVAILABLE]"
	}
	add := func(name, value string) { o.Attrs = append(o.Attrs, smtp.XclientAttr{Name: name, Value: value}) }
	add("HELO", helo)
	add("PROTO", proto)
	if t.NoAuth {
		add("LOGIN", t.DestUser)
	}
	add("TTL", strconv.FormatUint(uint64(ttl), 10))
	add("PORT", strconv.Itoa(int(se.remote.Port())))
	add("ADDR", smtp.XclientAddr(se.remote.Addr()))
	add("DESTPORT", strconv.Itoa(int(se.local.Port())))
	add("DESTADDR", smtp.XclientAddr(se.local.Addr()))
	add("SESSION", se.id)
	if se.tls != nil || se.proxiedTLS {
		add("CLIENT-TRANSPORT", "TLS")
	} else {
		add("CLIENT-TRANSPORT", "insecure")
	}
	if se.localName != "" {
		add("DESTNAME", se.localName)
	}
	if len(t.Forward) > 0 {
		var b []byte
		for i, f := range t.Forward {
			if i > 0 {
				b = append(b, '\t')
			}
			b = tabline.AppendEscaped(b, f)
		}
		add("FORWARD", base64.StdEncoding.EncodeToString(b))
	}
	if client := se.remote.Addr(); se.s.dns != nil {
		o.Name = func(ctx context.Context) proxy.ClientName { return clientName(ctx, se.s.dns, client) }
	}
	if dir := se.view.set.ProxyRawlogDir; dir != "" {
		o.Wrap = func(nc net.Conn) net.Conn {
			if p.rawlog == nil { // TLS makes no second one
				var err error
				if p.rawlog, err = rawlog.Open(dir); err != nil {
					se.s.log.Error("%v", err)
				}
			}
			return p.rawlog.Wrap(nc, se.rawlogFailed)
		}
	}
	return o
}

// clientName asks for the name of an address, and whether that has the address.
func clientName(ctx context.Context, resolver *dns.Client, ip netip.Addr) proxy.ClientName {
	later := proxy.ClientName{Verified: "[TEMPUNAVAIL]", Reverse: "[TEMPUNAVAIL]"}
	var no *dns.Error
	name, err := resolver.LookupAddr(ctx, ip)
	switch {
	case errors.As(err, &no) && no.Code != dnsAgain:
		return proxy.NoName
	case err != nil:
		return later
	}
	domain, ok := smtp.HeloDomain(name, false)
	if !ok || domain != name {
		return proxy.NoName
	}
	later.Reverse = name
	addrs, err := resolver.Lookup(ctx, name)
	switch {
	case errors.As(err, &no) && no.Code != dnsAgain, err == nil && !slices.Contains(addrs, ip.Unmap()):
		return proxy.ClientName{Verified: proxy.NoName.Verified, Reverse: name}
	case err != nil:
		return later
	}
	return proxy.ClientName{Verified: name, Reverse: name}
}

const dnsAgain = -3 // EAI_AGAIN

// proxyStart answers the client and makes the session one that is passed on.
func (se *session) proxyStart(cmd *server.Command, p *proxied, b *proxy.Backend, pending string) error {
	message := "Started proxying to <" + p.addr.Addr().String() + ">"
	if host := p.target.Host; host != p.addr.Addr().String() {
		message += " (<" + sanitise(host) + ">)"
	}
	message += fmt.Sprintf("%s (%.3f secs", p.who(), time.Since(p.began).Seconds())
	if p.reconnects > 0 {
		message += fmt.Sprintf(", %d reconnects", p.reconnects)
	}
	se.log.line(se.proxyName() + message + ")")
	se.warn(p, b)
	if pending == "" {
		cmd.Reply(b.Reply)
	}
	if err := se.c.Flush(); err != nil {
		se.s.unregister(p)
		se.events.proxyFailed(p, "Disconnected by client")
		p.host.Answered()
		b.End.Sock.Close()
		p.rawlog.Close()
		return err
	}
	p.start(se, b, append([]byte(pending), se.c.Buffered()...))
	return errHandedOver
}

// warn tells, once, what probably is not meant of a backend that trusts our word.
func (se *session) warn(p *proxied, b *proxy.Backend) {
	if !p.target.NoAuth {
		return
	}
	if !b.Told && !p.target.NotTrusted {
		se.s.noXclient.Do(func() {
			se.s.log.Warning("%sThe backend offers no XCLIENT, so it hears neither who has logged in nor from where (%s; "+
				"or give the field proxy_not_trusted)", se.proxyName(), proxy.AllowXclient)
		})
	}
	if b.MTA && b.Caps != 0 && b.Caps&smtp.CapChunking == 0 && se.promises(smtp.CapChunking) {
		se.s.noChunking.Do(func() {
			se.s.log.Warning("%sThe backend lacks CHUNKING, which clients are promised before the login (list what it has in "+
				"submission_backend_capabilities, and add exotic-backend to submission_client_workarounds)", se.proxyName())
		})
	}
}

// who adds to a log line which login it was at the backend, and from where.
func (p *proxied) who() (text string) {
	t := p.target
	if p.source.IsValid() {
		text += " from " + p.source.String()
	}
	if t.DestUser != t.User {
		text += " as user " + sanitise(t.DestUser)
	}
	if t.Master != "" {
		text += " (master " + sanitise(t.Master) + ")"
	}
	return text
}
