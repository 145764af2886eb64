package conf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf/settings"
	"dovetail/internal/conf/settings/all"
)

// The checks of clause C16 in 2.4. They run for each block by itself that sets something
// of their group, without what is around it; for the root always. Those of services run
// only when variables are put in.

type checker24 struct {
	q      *parser24
	n      *Node
	failed bool // Dovecot stops at the first failure of a group
}

// A group24 is one of Dovecot's tables of settings that has a check.
type group24 struct {
	keys string // the settings it has, or prefix_*
	run  func(*checker24)
}

// groups24 in Dovecot's order.
var groups24 = []group24{
	{"oauth2_*", (*checker24).oauth2},
	{"auth_* base_dir verbose_proctitle first_valid_uid last_valid_uid first_valid_gid last_valid_gid passdb userdb", (*checker24).auth},
	{"imap_client_workarounds imap_logout_format imap_fetch_failure", func(c *checker24) {
		c.workarounds("imap_client_workarounds", "delay-newmail", "tb-extra-mailbox-sep", "tb-lsub-flags")
	}},
	{"lmtp_*", func(c *checker24) {
		c.workarounds("lmtp_client_workarounds", "whitespace-before-path", "mailbox-for-path")
	}},
	{"base_dir mail_temp_dir mail_debug mail_uid mail_gid mail_home mail_chroot mail_access_groups mail_privileged_group valid_chroot_dirs first_valid_uid " +
		"last_valid_uid first_valid_gid last_valid_gid mail_plugins mail_plugin_dir mail_log_prefix namespace hostname postmaster_address auth_socket_path", (*checker24).mailUser},
	{"base_dir state_dir instance_name log_path info_log_path debug_log_path log_timestamp log_debug log_core_filter process_shutdown_filter syslog_facility " +
		"stats_writer_socket_path auth_master_socket_path dovecot_storage_version version_ignore shutdown_clients verbose_proctitle haproxy_trusted_networks haproxy_timeout import_environment", (*checker24).logging},
	{"base_dir state_dir libexec_dir instance_name protocols listen ssl default_internal_user default_internal_group default_login_user default_process_limit " +
		"default_client_limit default_idle_kill_interval default_vsz_limit version_ignore first_valid_uid last_valid_uid first_valid_gid last_valid_gid service", (*checker24).master},
	{"pop3_*", func(c *checker24) {
		c.workarounds("pop3_client_workarounds", "outlook-no-nuls", "oe-ns-eoh")
	}},
	{"ssl ssl_server_*", (*checker24).sslServer},
	{"ssl_client_* ssl_cipher_list ssl_cipher_suites ssl_curve_list ssl_min_protocol ssl_crypto_device ssl_options ssl_peer_certificate_fingerprint_hash", (*checker24).ssl},
	{"event_exporter_name", (*checker24).exporter},
	{"metric_name", (*checker24).metric},
	{"hostname mail_utf8_extensions submission_max_mail_size submission_client_workarounds submission_backend_capabilities", (*checker24).submission},
	{"submission_* verbose_proctitle rawlog_dir hostname login_greeting login_trusted_networks recipient_delimiter mail_utf8_extensions imap_urlauth_host imap_urlauth_port", (*checker24).submission},
}

// has says whether n sets something of the group.
func (g *group24) has(n *Node) bool {
	for key := range strings.FieldsSeq(g.keys) {
		prefix, wild := strings.CutSuffix(key, "*")
		if n.Kind == ElementNode && key == n.Type+"_name" {
			return true // the head sets it
		}
		for _, s := range n.Settings {
			if s.Row.Name == key || wild && strings.HasPrefix(s.Row.Name, prefix) {
				return true
			}
		}
		if slices.ContainsFunc(n.Children, func(c *Node) bool { return c.Kind == ElementNode && c.Type == key }) {
			return true
		}
	}
	return false
}

