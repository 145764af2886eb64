package conf

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"golang.org/x/sys/unix"
)

// The checks of clause C16: what Dovecot says of a whole configuration after reading it.
// They run for the global settings and for each filter merged with what it matches, in
// groups of settings. Dovecot's last word is the first failure; here all are noted.

// A checker looks at one View.
type checker struct {
	p      *parser
	v      *View
	global bool // the View is that of the global settings
	group  *group
	failed bool // in this group; what follows is not Dovecot's
}

// A group of settings is checked by Dovecot up to its first error.
type group struct {
	run    func(*checker)
	copies int // how often doveconf prints an error of it
	// reads are the settings and types of sections that run looks at. A filter that sets
	// none of them need not be checked.
	reads []string
}

// groups in the order of Dovecot's build.
var groups = []group{
	{(*checker).logging, 1, []string{"syslog_facility"}},
	{(*checker).ssl, 1, []string{"ssl", "ssl_verify_client_cert", "ssl_ca", "ssl_options"}},
	{(*checker).auth, 1, []string{"auth_worker_max_count", "auth_cache_size", "auth_verbose_passwords", "auth_policy_server_url", "auth_policy_hash_nonce", "passdb", "userdb"}},
	workarounds("imap", 1, "delay-newmail", "tb-extra-mailbox-sep", "tb-lsub-flags"),
	workarounds("lmtp", 1, "whitespace-before-path", "mailbox-for-path"),
	{(*checker).mail, 1, []string{"mail_plugin_dir", "mail_plugins"}},
	{(*checker).master, 1, []string{"listen", "first_valid_uid", "last_valid_uid", "first_valid_gid", "last_valid_gid",
		"default_login_user", "default_internal_user", "default_internal_group", "protocols", "base_dir",
		"default_process_limit", "default_client_limit", "default_vsz_limit", "default_idle_kill", "service"}},
	workarounds("pop3", 1, "outlook-no-nuls", "oe-ns-eoh"),
	// The same check in the login and in the worker group.
	workarounds("submission", 2, "whitespace-before-path", "mailbox-for-path", "implicit-auth-external", "exotic-backend"),
}

// touched says whether one of the filters in v sets something that the group reads.
func (g *group) touched(v *View) bool {
	for _, s := range v.matched {
		for _, name := range g.reads {
			if _, ok := s.Get(name); ok || slices.ContainsFunc(s.Blocks, func(b *Block) bool { return b.Type == name }) {
				return true
			}
		}
	}
	return false
}

// check runs all checks on what has been read.
func (p *parser) check() {
	seen := map[string]bool{}
	sslSaid := false
	for i, s := range append([]*Scope{p.cfg.Root}, p.cfg.Filters...) {
		v, err := p.cfg.view(s.Match.request())
		if err != nil {
			conflict := err.(*ConflictError)
			if !seen[err.Error()] {
				seen[err.Error()] = true
				p.atEnd(conflict.At, p.cfg.Path, err.Error(), "Two filters match the same client, neither is inside the other, and both set it.")
			}
			continue
		}
		if !sslSaid && i > 0 {
			sslSaid = p.sslOff(s)
		}
		for g := range groups {
			if i > 0 && !groups[g].touched(v) {
				continue
			}
			if !p.checks(&groups[g]) {
				continue
			}
			c := checker{p: p, v: v, global: i == 0, group: &groups[g]}
			groups[g].run(&c)
		}
	}
	if p.opt.Own {
		p.own()
	}
}

// sslOff is clause C10.12: it looks at what the filter itself sets.
func (p *parser) sslOff(s *Scope) bool {
	global, ok := p.cfg.Root.Get("ssl")
	own, set := s.Get("ssl")
	if !ok || global.Value != "no" || !set || own.Value == "no" {
		return false
	}
	text := fmt.Sprintf("SSL is disabled because global ssl=no, ignoring ssl=%s for subsection", own.Value)
	p.warn(own.Last.Range, text, text, "")
	return true
}

