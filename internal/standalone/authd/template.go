package authd

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"

	"dovetail/internal/standalone/authd/password"
)

// A template is a list of words key=value, whose values may have %variables: args of the
// driver static, default_fields, override_fields.
type template []pair

type pair struct{ key, value string }

// parseTemplate reads the words. what names it in errors, whose texts have none of the
// words: any of them may be a password.
func parseTemplate(what, words string) (template, error) {
	var t template
	for i, w := range strings.Fields(words) {
		k, v, _ := strings.Cut(w, "=")
		if k == "" {
			return nil, fmt.Errorf("%s: word %d: key must not be empty", what, i+1)
		}
		t = append(t, pair{k, v})
	}
	return t, nil
}

// An expandError says of which field the value has unknown variables. It has nothing of
// the value, nor of what package varexpand says, which quotes it: "pass=50%{off" is a
// password to who wrote it.
type expandError struct{ key string }

func (e *expandError) Error() string {
	return e.key + "=...: a %variable in it is unknown or wrong (%% stands for a percent sign)"
}

// apply sets the fields one after the other.
func (t template) apply(r *request, set func(key, value string)) *expandError {
	user := r.user // a field that changes it does not change %u of the next
	for _, p := range t {
		v, err := r.expand(p.value, user, nil)
		if err != nil {
			return &expandError{p.key}
		}
		set(p.key, v)
	}
	return nil
}

// take removes a key.
func (t *template) take(key string) (string, bool) {
	for i, p := range *t {
		if p.key == key {
			*t = append((*t)[:i:i], (*t)[i+1:]...)
			return p.value, true
		}
	}
	return "", false
}

// resolveIDs replaces names of users and groups in a userdb's template by numbers.
func (t template) resolveIDs(what string, s *Server) error {
	for i, p := range t {
		if strings.Contains(p.value, "%") {
			continue // they are looked up when the value is known
		}
		switch strings.ToLower(p.key) {
		case "uid":
			id, ok := s.lookupUID(p.value)
			if !ok {
				return fmt.Errorf("%s: Invalid uid: %s", what, p.value)
			}
			t[i].value = strconv.FormatUint(uint64(id), 10)
		case "gid":
			id, ok := s.lookupGID(p.value)
			if !ok {
				return fmt.Errorf("%s: Invalid gid: %s", what, p.value)
			}
			t[i].value = strconv.FormatUint(uint64(id), 10)
		}
	}
	return nil
}

// staticPass is the passdb driver static.
type staticPass struct {
	fields      template
	password    string
	hasPassword bool
}

func newStaticPass(args string) (*staticPass, error) {
	t, err := parseTemplate("passdb static: args", args)
	if err != nil {
		return nil, err
	}
	s := &staticPass{fields: t}
	s.password, s.hasPassword = s.fields.take("password")
	return s, nil
}

func (s *staticPass) find(r *request) (stored, scheme string, ok bool, _ passResult) {
	r.dbDebug("lookup")
	if err := s.fields.apply(r, r.setField); err != nil {
		r.dbError("Failed to expand template: %s", err)
		return "", "", false, passInternalFailure
	}
	switch {
	case s.hasPassword:
		var err error
		if stored, err = r.expand(s.password, r.user, nil); err != nil {
			r.dbError("Failed to expand %s", &expandError{"password"})
			return "", "", false, passInternalFailure
		}
	case r.extra.has("nopassword"):
	default:
		return "", "", false, passOK
	}
	scheme, stored, named := password.Split(stored)
	if !named {
		scheme = "PLAIN"
	}
	r.setField("password", "{"+scheme+"}"+stored)
	return stored, scheme, true, passOK
}

// staticUser is the userdb driver static.
type staticUser struct {
	fields   template
	allUsers bool // every name is a user's; otherwise the passdbs know
}

func newStaticUser(args string, s *Server) (*staticUser, error) {
	t, err := parseTemplate("userdb static: args", args)
	if err != nil {
		return nil, err
	}
	u := &staticUser{fields: t}
	if v, ok := u.fields.take("allow_all_users"); ok {
		u.allUsers = v == "" || strings.EqualFold(v, "yes")
	}
	return u, u.fields.resolveIDs("userdb static", s)
}

func (u *staticUser) find(r *request) userResult {
	if !r.successful && !u.allUsers {
		if result := r.existsInPassdbs(); result != userOK {
			return result
		}
	}
	if err := u.fields.apply(r, r.setUserdbField); err != nil {
		r.dbError("Failed to expand template: %s", err)
		return userInternalFailure
	}
	return userOK
}

// existsInPassdbs asks the passdbs, as for a login, whether there is such a user.
func (r *request) existsInPassdbs() userResult {
	if r.passdb == nil {
		r.dbError("passdb doesn't support lookups, can't verify user's existence")
		return userInternalFailure
	}
	r.inUserdb = false
	result, _ := r.lookupCredentials("")
	r.inUserdb = true
	switch result {
	case passOK:
		return userOK
	case passUserUnknown, passUserDisabled, passExpired:
		return userUnknown
	case passSchemeNotAvailable:
		r.dbError("passdb doesn't support lookups, can't verify user's existence")
	}
	return userInternalFailure
}

// prefetch is the userdb driver that takes what a passdb gave as userdb_ fields.
type prefetch struct{}

func (prefetch) find(r *request) userResult {
	switch {
	case r.prefetchSet:
		r.dbDebug("success")
		return userOK
	case len(r.auth.userdbs) == 1:
		r.dbError("userdb lookup not possible with only userdb prefetch")
		return userInternalFailure
	}
	r.dbDebug("passdb didn't return userdb entries, trying the next userdb")
	return userUnknown
}

// lookupUID reads a number, or the name of a user of the system.
func (s *Server) lookupUID(name string) (uint32, bool) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), true
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), err == nil
}

// lookupGID reads a number, or the name of a group of the system.
func (s *Server) lookupGID(name string) (uint32, bool) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), true
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(n), err == nil
}
