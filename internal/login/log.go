package login

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"dovetail/internal/dovecot/authclient"
	"dovetail/internal/tlsconf"
	"dovetail/internal/varexpand"
)

// A sessionLog writes the lines about one client (clauses S10.1 to S10.3).
type sessionLog struct{ se *session }

const (
	maxLogged   = 80 // octets of a name that comes from the client
	maxAttempts = 50 // failed logins of a session that have a line each
)

// sanitise makes text of a client harmless and short. Names stand in angle brackets, and
// who reads the lines by pattern, as fail2ban does, ends a name at the first one.
func sanitise(s string) string {
	cut := len(s) > maxLogged
	if cut {
		s = s[:maxLogged-3]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\ufffd' || r == '>' {
			return '?'
		}
		return r
	}, s)
	if cut {
		s += "..."
	}
	return s
}

// line writes message in the form of login_log_format; error does so as an error.
func (l sessionLog) line(message string) { l.se.s.log.Info("%s", l.text(message)) }

func (l sessionLog) error(message string) { l.se.s.log.Error("%s", l.text(message)) }

func (l sessionLog) text(message string) string {
	se := l.se
	var elements []string
	for _, e := range se.view.elements {
		text, err := varexpand.Expand(e, l.variable)
		if err != nil {
			se.s.log.Error("Failed to expand log_format_elements=%s: %v", e, err)
			continue
		}
		if !varexpand.Uses(e, "un") {
			if empty, _ := varexpand.Expand(e, noValues); empty == text {
				continue
			}
		}
		if text != "" {
			elements = append(elements, text)
		}
	}
	text, err := varexpand.Expand(se.view.set.LogFormat, func(key byte, long string) (string, bool) {
		switch key {
		case 's':
			return strings.Join(elements, ", "), true
		case '$':
			return message, true
		}
		return "", false
	})
	if err != nil {
		se.s.log.Error("Failed to expand login_log_format=%s: %v", se.view.set.LogFormat, err)
	}
	return text
}

func noValues(key byte, long string) (string, bool) {
	if key != 0 {
		long = longNames[key]
	}
	_, ok := variables[long] // no passdb:field, so that its element is never left out
	return "", ok
}

// greeting is login_greeting.
func (l sessionLog) greeting() string {
	text, err := varexpand.Expand(l.se.view.set.Greeting, l.variable)
	if err != nil {
		l.se.s.log.Error("Failed to expand login_greeting=%s: %v", l.se.view.set.Greeting, err)
	}
	return text
}

// variable is the value of a variable in the log formats and the greeting.
func (l sessionLog) variable(key byte, long string) (string, bool) {
	if key != 0 {
		long = longNames[key]
	}
	if f, ok := strings.CutPrefix(long, "passdb:"); ok {
		v, _ := l.se.auth.fields.Get(f)
		return sanitise(v), true
	}
	get, ok := variables[long]
	if !ok {
		return "", false
	}
	return get(l.se), true
}

var longNames = map[byte]string{
	'u': "user", 'n': "username", 'd': "domain", 's': "service", 'h': "home", 'l': "lip", 'r': "rip", 'p': "pid",
	'm': "mech", 'a': "lport", 'b': "rport", 'c': "secured", 'k': "ssl_security", 'e': "mail_pid",
}

// variables are by their long names.
var variables = map[string]func(*session) string{
	"user":          func(se *session) string { return sanitise(se.auth.user) },
	"username":      func(se *session) string { return localPart(sanitise(se.auth.user)) },
	"domain":        func(se *session) string { return domainPart(sanitise(se.auth.user)) },
	"service":       func(*session) string { return "submission" },
	"home":          func(*session) string { return "" },
	"lip":           func(se *session) string { return ipText(se.local) },
	"rip":           func(se *session) string { return ipText(se.remote) },
	"local_ip":      func(se *session) string { return ipText(se.local) },
	"remote_ip":     func(se *session) string { return ipText(se.remote) },
	"pid":           func(*session) string { return strconv.Itoa(os.Getpid()) },
	"mech":          func(se *session) string { return sanitise(se.auth.mechanism) },
	"lport":         func(se *session) string { return portText(se.local) },
	"rport":         func(se *session) string { return portText(se.remote) },
	"secured":       (*session).securedText,
	"ssl_security":  (*session).securityText,
	"mail_pid":      func(se *session) string { return numberText(int(se.workerPID)) },
	"session":       func(se *session) string { return sanitise(se.id) },
	"real_lip":      func(se *session) string { return ipText(se.realLocal) },
	"real_rip":      func(se *session) string { return ipText(se.realRemote) },
	"real_lport":    func(se *session) string { return portText(se.realLocal) },
	"real_rport":    func(se *session) string { return portText(se.realRemote) },
	"orig_user":     func(se *session) string { return sanitise(se.original()) },
	"orig_username": func(se *session) string { return localPart(sanitise(se.original())) },
	"orig_domain":   func(se *session) string { return domainPart(sanitise(se.original())) },
	"auth_user":     func(se *session) string { return sanitise(se.authUser()) },
	"auth_username": func(se *session) string { return localPart(sanitise(se.authUser())) },
	"auth_domain":   func(se *session) string { return domainPart(sanitise(se.authUser())) },
	"listener":      func(se *session) string { return se.listener.Name },
	"local_name":    func(se *session) string { return sanitise(se.localName) },
}

