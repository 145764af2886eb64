package login

import (
	"errors"
	"net"
	"strings"
	"time"

	"dovetail/internal/dovecot/anvil"
	"dovetail/internal/dovecot/authclient"
	"dovetail/internal/dovecot/stats"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/server"
)

// attempts is what is remembered of the logins that a client tried.
type attempts struct {
	ready       bool // the auth service was there
	count       int
	successes   int
	first       time.Time
	user        string // as the auth service says it
	mechanism   string
	fields      tabline.Fields // of the last OK or FAIL
	failure     failure        // of the last attempt that failed
	aborted     bool           // the last attempt was cancelled by the client
	pending     bool           // an exchange goes on
	continued   bool           // ... and it is the client's turn
	untaken     bool           // no worker took the client
	finishing   bool           // the auth service has said OK
	proxyFailed bool           // a backend refused the login
	lostAuth    bool           // the auth service's connection was lost
}

// A failure says how the summary of a session that never logged in calls its last attempt.
type failure uint8

const (
	failNone failure = iota
	failAuthz
	failTemporary
	failDisabled
	failExpired
	failBase64
	failNologin
	failMechanism
	failPlaintext
)

// A refusal is how a failed attempt ends: the reply, what the summary says of it, and why
// for the log.
type refusal struct {
	reply   smtp.Reply
	failure failure
	why     string
}

var (
	refuseMechanism = refusal{smtp.NewReply(504, "5.5.4", "Unsupported authentication mechanism."), failMechanism, "Unsupported authentication mechanism."}
	refusePlain     = refusal{smtp.NewReply(523, "5.7.10", "Plaintext authentication disabled."), failPlaintext, "Plaintext authentication disabled."}
	refuseInitial   = refusal{smtp.NewReply(501, "5.5.4", "Mechanism takes no initial response"), failNone, "Mechanism takes no initial response"}
	refuseIR        = refusal{smtp.NewReply(501, "5.5.2", "Invalid base64 data in initial response"), failBase64, "Invalid base64 data in initial response"}
	refuseLine      = refusal{smtp.NewReply(501, "5.5.2", "Invalid base64 data in continued response"), failBase64, "Invalid base64 data in continued response"}
	refuseSyntax    = refusal{smtp.NewReply(500, "5.5.2", "Invalid AUTH response syntax"), failNone, "Invalid AUTH response syntax"}
	refuseLong      = refusal{smtp.NewReply(500, "5.5.2", "Line too long"), failNone, "AUTH response too long"}
	refuseAborted   = refusal{smtp.NewReply(501, "5.5.2", "Authentication aborted by client."), failNone, "Authentication aborted by client"}
	refuseCert      = refusal{smtp.NewReply(535, "5.7.8", "Client didn't present valid SSL certificate"), failNone, "Client didn't present valid SSL certificate"}
	refuseAnonymous = refusal{smtp.NewReply(525, "5.7.13", "Anonymous login denied"), failNologin, "Anonymous login denied"}
)

// serverFirst are mechanisms in which the server speaks first (RFC 4954 section 4).
var serverFirst = map[string]bool{"CRAM-MD5": true, "DIGEST-MD5": true, "NTLM": true}

// authCmd serves AUTH mechanism [initial-response].
func (se *session) authCmd(cmd *server.Command) error {
	words := strings.Split(cmd.Params, " ")
	switch {
	case cmd.Params == "":
		cmd.Reply(smtp.NewReply(501, "5.5.4", "Missing SASL mechanism parameter"))
		return nil
	case len(words) > 2:
		cmd.Reply(replyParams)
		return nil
	}
	req := se.authRequest(words[0])
	if len(words) == 2 {
		req.HasInitial, req.Initial = true, []byte(words[1])
	}
	return se.authenticate(cmd, req, "")
}

// implicit logs in with the certificate alone; the worker gets to see the MAIL.
func (se *session) implicit(cmd *server.Command) error {
	req := se.authRequest("EXTERNAL")
	req.HasInitial, req.Initial = true, []byte("=")
	return se.authenticate(cmd, req, "MAIL "+cmd.Params+"\r\n")
}

func (se *session) authRequest(mechanism string) *authclient.Request {
	req := &authclient.Request{
		Mechanism: strings.ToUpper(mechanism), Service: "submission", Secured: se.secured(),
		ValidClientCert: se.certOK, Debug: se.view.set.AuthDebug, Session: se.id,
		LocalIP: se.local.Addr(), RemoteIP: se.remote.Addr(), LocalPort: se.local.Port(), RemotePort: se.remote.Port(),
		RealLocalIP: se.realLocal.Addr(), RealRemoteIP: se.realRemote.Addr(),
		RealLocalPort: se.realLocal.Port(), RealRemotePort: se.realRemote.Port(),
		LocalName: se.localName,
	}
	if se.certOK {
		req.CertUsername = se.certUser
	}
	if se.xclient.HasForward {
		req.ForwardFields = forwardFields(se.xclient.Forward)
	}
	return req
}

