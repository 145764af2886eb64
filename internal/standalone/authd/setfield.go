package authd

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dovetail/internal/conf/settings"
	"dovetail/internal/standalone/authd/password"
)

// maxDelay is how far in the future delay_until may lie.
const maxDelay = 5 * time.Minute

// suffixed handles key:protected and key:remove; done means that there is nothing to set.
func suffixed(f *fields, key string) (_ string, done bool) {
	if k, ok := strings.CutSuffix(key, ":protected"); ok && k != "" {
		return k, f.has(k)
	}
	if k, ok := strings.CutSuffix(key, ":remove"); ok && k != "" {
		f.remove(k)
		return k, true
	}
	return key, false
}

// setField takes a field that a passdb gave.
func (r *request) setField(key, value string) {
	key, done := suffixed(&r.extra, key)
	if done || key == "" {
		return
	}
	switch {
	case key == "password":
		r.setDBPassword(value, false)
		return
	case key == "password_noscheme":
		r.setDBPassword(value, true)
		return
	case r.updateUsername(key, value):
	case key == "login_user":
		r.loginUser = value
	case key == "allow_nets":
		r.checkNetworks(key, value, r.remoteIP)
	case key == "allow_real_nets":
		r.checkNetworks(key, value, r.realRemoteIP)
	case key == "fail":
		r.failed = true
	case key == "delay_until":
		r.setDelay(value)
	case strings.HasPrefix(key, "userdb_"):
		r.prefetchSet = true
		r.beginUserdbReply(true)
		if key == "userdb_userdb_import" {
			for _, f := range strings.Split(value, "\t") {
				k, v, _ := strings.Cut(f, "=")
				r.setField("userdb_"+k, v)
			}
			return
		}
		r.setUserdbField(key[len("userdb_"):], value)
	case key == "noauthenticate":
		r.extra.add(key, value, false)
		r.extra.add("nopassword", "", false)
	case key == "nopassword":
		if r.hasDBPassword && !r.extra.has("noauthenticate") {
			if _, data, _ := password.Split(r.dbPassword); data != "" {
				r.dbError("nopassword set but password is non-empty")
				return
			}
		}
		r.dbPassword, r.hasDBPassword = "", false
		r.extra.add(key, value, false)
		return
	case key == "passdb_import":
		for _, f := range strings.Split(value, "\t") {
			k, v, _ := strings.Cut(f, "=")
			r.setField(k, v)
		}
		return
	default: // goes to the client
		r.extra.add(key, value, false)
		return
	}
	r.extra.add(key, value, true) // for :protected, and %{passdb:...}
}

func (r *request) setDBPassword(value string, noScheme bool) {
	if r.hasDBPassword {
		r.dbError("Multiple password values not supported")
		return
	}
	r.hasDBPassword = true
	if strings.HasPrefix(value, "{") && !noScheme && strings.Contains(value, "}") {
		r.dbPassword = value
	} else {
		r.dbPassword = "{PLAIN}" + value
	}
}

// updateUsername applies the fields user, username and domain; false: key is another.
func (r *request) updateUsername(key, value string) bool {
	local, domain, has := strings.Cut(r.user, "@")
	name := value
	switch key {
	case "user":
	case "username":
		if !strings.Contains(value, "@") && has {
			name = value + "@" + domain
		}
	case "domain":
		name = local + "@" + value
	default:
		return false
	}
	if name == "" {
		r.dbError("username attempted to be changed to empty")
		r.failed = true
	} else if name != r.user {
		r.dbDebug("username changed %s -> %s", r.user, name)
		r.user = name
	}
	return true
}

// checkNetworks fails the login unless ip is in one of the networks, or is unknown and
// "local" is among them.
func (r *request) checkNetworks(key, networks string, ip netip.Addr) {
	for _, n := range settings.Words(networks) {
		r.dbDebug("%s: Matching for network %s", key, n)
		if n == "local" {
			if !ip.IsValid() {
				return
			}
			continue
		}
		p, ok := settings.ParseNetwork(n)
		if !ok {
			r.dbInfo("%s: Invalid network '%s'", key, n)
		} else if ip.IsValid() && p.Contains(ip) {
			return
		}
	}
	if ip.IsValid() {
		r.dbInfo("%s check failed: IP %s not in allowed networks", key, ip)
	} else {
		r.dbInfo("%s check failed: Remote IP not known and 'local' missing", key)
	}
	r.failed = true
}

