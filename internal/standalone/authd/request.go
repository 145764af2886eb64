package authd

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/event"
)

// A request is one authentication or lookup. It belongs to one goroutine at a time: the
// one that runs its mechanism, and after its OK the one that serves the worker's claim.
// What the connection's reader needs is in pendingRequest.
type request struct {
	srv  *Server
	auth *auth
	mech *mechanism // nil: a lookup
	ctx  context.Context
	pend *pending // nil: a lookup
	id   uint32

	// From the client.
	service        string
	session        string
	localIP        netip.Addr
	remoteIP       netip.Addr
	realLocalIP    netip.Addr
	realRemoteIP   netip.Addr
	localPort      uint16
	remotePort     uint16
	realLocalPort  uint16
	realRemotePort uint16
	localName      string
	clientID       string
	clientPID      uint32
	secured        uint8 // 0 no, 1 by trust, 2 by TLS
	finalRespOK    bool
	noPenalty      bool
	validCert      bool
	debug          bool
	certUsername   bool // user is from the client's certificate

	// Names. Empty is none.
	user        string
	original    string // as the client wrote it
	hasOriginal bool
	loginUser   string // whom a master user wants to be
	masterUser  string

	password    string // that the client gave
	hasPassword bool
	passdb      *database // where the chain stands
	userdb      *database
	dbs         []dbLog // lookups under way, for the log
	inUserdb    bool

	extra       fields
	userdbReply fields
	hasUserdb   bool // userdbReply has been begun
	prefetchSet bool // a passdb gave userdb fields
	keptPrefect bool

	dbPassword    string // of the passdb, with {SCHEME}
	hasDBPassword bool
	wanted        string // scheme of the credentials that a mechanism wants
	hasWanted     bool
	delayed       []byte // credentials of an earlier passdb

	failed            bool // a field of the passdb says so
	passdbSuccess     bool
	userdbSuccess     bool
	skipPassword      bool // an earlier passdb checked it
	successful        bool
	internalFailure   bool
	seenUnknown       bool
	seenInternal      bool
	userdbSeenFailure bool
	userdbTempFailed  bool
	result            passResult
	delayUntil        time.Time
	lastPenalty       uint32

	// From the worker.
	sessionPID uint32
	wantToken  bool
}

// dbLog is how a lookup logs.
type dbLog struct{ verbose bool }

// importInfo takes a field that authentications and lookups have; false: it is another.
func (r *request) importInfo(f tabline.Field) bool {
	switch f.Key {
	case "service":
		r.service = f.Value
	case "lip":
		importIP(f.Value, &r.localIP, &r.realLocalIP)
	case "rip":
		importIP(f.Value, &r.remoteIP, &r.realRemoteIP)
	case "lport":
		importPort(f.Value, &r.localPort, &r.realLocalPort)
	case "rport":
		importPort(f.Value, &r.remotePort, &r.realRemotePort)
	case "real_lip":
		importIP(f.Value, &r.realLocalIP, nil)
	case "real_rip":
		importIP(f.Value, &r.realRemoteIP, nil)
	case "real_lport":
		importPort(f.Value, &r.realLocalPort, nil)
	case "real_rport":
		importPort(f.Value, &r.realRemotePort, nil)
	case "local_name":
		r.localName = f.Value
	case "session":
		r.session = f.Value
	case "debug":
		r.debug = true
	case "client_id":
		r.clientID = f.Value
	case "forward_fields":
		r.importForward(f.Value)
	default:
		return false
	}
	return true
}

// importIP sets to, and also alsoTo if nothing did before.
func importIP(s string, to, alsoTo *netip.Addr) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return
	}
	*to = a.Unmap().WithZone("")
	if alsoTo != nil && !alsoTo.IsValid() {
		*alsoTo = *to
	}
}

func importPort(s string, to, alsoTo *uint16) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return
	}
	*to = uint16(n)
	if alsoTo != nil && *alsoTo == 0 {
		*alsoTo = *to
	}
}