// check24 checks all blocks: the less specific ones first.
func (q *parser24) check24() {
	var nodes []*Node
	var add func(n *Node)
	add = func(n *Node) {
		if n.Kind == GroupNode {
			return
		}
		nodes = append(nodes, n)
		for _, c := range n.Children {
			add(c)
		}
	}
	root := q.c.Merged(Merge24{Groups: true})
	if !q.opt.Around {
		q.c.intoFilters(root)
	}
	add(root)
	slices.SortStableFunc(nodes, func(a, b *Node) int {
		la, na := a.nesting()
		lb, nb := b.nesting()
		return cmp.Or(la-lb, na-nb)
	})
	global, _ := q.c.Root.Get("ssl")
	for i, n := range nodes {
		if own, ok := n.Get("ssl"); ok && i > 0 && global != nil && global.Value == "no" && own.Value != "no" {
			text := fmt.Sprintf("SSL is disabled because global ssl=no, ignoring ssl=%s for subsection", own.Value)
			q.warn(own.Seen, text, text, "")
			global = nil // once
		}
		for g := range groups24 {
			if i == 0 || groups24[g].has(n) {
				groups24[g].run(&checker24{q: q, n: n})
			}
		}
	}
}

// intoFilters moves settings that belong to named filters by their names into these.
func (c *Config24) intoFilters(n *Node) {
	var keep []*Setting24
	for _, s := range n.Settings {
		f := c.NamedFilter(n, s.Row.Name)
		if f == "" {
			keep = append(keep, s)
			continue
		}
		in := n.child(NamedNode, f, "")
		*in.setting(s.Row) = *s
		delete(n.byKey, s.Row.Name)
	}
	n.Settings = keep
	for _, child := range n.Children {
		if child.Kind != GroupNode {
			c.intoFilters(child)
		}
	}
}

// nesting is how many blocks with and without names n is in.
func (n *Node) nesting() (named, plain int) {
	for ; n != nil; n = n.Parent {
		switch n.Kind {
		case ElementNode:
			named++
		case NamedNode:
			plain++
		}
	}
	return named, plain
}

// fail notes a failed check of setting name.
func (c *checker24) fail(name, text, detail string) {
	var at hcl.Range
	if s, ok := c.n.Get(name); ok {
		at = s.Seen.Range
	} else if len(c.n.Open) > 0 {
		at = c.n.Open[0].Range
	}
	if !c.failed {
		c.failed = true
		c.q.c.Checked = append(c.q.c.Checked, Remark{Level: "Error", Text: text})
	}
	if !c.q.said(text, at) {
		c.q.atEnd(Range{Range: at, Line: at.End.Line}, text, detail)
	}
}

// unknownValue is what Dovecot's checks see in place of a text with variables.
const unknownValue = "UNKNOWN_VALUE_WITH_VARIABLES"

// get is the value of a setting in the block itself, or the default.
func (c *checker24) get(name string) (string, bool) {
	row, ok := c.q.t.Row(name)
	if !ok {
		return "", false
	}
	if s, ok := c.n.Get(name); ok {
		v := s.text()
		variable := strings.Contains(v, "%{") || !c.q.opt.Expand && (strings.Contains(v, "$SET:") || strings.Contains(v, "$ENV:"))
		switch {
		case !variable || row.Shape != all.Value || row.Type == settings.Str || row.Type == settings.File:
			return v, true
		case row.Type == settings.StrVars || row.Type == settings.Enum:
			return unknownValue, true
		}
		return row.Default, true // of numbers nothing is known
	}
	if c.n.Kind == RootNode {
		return c.q.c.Default(row), true
	}
	if row.Shape == all.BoolList {
		return "", true
	}
	return row.Default, true
}

func (c *checker24) logging() {
	if f, ok := c.get("syslog_facility"); ok && !slices.Contains(facilities, f) {
		c.fail("syslog_facility", "Unknown syslog_facility: "+f, "One of "+strings.Join(facilities, ", ")+".")
	}
	for _, name := range []string{"log_debug", "log_core_filter", "process_shutdown_filter"} {
		if v, ok := c.get(name); ok && v != "" {
			if bad := eventFilter(v, true); bad != "" {
				c.fail(name, fmt.Sprintf("Invalid %s: event filter: %s", name, bad), eventFilterHelp)
			}
		}
	}
}

