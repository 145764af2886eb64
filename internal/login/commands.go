package login

import (
	"strconv"
	"strings"

	"dovetail/internal/dovecot/authclient"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/server"
)

// needs says what a command wants before it is looked at.
type needs uint8

const (
	nothing  needs = iota
	security       // TLS or its like, where ssl = required (clause S2.4)
	login          // always refused before the login
)

// grammar is the whole grammar (clause S2.1). A verb without a row gets 500; what it needs
// is checked before its handler is called. A handler answers, and returns an error if the
// session is over.
var grammar = map[string]struct {
	needs needs
	run   func(*session, *server.Command) error
}{
	"EHLO":     {nothing, (*session).ehlo},        // RFC 5321 section 4.1.1.1
	"HELO":     {security, (*session).heloCmd},    // RFC 5321 section 4.1.1.1
	"NOOP":     {nothing, (*session).noop},        // RFC 5321 section 4.1.1.9
	"RSET":     {security, (*session).rset},       // RFC 5321 section 4.1.1.5
	"QUIT":     {nothing, (*session).quit},        // RFC 5321 section 4.1.1.10
	"STARTTLS": {nothing, (*session).starttls},    // RFC 3207
	"AUTH":     {security, (*session).authCmd},    // RFC 4954
	"MAIL":     {security, (*session).mail},       // refused, or EXTERNAL (clause S2.12)
	"XCLIENT":  {security, (*session).xclientCmd}, // Postfix XCLIENT_README
	"RCPT":     {login, nil},
	"DATA":     {login, nil},
	"BDAT":     {login, nil},
	"VRFY":     {login, nil},
}

var (
	replyOK       = smtp.NewReply(250, "2.0.0", "OK")
	replyBye      = smtp.NewReply(221, "2.0.0", "Bye")
	replyUnknown  = smtp.NewReply(500, "5.5.1", "Unknown command")
	replyParams   = smtp.NewReply(501, "5.5.4", "Invalid parameters")
	replyHostname = smtp.NewReply(501, "", "Missing hostname")
	replyNeedTLS  = smtp.NewReply(530, "5.7.0", "TLS required.")
	replyNeedAuth = smtp.NewReply(530, "5.7.0", "Authentication required.")
)

// command serves one command: unknown, then TLS, then login, then its own checks (clause
// S2.2).
func (se *session) command(cmd *server.Command) error {
	row, ok := grammar[cmd.Name]
	switch {
	case !ok:
		cmd.Reply(replyUnknown)
	case row.needs != nothing && se.tlsRequired():
		cmd.Reply(replyNeedTLS)
	case row.needs == login:
		cmd.Reply(replyNeedAuth)
	default:
		return row.run(se, cmd)
	}
	return nil
}

func (se *session) tlsRequired() bool {
	return se.view.set.SSL.SSL == "required" && se.secured() == authclient.NotSecured
}

func (se *session) ehlo(cmd *server.Command) error {
	if cmd.Params == "" {
		cmd.Reply(replyHostname)
		return nil
	}
	se.setHelo(cmd.Params, true)
	cmd.Reply(smtp.NewReply(250, "", se.capabilities()...))
	return nil
}

func (se *session) heloCmd(cmd *server.Command) error {
	if cmd.Params == "" {
		cmd.Reply(replyHostname)
		return nil
	}
	se.setHelo(cmd.Params, false)
	cmd.Reply(smtp.NewReply(250, "", se.view.hostname))
	return nil
}

func (se *session) setHelo(args string, esmtp bool) {
	name, ok := smtp.HeloDomain(args, esmtp)
	if !ok {
		name = ""
	}
	se.helo, se.greeted, se.esmtp = name, true, esmtp
}

// capabilities are the lines of the EHLO reply (clause S2.3). BURL is among them if the
// worker has something to fetch from.
func (se *session) capabilities() []string {
	v := se.view
	listed := func(c smtp.Cap) bool { return v.caps&c != 0 }
	shown := se.promises
	size := "SIZE"
	if n := v.set.SubmissionMaxMailSize; n > 0 {
		size += " " + strconv.FormatUint(n, 10)
	}
	auth := ""
	if !se.tlsRequired() {
		auth = "AUTH " + strings.Join(se.mechanisms(), " ")
	}
	lines := make([]string, 1, 15)
	lines[0] = v.hostname
	for _, l := range []struct {
		text string
		on   bool
	}{
		{"8BITMIME", listed(smtp.Cap8BitMIME) || !v.capsSet},
		{auth, auth != ""},
		{"BINARYMIME", listed(smtp.CapBinaryMIME)},
		{"BURL imap", shown(smtp.CapBURL) && v.set.ImapUrlauthHost != "" && (v.burlServer || se.s.imap)},
		{"CHUNKING", shown(smtp.CapChunking)},
		{"DSN", listed(smtp.CapDSN)},
		{"ENHANCEDSTATUSCODES", shown(smtp.CapEnhancedStatusCodes)},
		{size, shown(smtp.CapSize)},
		{"STARTTLS", v.tls != nil && se.tls == nil && !se.proxiedTLS},
		{"PIPELINING", shown(smtp.CapPipelining)},
		{"VRFY", listed(smtp.CapVRFY)},
		{"XCLIENT ADDR PORT PROTO HELO LOGIN SESSION TTL TIMEOUT FORWARD", v.isTrusted(se.realRemote.Addr())},
	} {
		if l.on {
			lines = append(lines, l.text)
		}
	}
	return lines
}