// fail notes a failed check at r, or nowhere if that is the zero Range. The same failure
// in another filter is not noted again.
func (c *checker) fail(r hcl.Range, text, detail string) {
	if c.p.said(text, r) {
		return
	}
	rep := c.p.atEnd(Range{Range: r, Line: r.End.Line}, c.p.cfg.Path, text, detail)
	rep.Group = c.group.reads[len(c.group.reads)-1]
	if c.failed {
		rep.Text = ""
		return
	}
	c.failed = true
	if c.global {
		rep.Global = c.group.copies
	}
}

// said says whether text has been reported for the place r.
func (p *parser) said(text string, r hcl.Range) bool {
	for _, d := range p.diags {
		if d.Summary == text && (d.Subject == nil && r.Filename == "" || d.Subject != nil && *d.Subject == r) {
			return true
		}
	}
	return false
}

var facilities = strings.Fields("auth authpriv cron daemon ftp kern lpr mail news syslog user uucp " +
	"local0 local1 local2 local3 local4 local5 local6 local7")

func (c *checker) logging() {
	if f := c.v.Value("syslog_facility"); !slices.Contains(facilities, f) {
		c.fail(c.v.Range("syslog_facility"), "Unknown syslog_facility: "+f, "One of "+strings.Join(facilities, ", ")+".")
	}
}

func (c *checker) ssl() {
	if c.v.Value("ssl") != "no" && c.v.Value("ssl_verify_client_cert") == "yes" && c.v.Value("ssl_ca") == "" {
		c.fail(c.v.Range("ssl_verify_client_cert"), "ssl_verify_client_cert set, but ssl_ca not",
			"`ssl_ca = <file` names the authorities that sign the clients' certificates.")
	}
	for _, w := range words(c.v.Value("ssl_options")) {
		if w != "compression" && w != "no_compression" && w != "no_ticket" {
			c.fail(c.v.Range("ssl_options"), fmt.Sprintf("ssl_options: unknown flag: '%s'", w), "The flags are compression and no_ticket.")
		}
	}
}

func (c *checker) auth() {
	v := c.v
	if v.Value("auth_worker_max_count") == "0" {
		c.fail(v.Range("auth_worker_max_count"), "auth_worker_max_count must be above zero", "")
	}
	if n := parseSize(v.Value("auth_cache_size")); n > 0 && n < 1024 {
		c.fail(v.Range("auth_cache_size"), fmt.Sprintf("auth_cache_size value is too small (%d bytes)", n), "It is a size such as 1M, or 0 for no cache.")
	}
	word, num, cut := strings.Cut(v.Value("auth_verbose_passwords"), ":")
	if n, err := strconv.ParseUint(num, 10, 32); cut && (err != nil || n == 0) {
		c.fail(v.Range("auth_verbose_passwords"), fmt.Sprintf("auth_verbose_passwords: Invalid truncation number: '%s'", num), "A number from 1 on follows the colon.")
	} else if !slices.Contains([]string{"no", "plain", "sha1", "yes"}, word) {
		c.fail(v.Range("auth_verbose_passwords"), "auth_verbose_passwords: Invalid value", "`no`, `plain`, `sha1` or `yes`, the last three perhaps with a colon and a number.")
	}
	if v.Value("auth_policy_server_url") != "" && v.Value("auth_policy_hash_nonce") == "" {
		c.fail(v.Range("auth_policy_server_url"), "auth_policy_hash_nonce must be set when policy server is used", "")
	}
	for _, typ := range []string{"passdb", "userdb"} {
		for _, s := range v.list(typ) {
			if s.Get("driver") == "" {
				c.fail(s.Range, typ+" is missing driver", fmt.Sprintf("`driver = ...` says where the %s looks.", typ))
			} else if s.Get("pass") == "yes" && s.Get("result_success") != "return-ok" {
				c.fail(s.At("pass"), "Obsolete pass=yes setting mixed with non-default result_success", "`result_success = continue` alone does what pass=yes did.")
			}
		}
	}
}

