package doveconf

import (
	"fmt"
	"strconv"
	"strings"
)

// shortNames are the one-letter variables of 2.3 with their names in 2.4 (clause C12.9).
var shortNames = map[byte]string{
	'u': "user", 'n': "user | username", 'd': "user | domain", 's': "protocol", 'r': "remote_ip", 'l': "local_ip",
	'm': "mechanism", 'c': "secured", 'e': "mail_pid", 'a': "local_port", 'b': "remote_port", 'w': "password", 'h': "home",
	'p': "process:pid", 'k': "ssl_security",
}

// longNames are the long ones that changed.
var longNames = map[string]string{
	"user": "user", "username": "user | username", "domain": "user | domain", "service": "protocol", "rip": "remote_ip", "lip": "local_ip",
	"real_rip": "real_remote_ip", "real_lip": "real_local_ip", "rport": "remote_port", "lport": "local_port", "real_rport": "real_remote_port",
	"real_lport": "real_local_port", "orig_user": "original_user", "orig_username": "original_user | username", "orig_domain": "original_user | domain",
	"auth_user": "auth_user", "auth_username": "auth_user | username", "auth_domain": "auth_user | domain", "login_user": "login_user",
	"login_username": "login_user | username", "login_domain": "login_user | domain", "mech": "mechanism", "home": "home", "pid": "process:pid",
	"uid": "process:uid", "gid": "process:gid", "hostname": "system:hostname", "session": "session", "mail_pid": "mail_pid", "local_name": "local_name",
	"listener": "listener", "client_id": "client_id", "password": "password", "cert": "cert", "protocol": "protocol", "secured": "secured",
	"requested_username": "requested_username", "hashed_password": "hashed_password", "input": "input", "output": "output", "deleted": "deleted",
	"expunged": "expunged", "trashed": "trashed", "fetch_hdr_count": "fetch_hdr_count", "fetch_hdr_bytes": "fetch_hdr_bytes",
	"fetch_body_count": "fetch_body_count", "fetch_body_bytes": "fetch_body_bytes", "appended": "appended", "autoexpunged": "autoexpunged",
}

// Some settings have letters of their own, or other names for the common ones.
var ownNames = map[string]map[byte]string{
	"login_log_format":           {'s': "elements", '$': "message"},
	"submission_logout_format":   {'i': "input", 'o': "output"},
	"imap_logout_format":         {'i': "input", 'o': "output"},
	"imap_urlauth_logout_format": {'i': "input", 'o': "output"},
	"managesieve_logout_format":  {'i': "input", 'o': "output"},
	"deliver_log_format":         {'$': "message", 'm': "msgid", 's': "subject", 'f': "from", 'e': "from_envelope", 'p': "size", 'w': "vsize"},
	"rejection_subject":          {'s': "subject", 'n': "literal('\\r\\n')", 'r': "reason", 't': "recipient"},
	"rejection_reason":           {'s': "subject", 'n': "literal('\\r\\n')", 'r': "reason", 't': "recipient"},
	"mail_log_prefix":            {'s': "service"},
	"mail_home":                  {'s': "service"}, "mail_path": {'s': "service"}, "mail_index_path": {'s': "service"}, "rawlog_dir": {'s': "service"},
}

// filters are the modifiers of 2.3 that 2.4 has a function for.
var filters = map[byte]string{'L': "lower", 'U': "upper", 'R': "reverse", 'M': "md5", 'H': "", 'N': "", 'X': "hex", 'D': "ldap_dn", 'T': "", 'E': ""}

// percent24 converts the %variables of a value. bad are those without a counterpart.
func percent24(setting, v string) (out string, bad []string) {
	var b strings.Builder
	for {
		i := strings.IndexByte(v, '%')
		if i < 0 {
			b.WriteString(v)
			return b.String(), bad
		}
		b.WriteString(v[:i])
		expr, n := percentOne(setting, v[i+1:])
		whole := v[i : i+1+n]
		v = v[i+1+n:]
		switch {
		case expr == "%" && strings.HasPrefix(setting, inNamespace) && v != "" && v[0] != '%':
			owner, n := ownerOf(setting, v)
			if owner == "" {
				bad = append(bad, "%%"+v[:n])
			}
			b.WriteString(owner)
			v = v[n:]
		case expr == "%": // a literal one
			if strings.HasPrefix(v, "{") {
				b.WriteString("%")
			}
			b.WriteString("%")
		case expr == "":
			bad = append(bad, whole)
		default:
			b.WriteString("%{" + expr + "}")
		}
	}
}

// inNamespace begins the names of settings of a namespace, in which %% begins a variable of
// the other user whose mailboxes they are.
const inNamespace = "namespace_"

// ownerOf converts one of those, v without its %%. It is empty if there is no counterpart; n
// is how much of v it was.
func ownerOf(setting, v string) (out string, n int) {
	expr, n := percentOne("", v)
	base, _, _ := strings.Cut(expr, " |")
	switch {
	case setting == inNamespace+"prefix":
		return map[string]string{"user": "$user", "user | username": "$username", "user | domain": "$domain"}[expr], n
	case base == "user" || base == "home":
		return "%{owner_" + expr + "}", n
	}
	return "", n
}

// percentOne converts what follows a %: the expression, and how many bytes it took. The
// expression is empty if there is no counterpart.
func percentOne(setting, s string) (expr string, n int) {
	if s == "" || s[0] == '%' {
		return "%", min(len(s), 1)
	}
	offset, width, zero := 0, 0, false
	number := func() (int, bool) {
		j := n
		if j < len(s) && s[j] == '-' {
			j++
		}
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		v, err := strconv.Atoi(s[n:j])
		if err == nil {
			zero = zero || s[n] == '0'
			n = j
		}
		return v, err == nil
	}
	ranged := false
	if v, ok := number(); ok {
		width, ranged = v, true
		if n < len(s) && s[n] == '.' {
			n++
			offset = width
			zero = false
			width, _ = number()
		}
	}
	var pipes []string
	known := true
	for n < len(s) && strings.IndexByte("LURMHNXDTE", s[n]) >= 0 {
		f := filters[s[n]]
		known = known && f != ""
		pipes = append(pipes, f)
		n++
	}
	if n >= len(s) {
		return "", n
	}
	name := ""
	if s[n] == '{' {
		end := strings.IndexByte(s[n:], '}')
		if end < 0 {
			return "", len(s)
		}
		long := s[n+1 : n+end]
		n += end + 1
		name = longNames[long]
		if rest, ok := strings.CutPrefix(long, "env:"); ok {
			name = "env:" + rest
		}
		if rest, ok := strings.CutPrefix(long, "userdb:"); ok && !strings.Contains(rest, ":") {
			name = "userdb:" + rest
		}
		if rest, ok := strings.CutPrefix(long, "passdb:"); ok && !strings.Contains(rest, ":") {
			name = "passdb:" + rest
		}
	} else {
		name = shortNames[s[n]]
		if own, ok := ownNames[strings.TrimPrefix(setting, inNamespace)]; ok && own[s[n]] != "" {
			name = own[s[n]]
		}
		n++
	}
	if name == "" || !known || zero || ranged && width <= 0 {
		return "", n
	}
	for _, p := range pipes {
		name += " | " + p
	}
	if ranged {
		name += fmt.Sprintf(" | substr(%d, %d)", offset, width)
	}
	return name, n
}
