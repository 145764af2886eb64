package authd

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"dovetail/internal/dovecot/authclient"
	"dovetail/internal/standalone/authd/password"
)

// An outcome is how a mechanism ended.
type outcome uint8

const (
	failed          outcome = iota
	internalFailure         // not the client's fault
	succeeded
	aborted // the client, or the server, gave up: no reply
)

// A mechanism is one SASL mechanism.
type mechanism struct {
	authclient.Mechanism
	allowNULs   bool
	needsPassdb bool

	// run runs an exchange. initial is the initial response if has is set. final is the
	// last message to the client, or nil.
	run func(r *request, initial []byte, has bool) (final []byte, _ outcome)
}

// allMechanisms is the table of what there is; in the order in which errors list them.
func allMechanisms() []*mechanism {
	const scram = authclient.MutualAuth
	return []*mechanism{
		{authclient.Mechanism{Name: "PLAIN", Flags: authclient.Plaintext}, true, true, runPlain},
		{authclient.Mechanism{Name: "LOGIN", Flags: authclient.Plaintext}, false, true, runLogin},
		{authclient.Mechanism{Name: "CRAM-MD5", Flags: authclient.Dictionary | authclient.Active}, false, true, runCRAM},
		{authclient.Mechanism{Name: "SCRAM-SHA-1", Flags: scram}, false, true, runSCRAM},
		{authclient.Mechanism{Name: "SCRAM-SHA-256", Flags: scram}, false, true, runSCRAM},
		{authclient.Mechanism{Name: "EXTERNAL"}, false, true, runExternal},
		{authclient.Mechanism{Name: "ANONYMOUS", Flags: authclient.Anonymous}, true, false, runAnonymous},
	}
}

// tokenMechanism is that of Dovecot's processes among each other. As there, it has no flags:
// nobody else comes by its sockets.
func tokenMechanism() *mechanism {
	return &mechanism{authclient.Mechanism{Name: "DOVECOT-TOKEN"}, true, false, runToken}
}

// registerMechanisms returns those of auth_mechanisms, in its order.
func registerMechanisms(p *protocol) ([]*mechanism, error) {
	all := allMechanisms()
	var out []*mechanism
	var errs []error
next:
	for _, name := range p.mechanisms {
		for _, m := range all {
			if m.Name != name {
				continue
			}
			if name == "ANONYMOUS" && p.anonymous == "" {
				errs = append(errs, errors.New("auth_mechanisms: ANONYMOUS listed in mechanisms, but anonymous_username not set"))
			}
			out = append(out, m)
			continue next
		}
		names := make([]string, len(all))
		for i, m := range all {
			names[i] = m.Name
		}
		errs = append(errs, fmt.Errorf("auth_mechanisms: %s is not supported by standalone, which has %s: %s", name, strings.Join(names, " "), dropIn))
	}
	if len(p.mechanisms) == 0 {
		errs = append(errs, errors.New("auth_mechanisms: No authentication mechanisms configured"))
	}
	return out, errors.Join(errs...)
}

// challenge sends data to the client and returns its answer. ok is false if there is none,
// or the mechanism does not take it; the caller then ends with out.
func (r *request) challenge(data []byte) (answer []byte, out outcome, ok bool) {
	answer, ok = r.pend.ask(data)
	if !ok {
		return nil, aborted, false
	}
	if r.hasNUL(answer) {
		return nil, failed, false
	}
	return answer, 0, true
}

func (r *request) hasNUL(data []byte) bool {
	if r.mech.allowNULs || bytes.IndexByte(data, 0) < 0 {
		return false
	}
	r.mechDebug("Unexpected NUL in auth data")
	return true
}

// runMechanism runs the mechanism of the request.
func (r *request) runMechanism(initial []byte, has bool) ([]byte, outcome) {
	if r.hasNUL(initial) {
		return nil, failed
	}
	return r.mech.run(r, initial, has)
}

// first is for mechanisms in which the client speaks first.
func (r *request) first(initial []byte, has bool) (data []byte, out outcome, ok bool) {
	if has {
		return initial, 0, true
	}
	return r.challenge(nil)
}

// plainOutcome checks a password.
func (r *request) plainOutcome(plain string) outcome {
	r.result = r.verifyPlain(plain)
	return r.passOutcome()
}

func (r *request) passOutcome() outcome {
	switch r.result {
	case passOK:
		return succeeded
	case passInternalFailure:
		return internalFailure
	}
	return failed
}

