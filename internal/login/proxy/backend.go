package proxy

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"dovetail/internal/sasl"
	"dovetail/internal/smtp"
	"dovetail/internal/tlsconf"
)

const (
	maxXclient = 512 // octets of an XCLIENT line (clause S9.2)
	maxIR      = 510 // octets of an AUTH line with its initial response (clause S9.3)
)

// An Offer is what a backend is told besides the login.
type Offer struct {
	Hostname string             // for EHLO
	Attrs    []smtp.XclientAttr // for XCLIENT; the backend gets those that it lists
	Outgoing *tlsconf.Outgoing
	Source   netip.Addr // to connect from; invalid: the system chooses
}

// A Backend is a connection on which the login was accepted.
type Backend struct {
	Conn  net.Conn
	TCP   *net.TCPConn // the socket beneath Conn; the same without TLS
	Early []byte       // what the backend has sent behind its reply
	Reply smtp.Reply   // to the login, as the client is to hear it
	Sent  uint64       // octets that the login took
}

// A dialog is the login at one backend. It belongs to one goroutine.
type dialog struct {
	t     *Target
	o     *Offer
	began time.Time
	local string // our end, for log lines; "" if it is not known
	state string // what is awaited, in Dovecot's words
	nc    net.Conn
	tcp   *net.TCPConn
	r     *reader
	caps  smtp.Capabilities
	sent  uint64
}

// Dial connects to t and logs in, until ctx ends. Errors are *Failure, or ctx's cause.
func Dial(ctx context.Context, t *Target, o *Offer) (*Backend, error) {
	d := &dialog{t: t, o: o, began: time.Now(), state: "banner"}
	if err := d.connect(ctx); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { d.tcp.SetDeadline(time.Unix(1, 0)) })
	b, err := d.login(ctx)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		d.nc.Close()
		return nil, d.why(ctx, err)
	}
	return b, nil
}

func (d *dialog) connect(ctx context.Context) error {
	var dup = -1
	dialer := net.Dialer{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		// A socket that cannot connect is closed before anybody can ask what its own end
		// was, which the log wants to know.
		return c.Control(func(fd uintptr) { dup, _ = syscall.Dup(int(fd)) })
	}}
	if d.o.Source.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.o.Source, 0))
	}
	nc, err := dialer.DialContext(ctx, "tcp", d.t.Addr.String())
	if dup >= 0 {
		d.local = localName(dup)
		syscall.Close(dup)
	}
	if err == nil {
		d.nc, d.tcp = nc, nc.(*net.TCPConn)
		d.r = newReader(nc)
		return nil
	}
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return &Failure{Text: d.connectText("Connection timed out")}
	}
	var se syscall.Errno
	if errors.As(err, &se) {
		return &Failure{Text: d.connectText(upperFirst(se.Error())), Retry: true}
	}
	return &Failure{Text: d.connectText(err.Error()), Retry: true}
}

// connectText leaves room for what only the caller knows: see After.
func (d *dialog) connectText(why string) string {
	return fmt.Sprintf("connect(%s, %d) failed: %s%s", d.t.Addr.Addr(), d.t.Addr.Port(), why, afterMark+d.local)
}

// afterMark stands in a Failure's text where time and attempts are to be told.
const afterMark = "\x00"

// After fills in how long a login took, and how often it was tried again.
func (f *Failure) After(took time.Duration, reconnects int) string {
	text, local, ok := strings.Cut(f.Text, afterMark)
	if !ok {
		return f.Text
	}
	text += fmt.Sprintf(" (after %d secs", int(took/time.Second))
	if reconnects > 0 {
		text += fmt.Sprintf(", %d reconnects", reconnects)
	}
	if local != "" {
		text += ", local=" + local
	}
	return text + ")"
}

func localName(fd int) string {
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return ""
	}
	switch a := sa.(type) {
	case *syscall.SockaddrInet4:
		return fmt.Sprintf("%s:%d", netip.AddrFrom4(a.Addr), a.Port)
	case *syscall.SockaddrInet6:
		return fmt.Sprintf("%s:%d", netip.AddrFrom16(a.Addr).Unmap(), a.Port)
	}
	return ""
}

