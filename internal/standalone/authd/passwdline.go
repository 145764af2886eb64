package authd

import (
	"errors"
	"strings"
)

// A passwdUser is a line of a passwd-file:
//
//	user:password:uid:gid:gecos:home:shell:extra fields
//
// Fields may be missing from the right.
type passwdUser struct {
	password    string
	hasPassword bool
	uid, gid    int64 // -1: none
	noUserdb    bool  // the line is for passdbs only
	home        string
	extra       []pair
	listed      bool // it has at least a uid's place
}

// parsePasswdLine reads a line, which is neither empty nor a comment. userdb says that
// somebody asks for uid, gid and home. An error's text has nothing of the password.
func parsePasswdLine(line string, userdb bool, s *Server) (name string, u passwdUser, err error) {
	f := strings.Split(line, ":")
	name, f = f[0], f[1:]
	u.uid, u.gid = -1, -1
	u.listed = len(f) > 1
	if len(f) > 0 {
		if u.password, err = parsePasswdPassword(f[0]); err != nil {
			return name, u, dovecots("User %s has invalid password", name)
		}
		u.hasPassword = true
		f = f[1:]
	}
	next := func() (string, bool) {
		if len(f) == 0 {
			return "", false
		}
		v := f[0]
		f = f[1:]
		return v, true
	}
	uid, _ := next()
	if userdb && uid != "" {
		id, ok := s.lookupUID(uid)
		if !ok || id == 0 {
			return name, u, dovecots("User %s has invalid UID '%s'", name, uid)
		}
		u.uid = int64(id)
	}
	gid, ok := next()
	u.noUserdb = !ok
	if userdb && gid != "" {
		id, ok := s.lookupGID(gid)
		if !ok || id == 0 {
			return name, u, dovecots("User %s has invalid GID '%s'", name, gid)
		}
		u.gid = int64(id)
	}
	_, _ = next() // gecos
	home, _ := next()
	if userdb {
		u.home = home
	}
	_, _ = next() // shell
	if len(f) == 0 {
		return name, u, nil
	}
	extra := strings.Join(f, ":")
	if f[0] == "" { // the old form, with a place for flags, then mail
		extra = ""
		if len(f) > 1 && f[1] != "" && userdb {
			extra = "userdb_mail=" + strings.Join(f[1:], ":")
		}
	}
	for _, w := range strings.Split(extra, " ") {
		if w != "" {
			k, v, _ := strings.Cut(w, "=")
			u.extra = append(u.extra, pair{k, v})
		}
	}
	return name, u, nil
}

// parsePasswdPassword understands pam_pwdfile's password[13] (DES), [34] (MD5), [56].
func parsePasswdPassword(p string) (string, error) {
	n := len(p)
	if n <= 4 || p[0] == '{' || p[0] == '$' || p[n-1] != ']' || p[n-4] != '[' {
		return p, nil
	}
	switch kind, p := p[n-3:n-1], p[:n-4]; kind {
	case "34":
		return "{PLAIN-MD5}" + p, nil
	case "56":
		if len(p) != 32 {
			return "", errors.New("invalid")
		}
		return "{DIGEST-MD5}" + p, nil
	default:
		return "{CRYPT}" + p, nil
	}
}
