// Package relay is the worker's side towards the MTA: it makes connections as the settings
// submission_relay_* say, and puts their failures into the words that the client of the
// session and the log get (clauses S4.1, S4.6, S4.9). The dialogue is package smtp/client's,
// what is said in it package submission's.
package relay

import (
	"context"
	"net"
	"net/netip"
	"strconv"

	"dovetail/internal/conf/settings"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/client"
	"dovetail/internal/tlsconf"
)

// A Target is a relay that a session may connect to, again and again. It is immutable.
type Target struct {
	set      *settings.Submission
	hostname string
	resolver client.Resolver
	outgoing *tlsconf.Outgoing
	tlsErr   error
	watcher  client.Watcher
	n        int // of the next connection
}

// New returns the relay of set, which it keeps. outgoing is nil if submission_relay_ssl is
// no, or if there is an error in what it was to be made of, tlsErr, which then every
// connection fails with.
func New(set *settings.Submission, hostname string, resolver client.Resolver, outgoing *tlsconf.Outgoing, tlsErr error) *Target {
	return &Target{set: set, hostname: hostname, resolver: resolver, outgoing: outgoing, tlsErr: tlsErr}
}

// Next returns t for the nth connection of a session. w hears of it, if it is not nil.
func (t *Target) Next(n int, w client.Watcher) *Target {
	next := *t
	next.n, next.watcher = n, w
	return &next
}

// Host is the relay's name or address, as set.
func (t *Target) Host() string { return t.set.RelayHost }

// Trusted says whether the relay is told who the client is (clause S4.3).
func (t *Target) Trusted() bool { return t.set.RelayTrusted }

// XclientFirst says whether that is done before the connection is ready, and not just
// before the first MAIL.
func (t *Target) XclientFirst() bool { return t.set.RelayTrusted && t.set.RelayUser != "" }

// Dial connects. attrs are what XCLIENT says if it comes first. warn and tap are as in
// client.Config.
func (t *Target) Dial(ctx context.Context, attrs []smtp.XclientAttr, warn func(string), tap func(bool, []byte)) (*client.Conn, *client.Error) {
	cfg := &client.Config{
		Host:           t.set.RelayHost,
		Port:           t.set.RelayPort,
		Resolver:       t.resolver,
		Hostname:       t.hostname,
		User:           t.set.RelayUser,
		MasterUser:     t.set.RelayMasterUser,
		Password:       t.set.RelayPassword,
		ConnectTimeout: t.set.RelayConnectTimeout,
		CommandTimeout: t.set.RelayCommandTimeout,
		IdleTimeout:    t.set.RelayMaxIdleTime,
		Warn:           warn,
		Tap:            tap,
		Watcher:        t.watcher,
		ID:             t.n,
	}
	if t.XclientFirst() {
		cfg.Xclient = attrs
	}
	switch t.set.RelaySSL {
	case "smtps":
		cfg.Mode = client.ImplicitTLS
	case "starttls":
		cfg.Mode = client.StartTLS
	}
	if cfg.Mode != client.NoTLS {
		if t.tlsErr != nil {
			return nil, &client.Error{Kind: client.ConnectFailed, Log: "Couldn't initialize SSL client context: " + t.tlsErr.Error()}
		}
		cfg.TLS = t.outgoing.To(t.set.RelayHost, t.set.RelaySSLVerify)
		var under *tlsconf.Transport
		cfg.Under = func(nc net.Conn) net.Conn {
			under = tlsconf.NewTransport(nc)
			return under
		}
		cfg.HandshakeError = func(err error) string { return tlsconf.HandshakeError(err, "SSL_connect", under) }
	}
	return client.Dial(ctx, cfg)
}

// Label names the connection, as log lines begin.
func (t *Target) Label() string {
	return "smtp-client: conn " + net.JoinHostPort(t.set.RelayHost, strconv.Itoa(int(t.set.RelayPort))) + " [" + strconv.Itoa(t.n) + "]: "
}

// A Failure is what a failed connection means for the session.
type Failure struct {
	Reply  smtp.Reply // 421, the last one
	Reason string     // the same on one line, without the host's name, for the log
	Errors []string   // lines for the log before that
}

// maxLogged is how much of a reply a line shows, in octets.
const maxLogged = 512

const (
	notConnected  = "Failed to connect to relay server"
	notReady      = "Failed to establish relay connection"
	lost          = "Lost connection to relay server"
	internalError = "Internal error occurred. Refer to server log for more information."
)

// Fail returns what a session with our name host does about e; label is that of the
// connection, codes whether the relay announced ENHANCEDSTATUSCODES.
func Fail(e *client.Error, host, label string, codes bool) Failure {
	var f Failure
	if e.Log != "" {
		f.Errors = append(f.Errors, label+e.Log)
	}
	text := ""
	switch e.Kind {
	case client.LookupFailed:
		text = notConnected + " (DNS lookup)"
	case client.ConnectFailed:
		text = notConnected + " (connect)"
	case client.Refused:
		text = notReady
		r := e.Reply
		if codes {
			r = r.Split()
		}
		f.Errors = append(f.Errors, notReady+": "+r.OneLine(maxLogged))
	case client.NeedsAuth:
		f.Errors = append(f.Errors, "Relay server requires authentication: "+e.Reply.Split().OneLine(maxLogged))
		return f.closing("4.3.5", host, internalError)
	case client.Closing:
		r := e.Reply
		f.Errors = append(f.Errors, lost+": "+r.Split().OneLine(maxLogged))
		if codes {
			r = r.Split()
		}
		if r.Enhanced == "" {
			r.Enhanced = "4.0.0"
		}
		lines := append([]string{lost + ":"}, r.Text...)
		lines[len(lines)-1] += " (connection lost)"
		return f.closing(r.Enhanced, host, lines...)
	case client.BadReply:
		text = lost + " (bad reply)"
	case client.TimedOut:
		text = lost + " (timed out)"
	default:
		text = lost + " (connection lost)"
	}
	return f.closing("4.4.0", host, text)
}

func (f Failure) closing(enhanced, host string, lines ...string) Failure {
	f.Reply = smtp.Closing(enhanced, host, lines...)
	for i, line := range lines {
		if i > 0 {
			f.Reason += " "
		}
		f.Reason += line
	}
	if len(f.Reason) > maxLogged {
		f.Reason = f.Reason[:maxLogged-3] + "..."
	}
	return f
}

// System resolves names as the system does, for when there is no dns-client service.
type System struct{}

// Lookup implements client.Resolver.
func (System) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		if e, ok := err.(*net.DNSError); ok {
			return nil, dnsError(e.Err)
		}
		return nil, err
	}
	return addrs, nil
}

// dnsError is the text alone, without the name that the caller's line has.
type dnsError string

func (e dnsError) Error() string { return string(e) }
