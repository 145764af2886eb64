package authd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"dovetail/internal/conf/settings"
	"dovetail/internal/dovecot/config"
)

// Settings are those of the auth service: for every protocol, and for those that have
// their own.
type Settings struct {
	protocols []*protocol // the first is the default
	baseDir   string
}

// A protocol is the settings for one protocol, or "!name" for all but one. It is constant.
type protocol struct {
	name            string // "" for the default
	mechanisms      []string
	defaultRealm    string
	chars           [256]bool
	translation     [256]byte
	usernameFormat  string
	masterSeparator string // one octet, or empty
	anonymous       string
	failureDelay    time.Duration
	verbose         bool
	debug           bool
	debugPasswords  bool
	showPassword    string // of a failure: "no", "plain", "sha1"
	showLength      int    // octets of it
	requireCert     bool
	userFromCert    bool
	proxySelf       []netip.Addr
	passdbs         []dbSettings
	userdbs         []dbSettings
}

// A dbSettings is a passdb or userdb block (clause C19.12).
type dbSettings struct {
	name, driver, args                               string
	defaultFields, overrideFields                    string
	mechanisms, usernameFilter                       string
	skip                                             string
	resultSuccess, resultFailure, resultInternalFail string
	deny, pass, master                               bool
	authVerbose                                      string
}

// An asker is what a config.Client does.
type asker interface {
	Request(config.Request) (config.Answer, error)
}

// Load asks the config service for the settings. The error joins what is wrong with them,
// and names each setting.
func Load(c asker) (Settings, error) {
	var s Settings
	all, err := c.Request(config.Request{Modules: []string{"auth"}})
	if err != nil {
		return s, err
	}
	var errs []error
	p, err := parseProtocol("", all)
	errs = append(errs, err)
	s.protocols = append(s.protocols, p)
	if s.baseDir, _ = all.Get("base_dir"); s.baseDir == "" {
		s.baseDir = "/run/dovecot"
	}
	not := ""
	for _, name := range all.Services {
		if strings.HasPrefix(name, "!") {
			if not != "" {
				errs = append(errs, dovecots("Can't have multiple protocol !services (seen %s and %s)", not, name))
			}
			not = name
		}
		a, err := c.Request(config.Request{Modules: []string{"auth"}, Service: name})
		if err != nil {
			return s, errors.Join(append(errs, err)...)
		}
		p, err := parseProtocol(name, a)
		if err != nil {
			errs = append(errs, fmt.Errorf("protocol %s: %w", name, err))
		}
		s.protocols = append(s.protocols, p)
	}
	return s, errors.Join(errs...)
}

// defaultOf returns the default of a setting that is read here, as Dovecot 2.3 has it.
func defaultOf(name string) string {
	switch name {
	case "auth_mechanisms":
		return "plain"
	case "auth_username_chars":
		return "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01234567890.-_@"
	case "auth_username_format":
		return "%Lu"
	case "auth_anonymous_username":
		return "anonymous"
	case "auth_failure_delay":
		return "2 secs"
	case "auth_verbose", "auth_debug", "auth_debug_passwords", "auth_verbose_passwords",
		"auth_ssl_require_client_cert", "auth_ssl_username_from_cert", "auth_use_winbind":
		return "no"
	}
	return ""
}

// refused are settings that change what users get and cannot be had here.
var refused = []string{"auth_policy_server_url", "auth_krb5_keytab"}

// A values reads the settings of an answer and keeps the errors.
type values struct {
	answer config.Answer
	errs   []error
}

func (v *values) str(name string) string {
	if s, ok := v.answer.Get(name); ok {
		return s
	}
	return defaultOf(name)
}

func value[T any](v *values, name string, parse func(string) (T, error)) T {
	t, err := parse(v.str(name))
	if err != nil {
		v.errs = append(v.errs, fmt.Errorf("%s: %w", name, err))
	}
	return t
}

func (v *values) bool(name string) bool { return value(v, name, settings.ParseBool) }

