package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"dovetail/internal/smtp"
	"dovetail/internal/splice"
	"dovetail/internal/tlsconf"
)

// An Offer is what a backend is told besides the login, and how it is reached.
type Offer struct {
	Hostname string             // for EHLO
	Helo     string             // the client's greeting; "": none
	Esmtp    bool               // ... and it was EHLO
	Attrs    []smtp.XclientAttr // for XCLIENT; the backend gets those that it lists
	Outgoing *tlsconf.Outgoing
	Source   netip.Addr // to connect from; invalid: the system chooses

	// Name finds out how the client's host is called, for the attributes NAME and
	// REVERSE_NAME; it must return when ctx ends. nil: nobody can be asked.
	Name func(context.Context) ClientName

	// Wrap, if not nil, returns a connection over the one that it is given, TLS included.
	Wrap func(net.Conn) net.Conn
}

// A Backend is a connection on which the login was accepted.
type Backend struct {
	End   splice.End // with TLS if there is TLS, and wrapped
	Early []byte     // what the backend has sent behind its reply
	Reply smtp.Reply // to the login, as the client is to hear it
	Sent  uint64     // octets that the login took

	Told bool     // it took an XCLIENT
	MTA  bool     // it is not of Dovecot's kind ...
	Caps smtp.Cap // ... and announces this
}

// A dialog is the login at one backend. It belongs to one goroutine.
type dialog struct {
	t     *Target
	o     *Offer
	addr  netip.AddrPort
	began time.Time
	local string // our end, for log lines; "" if it is not known
	state string // what is awaited, in Dovecot's words
	sock  *splice.Socket
	nc    net.Conn // sock, or TLS over it
	conn  net.Conn // nc, wrapped
	r     *reader
	caps  smtp.Capabilities
	mta   bool              // see Backend
	told  bool              // see Backend
	name  <-chan ClientName // gets the client's name; nil: not asked for
	sent  uint64
}

// Dial connects to addr, one of t's, and logs in, until ctx ends; connecting alone takes at
// most connect, if that is not 0. Errors are *Failure, or ctx's cause.
func Dial(ctx context.Context, addr netip.AddrPort, t *Target, o *Offer, connect time.Duration) (*Backend, error) {
	d := &dialog{t: t, o: o, addr: addr, began: time.Now(), state: "banner"}
	if err := d.connect(ctx, connect); err != nil {
		return nil, err
	}
	defer func() { d.r.release() }()
	stop := context.AfterFunc(ctx, func() { d.sock.SetDeadline(time.Unix(1, 0)) })
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

func (d *dialog) connect(ctx context.Context, most time.Duration) error {
	var dup = -1
	dialer := net.Dialer{KeepAlive: -1, Timeout: most, Control: func(_, _ string, c syscall.RawConn) error {
		// A socket that cannot connect is closed before anybody can ask what its own end
		// was, which the log wants to know.
		return c.Control(func(fd uintptr) { dup, _ = syscall.Dup(int(fd)) })
	}}
	if d.o.Source.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.o.Source, 0))
		d.local = d.o.Source.String()
	}
	nc, err := dialer.DialContext(ctx, "tcp", d.addr.String())
	if dup >= 0 {
		if name := localName(dup); name != "" {
			d.local = name
		}
		syscall.Close(dup)
	}
	if err == nil {
		d.sock = splice.NewSocket(nc)
		d.use(d.sock)
		return nil
	}
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	f := &Failure{Text: err.Error(), Retry: true, timed: true, local: d.local}
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case errors.As(err, &errno):
		f.Text = upperFirst(errno.Error())
	case errors.As(err, &timeout) && timeout.Timeout():
		f.Text = "Connection timed out"
	}
	f.Text = fmt.Sprintf("connect(%s, %d) failed: %s", d.addr.Addr(), d.addr.Port(), f.Text)
	return f
}

// use goes on with nc.
func (d *dialog) use(nc net.Conn) {
	d.nc, d.conn = nc, nc
	if d.o.Wrap != nil {
		d.conn = d.o.Wrap(nc)
	}
	if d.r != nil {
		d.r.release()
	}
	d.r = newReader(d.conn)
}