// importForward takes key=value fields that go back to the client, all named forward_.
// Dovecot leaves a bare word's name as it is; then a client behind a trusted proxy could
// set any field, such as nologin or proxy.
func (r *request) importForward(list string) {
	for _, f := range tabline.ParseFields(tabline.Split(list)) {
		if f.Key != "" {
			r.extra.add("forward_"+f.Key, f.Value, false)
		}
	}
	r.extra.snapshot()
}

// importAuth takes a field of an AUTH line. Unknown ones are ignored.
func (r *request) importAuth(f tabline.Field) {
	if r.importInfo(f) {
		return
	}
	switch f.Key {
	case "secured":
		r.secured = 1
		if f.Value == "tls" {
			r.secured = 2
		}
	case "final-resp-ok":
		r.finalRespOK = true
	case "no-penalty":
		r.noPenalty = true
	case "valid-client-cert":
		r.validCert = true
	case "cert_username":
		if r.auth.set.userFromCert && f.Value != "" {
			r.user, r.certUsername = f.Value, true
		}
	}
}

func (r *request) mechName() string {
	if r.mech == nil {
		return ""
	}
	return r.mech.Name
}

// fixUsername applies auth_default_realm, _translation, _chars and _format.
func (r *request) fixUsername(name string) (string, error) {
	set := r.auth.set
	user := []byte(name)
	if set.defaultRealm != "" && !strings.Contains(name, "@") {
		user = append(append(user, '@'), set.defaultRealm...)
	}
	for i, c := range user {
		if to := set.translation[c]; to != 0 {
			c, user[i] = to, to
		}
		if !set.chars[c] {
			return "", dovecots("Username character disallowed by auth_username_chars: 0x%02x (username: %s)", c, sanitize(name, 128))
		}
	}
	out := string(user)
	if set.usernameFormat != "" {
		var err error
		if out, err = r.expand(set.usernameFormat, out, nil); err != nil {
			return "", dovecots("Failed to expand username_format=%s: %w", set.usernameFormat, err)
		}
	}
	if out == "" {
		return "", dovecots("Empty username")
	}
	return out, nil
}

// setUsername takes the name that the client gave. The error is for the log.
func (r *request) setUsername(name string) error {
	login := ""
	if sep := r.auth.set.masterSeparator; sep != "" && !r.inUserdb {
		if before, after, ok := strings.Cut(name, sep); ok {
			if before == "" {
				return r.noLoginUser(after)
			}
			login, name = before, after
		}
	}
	if !r.hasOriginal {
		r.original, r.hasOriginal = name, true
	}
	if r.certUsername {
		name = r.user
	}
	fixed, err := r.fixUsername(name)
	if err != nil {
		r.user = ""
		return err
	}
	r.user = fixed
	if login != "" {
		return r.setLoginUsername(login)
	}
	return nil
}

func (r *request) noLoginUser(name string) error {
	if !r.hasOriginal {
		r.original, r.hasOriginal = name, true
	}
	if fixed, err := r.fixUsername(name); err == nil {
		r.user = fixed
	}
	return dovecots("Master user login attempted to use empty login username")
}

// setLoginUsername takes whom the user wants to be, which is for master users.
func (r *request) setLoginUsername(name string) error {
	if name == "" {
		return r.noLoginUser(r.original)
	}
	if name == r.user {
		return nil // nobody else
	}
	if len(r.auth.masterdbs) == 0 {
		return dovecots("Master user login attempted without master passdbs")
	}
	r.passdb = r.auth.masterdbs[0]
	fixed, err := r.fixUsername(name)
	if err != nil {
		r.loginUser = ""
		return err
	}
	r.loginUser = fixed
	r.logDebug("%sMaster user lookup for login: %s", r.dbPrefix(), r.loginUser)
	return nil
}

// masterLoginFinish makes the master user the one he wanted to be.
func (r *request) masterLoginFinish() {
	if r.failed {
		return
	}
	r.dbInfo("Master user logging in as %s", r.loginUser)
	r.masterUser, r.user, r.loginUser = r.user, r.loginUser, ""
}

// maxLogName is how many octets of a user's name a log prefix has.
const maxLogName = 64