// promises says whether clients are told, before the login, of an extension that the worker
// always has.
func (se *session) promises(c smtp.Cap) bool { return !se.view.exotic || se.view.caps&c != 0 }

// mechanisms are those that are announced (clause S2.8).
func (se *session) mechanisms() []string {
	var names []string
	for _, m := range se.s.auth.Mechanisms() {
		if !hidden(m) && !se.tooPlain(m) {
			names = append(names, m.Name)
		}
	}
	return names
}

func hidden(m authclient.Mechanism) bool {
	return m.Flags&(authclient.Private|authclient.Anonymous) != 0
}

// tooPlain says that m would show the password to who listens.
func (se *session) tooPlain(m authclient.Mechanism) bool {
	return m.Flags&authclient.Plaintext != 0 && se.view.set.DisablePlaintextAuth && se.secured() == authclient.NotSecured
}

func (se *session) noop(cmd *server.Command) error {
	if _, _, refusal := smtp.ParseString(cmd.Params); !refusal.IsZero() {
		cmd.Reply(refusal)
		return nil
	}
	cmd.Reply(replyOK)
	return nil
}

func (se *session) rset(cmd *server.Command) error {
	if cmd.Params != "" {
		cmd.Reply(replyParams)
		return nil
	}
	cmd.Reply(replyOK)
	return nil
}

func (se *session) quit(cmd *server.Command) error {
	if cmd.Params != "" {
		cmd.Reply(replyParams)
		return nil
	}
	cmd.Reply(replyBye)
	se.setReason("Aborted login by logging out")
	return errClosed
}

func (se *session) starttls(cmd *server.Command) error {
	switch {
	case cmd.Params != "":
		cmd.Reply(replyParams)
		return nil
	case se.tls != nil, se.proxiedTLS:
		cmd.Reply(smtp.NewReply(502, "5.5.1", "TLS is already active."))
		return nil
	case se.view.tls == nil:
		cmd.Reply(smtp.NewReply(502, "5.5.1", "TLS support is not enabled."))
		return nil
	}
	// Whatever came with the command in clear was not protected, and counts for nothing
	// (RFC 3207 section 6).
	if n := se.c.DropInput(); n > 0 {
		se.s.log.Warning("Client sent %d octets behind STARTTLS in clear, they are ignored (rip=%s, session=<%s>)",
			n, se.remote.Addr(), se.id)
	}
	cmd.Reply(smtp.NewReply(220, "2.0.0", "Begin TLS negotiation now."))
	if err := se.c.Flush(); err != nil {
		return err
	}
	if !se.startTLS() {
		return errClosed
	}
	return nil
}

// mail is refused, unless the client's certificate is as good as a login (clause S2.12).
func (se *session) mail(cmd *server.Command) error {
	if se.view.implicitAuth {
		for _, m := range se.s.auth.Mechanisms() {
			if m.Name == "EXTERNAL" {
				return se.implicit(cmd)
			}
		}
	}
	cmd.Reply(replyNeedAuth)
	return nil
}

func (se *session) xclientCmd(cmd *server.Command) error {
	if !se.view.isTrusted(se.realRemote.Addr()) {
		cmd.Reply(smtp.NewReply(550, "5.7.14", "You are not from trusted IP"))
		return nil
	}
	x, refusal := smtp.ParseXclient(cmd.Params)
	if !refusal.IsZero() {
		cmd.Reply(refusal)
		return nil
	}
	se.xclient.Merge(x)
	se.hasXclient = true
	if x.Addr.IsValid() {
		port := se.remote.Port()
		if x.Port != 0 {
			port = x.Port
		}
		se.remote = addrPortFrom(x.Addr, port)
		se.events.from(se.local, se.remote)
		se.s.titles.at(se, preLogin)
	}
	if x.Helo != "" {
		se.helo = x.Helo
	}
	if x.Session != "" && len(x.Session) <= maxSession {
		se.id = x.Session
	}
	cmd.Reply(smtp.NewReply(220, "", se.view.hostname+" "+se.log.greeting()))
	return nil
}