// original is the name that the client gave.
func (se *session) original() string {
	if u, ok := se.auth.fields.Get("original_user"); ok {
		return u
	}
	return se.auth.user
}

// authUser is whose password it was.
func (se *session) authUser() string {
	if u, ok := se.auth.fields.Get("auth_user"); ok {
		return u
	}
	return se.original()
}

// securedText says how the connection is protected, for %c.
func (se *session) securedText() string {
	switch {
	case se.tls != nil:
		text := "TLS"
		if se.handshake {
			text = "TLS handshaking"
		}
		if se.tlsErr != "" {
			text += ": " + se.tlsErr
		}
		return text
	case se.proxiedTLS:
		return "TLS"
	case se.secured() != authclient.NotSecured:
		return "secured"
	}
	return ""
}

func (se *session) securityText() string {
	switch {
	case se.tls != nil:
		return tlsconf.Describe(se.tls.ConnectionState())
	case se.proxiedTLS:
		return "(proxied)"
	}
	return ""
}

func localPart(user string) string {
	local, _, _ := strings.Cut(user, "@")
	return local
}

func domainPart(user string) string {
	_, domain, _ := strings.Cut(user, "@")
	return domain
}

func ipText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.Addr().String()
}

func portText(a netip.AddrPort) string { return numberText(int(a.Port())) }

func numberText(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func (l sessionLog) loggedIn() { l.line("Login") }

// attempt tells of a failed login at once; Dovecot tells only at the end of the session.
// Attempts that the auth service does not get to see cost a client nothing: only the first
// ones are told, and all are counted in the summary.
func (l sessionLog) attempt(why string) {
	n, more := l.se.auth.count, ""
	if n > maxAttempts {
		return
	}
	if n == maxAttempts {
		more = "; no more are logged one by one"
	}
	l.line(fmt.Sprintf("Login attempt %d failed: %s%s", n, sanitise(strings.TrimSuffix(why, ".")), more))
}

// disconnected is the summary of a session that never logged in.
func (l sessionLog) disconnected() {
	se := l.se
	if se.quiet {
		return
	}
	se.mu.Lock()
	reason, bare := se.reason, se.bare
	se.mu.Unlock()
	if reason == "" {
		reason = "Connection closed"
	}
	if se.auth.pending || se.auth.untaken {
		reason += " (unfinished AUTH command)"
	}
	if !se.noExtra {
		reason += " " + l.extra()
	}
	if !bare {
		reason = "Disconnected: " + reason
	}
	if se.passing != nil { // it was being logged in at a backend
		reason = se.proxyName() + reason
	}
	l.line(reason)
}

// extra says what the client tried, the first that applies (clause S10.3).
func (l sessionLog) extra() string {
	se, a := l.se, &l.se.auth
	since := func(t time.Time) int { return int(time.Since(t) / time.Second) }
	cert := se.view.set.AuthSSLRequireCert
	only := a.count == 1
	tries := func(what string) string {
		return fmt.Sprintf("(%s, %d attempts in %d secs)", what, a.count, since(a.first))
	}
	for _, x := range []struct {
		when bool
		text func() string
	}{
		{!a.ready, func() string {
			return fmt.Sprintf("(disconnected before auth was ready, waited %d secs)", since(se.began))
		}},
		{a.count == 0, func() string { return fmt.Sprintf("(no auth attempts in %d secs)", since(se.began)) }},
		{cert && se.tls == nil, fixed("(cert required, client didn't start TLS)")},
		{cert && se.certBad, fixed("(client sent an invalid cert)")},
		{cert && !se.certOK, fixed("(client didn't send a cert)")},
		{a.continued && only, func() string {
			return fmt.Sprintf("(client didn't finish SASL auth, waited %d secs)", since(a.first))
		}},
		{a.pending && only, func() string {
			return fmt.Sprintf("(disconnected while authenticating, waited %d secs)", since(a.first))
		}},
		{a.finishing && !a.untaken && only, func() string {
			return fmt.Sprintf("(disconnected while finishing login, waited %d secs)", since(a.first))
		}},
		{a.aborted && only, fixed("(aborted authentication)")},
		{a.lostAuth, fixed("(auth process communication failure)")},
		{a.proxyFailed, fixed("(proxy dest auth failed)")},
		{a.successes > 0, func() string { return fmt.Sprintf("(internal failure, %d successful auths)", a.successes) }},
		{a.failure == failAuthz, func() string { return tries("authorization failed") }},
		{a.failure == failTemporary, fixed("(auth service reported temporary failure)")},
		{a.failure == failDisabled, fixed("(user disabled)")},
		{a.failure == failExpired, fixed("(password expired)")},
		{a.failure == failBase64, fixed("(sent invalid base64 in response)")},
		{a.failure == failNologin, fixed("(login disabled)")},
		{a.failure == failMechanism, fixed("(tried to use unsupported auth mechanism)")},
		{a.failure == failPlaintext, fixed("(tried to use disallowed plaintext auth)")},
	} {
		if x.when {
			return x.text()
		}
	}
	return tries("auth failed")
}

func fixed(s string) func() string { return func() string { return s } }
