package authd

import (
	"net/netip"
	"strconv"
	"strings"

	"dovetail/internal/varexpand"
)

// expand replaces the %variables of a template by what is known of the request. user is
// what %u is; escape, if not nil, is applied to every value.
func (r *request) expand(template, user string, escape func(string) string) (string, error) {
	if strings.IndexByte(template, '%') < 0 {
		return template, nil
	}
	return varexpand.Expand(template, func(key byte, long string) (string, bool) {
		v, ok := r.variable(key, long, user)
		if ok && escape != nil {
			v = escape(v)
		}
		return v, ok
	})
}

// longName returns the long name of a one-letter variable, or "".
func longName(key byte) string {
	const keys = "undshlrpwmcabk!"
	names := [len(keys)]string{
		"user", "username", "domain", "service", "home", "lip", "rip", "pid", "password",
		"mech", "secured", "lport", "rport", "cert", "db-id",
	}
	if i := strings.IndexByte(keys, key); i >= 0 {
		return names[i]
	}
	return ""
}

// unalias returns the first of several names for the same.
func unalias(long string) string {
	switch long {
	case "local_ip", "real_local_ip":
		return strings.Replace(long, "local_ip", "lip", 1)
	case "remote_ip", "real_remote_ip":
		return strings.Replace(long, "remote_ip", "rip", 1)
	case "local_port", "real_local_port":
		return strings.Replace(long, "local_port", "lport", 1)
	case "remote_port", "real_remote_port":
		return strings.Replace(long, "remote_port", "rport", 1)
	case "mechanism":
		return "mech"
	case "original_user", "original_username", "original_domain":
		return "orig" + long[len("original"):]
	}
	return long
}

// variable returns a variable of Dovecot's auth table (clause C12.4). What exists but has
// no value is empty.
func (r *request) variable(key byte, long, user string) (string, bool) {
	if key != 0 {
		if long = longName(key); long == "" {
			return "", false
		}
	} else if long == "db-id" {
		return "", false
	}
	long = unalias(long)
	if what, name, ok := strings.Cut(long, ":"); ok && (what == "passdb" || what == "userdb") {
		name, def, _ := strings.Cut(name, ":")
		f := &r.extra
		if what == "userdb" {
			f = &r.userdbReply
		}
		if v, ok := f.get(name); ok {
			return v, true
		}
		return def, true
	}
	orig := user
	if r.hasOriginal {
		orig = r.original
	}
	auth := orig
	if r.masterUser != "" {
		auth = r.masterUser
	}
	switch long {
	case "user":
		return user, true
	case "username":
		return localPart(user), true
	case "domain":
		return domainPart(user), true
	case "domain_first":
		return localPart(domainPart(user)), true
	case "domain_last":
		if i := strings.LastIndexByte(user, '@'); i >= 0 {
			return user[i+1:], true
		}
		return "", true
	case "service":
		return r.service, true
	case "home":
		return "", true
	case "lip":
		return ipText(r.localIP), true
	case "rip":
		return ipText(r.remoteIP), true
	case "real_lip":
		return ipText(r.realLocalIP), true
	case "real_rip":
		return ipText(r.realRemoteIP), true
	case "lport":
		return strconv.Itoa(int(r.localPort)), true
	case "rport":
		return strconv.Itoa(int(r.remotePort)), true
	case "real_lport":
		return strconv.Itoa(int(r.realLocalPort)), true
	case "real_rport":
		return strconv.Itoa(int(r.realRemotePort)), true
	case "pid":
		return strconv.FormatUint(uint64(r.clientPID), 10), true
	case "password":
		return r.password, true
	case "db-id":
		return strconv.Itoa(r.dbID()), true
	case "mech":
		return r.mechName(), true
	case "secured":
		return [...]string{"", "secured", "TLS"}[r.secured], true
	case "cert":
		if r.validCert {
			return "valid", true
		}
		return "", true
	case "login_user":
		return r.loginUser, true
	case "login_username":
		return localPart(r.loginUser), true
	case "login_domain":
		return domainPart(r.loginUser), true
	case "session":
		return r.session, true
	case "master_user":
		return r.masterUser, true
	case "session_pid":
		if r.sessionPID == 0 {
			return "", true
		}
		return strconv.FormatUint(uint64(r.sessionPID), 10), true
	case "orig_user":
		return orig, true
	case "orig_username":
		return localPart(orig), true
	case "orig_domain":
		return domainPart(orig), true
	case "auth_user":
		return auth, true
	case "auth_username":
		return localPart(auth), true
	case "auth_domain":
		return domainPart(auth), true
	case "local_name":
		return r.localName, true
	case "client_id":
		return r.clientID, true
	}
	return "", false
}

// localPart is what stands before the first @.
func localPart(user string) string {
	local, _, _ := strings.Cut(user, "@")
	return local
}

// domainPart is what stands behind the first @.
func domainPart(user string) string {
	_, domain, _ := strings.Cut(user, "@")
	return domain
}

func ipText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// escapeQuotes is Dovecot's str_escape: for names that stand in quotes.
func escapeQuotes(s string) string {
	if !strings.ContainsAny(s, `"\'`) {
		return s
	}
	out := make([]byte, 0, len(s)+8)
	for i := range len(s) {
		if strings.IndexByte(`"\'`, s[i]) >= 0 {
			out = append(out, '\\')
		}
		out = append(out, s[i])
	}
	return string(out)
}

// cutPath keeps a value from being more than one name of a path, as Dovecot does. It may
// still be "..": passwdDB.file looks at the whole path.
func cutPath(s string) string {
	s, _, _ = strings.Cut(s, "/")
	return s
}
