package conf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf/settings"
)

// Settings of Dovecot 1.x that 2.3 still reads (clause C14). Only plain lines outside of
// sections count, and what one of them becomes is set as if it stood there.

// obsolete is what the translation remembers between lines.
type obsolete struct {
	noted  bool        // the note about doveconf -Pn has been given
	socket *authSocket // inside auth { socket listen { master { or client {
}

// An authSocket is a `master` or `client` block of the auth block of 1.x.
type authSocket struct {
	master bool
	values []Setting
}

// newName is the new name of a setting, "" if it has none.
func newName(key string) string {
	if key == "dbox_rotate_size" {
		return "mdbox_rotate_size"
	}
	if rest, ok := strings.CutPrefix(key, "mail_cache_compress_"); ok {
		return "mail_cache_purge_" + rest
	}
	return ""
}

// removed are settings that are ignored, with what is said.
var removed = map[string]string{
	"ssl_parameters_regenerate":      "%s is no longer needed",
	"ssl_dh_parameters_length":       "%s is no longer needed",
	"login_dir":                      "%s has been removed",
	"dbox_rotate_min_size":           "%s has been removed",
	"dbox_rotate_days":               "%s has been removed",
	"director_consistent_hashing":    "%s has been removed",
	"mail_log_max_lines_per_sec":     "%s has been removed",
	"maildir_copy_preserve_filename": "%s has been removed",
	"auth_count":                     "%s has been removed, and its value must be 1",
}

// An old setting that a service has now.
type toService struct {
	key     string
	convert func(string) string
}

func megabytes(v string) string { return v + " M" }

func yesTo(yes, no string) func(string) string {
	return func(v string) string {
		if v == "no" {
			return no
		}
		return yes
	}
}

// loginSettings go to the login services, mailSettings to the mail services, authSettings
// to service auth.
var (
	loginSettings = map[string]toService{
		"login_chroot":                 {"chroot", yesTo("login", "")},
		"login_user":                   {"user", nil},
		"login_executable":             {"executable", nil},
		"login_process_size":           {"vsz_limit", megabytes},
		"login_process_per_connection": {"service_count", yesTo("1", "0")},
		"login_processes_count":        {"process_min_avail", nil},
		"login_max_processes_count":    {"process_limit", nil},
		"login_max_connections":        {"client_limit", nil},
	}
	mailSettings = map[string]toService{
		"max_mail_processes":         {"process_limit", nil},
		"mail_executable":            {"executable", nil},
		"mail_process_size":          {"vsz_limit", megabytes},
		"mail_drop_priv_before_exec": {"drop_priv_before_exec", nil},
	}
	authSettings = map[string]toService{
		"auth_executable":   {"executable", nil},
		"auth_process_size": {"vsz_limit", megabytes},
		"auth_user":         {"user", nil},
		"auth_chroot":       {"chroot", nil},
	}
)

// oldProtocols are the protocols that 1.x knew, with the names of their services. 2.3
// sets those that exist.
var oldProtocols = []struct{ name, login, mail string }{
	{"imap", "imap-login", "imap"},
	{"pop3", "pop3-login", "pop3"},
	{"sieve", "managesieve-login", "managesieve"},
}

// obsoleteLine acts on a line of 1.x and says whether it was one. A line that only
// changes a name is changed in l.
func (p *parser) obsoleteLine(l *line) bool {
	f := p.top()
	switch {
	case f.auth != authNone && p.authLine(f, l):
		return true
	case l.kind == lineOpen:
		return p.obsoleteHead(f, l)
	case l.kind != lineSet || l.form != Plain:
		return false
	case f.block != nil && f.block.Kind == Map && f.prefix == "plugin/0/" && l.key == "imap_zlib_compress_level":
		// Dovecot knows it only in a plugin section that is the first section of all.
		const now = "imap_compress_deflate_level"
		p.noteObsolete("%s has been replaced by %s", l.key, now)
		p.become(f, now, l.value, l)
		return true
	case f.block == nil || f.block.parent != nil:
		return false
	}
	return p.obsoleteSetting(f, l)
}

// noteObsolete gives the warning, before the first one also the general note.
func (p *parser) noteObsolete(format string, args ...any) {
	at := p.lex.rang(0, len(p.lex.text))
	if !p.old.noted {
		p.old.noted = true
		const note = "NOTE: You can get a new clean config file with: doveconf -Pn > dovecot-new.conf"
		p.warn(at, note, note, "")
		p.diags[len(p.diags)-1].Extra.(*Report).Only = true
	}
	in, text := p.here(), fmt.Sprintf(format, args...)
	p.warn(at, fmt.Sprintf("Obsolete setting in %s:%d: %s", in.file.Path, in.line, text), text, "")
}