// setDelay takes a Unix time, or "time+n": up to n random seconds more.
func (r *request) setDelay(value string) {
	var extra time.Duration
	value, random, has := strings.Cut(value, "+")
	if has {
		n, err := strconv.ParseUint(random, 10, 32)
		if err != nil {
			r.dbError("Invalid delay_until randomness number '%s'", random)
			r.failed = true
		} else if n > 0 {
			extra = time.Duration(rand.Uint64N(n)) * time.Second
		}
	}
	stamp, err := strconv.ParseInt(value, 10, 64)
	until := time.Unix(stamp, 0)
	switch now := time.Now(); {
	case err != nil:
		r.dbError("Invalid delay_until timestamp '%s'", value)
		r.failed = true
	case !until.After(now):
	case until.Sub(now) > maxDelay:
		r.dbError("delay_until timestamp %s is too much in the future, failing", value)
		r.failed = true
	default:
		r.delayUntil = until.Add(extra)
		if limit := now.Add(maxDelay); r.delayUntil.After(limit) {
			r.delayUntil = limit
		}
	}
}

// beginUserdbReply starts the userdb reply, with the default fields of the userdb.
func (r *request) beginUserdbReply(defaults bool) {
	if r.hasUserdb {
		return
	}
	r.hasUserdb = true
	if defaults && r.userdb != nil {
		if err := r.userdb.defaults.apply(r, r.setUserdbField); err != nil {
			r.dbError("Failed to expand default_fields: %s", err)
		}
	}
}

// ignoredUserKey says in cached replies that there is no field.
const ignoredUserKey = ":user_ignore"

// setUserdbField takes a field that a userdb gave, or a passdb as userdb_.
func (r *request) setUserdbField(key, value string) {
	key, done := suffixed(&r.userdbReply, key)
	if done {
		return
	}
	switch {
	case key == "uid":
		id, ok := r.srv.lookupUID(value)
		if !ok {
			r.dbError("Invalid UID value '%s'", value)
			r.userdbTempFailed = true
			return
		}
		value = strconv.FormatUint(uint64(id), 10)
	case key == "gid":
		id, ok := r.srv.lookupGID(value)
		if !ok {
			r.dbError("Invalid GID value '%s'", value)
			r.userdbTempFailed = true
			return
		}
		value = strconv.FormatUint(uint64(id), 10)
	case key == "tempfail":
		r.userdbTempFailed = true
		return
	case r.updateUsername(key, value):
		return
	case key == "uidgid_file":
		r.setUIDFromFile(value)
		return
	case key == "userdb_import":
		for _, f := range strings.Split(value, "\t") {
			k, v, _ := strings.Cut(f, "=")
			r.setUserdbField(k, v)
		}
		return
	case key == "system_user":
		key = "system_groups_user"
	case key == ignoredUserKey:
		return
	}
	r.userdbReply.add(key, value, false)
}

// setUIDFromFile takes uid and gid of a file.
func (r *request) setUIDFromFile(pathTemplate string) {
	path, err := r.expand(pathTemplate, r.user, nil)
	if err != nil {
		r.dbError("Failed to expand uidgid_file=%s: %s", pathTemplate, err)
		r.userdbTempFailed = true
		return
	}
	info, err := os.Stat(path)
	if err != nil {
		r.dbError("stat(%s) failed: %s", path, errnoText(err))
		r.userdbTempFailed = true
		return
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		r.userdbTempFailed = true
		return
	}
	r.userdbReply.add("uid", strconv.FormatUint(uint64(st.Uid), 10), false)
	r.userdbReply.add("gid", strconv.FormatUint(uint64(st.Gid), 10), false)
}
