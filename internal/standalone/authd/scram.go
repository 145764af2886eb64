package authd

import (
	"errors"
	"strings"

	"dovetail/internal/standalone/authd/password"

	"github.com/xdg-go/scram"
)

// errCredentials ends a SCRAM conversation whose user cannot go on.
var errCredentials = errors.New("no credentials")

// runSCRAM runs SCRAM-SHA-1 and SCRAM-SHA-256 (RFC 5802, RFC 7677), without channel
// binding.
func runSCRAM(r *request, initial []byte, has bool) ([]byte, outcome) {
	message, out, ok := r.first(initial, has)
	if !ok {
		return nil, out
	}
	name := r.mech.Name
	hash := scram.SHA1
	if name == "SCRAM-SHA-256" {
		hash = scram.SHA256
	}
	end := failed
	var conv *scram.ServerConversation
	lookup := func(user string) (scram.StoredCredentials, error) {
		stored, result, why := r.scramCredentials(name, user, conv.AuthzID())
		end = result
		if why != "" {
			r.mechInfo("%s", why)
		}
		if stored == nil {
			return scram.StoredCredentials{}, errCredentials
		}
		return *stored, nil
	}
	server, err := hash.NewServer(lookup)
	if err != nil {
		r.mechError("%s", err)
		return nil, internalFailure
	}
	conv = server.NewConversation()
	first, err := conv.Step(string(message))
	if err != nil {
		switch {
		case errors.Is(err, errCredentials): // logged
		case strings.HasPrefix(string(message), "p="):
			r.mechInfo("Channel binding not supported")
		default:
			r.mechInfo("Invalid initial client message: %s", sanitize(err.Error(), 200))
		}
		return nil, end
	}
	if message, out, ok = r.challenge([]byte(first)); !ok {
		return nil, out
	}
	last, err := conv.Step(string(message))
	switch {
	case err == nil && conv.Valid():
		return []byte(last), succeeded
	case last == scram.ErrInvalidProof:
		r.mechInfo("Password mismatch")
	default:
		r.mechInfo("Invalid final client message: %s", sanitize(err.Error(), 200))
	}
	return nil, failed
}

// scramCredentials finds the keys of a user. why is for the log.
func (r *request) scramCredentials(name, user, authzid string) (_ *scram.StoredCredentials, _ outcome, why string) {
	if err := r.setUsername(user); err != nil {
		return nil, failed, err.Error()
	}
	if authzid != "" {
		if err := r.setLoginUsername(authzid); err != nil {
			return nil, failed, err.Error()
		}
	}
	var cred []byte
	if r.result, cred = r.lookupCredentials(name); r.result != passOK {
		return nil, r.passOutcome(), ""
	}
	s, err := password.ParseSCRAM(name, cred)
	if err != nil {
		return nil, failed, err.Error()
	}
	return &scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(s.Salt), Iters: s.Rounds},
		StoredKey:  s.StoredKey, ServerKey: s.ServerKey,
	}, failed, ""
}