func localName(fd int) string {
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return ""
	}
	var name string
	var port int
	switch a := sa.(type) {
	case *syscall.SockaddrInet4:
		name, port = netip.AddrFrom4(a.Addr).String(), a.Port
	case *syscall.SockaddrInet6:
		name, port = netip.AddrFrom16(a.Addr).Unmap().String(), a.Port
	}
	if port == 0 {
		return "" // it was not bound
	}
	return fmt.Sprintf("%s:%d", name, port)
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
		return &Failure{Text: "Login timed out in state=" + d.state, Retry: true, timed: true, local: d.local}
	}
	text := "Disconnected by server: Connection closed"
	var te *tlsError
	var errno syscall.Errno
	switch {
	case errors.As(err, &te):
		text += ": " + te.text
	case errors.As(err, &errno):
		text += ": " + upperFirst(errno.Error())
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, os.ErrDeadlineExceeded):
		text += ": " + err.Error()
	}
	text += fmt.Sprintf(" (state=%s, duration=%ds)", d.state, int(time.Since(d.began)/time.Second))
	return &Failure{Text: text, Retry: true}
}

// tlsError is a handshake that failed, in OpenSSL's words.
type tlsError struct{ text string }

func (e *tlsError) Error() string { return e.text }

func (d *dialog) login(ctx context.Context) (*Backend, error) {
	if d.t.NoAuth {
		d.askName(ctx)
	}
	if d.t.TLS != NoTLS {
		if err := d.startTLS(ctx, d.t.TLS); err != nil {
			return nil, err
		}
	}
	if _, err := d.expect(220, "Invalid banner"); err != nil {
		return nil, err
	}
	if err := d.sayHello(d.ourHello(), "ehlo"); err != nil {
		return nil, err
	}
	if d.t.StartTLS != NoTLS {
		if err := d.upgrade(ctx); err != nil {
			return nil, err
		}
	}
	if err := d.xclient(ctx); err != nil {
		return nil, err
	}
	reply := smtp.NewReply(235, "2.7.0", "Logged in.")
	if !d.t.NoAuth {
		d.state = "authenticate"
		var err error
		if reply, err = d.authenticate(); err != nil {
			return nil, err
		}
	}
	return &Backend{
		End: splice.End{Conn: d.conn, Sock: d.sock}, Early: bytes.Clone(d.r.rest()), Reply: reply, Sent: d.sent,
		Told: d.told, MTA: d.mta, Caps: d.caps.Set,
	}, nil
}

// expect reads a reply that must have the code.
func (d *dialog) expect(code int, otherwise string) (smtp.Reply, error) {
	r, err := d.r.reply()
	if err == errNoReply || err == nil && r.Code != code {
		err = invalid(otherwise, short(d.r.first))
	}
	return r, err
}

func (d *dialog) sayHello(hello, state string) error {
	if err := d.send(hello); err != nil {
		return err
	}
	return d.ehloReply(state)
}

func (d *dialog) ehloReply(state string) error {
	d.state = state
	r, err := d.r.reply()
	if err == errNoReply || err == nil && r.Class() != 2 {
		return invalid("Invalid EHLO line", short(d.r.first))
	}
	if err != nil {
		return err
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
	switch {
	case err == errNoReply, err == nil && r.Code != 220:
		return abort("STARTTLS failed: "+short(d.r.first), true)
	case err != nil:
		return err
	case len(d.r.rest()) > 0: // in clear, by who knows whom (RFC 3207 section 6)
		return abort("STARTTLS failed: octets in clear behind the reply", false)
	}
	d.state = "tls-ehlo"
	if err := d.startTLS(ctx, d.t.StartTLS); err != nil {
		return err
	}
	return d.sayHello(d.ourHello(), "tls-ehlo")
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
	d.use(conn)
	return nil
}

func (d *dialog) send(line string) error {
	if d.r.br.Buffered() > 0 { // whatever it answers, it is not this
		if _, err := d.r.reply(); err != nil && err != errNoReply {
			return err
		}
		return invalid("Reply to a command that was not sent", short(d.r.first))
	}
	n, err := io.WriteString(d.conn, line+"\r\n")
	d.sent += uint64(n)
	return err
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