// become assigns what the line l means now, in the frame f.
func (p *parser) become(f *frame, key, value string, l *line) {
	p.warnGlobalAfterFilter(f, key, p.lex.rang(l.keyAt, l.keyAt+len(l.key)))
	p.becomeQuietly(f, key, value, l)
}

// becomeQuietly is become without the warning of clause C10.11.
func (p *parser) becomeQuietly(f *frame, key, value string, l *line) {
	a := &Assignment{
		Raw: p.lex.text[min(l.valueAt, l.end):l.end], Quote: l.quote, By: l.key,
		Key: p.lex.rang(l.keyAt, l.keyAt+len(l.key)), Range: p.lex.rang(l.valueAt, l.end),
	}
	if path, file := strings.CutPrefix(value, "<"); file && l.form == Plain && strings.HasSuffix(l.key, "_file") {
		a.Form, a.Path = FromFile, p.here().relative(path)
		if p.opt.Expand {
			read := line{kind: lineSet, key: key, value: path, form: FromFile, valueAt: l.valueAt, end: l.end}
			var ok bool
			if value, ok = p.rightSide(f, read, a); !ok {
				return
			}
		}
	}
	p.assign(f, key, value, a)
}

// becomeGlobal sets path in the root.
func (p *parser) becomeGlobal(path, value string, l *line) {
	p.becomeQuietly(&p.open[0], path, value, l)
}

// becomeServices sets what a line means for several services. Unless the line stands in
// a filter for one protocol, Dovecot drops values that are wrong without a word; here a
// warning names them.
func (p *parser) becomeServices(f *frame, services []string, key, value string, l *line) {
	n, errs := len(p.diags), p.errors
	for _, s := range services {
		p.becomeGlobal("service/"+s+"/"+key, value, l)
	}
	if m := f.scope.Match.Protocol; p.errors == errs || m != nil && (*m == "" || (*m)[0] != '!') {
		return
	}
	for _, d := range p.diags[n+1:] {
		d.Extra.(*Report).Only = true // once is enough
	}
	for _, d := range p.diags[n:] {
		d.Severity = hcl.DiagWarning
		d.Detail = "The line is ignored."
		d.Extra.(*Report).Level, d.Extra.(*Report).Text = "Warning", ""
	}
	p.errors = errs
}

func (p *parser) hasService(name string) bool { return p.builtin(p.cfg.Root.Block, "service", name) }

// obsoleteSetting is one line outside of sections.
func (p *parser) obsoleteSetting(f *frame, l *line) bool {
	key, value := l.key, l.value
	if text := removed[key]; text != "" {
		p.noteObsolete(text, key)
		return true
	}
	if now := newName(key); now != "" {
		p.noteObsolete("%s has been renamed to %s", key, now)
		p.become(f, now, value, l)
		return true
	}
	if to, ok := authSettings[key]; ok {
		p.noteObsolete("%s has been replaced by service auth { %s }", key, to.key)
		p.becomeGlobal("service/auth/"+to.key, to.value(value), l)
		return true
	}
	login, isLogin := loginSettings[key]
	if mail, ok := mailSettings[key]; ok || isLogin {
		to := login
		if ok {
			to = mail
		}
		p.noteObsolete("%s has been replaced by service { %s }", key, to.key)
		var services []string
		for _, o := range p.protocolsOf(f) {
			if isLogin {
				o.mail = o.login
			}
			services = append(services, o.mail)
		}
		p.becomeServices(f, services, to.key, to.value(value), l)
		return true
	}
	if special := obsoleteSpecial[key]; special != nil {
		return special(p, f, l)
	}
	return false
}

func (t toService) value(v string) string {
	if t.convert != nil {
		return t.convert(v)
	}
	return v
}

// protocolsOf are the old protocols whose services a line in f is for.
func (p *parser) protocolsOf(f *frame) []struct{ name, login, mail string } {
	var out []struct{ name, login, mail string }
	if f.scope.Match.notAuth() {
		return nil
	}
	for _, o := range oldProtocols {
		m := Match{Protocol: f.scope.Match.Protocol}
		if p.hasService(o.login) && m.matchesService(request{service: &o.name}) {
			out = append(out, o)
		}
	}
	return out
}