// authenticate runs one attempt. pending is what the worker sees before what the client
// sent behind cmd; if there is any, the login is implicit. errHandedOver: a worker has the
// client.
func (se *session) authenticate(cmd *server.Command, req *authclient.Request, pending string) (err error) {
	a := &se.auth
	if a.count++; a.count == 1 {
		a.first = time.Now()
	}
	a.mechanism, a.failure, a.aborted = req.Mechanism, failNone, false
	mech, known := authclient.Mechanism{}, false
	if conn := se.s.auth.Conn(); conn != nil {
		mech, known = conn.Find(req.Mechanism)
	} else {
		se.refused(cmd, se.temporary())
		return nil
	}
	switch {
	case !known || hidden(mech):
		se.refusedHere(cmd, refuseMechanism)
		return nil
	case se.tooPlain(mech):
		se.refusedHere(cmd, refusePlain)
		return nil
	case se.view.set.AuthSSLRequireCert && !se.certOK:
		se.refused(cmd, refuseCert)
		return nil
	case req.HasInitial && serverFirst[mech.Name]:
		se.refused(cmd, refuseInitial)
		return nil
	}
	se.setPhase(authenticating)
	defer func() {
		if err != errHandedOver {
			se.setPhase(commands)
		}
	}()
	ex, err := se.s.auth.Begin(req)
	switch {
	case errors.Is(err, authclient.ErrBase64):
		se.refused(cmd, refuseIR)
		return nil
	case err != nil:
		se.refused(cmd, se.lostAuth(err))
		return nil
	}
	defer ex.Close()
	a.pending = true
	told := &loginEvent{se: se, req: req, ex: ex, began: time.Now()}
	events := &se.s.authEvents
	events.tell(stats.AuthRequestStarted, told)
	reply, why, err := se.exchange(cmd, ex, told)
	told.finished(events, reply, a.lostAuth)
	switch {
	case err != nil:
		return err // the log wants to know what was pending
	case !why.reply.IsZero():
		a.pending = false
		se.refused(cmd, why)
		return nil
	}
	a.pending = false
	a.fields = reply.Fields()
	se.setUser()
	if reply.Kind == authclient.Fail {
		se.refused(cmd, se.failed())
		return nil
	}
	return se.succeeded(cmd, ex, pending)
}

// exchange passes messages both ways until the auth service decides, or the client breaks
// the rules: then why is set.
func (se *session) exchange(cmd *server.Command, ex *authclient.Exchange, told *loginEvent) (reply authclient.Reply, why refusal, err error) {
	for {
		stop := se.c.Watch(func() { se.end("Connection closed", smtp.Reply{}) })
		reply, err = ex.Next(se.ctx)
		stop()
		switch {
		case se.ctx.Err() != nil:
			return reply, why, errClosed
		case err != nil:
			return reply, se.lostAuth(err), nil
		case reply.Kind != authclient.Continue:
			return reply, why, nil
		}
		se.s.authEvents.tell(stats.AuthRequestChallenged, told)
		cmd.Interim(smtp.NewReply(334, "", reply.Challenge))
		se.auth.continued = true
		line, long, ok, err := se.c.Line(maxAuthLine)
		if err != nil {
			return reply, why, err
		}
		se.auth.continued = false
		switch {
		case long:
			return reply, refuseLong, nil
		case !ok:
			return reply, refuseSyntax, nil
		case line == "*":
			se.auth.aborted = true
			se.auth.continued = true // as Dovecot sees it, in the summary
			return reply, refuseAborted, nil
		}
		switch err := ex.Continue([]byte(line)); {
		case errors.Is(err, authclient.ErrBase64):
			se.auth.continued = true // as above
			if se.view.set.AuthVerbose {
				se.log.line("Authenticate " + sanitise(se.auth.mechanism) + " failed: Invalid base64 in response")
			}
			return reply, refuseLine, nil
		case err != nil:
			return reply, se.lostAuth(err), nil
		}
		se.s.authEvents.tell(stats.AuthRequestContinued, told)
	}
}

// setUser takes the name over that the auth service has for the client.
func (se *session) setUser() {
	if user, ok := se.auth.fields.Get("user"); ok {
		se.auth.user = user
	}
}