// why makes a Failure of whatever ended the dialog.
func (d *dialog) why(ctx context.Context, err error) error {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	cause := context.Cause(ctx)
	switch {
	case cause != nil && !errors.Is(cause, context.DeadlineExceeded):
		return cause
	case cause != nil:
		return &Failure{Text: "Login timed out in state=" + d.state + afterMark + d.local, Retry: true}
	}
	text := "Disconnected by server: Connection closed"
	var te *tlsError
	var se syscall.Errno
	switch {
	case errors.As(err, &te):
		text += ": " + te.text
	case errors.As(err, &se):
		text += ": " + upperFirst(se.Error())
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		text += ": " + err.Error()
	}
	text += fmt.Sprintf(" (state=%s, duration=%ds)", d.state, int(time.Since(d.began)/time.Second))
	return &Failure{Text: text, Retry: true}
}

// tlsError is a handshake that failed, in OpenSSL's words.
type tlsError struct{ text string }

func (e *tlsError) Error() string { return e.text }

func (d *dialog) login(ctx context.Context) (*Backend, error) {
	if d.t.TLS != NoTLS {
		if err := d.startTLS(ctx, d.t.TLS); err != nil {
			return nil, err
		}
	}
	greeting, err := d.r.reply()
	if err != nil {
		return nil, err
	}
	if greeting.Code != 220 {
		return nil, invalid("Invalid banner", d.r.last)
	}
	if err := d.ehlo("ehlo"); err != nil {
		return nil, err
	}
	if d.t.StartTLS != NoTLS {
		if err := d.upgrade(ctx); err != nil {
			return nil, err
		}
	}
	if err := d.xclient(); err != nil {
		return nil, err
	}
	reply := smtp.NewReply(235, "2.7.0", "Logged in.")
	if !d.t.NoAuth {
		d.state = "authenticate"
		if reply, err = d.authenticate(); err != nil {
			return nil, err
		}
	}
	return &Backend{Conn: d.nc, TCP: d.tcp, Early: d.r.rest(), Reply: reply, Sent: d.sent}, nil
}

func (d *dialog) ehlo(state string) error {
	if err := d.send("EHLO " + d.o.Hostname); err != nil {
		return err
	}
	return d.ehloReply(state)
}

func (d *dialog) ehloReply(state string) error {
	d.state = state
	r, err := d.r.reply()
	if err != nil {
		return err
	}
	if r.Class() != 2 {
		return invalid("Invalid EHLO line", d.r.last)
	}
	d.caps, _ = smtp.ParseEhlo(r)
	return nil
}

func (d *dialog) upgrade(ctx context.Context) error {
	if !d.caps.Has(smtp.CapStartTLS) {
		return abort("STARTTLS not supported", false)
	}
	d.state = "starttls"
	if err := d.send("STARTTLS"); err != nil {
		return err
	}
	r, err := d.r.reply()
	if err != nil {
		return err
	}
	if r.Code != 220 {
		return abort("STARTTLS failed: "+d.r.last, true)
	}
	if len(d.r.rest()) > 0 { // in clear, by who knows whom (RFC 3207 section 6)
		return abort("STARTTLS failed: octets in clear behind the reply", false)
	}
	d.state = "tls-ehlo"
	if err := d.startTLS(ctx, d.t.StartTLS); err != nil {
		return err
	}
	return d.ehlo("tls-ehlo")
}

func (d *dialog) startTLS(ctx context.Context, mode TLSMode) error {
	under := tlsconf.NewTransport(d.nc)
	conn := tls.Client(under, d.o.Outgoing.To(d.t.Host, mode == Verify))
	if err := conn.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return &tlsError{tlsconf.HandshakeError(err, "SSL_connect", under)}
	}
	d.nc = conn
	d.r = newReader(conn)
	return nil
}