// obsoleteSpecial are the settings with a rule of their own.
var obsoleteSpecial = map[string]func(*parser, *frame, *line) bool{
	"ssl_protocols": (*parser).oldSSLProtocols,
	"ssl_cert_file": (*parser).oldSSLFile,
	"ssl_key_file":  (*parser).oldSSLFile,
	"ssl_ca_file":   (*parser).oldSSLFile,
	"ssl_disable": func(p *parser, f *frame, l *line) bool {
		p.noteObsolete("ssl_disable has been renamed to ssl")
		value := l.value
		switch strings.ToLower(value) {
		case "yes":
			value = "no"
		case "no":
			value = "yes"
		}
		p.become(f, "ssl", value, l)
		return true
	},
	"protocols": (*parser).oldProtocolNames,
	"auth_cache_size": func(p *parser, f *frame, l *line) bool {
		if len(l.value) == 0 || len(l.value) > 4 || strings.Trim(l.value, "0123456789") != "" {
			return false
		}
		n := 0
		for _, c := range l.value {
			n = n*10 + int(c-'0')
		}
		if n == 0 || n >= 1024 {
			return false
		}
		p.noteObsolete("auth_cache_size value no longer defaults to megabytes. Use %dM", n)
		p.becomeGlobal("auth_cache_size", fmt.Sprintf("%dM", n), l)
		return true
	},
	"listen":        (*parser).oldListen,
	"ssl_listen":    (*parser).oldListen,
	"sieve":         (*parser).oldSieve,
	"sieve_storage": (*parser).oldSieve,
	"fsync_disable": func(p *parser, f *frame, l *line) bool {
		p.noteObsolete("fsync_disable has been renamed to mail_fsync")
		value := l.value
		switch strings.ToLower(value) {
		case "yes":
			value = "never"
		case "no":
			value = "optimized"
		}
		p.become(f, "mail_fsync", value, l)
		return true
	},
	"imap_client_workarounds": func(p *parser, f *frame, l *line) bool {
		words := split(l.value, " ,")
		for i, w := range words {
			switch w {
			case "outlook-idle":
				p.noteObsolete("imap_client_workarounds=outlook-idle is no longer necessary")
				words[i] = ""
			case "netscape-eoh":
				p.noteObsolete("imap_client_workarounds=netscape-eoh is no longer supported")
				words[i] = ""
			}
		}
		value := strings.Join(words, " ")
		if value == l.value {
			return false
		}
		p.become(f, "imap_client_workarounds", value, l)
		return true
	},
}

func (p *parser) oldSieve(f *frame, l *line) bool {
	if l.key == "sieve" {
		p.noteObsolete("sieve has been moved into plugin {} section")
	} else {
		p.noteObsolete("sieve_storage has been moved into plugin { sieve_dir }")
	}
	p.becomeQuietly(f, "plugin/"+l.key, l.value, l)
	return true
}

func (p *parser) oldSSLFile(f *frame, l *line) bool {
	if l.value == "" {
		return true
	}
	now := strings.TrimSuffix(l.key, "_file")
	p.noteObsolete("%s has been replaced by %s = <file", l.key, now)
	p.become(f, now, "<"+l.value, l)
	return true
}

// oldSSLProtocols finds the lowest protocol that a list of 1.x and 2.2 leaves.
func (p *parser) oldSSLProtocols(f *frame, l *line) bool {
	p.noteObsolete("ssl_protocols has been replaced by ssl_min_protocol")
	names := []string{"SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2"}
	var with, without [4]bool
	some, bad := false, ""
	for _, w := range strings.FieldsFunc(l.value, func(r rune) bool { return r == ' ' || r == ',' }) {
		name, off := strings.CutPrefix(w, "!")
		i := slices.Index(names, name)
		switch {
		case i < 0:
			bad = fmt.Sprintf("Unrecognized protocol '%s'", name)
		case off:
			without[i] = true
		default:
			with[i], some = true, true
		}
		if bad != "" {
			break
		}
	}
	least := ""
	for i, name := range names {
		if !without[i] && (with[i] || !some) {
			least = name
			break
		}
	}
	if bad == "" && least == "" {
		bad = "All protocols disabled"
	}
	if bad != "" {
		text := fmt.Sprintf("Could not find a minimum ssl_min_protocol setting from ssl_protocols = %s: %s", l.value, bad)
		p.warn(p.lex.rang(l.valueAt, l.end), text, text, "The line is ignored: use `ssl_min_protocol = TLSv1.2` or another.")
		p.diags[len(p.diags)-1].Extra.(*Report).Level = "Error"
		return true
	}
	p.become(f, "ssl_min_protocol", least, l)
	return true
}