// runPlain: authorization ID NUL authentication ID NUL password (RFC 4616).
func runPlain(r *request, initial []byte, has bool) ([]byte, outcome) {
	data, out, ok := r.first(initial, has)
	if !ok {
		return nil, out
	}
	f := bytes.Split(data, []byte{0})
	if len(f) != 3 {
		r.mechInfo("invalid input")
		return nil, failed
	}
	authzid, user := string(f[0]), string(f[1])
	if err := r.setUsername(user); err != nil {
		r.mechInfo("%s", err)
		return nil, failed
	}
	if authzid != "" && authzid != user {
		if err := r.setLoginUsername(authzid); err != nil {
			r.mechInfo("login user: %s", err)
			return nil, failed
		}
	}
	return nil, r.plainOutcome(string(f[2]))
}

// runLogin asks for the name, then for the password.
func runLogin(r *request, initial []byte, _ bool) ([]byte, outcome) {
	name := initial
	if len(name) == 0 {
		var out outcome
		var ok bool
		if name, out, ok = r.challenge([]byte("Username:")); !ok {
			return nil, out
		}
	}
	if err := r.setUsername(string(name)); err != nil {
		r.mechInfo("%s", err)
		return nil, failed
	}
	pass, out, ok := r.challenge([]byte("Password:"))
	if !ok {
		return nil, out
	}
	return nil, r.plainOutcome(string(pass))
}

// runCRAM: the client answers "name digest" to a challenge (RFC 2195).
func runCRAM(r *request, _ []byte, _ bool) ([]byte, outcome) {
	var digits [16]byte
	_, _ = rand.Read(digits[:]) // never fails
	for i := range digits {
		digits[i] = digits[i]%10 + '0'
	}
	challenge := fmt.Sprintf("<%s.%d@%s>", digits[:], time.Now().Unix(), hostname())
	answer, out, ok := r.challenge([]byte(challenge))
	if !ok {
		return nil, out
	}
	i := bytes.LastIndexByte(answer, ' ')
	if i <= 0 {
		r.mechInfo("missing digest")
		return nil, failed
	}
	if err := r.setUsername(string(answer[:i])); err != nil {
		r.mechInfo("%s", err)
		return nil, failed
	}
	var secret []byte
	if r.result, secret = r.lookupCredentials("CRAM-MD5"); r.result != passOK {
		return nil, r.passOutcome()
	}
	want, err := password.CRAM(secret, challenge)
	if err != nil {
		r.mechError("%s", err)
		return nil, failed
	}
	if subtle.ConstantTimeCompare([]byte(want), answer[i+1:]) != 1 {
		r.mechInfo("Password mismatch")
		return nil, failed
	}
	return nil, succeeded
}

// hostname is the one that the master found, since names may not be resolvable.
func hostname() string {
	if h := os.Getenv("DOVECOT_HOSTNAME"); h != "" {
		return h
	}
	h, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return h
}

// runExternal: the login process took the name from the client's certificate (RFC 4422
// appendix A). The passdb must say nopassword.
func runExternal(r *request, initial []byte, has bool) ([]byte, outcome) {
	authzid, out, ok := r.first(initial, has)
	if !ok {
		return nil, out
	}
	if r.user == "" {
		r.mechInfo("username not known")
		return nil, failed
	}
	if err := r.setUsername(""); err != nil { // translates the certificate's name
		r.mechInfo("Invalid username")
		return nil, failed
	}
	if len(authzid) > 0 {
		if err := r.setLoginUsername(string(authzid)); err != nil {
			r.mechInfo("login user: %s", err)
			return nil, failed
		}
	}
	return nil, r.plainOutcome("")
}

// runAnonymous: the client says who it is, and nobody checks it (RFC 4505).
func runAnonymous(r *request, initial []byte, has bool) ([]byte, outcome) {
	trace, out, ok := r.first(initial, has)
	if !ok {
		return nil, out
	}
	if r.auth.set.verbose {
		r.user = string(trace)
		r.mechInfo("login")
	}
	r.user = r.auth.set.anonymous
	r.passdbSuccess = true
	return nil, succeeded
}

// runToken: service NUL pid NUL user NUL session NUL token.
func runToken(r *request, initial []byte, has bool) ([]byte, outcome) {
	data, out, ok := r.first(initial, has)
	if !ok {
		return nil, out
	}
	f := strings.Split(string(data), "\x00")
	if len(f) != 5 {
		r.mechInfo("invalid input")
		return nil, failed
	}
	if err := r.setUsername(f[2]); err != nil {
		r.mechInfo("%s", err)
		return nil, failed
	}
	want := r.srv.secret.token(f[0], f[1], r.user, f[3])
	if subtle.ConstantTimeCompare([]byte(want), []byte(f[4])) != 1 {
		return nil, failed
	}
	r.passdbSuccess = true
	r.setField("userdb_client_service", f[0])
	return nil, succeeded
}

// hexDigits are for tokens.
func hexDigits(b []byte) string { return hex.EncodeToString(b) }