// failed is what a FAIL means (table S2.10).
func (se *session) failed() refusal {
	code, _ := se.auth.fields.Get("code")
	reason, _ := se.auth.fields.Get("reason")
	text := func(otherwise string) string {
		if reason != "" {
			return reason
		}
		return otherwise
	}
	switch code {
	case authclient.CodeTempFail:
		return se.temporary()
	case authclient.CodeInvalidBase64:
		return refusal{smtp.NewReply(501, "5.5.2", text("Invalid base64 data")), failBase64, text("Invalid base64 data")}
	case authclient.CodeAuthzFail:
		return deny(failAuthz, text("Authorization failed"))
	case authclient.CodeUserDisabled:
		return deny(failDisabled, text("Authentication failed."))
	case authclient.CodePassExpired:
		return deny(failExpired, text("Authentication failed."))
	}
	return deny(failNone, text("Authentication failed."))
}

func deny(f failure, text string) refusal {
	return refusal{smtp.NewReply(535, "5.7.8", replyText(text)), f, text}
}

// temporary is the reply of a server that cannot tell right now. The stamp finds the lines
// in the logs.
func (se *session) temporary() refusal {
	host, _, _ := strings.Cut(se.s.proc.Env.Hostname, ".")
	text := "Temporary authentication failure. [" + host + ":" + time.Now().Format(time.DateTime) + "]"
	return refusal{smtp.NewReply(454, "4.7.0", text), failTemporary, "Temporary authentication failure"}
}

func (se *session) lostAuth(err error) refusal {
	se.auth.lostAuth = true
	if !authclient.IsTemporary(err) {
		se.s.log.Error("auth-client: %v (session=<%s>)", err, se.id)
	}
	return se.temporary()
}

// refused answers an attempt that failed and logs it at once.
func (se *session) refused(cmd *server.Command, r refusal) {
	se.auth.failure = r.failure
	cmd.Reply(r.reply)
	se.log.attempt(r.why)
}

// refusedHere is refused for what the auth service never got to see: only auth_verbose
// tells of that in Dovecot's words (clause S10.6).
func (se *session) refusedHere(cmd *server.Command, r refusal) {
	if se.view.set.AuthVerbose && se.auth.count <= maxAttempts {
		se.log.line("Authenticate " + sanitise(se.auth.mechanism) + " failed: " + r.why)
	}
	se.refused(cmd, r)
}

// succeeded sees what kind of success it is.
func (se *session) succeeded(cmd *server.Command, ex *authclient.Exchange, pending string) error {
	f := se.auth.fields
	se.auth.successes++
	reason, _ := f.Get("reason")
	or := func(otherwise string) string {
		if reason != "" {
			return replyText(reason)
		}
		return otherwise
	}
	switch {
	case f.Has("anonymous"):
		se.refused(cmd, refuseAnonymous)
		return nil
	case f.Has("proxy"): // before nologin, which is for servers that do not proxy
		return se.proxy(cmd, pending)
	case f.Has("nologin") && f.Has("host"):
		se.refused(cmd, refusal{smtp.NewReply(535, "5.7.8", or("Try this server instead.")), failNologin, "Login is at another server"})
		return nil
	case f.Has("nologin"):
		se.refused(cmd, refusal{smtp.NewReply(525, "5.7.13", or("Login disabled for this user")), failNologin, "Login disabled for this user"})
		return nil
	}
	if err := se.limit(); err != nil {
		return err
	}
	return se.handOver(ex, pending)
}

// limit ends a session that would be one too many for its user and address (clauses S1.20,
// P6.5). Who cannot be counted may come.
func (se *session) limit() error {
	max := se.view.set.MaxUserIPConnections
	if max == 0 || se.s.anvil == nil || !se.remote.Addr().IsValid() {
		return nil
	}
	n, err := se.s.anvil.Lookup(se.ctx, anvil.Ident{Service: "submission", IP: se.remote.Addr().String(), User: se.auth.user})
	if err != nil {
		if se.ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
			se.s.log.Error("anvil: %v", err)
		}
		return nil
	}
	if uint32(n) < max {
		return nil
	}
	text := "Maximum number of connections from user+IP exceeded (mail_max_userip_connections=" + itoa(int(max)) + ")"
	se.noExtra = true
	se.end(text, smtp.NewReply(421, "4.7.0", text))
	return errClosed
}

// forwardFields decodes the FORWARD attribute of XCLIENT: base64 of key=value fields,
// escaped and separated by TAB. Each becomes a field of its own again, so that nothing in
// a value can become another one. What cannot be decoded is no fields, and neither is what
// has a NUL, where a reader in C would see its end.
func forwardFields(b64 string) string {
	raw, err := decodeBase64(b64)
	if err != nil {
		return ""
	}
	var out []byte
	for _, f := range tabline.Split(string(raw)) {
		if key, _, _ := strings.Cut(f, "="); key == "" || strings.IndexByte(f, 0) >= 0 {
			continue
		}
		if len(out) > 0 {
			out = append(out, '\t')
		}
		out = tabline.AppendEscaped(out, f)
	}
	return string(out)
}