// xclient tells the backend whose connection it is, as far as it listens.
func (d *dialog) xclient() error {
	if d.t.NotTrusted || !d.caps.Has(smtp.CapXCLIENT) {
		return nil
	}
	commands := smtp.XclientCommands(d.caps.Xclient, maxXclient, d.o.Attrs)
	if len(commands) == 0 {
		return nil
	}
	together := d.caps.Has(smtp.CapPipelining)
	lines := strings.Join(commands, "\r\n")
	if together {
		lines += "\r\nEHLO " + d.o.Hostname
	}
	d.state = "xclient"
	if err := d.send(lines); err != nil {
		return err
	}
	for range commands {
		r, err := d.r.reply()
		if err != nil {
			return err
		}
		if r.Code != 220 {
			return abort("XCLIENT failed: "+d.r.last+
				" (allow it there for this server: login_trusted_networks of Dovecot and Dovetail, smtpd_authorized_xclient_hosts of Postfix)", true)
		}
	}
	if together {
		return d.ehloReply("xclient-ehlo")
	}
	return d.ehlo("xclient-ehlo")
}

// authenticate returns the reply that the client hears.
func (d *dialog) authenticate() (smtp.Reply, error) {
	if !d.caps.Has(smtp.CapAuth) {
		return smtp.Reply{}, abort("Authentication support not advertised (TLS required?)", false)
	}
	client, err := sasl.New(d.t.Mech, d.t.credentials())
	if err != nil {
		return smtp.Reply{}, &Failure{Text: "Unsupported SASL mechanism " + d.t.Mech}
	}
	mech, initial, err := client.Start()
	if err != nil {
		return smtp.Reply{}, &Failure{Text: mech + ": " + err.Error()}
	}
	line := "AUTH " + mech
	waiting := initial != nil // the initial response has not been sent
	if waiting && len(line)+1+base64.StdEncoding.EncodedLen(len(initial)) <= maxIR {
		line += " " + encode(initial)
		waiting = false
	}
	for {
		if err := d.send(line); err != nil {
			return smtp.Reply{}, err
		}
		r, err := d.r.reply()
		if err != nil {
			return smtp.Reply{}, err
		}
		switch {
		case r.Code == 235:
			if v, ok := client.(interface{ Verified() bool }); ok && !v.Verified() {
				return smtp.Reply{}, abort(mech+": the server has not proved that it knows the password", false)
			}
			return smtp.Forward(r, d.caps.Has(smtp.CapEnhancedStatusCodes), ""), nil
		case r.Code == 334 && waiting:
			line, waiting = encode(initial), false
			continue
		case r.Code == 334:
			line, err = next(client, r.Text[0])
			if err != nil {
				d.send("*")
				return smtp.Reply{}, abort(err.Error(), false)
			}
			continue
		case r.Class() != 4 && r.Class() != 5:
			return smtp.Reply{}, invalid("Unexpected AUTH reply", d.r.last)
		}
		reply := smtp.Forward(r, d.caps.Has(smtp.CapEnhancedStatusCodes), "")
		return smtp.Reply{}, &Failure{Text: strings.Join(reply.Text, " "), Reply: reply, Retry: r.Class() == 4 && r.Code != 421}
	}
}

func next(client sasl.Client, challenge string) (string, error) {
	b, err := base64.StdEncoding.DecodeString(challenge)
	if err != nil {
		return "", errors.New("Invalid base64 in challenge") //lint:ignore ST1005 as Dovecot's
	}
	answer, err := client.Next(b)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(answer), nil
}

// encode is the form of an initial response: an empty one is "=".
func encode(b []byte) string {
	if len(b) == 0 {
		return "="
	}
	return base64.StdEncoding.EncodeToString(b)
}

// credentials: PLAIN names the user twice, and with a master user both.
func (t *Target) credentials() sasl.Credentials {
	c := sasl.Credentials{
		User: t.DestUser, Authzid: t.DestUser, Password: t.Password, Host: t.Host, Port: int(t.Addr.Port()),
	}
	if t.Master != "" {
		c.User = t.Master
	}
	return c
}

func (d *dialog) send(line string) error {
	n, err := io.WriteString(d.nc, line+"\r\n")
	d.sent += uint64(n)
	return err
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