func (c *checker24) sslServer() {
	ssl, _ := c.get("ssl")
	cert, ok := c.get("ssl_server_request_client_cert")
	if ca, known := c.get("ssl_server_ca_file"); ok && known && cert == "yes" && ca == "" && ssl != "no" {
		c.fail("ssl_server_request_client_cert", "ssl_server_request_client_cert=yes, but ssl_server_ca_file not provided",
			"`ssl_server_ca_file` names the authorities that sign the clients' certificates.")
	}
}

func (c *checker24) ssl() {
	switch v, ok := c.get("ssl_min_protocol"); {
	case ok && v == "":
		c.fail("ssl_min_protocol", "ssl_min_protocol cannot be empty", "TLSv1.2 or TLSv1.3.")
	case ok && strings.Contains(strings.ToUpper(v), "ANY"):
		const text = "ssl_min_protocol=ANY is used - This is insecure and intended only for testing"
		s, _ := c.n.Get("ssl_min_protocol")
		c.q.warn(s.Seen, text, text, "")
	}
	options, _ := c.get("ssl_options")
	for _, w := range split(options, ", ") {
		if l := strings.ToLower(w); l != "compression" && l != "no_ticket" {
			c.fail("ssl_options", fmt.Sprintf("ssl_options: unknown flag: '%s'", w), "The flags are compression and no_ticket.")
		}
	}
}

func (c *checker24) oauth2() {
	id, ok1 := c.get("oauth2_client_id")
	secret, ok2 := c.get("oauth2_client_secret")
	if ok1 && ok2 && (id == "") != (secret == "") {
		c.fail("oauth2_client_secret", "oauth2_client_id and oauth2_client_secret must be provided together", "")
	}
}

func (c *checker24) lastIDs() {
	for _, name := range []string{"last_valid_uid", "last_valid_gid"} {
		if v, ok := c.get(name); ok && v != "unlimited" && v != "infinite" && number(v) == 0 {
			c.fail(name, name+" must not be 0", "`unlimited` is no limit.")
		}
	}
}

func (c *checker24) auth() {
	c.lastIDs()
	if v, ok := c.get("auth_cache_size"); ok {
		if n, err := settings.ParseSize(v); err == nil && n > 0 && n < 1024 {
			c.fail("auth_cache_size", fmt.Sprintf("auth_cache_size value is too small (%d bytes)", n), "It is a size such as 1M, or 0 for no cache.")
		}
	}
	if v, ok := c.get("auth_verbose_passwords"); ok {
		word, num, cut := strings.Cut(v, ":")
		if n, err := settings.ParseUint(num); cut && (err != nil || n == 0) {
			c.fail("auth_verbose_passwords", fmt.Sprintf("auth_verbose_passwords: Invalid truncation number: '%s'", num), "")
		} else if !slices.Contains([]string{"no", "plain", "sha1", "yes"}, word) {
			c.fail("auth_verbose_passwords", "auth_verbose_passwords: Invalid value", "")
		}
	}
	url, ok1 := c.get("auth_policy_server_url")
	nonce, ok2 := c.get("auth_policy_hash_nonce")
	if !ok1 || !ok2 || url == "" {
		return
	}
	mech, ok := c.get("auth_policy_hash_mech")
	truncate, _ := c.get("auth_policy_hash_truncate")
	switch bits := hashBits[mech]; {
	case nonce == "":
		c.fail("auth_policy_server_url", "auth_policy_hash_nonce must be set when policy server is used", "")
	case ok && bits == 0:
		c.fail("auth_policy_hash_mech", "invalid auth_policy_hash_mech given", "")
	case ok && number(truncate) >= bits:
		c.fail("auth_policy_hash_truncate", fmt.Sprintf("policy_hash_truncate is not smaller than digest size (%d >= %d)", number(truncate), bits), "")
	}
}

// mailUser does not look whether mail_plugin_dir exists: that of a 2.4 built from its
// sources is hardly ever there.
func (c *checker24) mailUser() { c.lastIDs() }

func (c *checker24) workarounds(name string, known ...string) {
	v, _ := c.get(name)
	for _, w := range strings.Fields(v) {
		if !slices.Contains(known, strings.ToLower(w)) {
			c.fail(name, name+": Unknown workaround: "+w, "One of "+strings.Join(known, ", ")+".")
		}
	}
}

