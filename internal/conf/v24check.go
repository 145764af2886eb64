package conf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf/settings"
)

// The checks of clause C16 in 2.4: of the global settings and of each filter. Those of
// services and protocols run only when variables are put in.

type checker24 struct {
	q      *parser24
	n      *Node
	global bool
	failed *bool // in this group: Dovecot stops at the first
}

func (q *parser24) check24() {
	root := q.c.Merged(Filter{}, false, true)
	q.checks24(root, true)
	if q.opt.Expand {
		c := checker24{q, root, true, new(bool)}
		c.services()
	}
}

func (q *parser24) checks24(n *Node, global bool) {
	for _, f := range []func(*checker24){(*checker24).logging, (*checker24).ssl, (*checker24).oauth2,
		(*checker24).auth, (*checker24).ids, (*checker24).workarounds} {
		f(&checker24{q, n, global, new(bool)})
	}
	for _, child := range n.Children {
		if child.Kind == ClientNode {
			q.checks24(child, false)
		}
	}
}

// fail notes a failed check of setting name; copies is how often doveconf says it.
func (c *checker24) fail(name string, copies int, text, detail string) {
	var at hcl.Range
	for up := c.n; up != nil; up = up.Parent {
		if s, ok := up.Get(name); ok {
			at = s.Seen.Range
			break
		}
	}
	if c.q.said(text, at) {
		return
	}
	c.q.atEnd(Range{Range: at, Line: at.End.Line}, text, detail)
	if *c.failed {
		return
	}
	*c.failed = true
	for range copies {
		c.q.c.Checked = append(c.q.c.Checked, Remark{Level: "Error", Text: text})
	}
}

func (c *checker24) get(name string) (string, bool) { return c.q.c.Find(c.n, name) }

func (c *checker24) logging() {
	if f, ok := c.get("syslog_facility"); ok && !slices.Contains(facilities, f) {
		c.fail("syslog_facility", 1, "Unknown syslog_facility: "+f, "One of "+strings.Join(facilities, ", ")+".")
	}
}

func (c *checker24) ssl() {
	ssl, _ := c.get("ssl")
	cert, ok := c.get("ssl_server_request_client_cert")
	if ca, known := c.get("ssl_server_ca_file"); ok && known && cert == "yes" && ca == "" && ssl != "no" {
		c.fail("ssl_server_request_client_cert", 1, "ssl_server_request_client_cert=yes, but ssl_server_ca_file not provided",
			"`ssl_server_ca_file` names the authorities that sign the clients' certificates.")
	}
	switch v, ok := c.get("ssl_min_protocol"); {
	case ok && v == "":
		c.fail("ssl_min_protocol", 1, "ssl_min_protocol cannot be empty", "TLSv1.2 or TLSv1.3.")
	case ok && v == "ANY" && c.global:
		const text = "ssl_min_protocol=ANY is used - This is insecure and intended only for testing"
		s, _ := c.n.Get("ssl_min_protocol")
		c.q.warn(s.Seen, text, text, "")
	}
	options, _ := c.get("ssl_options")
	for _, w := range words(options) {
		if w != "compression" && w != "no_ticket" {
			c.fail("ssl_options", 1, fmt.Sprintf("ssl_options: unknown flag: '%s'", w), "The flags are compression and no_ticket.")
		}
	}
}

func (c *checker24) oauth2() {
	n := c.n
	if o := c.n.Child("oauth2", ""); o != nil {
		n = o
	}
	id, ok1 := c.q.c.Find(n, "oauth2_client_id")
	secret, ok2 := c.q.c.Find(n, "oauth2_client_secret")
	if ok1 && ok2 && (id == "") != (secret == "") {
		c.fail("oauth2_client_secret", 1, "oauth2_client_id and oauth2_client_secret must be provided together", "")
	}
}

func (c *checker24) auth() {
	if v, ok := c.get("auth_cache_size"); ok {
		if n, err := settings.ParseSize(v); err == nil && n > 0 && n < 1024 {
			c.fail("auth_cache_size", 1, fmt.Sprintf("auth_cache_size value is too small (%d bytes)", n), "It is a size such as 1M, or 0 for no cache.")
		}
	}
	url, ok1 := c.get("auth_policy_server_url")
	nonce, ok2 := c.get("auth_policy_hash_nonce")
	if ok1 && ok2 && url != "" && nonce == "" {
		c.fail("auth_policy_server_url", 1, "auth_policy_hash_nonce must be set when policy server is used", "")
	}
	if v, ok := c.get("auth_verbose_passwords"); ok {
		word, num, cut := strings.Cut(v, ":")
		if n, err := settings.ParseUint(num); cut && (err != nil || n == 0) {
			c.fail("auth_verbose_passwords", 1, fmt.Sprintf("auth_verbose_passwords: Invalid truncation number: '%s'", num), "")
		} else if !slices.Contains([]string{"no", "plain", "sha1", "yes"}, word) {
			c.fail("auth_verbose_passwords", 1, "auth_verbose_passwords: Invalid value", "")
		}
	}
}