// words splits at blanks and commas.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' })
}

// oldProtocolNames is `protocols`, perhaps with imaps, pop3s or managesieve. The words are
// joined again by single spaces.
func (p *parser) oldProtocolNames(f *frame, l *line) bool {
	out := split(l.value, " \t")
	for i, name := range out {
		if name == "managesieve" {
			p.noteObsolete("protocols=managesieve has been renamed to protocols=sieve")
			out[i] = "sieve"
		}
	}
	for _, plain := range []string{"imap", "pop3"} {
		i := slices.Index(out, plain+"s")
		if i < 0 {
			continue
		}
		if slices.Contains(out, plain) {
			p.noteObsolete("'%ss' protocol is no longer necessary, remove it", plain)
			out = slices.Delete(out, i, i+1)
			continue
		}
		p.noteObsolete("'%[1]ss' protocol can no longer be specified (use protocols=%[1]s). "+
			"to disable non-ssl %[1]s, use service %[1]s-login { inet_listener %[1]s { port=0 } }", plain)
		out[i] = plain
		p.becomeQuietly(f, fmt.Sprintf("service/%[1]s-login/inet_listener/%[1]s/port", plain), "0", l)
	}
	value := strings.Join(out, " ")
	if value == l.value {
		return false
	}
	p.become(f, "protocols", value, l)
	return true
}

// oldListen is clause C14.3, and listen inside protocol.
func (p *parser) oldListen(f *frame, l *line) bool {
	value, port := l.value, ""
	inFilter := f.scope.Match.asks()
	if f.auth != authNone {
		return false
	}
	if value == "" && (inFilter || l.key == "ssl_listen") {
		return true // says nothing
	}
	if listenHasPort(value) {
		i := strings.LastIndexByte(value, ':')
		value, port = value[:i], value[i+1:]
		p.noteObsolete("%s=..:port has been replaced by service { inet_listener { port } }", l.key)
	}
	if !inFilter && l.key == "listen" && port == "" {
		return false
	}
	plain := !inFilter && l.key == "listen"
	if !plain {
		p.noteObsolete("protocol { %s } has been replaced by service { inet_listener { address } }", l.key)
	}
	for _, o := range p.protocolsOf(f) {
		name := o.name
		if l.key == "ssl_listen" {
			name += "s"
		}
		if !p.builtinListener(o.login, name) {
			continue
		}
		if to := "inet_listener/" + name; port != "" {
			p.becomeServices(f, []string{o.login}, to+"/port", port, l)
		}
		if to := "inet_listener/" + name; inFilter || l.key == "ssl_listen" {
			p.becomeServices(f, []string{o.login}, to+"/address", value, l)
		}
	}
	if plain {
		p.become(f, "listen", value, l)
	}
	return true
}

func (p *parser) builtinListener(service, listener string) bool {
	for _, s := range p.schema.Services() {
		if s.ID == service {
			return s.Block("inet_listener", listener) != nil
		}
	}
	return false
}

func listenHasPort(value string) bool {
	if !strings.Contains(value, ":") {
		return false
	}
	for _, w := range words(value) {
		if _, ip := settings.ParseAddr(w); !ip && w != "*" && w != "::" && w != "[::]" {
			return true
		}
	}
	return false
}

// obsoleteHead is a section of 1.x or one that was renamed.
func (p *parser) obsoleteHead(f *frame, l *line) bool {
	switch {
	case l.key == "auth" && f.auth == authNone && f.block != nil && f.block.parent == nil:
		p.noteObsolete("add auth_ prefix to all settings inside auth {} and remove the auth {} section completely")
		p.push(frame{key: "auth", scope: f.scope, block: f.block, filter: true, auth: authBlock})
		return true
	case f.prefix != "":
	case l.key == "service" && l.value == "dns_client":
		p.noteObsolete("service dns_client {} has been replaced by service dns-client { }")
		l.value = "dns-client"
	case l.key == "protocol" && l.value == "managesieve":
		p.noteObsolete("protocol managesieve {} has been replaced by protocol sieve { }")
		l.value = "sieve"
	}
	return false
}