func (c *checker24) submission() {
	c.workarounds("submission_client_workarounds", "whitespace-before-path", "mailbox-for-path", "implicit-auth-external", "exotic-backend")
}

func (c *checker24) exporter() {
	name := c.n.Name
	if c.n.Type != "event_exporter" || name == "" {
		return
	}
	if v, ok := c.get("event_exporter_format"); ok && v == "" {
		c.fail("event_exporter_format", "Exporter format name can't be empty", "json or tab-text.")
	} else if ok && !slices.Contains([]string{"none", "json", "tab-text"}, v) {
		c.fail("event_exporter_format", fmt.Sprintf("Unknown exporter format '%s'", v), "json or tab-text.")
	}
}

func (c *checker24) metric() {
	if c.n.Type != "metric" || c.n.Name == "" {
		return
	}
	if v, ok := c.get("metric_filter"); ok && v == "" {
		c.fail("metric_filter", fmt.Sprintf("metric %s { filter } is empty - will not match anything", c.n.Name), eventFilterHelp)
	} else if bad := eventFilter(v, true); ok && bad != "" {
		c.fail("metric_filter", "event filter: "+bad, eventFilterHelp)
	}
}

func (c *checker24) master() {
	for _, id := range []string{"uid", "gid"} {
		first, ok1 := c.get("first_valid_" + id)
		last, ok2 := c.get("last_valid_" + id)
		if !ok1 || !ok2 || last == "unlimited" || last == "infinite" {
			continue
		}
		switch hi, lo := number(last), number(first); {
		case hi == 0:
			c.fail("last_valid_"+id, fmt.Sprintf("last_valid_%s must not be 0", id), "`unlimited` is no limit.")
		case lo > hi:
			c.fail("last_valid_"+id, fmt.Sprintf("first_valid_%[1]s can't be larger than last_valid_%[1]s", id), "")
		}
	}
	switch {
	case c.n.Kind != RootNode:
		if listen, _ := c.get("listen"); listen == "" && slices.ContainsFunc(c.n.Children, func(x *Node) bool { return x.Type == "service" }) {
			c.fail("listen", "listen can't be set empty", "A service cannot be changed for certain clients only.")
		}
	case c.q.opt.Expand:
		whole := checker24{q: c.q, n: c.q.c.Merged(Merge24{Builtin: true, Groups: true}), failed: c.failed}
		whole.services()
	}
}

// types24 are the types of services.
var types24 = []string{"", "log", "config", "anvil", "login", "startup", "worker"}

// services checks the services with what is built in.
func (c *checker24) services() {
	protocols, _ := c.get("protocols")
	enabled := strings.Fields(protocols)
	known := map[string]bool{"sieve": true} // a plug-in's, whose services are not in the table
	var services, builtin []*Node
	for _, s := range c.n.Children {
		if s.Type == "service" {
			known[s.Value("service_protocol")] = true
			if c.q.c.Builtin.Child("service", s.Name) != nil {
				builtin = append(builtin, s)
			} else {
				services = append(services, s)
			}
		}
	}
	services = append(builtin, services...)
	for i, s := range services {
		typ, _ := c.q.c.Find(s, "service_type")
		switch {
		case s.Name == "":
			c.fail("service", fmt.Sprintf("Service #%d is missing name", i), "`service NAME {`")
		case !slices.Contains(types24, typ):
			c.in(s, func(in *checker24) {
				in.fail("service_type", "Unknown service type: "+typ, "One of login, worker, startup, log, config, anvil, or none.")
			})
		}
	}
	for _, p := range enabled {
		if p != "none" && !known[p] {
			c.fail("protocols", "protocols: Unknown protocol: "+p, "Each protocol needs a service with `protocol = name`.")
		}
	}
	base, _ := c.get("base_dir")
	seen := map[string]bool{}
	for _, s := range services {
		if p := s.Value("service_protocol"); p == "" || slices.Contains(enabled, p) {
			c.in(s, (*checker24).service)
		}
	}
	for _, s := range services {
		if p := s.Value("service_protocol"); p == "" || slices.Contains(enabled, p) {
			c.listeners(s, base, seen)
		}
	}
}