func (c *checker) mail() {
	if dir := c.v.Value("mail_plugin_dir"); c.v.Value("mail_plugins") != "" {
		if err := unix.Access(dir, unix.R_OK|unix.X_OK); err != nil {
			c.fail(c.v.Range("mail_plugin_dir"), fmt.Sprintf("mail_plugin_dir: access(%s) failed: %s", dir, reason(err)), "It is looked at because mail_plugins is set.")
		}
	}
}

// workarounds checks PROTOCOL_client_workarounds.
func workarounds(protocol string, copies int, right ...string) group {
	name := protocol + "_client_workarounds"
	return group{copies: copies, reads: []string{name}, run: func(c *checker) {
		for _, w := range words(c.v.Value(name)) {
			if !slices.Contains(right, strings.ToLower(w)) {
				c.fail(c.v.Range(name), name+": Unknown workaround: "+w, "One of "+strings.Join(right, ", ")+".")
			}
		}
	}}
}

// master checks what the master process reads.
func (c *checker) master() {
	v := c.v
	if v.Value("listen") == "" {
		c.fail(v.Range("listen"), "listen can't be set empty", "`*` is any IPv4 address, `::` any IPv6 address.")
	}
	for _, id := range []string{"uid", "gid"} {
		first, last := number(v.Value("first_valid_"+id)), number(v.Value("last_valid_"+id))
		if last != 0 && first > last {
			c.fail(v.Range("last_valid_"+id), fmt.Sprintf("first_valid_%[1]s can't be larger than last_valid_%[1]s", id), "last_valid_"+id+" = 0 is no limit.")
		}
	}
	for _, name := range []string{"default_login_user", "default_internal_user"} {
		if u := v.Value(name); !c.p.opt.User(u) {
			c.fail(v.Range(name), name+" doesn't exist: "+u, "The name of a user of this system.")
		}
	}
	services := v.Services()
	c.names(services)
	known := map[string]bool{}
	for _, s := range services {
		known[s.Protocol] = true
	}
	if v.Value("protocols") != "none" {
		for _, w := range v.Protocols() {
			if !known[w] {
				c.fail(v.Range("protocols"), "protocols: Unknown protocol: "+w, "Protocols are separated by blanks; each needs a service with `protocol = name`.")
			}
		}
	}
	c.services(services)
}

func (c *checker) names(services []Service) {
	types := []string{"", "log", "config", "anvil", "login", "startup", "worker"}
	seen := map[string]bool{}
	for i, s := range services {
		switch {
		case s.Name == "":
			c.fail(s.Range, fmt.Sprintf("Service #%d is missing name", i), "`service NAME {`")
		case !slices.Contains(types, s.Type):
			c.fail(s.At("type"), "Unknown service type: "+s.Type, "One of login, worker, startup, log, config, anvil, or none.")
		case seen[s.Name]:
			c.fail(s.Range, "Duplicate service name: "+s.Name, "A `name =` inside the section gave it the name of another one.")
		}
		seen[s.Name] = true
	}
}

// single are the services whose only process must be one.
var single = []string{"auth", "anvil", "log", "indexer", "ipc", "director", "replicator", "old-stats"}

// minVSZ is the least vsz_limit.
const minVSZ = 1 << 20

