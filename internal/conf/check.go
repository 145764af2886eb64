package conf

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

// The checks of clause C16: what Dovecot says of a whole configuration after reading it.
// They run for the global settings and for each filter merged with what it matches, in
// groups of settings. Dovecot's last word is the first failure; here all are noted.

// A Remark is what Dovecot's doveconf says about a failed check.
type Remark struct {
	Level string // "Error" or "Warning"
	Text  string
	// Once: a warning that is not repeated.
	Once  bool
	group int // in groups
}

// A checker looks at one View.
type checker struct {
	p       *parser
	v       *View
	group   *group
	failed  bool // in this group; what follows is not Dovecot's
	remarks []Remark
}

// A group of settings is checked by Dovecot up to its first error.
type group struct {
	run func(*checker)
	// reads are the settings and types of sections that run looks at. A filter that sets
	// none of them need not be checked.
	reads []string
	root  string // the name of the group in package all
}

// groups in the order of Dovecot's build.
var groups = []group{
	{(*checker).logging, []string{"log_debug", "log_core_filter", "process_shutdown_filter", "syslog_facility"}, "master_service"},
	{(*checker).ssl, []string{"ssl", "ssl_verify_client_cert", "ssl_ca", "ssl_options"}, "master_service_ssl"},
	{(*checker).auth, []string{"auth_worker_max_count", "auth_cache_size", "auth_verbose_passwords", "auth_policy_server_url", "auth_policy_hash_nonce",
		"auth_policy_hash_mech", "auth_policy_hash_truncate", "passdb", "userdb"}, "auth"},
	{(*checker).director, []string{"director_user_expire"}, "director"},
	{(*checker).doveadm, []string{"dsync_hashed_headers", "dsync_alt_char", "dsync_features"}, "doveadm"},
	{(*checker).imap, []string{"imap_client_workarounds"}, "imap"},
	{(*checker).imapc, []string{"imapc_max_idle_time", "imapc_features"}, "imapc"},
	{(*checker).lmtp, []string{"lmtp_client_workarounds"}, "lmtp"},
	{(*checker).storage, storageReads, "mail_storage"},
	{(*checker).mailUser, []string{"mail_plugin_dir", "mail_plugins", "namespace"}, "mail_user"},
	{(*checker).master, []string{"listen", "first_valid_uid", "last_valid_uid", "first_valid_gid", "last_valid_gid",
		"default_login_user", "default_internal_user", "default_internal_group", "protocols", "base_dir",
		"default_process_limit", "default_client_limit", "default_vsz_limit", "default_idle_kill", "service"}, "master"},
	{(*checker).pop3, []string{"pop3_client_workarounds", "pop3_deleted_flag", "pop3_delete_type"}, "pop3"},
	{(*checker).pop3c, []string{"pop3c_features"}, "pop3c"},
	{(*checker).stats, []string{"event_exporter", "metric"}, "stats"},
	// The same check in the login and in the worker group.
	{(*checker).submission, []string{"submission_client_workarounds"}, "submission_login"},
	{(*checker).submission, []string{"submission_client_workarounds"}, "submission"},
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

// checks says whether a group is to be checked at all.
func (p *parser) checks(g *group) bool { return p.opt.Only.HasRoot(g.root) }

// checkView runs all groups on v. global are the remarks of the global settings, for the
// groups that v does not touch; nil checks all.
func (p *parser) checkView(v *View, global []Remark) []Remark {
	var out []Remark
	for i := range groups {
		g := &groups[i]
		switch {
		case !p.checks(g):
		case global != nil && !g.touched(v):
			for _, r := range global {
				if r.group == i {
					out = append(out, r)
				}
			}
		default:
			c := checker{p: p, v: v, group: g}
			g.run(&c)
			for _, r := range c.remarks {
				r.group = i
				out = append(out, r)
			}
		}
	}
	return out
}

// check runs all checks on what has been read. What Dovecot says of them while it reads
// the files, up to the first failure, goes to Config.Checked.
func (p *parser) check() {
	stopped := len(p.cfg.Checked) > 0 // for a missing brace
	say := func(r Remark) {
		if !stopped && !(r.Once && slices.Contains(p.cfg.Checked, r)) {
			p.cfg.Checked = append(p.cfg.Checked, r)
			stopped = r.Level == "Error"
		}
	}
	global := []Remark{}
	conflicts := map[string]bool{}
	sslSaid := false
	for i, s := range append([]*Scope{p.cfg.Root}, p.cfg.Filters...) {
		v, err := p.cfg.view(s.Match.request())
		if err != nil {
			conflict := err.(*ConflictError)
			if !conflicts[err.Error()] {
				conflicts[err.Error()] = true
				p.atEnd(conflict.At, err.Error(), "Two filters match the same client, neither is inside the other, and both set it.")
			}
			say(Remark{Level: "Error", Text: err.Error()})
			continue
		}
		if text := p.sslOff(s); i > 0 && !sslSaid && text != "" {
			sslSaid = true
			say(Remark{Level: "Warning", Text: text})
		}
		if i == 0 {
			global = append(global, p.checkView(v, nil)...)
		}
		for _, r := range p.checkView(v, global) {
			say(r)
		}
	}
	if p.opt.Own {
		p.own()
	}
}

// Checks runs the checks on one client's settings, as doveconf does before it prints them.
// It returns what doveconf says then, in order; of each group at most one is an error.
func (v *View) Checks(opt Options) []Remark {
	p := newParser(v.cfg.Path, opt)
	p.cfg, p.schema = v.cfg, v.cfg.schema
	return p.checkView(v, nil)
}

// Root is the group of settings that r is about (all.Selection).
func (r Remark) Root() string { return groups[r.group].root }

// sslOff is clause C10.12: it looks at what the filter itself sets.
func (p *parser) sslOff(s *Scope) string {
	global, ok := p.cfg.Root.Get("ssl")
	own, set := s.Get("ssl")
	if !ok || global.Value != "no" || !set || own.Value == "no" {
		return ""
	}
	text := fmt.Sprintf("SSL is disabled because global ssl=no, ignoring ssl=%s for subsection", own.Value)
	if !p.said(text, own.Last.Range.Range) {
		p.checkWarn(own.Last.Range, text, "")
	}
	return text
}

// fail notes a failed check at r, or nowhere if that is the zero Range. The same failure
// in another filter is not noted again.
func (c *checker) fail(r hcl.Range, text, detail string) {
	if !c.failed {
		c.failed = true
		c.remarks = append(c.remarks, Remark{Level: "Error", Text: text})
	}
	if !c.p.said(text, r) {
		c.p.atEnd(Range{Range: r, Line: r.End.Line}, text, detail)
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
	for _, name := range []string{"log_debug", "log_core_filter", "process_shutdown_filter"} {
		if v := c.v.Value(name); v != "" {
			if bad := eventFilter(v, false); bad != "" {
				c.fail(c.v.Range(name), fmt.Sprintf("Invalid %s: event filter: %s", name, bad), eventFilterHelp)
			}
		}
	}
}

func (c *checker) ssl() {
	if c.v.Value("ssl") != "no" && c.v.Value("ssl_verify_client_cert") == "yes" && c.v.Value("ssl_ca") == "" {
		c.fail(c.v.Range("ssl_verify_client_cert"), "ssl_verify_client_cert set, but ssl_ca not",
			"`ssl_ca = <file` names the authorities that sign the clients' certificates.")
	}
	if c.v.Value("ssl") == "no" {
		return
	}
	for _, w := range split(c.v.Value("ssl_options"), " ,") {
		if !slices.Contains([]string{"compression", "no_compression", "no_ticket"}, strings.ToLower(w)) {
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
	if v.Value("auth_policy_server_url") != "" {
		bits := hashBits[v.Value("auth_policy_hash_mech")]
		switch truncate := number(v.Value("auth_policy_hash_truncate")); {
		case v.Value("auth_policy_hash_nonce") == "":
			c.fail(v.Range("auth_policy_server_url"), "auth_policy_hash_nonce must be set when policy server is used", "")
		case bits == 0:
			c.fail(v.Range("auth_policy_hash_mech"), "invalid auth_policy_hash_mech given", "A hash such as sha256.")
		case truncate >= bits:
			c.fail(v.Range("auth_policy_hash_truncate"), fmt.Sprintf("policy_hash_truncate is not smaller than digest size (%d >= %d)", truncate, bits), "0 is the whole hash.")
		}
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
	for _, w := range v.Protocols() {
		if !known[w] {
			c.fail(v.Range("protocols"), "protocols: Unknown protocol: "+w, "Protocols are separated by blanks; each needs a service with `protocol = name`.")
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
					c.warn(Range{Range: l.Range, Line: l.Range.End.Line}, Remark{Text: text}, text, "Write `"+rest+"`.")
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
func (c *checker) warn(at Range, r Remark, text, detail string) {
	if r.Level = "Warning"; !c.failed {
		c.remarks = append(c.remarks, r)
	}
	if !c.p.said(text, at.Range) {
		c.p.checkWarn(at, text, detail)
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
	if own := parseSize(reader{c.v, s.block}.str("vsz_limit")); own < minVSZ && own != 0 {
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
		limit := reader{c.v, s.block}.uintOr("client_limit", "default_client_limit") // not cut to service_count
		start := fmt.Sprintf("service %s { client_limit=%d } is lower than required under max. load", s.Name, limit)
		if uint64(limit) >= l.sum {
			continue
		}
		at := s.At("client_limit")
		all := strings.Join(l.parts, " + ")
		c.warn(Range{Range: at, Line: at.End.Line}, Remark{Text: fmt.Sprintf("%s (%d). %s: %s", start, l.sum, counted, all), Once: true},
			fmt.Sprintf("%s (%d)", start, l.sum), counted+": "+all)
	}
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}