// identity is "user,ip,<session>" of log prefixes.
func (r *request) identity() string {
	var b strings.Builder
	if r.user == "" {
		b.WriteByte('?')
	} else {
		b.WriteString(sanitize(r.user, maxLogName))
	}
	if r.remoteIP.IsValid() {
		b.WriteByte(',')
		b.WriteString(r.remoteIP.String())
	}
	if r.loginUser != "" {
		b.WriteString(",master")
	}
	if r.session != "" {
		fmt.Fprintf(&b, ",<%s>", sanitize(r.session, 128))
	}
	return b.String()
}

// dbPrefix names the database where the chain stands.
func (r *request) dbPrefix() string {
	db := r.passdb
	if r.inUserdb {
		db = r.userdb
	}
	if db == nil {
		return ""
	}
	return db.logName + "(" + r.identity() + "): "
}

func (r *request) mechPrefix() string {
	return strings.ToLower(r.mechName()) + "(" + r.identity() + "): "
}

// log writes a line. Info is for auth_verbose, Debug for auth_debug.
func (r *request) log(level event.Level, verbose bool, prefix, format string, args []any) {
	switch level {
	case event.Debug:
		if r.debugging() {
			r.srv.debugLog.Debug("%s", prefix+fmt.Sprintf(format, args...))
		}
	case event.Info:
		if verbose {
			r.srv.log.Info("%s", prefix+fmt.Sprintf(format, args...))
		}
	case event.Warning:
		r.srv.log.Warning("%s", prefix+fmt.Sprintf(format, args...))
	default:
		r.srv.log.Error("%s", prefix+fmt.Sprintf(format, args...))
	}
}

func (r *request) debugging() bool { return r.debug || r.auth.set.debug }

// Lines under the prefix of the database whose lookup is under way; without a lookup, as
// in Dovecot, under none.
func (r *request) db(level event.Level, format string, args []any) {
	prefix, verbose := "", r.auth.set.verbose
	if n := len(r.dbs); n > 0 {
		prefix, verbose = r.dbPrefix(), r.dbs[n-1].verbose
	}
	r.log(level, verbose, prefix, format, args)
}

func (r *request) dbDebug(format string, args ...any) { r.db(event.Debug, format, args) }
func (r *request) dbInfo(format string, args ...any)  { r.db(event.Info, format, args) }
func (r *request) dbError(format string, args ...any) { r.db(event.Error, format, args) }

// Lines under the mechanism's prefix; a lookup has none.
func (r *request) mechLine(level event.Level, format string, args []any) {
	prefix := ""
	if r.mech != nil {
		prefix = r.mechPrefix()
	}
	r.log(level, r.auth.set.verbose, prefix, format, args)
}

func (r *request) mechDebug(format string, args ...any) { r.mechLine(event.Debug, format, args) }
func (r *request) mechInfo(format string, args ...any)  { r.mechLine(event.Info, format, args) }
func (r *request) mechError(format string, args ...any) { r.mechLine(event.Error, format, args) }

// Lines without a prefix.
func (r *request) logDebug(format string, args ...any) {
	r.log(event.Debug, false, "", format, args)
}
func (r *request) logInfo(format string, args ...any) {
	r.log(event.Info, r.auth.set.verbose, "", format, args)
}
func (r *request) logWarning(format string, args ...any) {
	r.log(event.Warning, true, "", format, args)
}
func (r *request) logError(format string, args ...any) { r.log(event.Error, true, "", format, args) }

// sanitize makes text from outside fit for a log line: control characters and what is not
// UTF-8 become "?", and what is longer than max octets ends in "...".
func sanitize(s string, max int) string {
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = s[i] >= ' ' && s[i] < 0x7f
	}
	if clean && len(s) <= max {
		return s
	}
	out := make([]byte, 0, min(len(s), max)+3)
	for i := 0; i < len(s); {
		c, n := utf8.DecodeRuneInString(s[i:])
		if len(out)+n > max {
			return string(append(out[:min(len(out), max-3)], "..."...))
		}
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 || c == utf8.RuneError && n == 1 || c == 0x2028 || c == 0x2029 {
			out = append(out, '?')
		} else {
			out = append(out, s[i:i+n]...)
		}
		i += n
	}
	return string(out)
}