func (c *checker24) ids() {
	for _, id := range []string{"uid", "gid"} {
		first, ok1 := c.get("first_valid_" + id)
		last, ok2 := c.get("last_valid_" + id)
		if !ok1 || !ok2 || last == "unlimited" || last == "infinite" {
			continue
		}
		switch hi, lo := number(last), number(first); {
		case hi == 0:
			c.fail("last_valid_"+id, 3, fmt.Sprintf("last_valid_%s must not be 0", id), "`unlimited` is no limit.")
		case lo > hi:
			c.fail("last_valid_"+id, 1, fmt.Sprintf("first_valid_%[1]s can't be larger than last_valid_%[1]s", id), "")
		}
	}
}

func (c *checker24) workarounds() {
	const name = "submission_client_workarounds"
	known := []string{"whitespace-before-path", "mailbox-for-path", "implicit-auth-external", "exotic-backend"}
	v, _ := c.get(name)
	for _, w := range strings.Fields(v) {
		if !slices.Contains(known, strings.ToLower(w)) {
			c.fail(name, 2, name+": Unknown workaround: "+w, "One of "+strings.Join(known, ", ")+".")
		}
	}
}

// services checks what the master reads.
func (c *checker24) services() {
	listen, _ := c.get("listen")
	if listen == "" {
		c.fail("listen", 1, "listen can't be set empty", "`*` is any IPv4 address, `::` any IPv6 address.")
	}
	protocols, _ := c.get("protocols")
	enabled := strings.Fields(protocols)
	known := map[string]bool{"sieve": true} // a plug-in's, whose services are not in the table
	for _, s := range c.n.Children {
		if s.Type == "service" {
			known[s.Value("service_protocol")] = true
		}
	}
	for _, p := range enabled {
		if p != "none" && !known[p] {
			c.fail("protocols", 1, "protocols: Unknown protocol: "+p, "Each protocol needs a service with `protocol = name`.")
		}
	}
	base, _ := c.get("base_dir")
	seen := map[string]bool{}
	for _, s := range c.n.Children {
		if p := s.Value("service_protocol"); s.Type == "service" && (p == "" || slices.Contains(enabled, p)) {
			c.service(s)
			c.listeners(s, base, seen)
		}
	}
}

// uint24 is a number of a service; ok is false if it is unlimited or not known.
func (c *checker24) uint24(s *Node, name string) (uint64, bool) {
	v, ok := c.q.c.Find(s, name)
	if def, ref := strings.CutPrefix(v, "$SET:"); ref {
		v, ok = c.get(def)
	}
	return number(v), ok && v != "unlimited" && v != "infinite"
}

func (c *checker24) service(s *Node) {
	in := checker24{c.q, s, true, c.failed}
	for _, name := range []string{"process_limit", "client_limit", "restart_request_count"} {
		if v, ok := c.uint24(s, "service_"+name); ok && v == 0 {
			in.fail("service_"+name, 1, fmt.Sprintf("service(%s): %s must be higher than 0", s.Name, name), "`unlimited` is no limit.")
		}
	}
	least, _ := c.uint24(s, "service_process_min_avail")
	limit, ok := c.uint24(s, "service_process_limit")
	if ok && least > limit {
		in.fail("service_process_min_avail", 1, fmt.Sprintf("service(%s): process_min_avail is higher than process_limit", s.Name), "")
	}
	if (!ok || limit > 1) && slices.Contains(single, s.Name) {
		if _, set := s.Get("service_process_limit"); set {
			in.fail("service_process_limit", 1, fmt.Sprintf("service(%s): process_limit must be 1", s.Name), "")
		}
	}
	if v, ok := c.q.c.Find(s, "service_vsz_limit"); ok {
		if n, err := settings.ParseSize(v); err == nil && n < minVSZ && n != 0 {
			in.fail("service_vsz_limit", 1, fmt.Sprintf("service(%s): vsz_limit is too low", s.Name), "At least 1M.")
		}
	}
	if v, _ := c.q.c.Find(s, "service_drop_priv_before_exec"); v == "yes" && s.Value("service_chroot") != "" {
		in.fail("service_drop_priv_before_exec", 1, fmt.Sprintf("service(%s): drop_priv_before_exec=yes can't be used with chroot", s.Name), "")
	}
}

func (c *checker24) listeners(s *Node, base string, seen map[string]bool) {
	duplicate := func(l *Node, name string) {
		if seen[name] {
			in := checker24{c.q, l, true, c.failed}
			in.fail(l.Type+"_port", 1, "duplicate listener: "+name, "Another service, or this one, listens there already.")
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