func parseProtocol(name string, a config.Answer) (*protocol, error) {
	v := &values{answer: a}
	p := &protocol{
		name:            name,
		mechanisms:      strings.Fields(strings.ToUpper(v.str("auth_mechanisms"))),
		defaultRealm:    v.str("auth_default_realm"),
		usernameFormat:  v.str("auth_username_format"),
		masterSeparator: v.str("auth_master_user_separator"),
		anonymous:       v.str("auth_anonymous_username"),
		failureDelay:    value(v, "auth_failure_delay", settings.ParseTime),
		verbose:         v.bool("auth_verbose"),
		debug:           v.bool("auth_debug"),
		debugPasswords:  v.bool("auth_debug_passwords"),
		requireCert:     v.bool("auth_ssl_require_client_cert"),
		userFromCert:    v.bool("auth_ssl_username_from_cert"),
		proxySelf:       value(v, "auth_proxy_self", parseHosts),
	}
	p.debug = p.debug || p.debugPasswords
	p.verbose = p.verbose || p.debug
	if len(p.masterSeparator) > 1 {
		p.masterSeparator = p.masterSeparator[:1]
	}
	chars := v.str("auth_username_chars")
	for i := range p.chars {
		p.chars[i] = chars == "" || strings.IndexByte(chars, byte(i)) >= 0
	}
	for t := v.str("auth_username_translation"); len(t) >= 2; t = t[2:] {
		p.translation[t[0]] = t[1]
	}
	p.showPassword, p.showLength = "no", 0
	if show := value(v, "auth_verbose_passwords", parseShow); show.form != "" {
		p.showPassword, p.showLength = show.form, show.length
	}
	for _, name := range refused {
		if v.str(name) != "" {
			v.errs = append(v.errs, fmt.Errorf("%s is not supported by standalone: %s", name, dropIn))
		}
	}
	if v.bool("auth_use_winbind") {
		v.errs = append(v.errs, fmt.Errorf("auth_use_winbind is not supported by standalone: %s", dropIn))
	}
	p.passdbs = v.blocks("passdb")
	p.userdbs = v.blocks("userdb")
	return p, errors.Join(v.errs...)
}

// dovecots makes an error with Dovecot's words, which begin with a capital letter.
func dovecots(format string, args ...any) error { return fmt.Errorf(format, args...) }

// dropIn is the advice for what standalone does not have.
const dropIn = "run the two programs under Dovecot (drop-in)"

type show struct {
	form   string
	length int
}

// parseShow reads auth_verbose_passwords (clause C16.18).
func parseShow(s string) (show, error) {
	form, n, cut := strings.Cut(s, ":")
	out := show{form, 1024}
	if cut {
		v, err := strconv.ParseUint(n, 10, 31)
		if err != nil || v == 0 {
			return show{}, dovecots("Invalid truncation number: '%s'", n)
		}
		out.length = int(v)
	}
	switch form {
	case "no", "plain", "sha1":
	case "yes":
		out.form = "plain"
	default:
		return show{}, dovecots("Invalid value")
	}
	return out, nil
}

// parseHosts resolves auth_proxy_self. It is read as root, at start.
func parseHosts(s string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, h := range strings.Fields(s) {
		if a, err := netip.ParseAddr(h); err == nil {
			out = append(out, a.Unmap())
			continue
		}
		ips, err := net.LookupIP(h)
		if err != nil {
			return nil, fmt.Errorf("gethostbyname(%s) failed: %w", h, err)
		}
		for _, ip := range ips {
			if a, ok := netip.AddrFromSlice(ip); ok {
				out = append(out, a.Unmap())
			}
		}
	}
	return out, nil
}

// blocks reads the passdb or userdb blocks, which come as passdb=0 1, passdb/0/driver=...
func (v *values) blocks(typ string) []dbSettings {
	var out []dbSettings
	list, _ := v.answer.Get(typ)
	for _, id := range strings.Fields(list) {
		at := typ + "/" + id + "/"
		get := func(key, def string) string {
			if s, ok := v.answer.Get(at + key); ok {
				return s
			}
			return def
		}
		yes := func(key string) bool {
			b, err := settings.ParseBool(get(key, "no"))
			if err != nil {
				v.errs = append(v.errs, fmt.Errorf("%s: %s: %w", typ, key, err))
			}
			return b
		}
		d := dbSettings{
			name: get("name", ""), driver: get("driver", ""), args: get("args", ""),
			defaultFields: get("default_fields", ""), overrideFields: get("override_fields", ""),
			mechanisms: get("mechanisms", ""), usernameFilter: get("username_filter", ""),
			skip: get("skip", "never"), resultSuccess: get("result_success", "return-ok"),
			resultFailure: get("result_failure", "continue"), resultInternalFail: get("result_internalfail", "continue"),
			deny: yes("deny"), pass: yes("pass"), master: yes("master"), authVerbose: get("auth_verbose", "default"),
		}
		if d.driver == "" {
			v.errs = append(v.errs, fmt.Errorf("%s is missing driver", typ))
		}
		out = append(out, d)
	}
	return out
}