func (c *checker) services(services []Service) {
	v := c.v
	base := strings.TrimSuffix(v.Value("base_dir"), "/")
	listeners := map[string]hcl.Range{}
	twice := map[string]hcl.Range{} // Dovecot looks at these last, in order
	duplicate := func(name string, at hcl.Range) {
		if other, taken := listeners[name]; taken {
			if at.Filename == "" {
				at = other
			}
			twice[name] = at
		}
		listeners[name] = at
	}
	var auth, anvil load
	anvil.sum = 2 // the master's own two connections
	for _, s := range services {
		if !v.Enabled(s) {
			continue
		}
		c.service(s)
		login := s.Type == "login"
		if s.Protocol != "" && (login || s.ServiceCount != 1) && s.Name != "imap-hibernate" {
			auth.add(s)
		}
		if login || s.Name == "auth" {
			anvil.add(s)
		}
		for _, kind := range []struct {
			name string
			list []SocketListener
		}{{"unix_listener", s.Unix}, {"fifo_listener", s.FIFO}} {
			for _, l := range kind.list {
				path := l.Path
				if path == "" {
					c.fail(l.Range, fmt.Sprintf("service(%s): %s: path must not be empty", s.Name, kind.name), "")
					continue
				}
				if rest, below := strings.CutPrefix(path, base+"/"); below {
					// Dovecot says unix_listener of fifos, too.
					text := "You should remove base_dir prefix from unix_listener: " + path
					if !c.p.said(text, l.Range) {
						c.warn(Range{Range: l.Range, Line: l.Range.End.Line}, text, text, "Write `"+rest+"`.")
						if rep := c.p.diags[len(c.p.diags)-1].Extra.(*Report); rep.Text != "" {
							rep.Global = 1
						}
					}
				} else if path[0] != '/' {
					path = base + "/" + path
				}
				if l.Mode != 0 {
					duplicate(path, l.Range)
				}
			}
		}
		for _, b := range s.block.Of("inet_listener") {
			if l := v.inet(b); l.Port != 0 {
				duplicate(fmt.Sprintf("%d:%s", l.Port, b.Value("address")), l.Range)
			}
		}
	}
	c.limits(services, auth, anvil)
	for _, name := range slices.Sorted(maps.Keys(twice)) {
		c.fail(twice[name], "duplicate listener: "+name, "Another service, or this one, listens there already.")
	}
}

// warn is a warning of a check. After a failure in its group it is not Dovecot's.
func (c *checker) warn(r Range, full, text, detail string) {
	c.p.warn(r, full, text, detail)
	if rep, ok := c.p.diags[len(c.p.diags)-1].Extra.(*Report); ok && c.failed {
		rep.Text = ""
	}
}

// service checks one service by itself.
func (c *checker) service(s Service) {
	fail := func(key, text, detail string) {
		at := s.At(key)
		if at.Filename == "" {
			at = s.Range
		}
		c.fail(at, fmt.Sprintf("service(%s): %s", s.Name, text), detail)
	}
	if s.DropPrivBeforeExec && s.Chroot != "" {
		fail("drop_priv_before_exec", "drop_priv_before_exec=yes can't be used with chroot", "")
	}
	if s.ProcessMinAvail > s.ProcessLimit {
		fail("process_min_avail", "process_min_avail is higher than process_limit", fmt.Sprintf("process_limit is %d.", s.ProcessLimit))
	}
	if s.ProcessLimit > 1 && slices.Contains(single, s.Name) {
		fail("process_limit", "process_limit must be 1", "")
	}
	if s.VSZLimit < minVSZ && s.VSZLimit != 0 {
		fail("vsz_limit", "vsz_limit is too low", "At least 1M; 0 is no limit.")
	}
}

// A load is what other services ask of auth and anvil at most (clause C16.16).
type load struct {
	sum   uint64
	parts []string
}

func (l *load) add(s Service) {
	l.sum += uint64(s.ProcessLimit)
	l.parts = append(l.parts, fmt.Sprintf("service %s { process_limit=%d }", s.Name, s.ProcessLimit))
}

func (c *checker) limits(services []Service, auth, anvil load) {
	for _, s := range services {
		l, counted := auth, "Counted for protocol services with service_count != 1"
		switch s.Name {
		case "anvil":
			l, counted = anvil, "Counted with"
		case "auth":
		default:
			continue
		}
		start := fmt.Sprintf("service %s { client_limit=%d } is lower than required under max. load", s.Name, s.ClientLimit)
		if uint64(s.ClientLimit) >= l.sum || c.p.warned(start) {
			continue
		}
		at := s.At("client_limit")
		c.warn(Range{Range: at, Line: at.End.Line}, fmt.Sprintf("%s (%d). %s: %s", start, l.sum, counted, strings.Join(l.parts, " + ")),
			fmt.Sprintf("%s (%d)", start, l.sum), counted+": "+strings.Join(l.parts, " + "))
	}
}

// warned says whether a warning that begins with this has been given.
func (p *parser) warned(start string) bool {
	for _, d := range p.diags {
		if strings.HasPrefix(d.Summary, start) {
			return true
		}
	}
	return false
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}