// in runs f for another block, as a part of the same group.
func (c *checker24) in(n *Node, f func(*checker24)) {
	in := checker24{q: c.q, n: n, failed: c.failed}
	f(&in)
	c.failed = in.failed
}

// uint is a number of a service; ok is false if it is unlimited or not known.
func (c *checker24) uint(name string) (uint64, bool) {
	v, ok := c.q.c.Find(c.n, name)
	if def, ref := strings.CutPrefix(v, "$SET:"); ref {
		v, ok = c.q.c.Find(c.n, def)
	}
	return number(v), ok && v != "unlimited" && v != "infinite"
}

// service checks the service c.n.
func (c *checker24) service() {
	s := c.n
	fail := func(key, text, detail string) {
		c.fail("service_"+key, fmt.Sprintf("service(%s): %s", s.Name, text), detail)
	}
	const unlimited = "`unlimited` is no limit."
	if v, _ := c.q.c.Find(s, "service_drop_priv_before_exec"); v == "yes" && s.Value("service_chroot") != "" {
		fail("drop_priv_before_exec", "drop_priv_before_exec=yes can't be used with chroot", "")
	}
	limit, limited := c.uint("service_process_limit")
	least, _ := c.uint("service_process_min_avail")
	clients, ok := c.uint("service_client_limit")
	if limited && limit == 0 {
		fail("process_limit", "process_limit must be higher than 0", unlimited)
	}
	if limited && least > limit {
		fail("process_min_avail", "process_min_avail is higher than process_limit", "")
	}
	if ok && clients == 0 {
		fail("client_limit", "client_limit must be higher than 0", unlimited)
	}
	if n, ok := c.uint("service_restart_request_count"); ok && n == 0 {
		fail("restart_request_count", `restart_request_count must be higher than 0 (did you mean "unlimited"?)`, unlimited)
	}
	if v, ok := c.q.c.Find(s, "service_idle_kill_interval"); ok {
		if d, err := settings.ParseTime(v); err == nil && d == 0 {
			fail("idle_kill_interval", `idle_kill_interval must be higher than 0 (did you mean "unlimited"?)`, unlimited)
		}
	}
	if v, ok := c.q.c.Find(s, "service_vsz_limit"); ok {
		if n, err := settings.ParseSize(v); err == nil && n < minVSZ {
			fail("vsz_limit", `vsz_limit is too low (did you mean "unlimited"?)`, "At least 1M.")
		}
	}
	if v, _ := c.q.c.Find(s, "service_reuse_port"); v == "yes" && (!limited || least != limit) {
		fail("reuse_port", "process_min_avail must be equal to process_limit when using service_reuse_port=yes", "")
	}
	if _, set := s.Get("service_process_limit"); set && (!limited || limit > 1) && slices.Contains(single, s.Name) {
		fail("process_limit", "process_limit must be 1", "")
	}
}

func (c *checker24) listeners(s *Node, base string, seen map[string]bool) {
	duplicate := func(l *Node, name string) {
		if seen[name] {
			c.in(l, func(in *checker24) {
				in.fail(l.Type+"_port", "duplicate listener: "+name, "Another service, or this one, listens there already.")
			})
		}
		seen[name] = true
	}
	for _, l := range s.Children {
		switch l.Type {
		case "inet_listener":
			port, ok := c.q.c.Find(l, "inet_listener_port")
			if n := number(port); ok && n != 0 {
				addresses, _ := c.q.c.Find(l, "listen")
				for _, a := range strings.Fields(addresses) {
					duplicate(l, fmt.Sprintf("%d:%s", n, a))
				}
			}
		case "unix_listener", "fifo_listener":
			mode, _ := c.q.c.Find(l, l.Type+"_mode")
			if m, err := settings.ParseOctal(mode); err == nil && m == 0 || strings.Contains(l.Name, "%{") {
				continue
			}
			path := l.Name
			if !strings.HasPrefix(path, "/") {
				path = strings.TrimSuffix(base, "/") + "/" + path
			}
			duplicate(l, path)
		}
	}
}
