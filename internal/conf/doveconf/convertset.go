package doveconf

import (
	"slices"
	"strings"

	"dovetail/internal/conf"
	"dovetail/internal/conf/settings"
	"dovetail/internal/conf/settings/all"
)

// set converts a line key = value.
func (c *converter) set(l conf.SourceLine) {
	b := c.top()
	switch {
	case b.kind == inAuth:
		b.auth.set(l)
		return
	case b.kind == inPlugin:
		c.plugin(l, l.Key)
		return
	case strings.Contains(l.Key, "/"):
		c.slashes(l)
		return
	}
	c.setting(l, b.node, "", l.Key)
}

// slashes is a key service/x/client_limit.
func (c *converter) slashes(l conf.SourceLine) {
	parts := strings.Split(l.Key, "/")
	if parts[0] == "plugin" {
		c.plugin(l, strings.Join(parts[1:], "/"))
		return
	}
	n := c.top().node
	prefix := ""
	for len(parts) > 2 {
		row, ok := conf.Resolve24(c.t, n, parts[0])
		if !ok || row.Shape != all.ListFilter || parts[0] == "passdb" || parts[0] == "userdb" {
			c.lost(l, "2.4 does not have this section")
			return
		}
		n = &conf.Node{Kind: conf.ElementNode, Type: row.Name, Name: conf.Unescape(parts[1]), Parent: n}
		prefix += parts[0] + "/" + parts[1] + "/"
		parts = parts[2:]
	}
	if len(parts) != 1 {
		c.lost(l, "2.4 does not have it")
		return
	}
	c.setting(l, n, prefix, parts[0])
}

// plugin is a setting of a plug-in, which stands outside of sections in 2.4.
func (c *converter) plugin(l conf.SourceLine, key string) {
	row, ok := c.t.Row(key)
	if !ok || row.Shape != all.Value {
		c.lost(l, "the plug-in's settings have other names in 2.4")
		return
	}
	c.emit(l, c.top().node, "", key, row)
}

// setting converts one setting that stands in n; prefix is the path before it.
func (c *converter) setting(l conf.SourceLine, n *conf.Node, prefix, key string) {
	if special := specialSettings[key]; special != nil && special(c, l, n, prefix) {
		return
	}
	renamed, changed := all.Renamed[key]
	if changed && len(n.Type) > 0 != inSections[key] {
		changed = false
	}
	name := key
	if changed && renamed.To != "" {
		name = renamed.To
	}
	row, ok := conf.Resolve24(c.t, n, name)
	switch {
	case changed && renamed.To == "":
		c.lost(l, renamed.Help())
	case strings.Contains(name, "{"):
		c.lost(l, renamed.Help())
	case !ok || row.Shape == all.NamedFilter || row.Shape == all.ListFilter:
		c.lost(l, gone(key, n.Type))
	default:
		c.emit(l, n, prefix, name, row)
	}
}

// gone says why a setting has no counterpart.
func gone(key, typ string) string {
	if strings.HasPrefix(key, "director_") {
		return "there is no director in 2.4"
	}
	if _, ok := conf.Dovecot23Sieve().Setting(key); !ok && typ == "" {
		return "a setting of Dovecot 1, which 2.3 still reads: see what `doveconf-lite -n` makes of it"
	}
	return "2.4 does not have it"
}

// inSections are the renamed settings that stand inside sections.
var inSections = map[string]bool{
	"service_count": true, "idle_kill": true, "address": true, "args": true, "default_fields": true, "override_fields": true, "mechanisms": true,
}

// emit writes the line name = value, or a block, for a setting that 2.4 has.
func (c *converter) emit(l conf.SourceLine, n *conf.Node, prefix, name string, row *all.Row24) {
	how := all.Renamed[l.Key].How
	value := l.Value
	if l.Form == conf.FromFile {
		value = c.path(l)
	}
	switch {
	case l.Form == conf.FromFile && row.Type == settings.File && row.Shape == all.Value:
		c.out(l.Indent, prefix+name+" = "+value, l.Comment)
		return
	case l.Form == conf.FromFile:
		c.out(l.Indent, prefix+name+" = <"+value, l.Comment)
		return
	case row.Shape == all.BoolList:
		c.list(l, prefix+name, row)
		return
	case row.Shape == all.StrList:
		c.lost(l, "in 2.4 it is a block `"+name+" { key = value }`")
		return
	case row.Type == settings.File && value != "":
		if strings.Contains(value, "-----BEGIN") {
			value = "inline:" + value
		}
	}
	if how == "not" {
		value = negate(value)
	}
	if how == "ciphers" {
		value = map[bool]string{true: "server", false: "client"}[isYes(value)]
	}
	if (how == "unlimited" || name == "vsz_limit" || name == "default_vsz_limit") && isZero(value) {
		value = "unlimited"
	}
	// 2.4 refuses 0 where it meant the default.
	if n.Type == "service" && (name == "process_limit" || name == "client_limit") && isZero(value) {
		c.out(l.Indent, "# "+name+" = 0 is the default; 2.4 does not take it", l.Comment)
		return
	}
	if how == "unlimited" && n.Type == "service" && value == "infinite" {
		value = "unlimited"
	}
	text, ok := c.value(l, value, row)
	if ok {
		c.out(l.Indent, prefix+name+" = "+text, l.Comment)
	}
}

// path is the file of a value: relative to the file that the line stands in, which may be
// an included one, and in the result relative to the main file.
func (c *converter) path(l conf.SourceLine) string {
	if strings.HasPrefix(l.Value, "/") {
		return l.Value
	}
	dir := func(file string) string { return file[:strings.LastIndexByte(file, '/')+1] }
	return strings.TrimPrefix(dir(l.File)+l.Value, dir(c.main))
}

func isYes(v string) bool {
	b, err := settings.ParseBool(v)
	return err == nil && b
}

func negate(v string) string {
	b, err := settings.ParseBool(v)
	if err != nil {
		return v
	}
	return settings.FormatBool(!b)
}

func isZero(v string) bool {
	n, err := settings.ParseSize(v)
	return err == nil && n == 0
}

// value writes a value as 2.4 reads it. ok is false if it cannot be; the line is lost then.
func (c *converter) value(l conf.SourceLine, v string, row *all.Row24) (string, bool) {
	if l.Form == conf.Variable {
		var bad string
		if v, bad = c.variables(l, v); bad != "" {
			c.lost(l, bad)
			return "", false
		}
	}
	if row.Shape == all.Value && (row.Type == settings.StrVars || row.Type == settings.Str) && strings.Contains(v, "%") && !noPercent[row.Name] {
		var bad []string
		if v, bad = percent24(row.Name, v); len(bad) > 0 {
			c.lost(l, noCounterpart(l.Raw, bad))
			return "", false
		}
	}
	return write24(v, l.Form == conf.Variable), true
}

// noPercent are texts in which % is no variable.
var noPercent = map[string]bool{"log_timestamp": true}

// write24 quotes a value if it would be read differently without quotes.
func write24(v string, variable bool) string {
	if v == "" || variable {
		return v
	}
	first, last := v[0], v[len(v)-1]
	dollar := strings.HasPrefix(v, "$SET:") || strings.HasPrefix(v, "$ENV:") || strings.Contains(v, " $SET:") || strings.Contains(v, " $ENV:")
	if strings.IndexByte(v, '#') >= 0 || blank24(first) || blank24(last) || first == '<' || first == '"' || first == '\'' || last == '\\' || dollar ||
		strings.ContainsAny(v, "\n") {
		return `"` + escape24(v) + `"`
	}
	return v
}

func blank24(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// variables converts $name to $SET:name. bad says what cannot be.
func (c *converter) variables(l conf.SourceLine, v string) (out, bad string) {
	words := strings.Split(v, " ")
	for i, w := range words {
		name, ok := strings.CutPrefix(w, "$")
		if !ok || strings.HasPrefix(name, "ENV:") {
			continue
		}
		if name == "" {
			continue
		}
		if r, changed := all.Renamed[name]; changed && r.To != "" && !strings.Contains(r.To, "{") {
			if r.How == "not" {
				return "", "$" + name + " has the opposite meaning in 2.4"
			}
			name = r.To
		}
		if _, known := c.t.Row(name); !known {
			if _, known := conf.Dovecot23().Setting(name); known {
				return "", "2.4 does not have the setting $" + name
			}
			continue // it was literal text
		}
		words[i] = "$SET:" + name
	}
	return strings.Join(words, " "), ""
}

// namesVariable says whether a word of v is a variable; a $ inside a word is none.
func namesVariable(v string) bool {
	return strings.HasPrefix(v, "$") || strings.Contains(v, " $")
}

// list writes a list of words. `key = $key more` becomes a block that adds to it.
func (c *converter) list(l conf.SourceLine, name string, row *all.Row24) {
	words := listWords(l.Key, l.Value)
	if row.Name == "mail_plugins" {
		words = c.plugins(l, words)
	}
	if l.Form == conf.Variable && len(words) > 0 && words[0] == "$"+l.Key {
		if len(words) == 1 {
			c.out(l.Indent, "# "+strings.TrimSpace(l.Raw), "")
			return
		}
		c.out(l.Indent, name+" {", l.Comment)
		for _, w := range words[1:] {
			c.out(l.Indent+"  ", quoteElement(w)+" = yes", "")
		}
		c.out(l.Indent, "}", "")
		return
	}
	if l.Form == conf.Variable {
		v, bad := c.variables(l, strings.Join(words, " "))
		if bad != "" || strings.Contains(v, "$SET:") {
			c.lost(l, "a list cannot be put into another list in 2.4")
			return
		}
		words = strings.Fields(v)
	}
	text := name + " = " + listLine(words)
	if row.Name == "protocols" && len(words) == 1 && words[0] == "none" {
		text = name + " ="
	}
	c.out(l.Indent, text, l.Comment)
}

// plugins renames the plug-ins that have new names, and takes out those that are gone.
func (c *converter) plugins(l conf.SourceLine, words []string) []string {
	var out []string
	for _, w := range words {
		switch w {
		case "zlib":
			out = append(out, "mail_compress")
		case "imap_zlib", "stats", "imap_stats", "old_stats", "imap_old_stats", "expire", "autocreate", "snarf", "mail_filter", "mailbox_alias", "pop3_migration":
			c.look(l, "mail_plugins: "+w+" is no plug-in of 2.4, or needs other settings; it was left out")
		default:
			out = append(out, w)
		}
	}
	return out
}

// listWords splits the value of a list setting of 2.3 as its reader does (clause C11.13).
func listWords(key, v string) []string {
	switch key {
	case "valid_chroot_dirs":
		return strings.FieldsFunc(v, func(r rune) bool { return r == ':' })
	case "extra_groups":
		return settings.Words(v)
	case "protocols":
		return strings.Fields(v)
	case "special_use":
		return strings.Fields(v)
	}
	return settings.Words(v)
}

// specialSettings are converted by a rule of their own, which says whether it applied.
var specialSettings = map[string]func(c *converter, l conf.SourceLine, n *conf.Node, prefix string) bool{
	"verbose_ssl": func(c *converter, l conf.SourceLine, _ *conf.Node, _ string) bool {
		if isYes(l.Value) {
			c.out(l.Indent, "log_debug = category=ssl", l.Comment)
		} else {
			c.out(l.Indent, "# verbose_ssl = no is the default; in 2.4 it is log_debug", l.Comment)
		}
		return true
	},
	"ssl_ca":        (*converter).sslCA,
	"mail_location": (*converter).location,
	"location":      (*converter).location,
	"auth_worker_max_count": func(c *converter, l conf.SourceLine, _ *conf.Node, _ string) bool {
		c.nested(l, "service auth-worker", "process_limit = "+l.Value)
		return true
	},
	"auth_policy_server_timeout_msecs": func(c *converter, l conf.SourceLine, _ *conf.Node, _ string) bool {
		c.nested(l, "auth_policy", "http_client_request_timeout = "+l.Value+" ms")
		return true
	},
	"auth_policy_request_attributes": func(c *converter, l conf.SourceLine, _ *conf.Node, _ string) bool {
		c.pairs(l, "auth_policy_request_attributes", l.Value)
		return true
	},
	"import_environment": (*converter).environment,
	"reuse_port": func(c *converter, l conf.SourceLine, n *conf.Node, prefix string) bool {
		if n.Type != "inet_listener" || prefix != "" {
			return false
		}
		c.out(l.Indent, "# reuse_port is a setting of the service in 2.4", l.Comment)
		outer := c.blocks[len(c.blocks)-2]
		if isYes(l.Value) && !c.take("reuse_port "+outer.node.Name) {
			b := c.top()
			b.moved = append(b.moved, "reuse_port = yes")
		}
		return true
	},
	"address": func(c *converter, l conf.SourceLine, n *conf.Node, prefix string) bool {
		if n.Type != "inet_listener" {
			return false
		}
		c.list(l, prefix+"listen", &all.Row24{Shape: all.BoolList})
		return true
	},
	"name": func(c *converter, l conf.SourceLine, n *conf.Node, _ string) bool {
		if n.Type == "" {
			return false
		}
		c.lost(l, "in 2.4 a block's name stands in its head")
		return true
	},
	"path": func(c *converter, l conf.SourceLine, n *conf.Node, _ string) bool {
		if n.Type == "" {
			return false
		}
		c.lost(l, "in 2.4 a listener's path stands in its head")
		return true
	},
	"ssl_protocols": func(c *converter, l conf.SourceLine, _ *conf.Node, _ string) bool {
		if v := oldestProtocol(l.Value); v != "" {
			c.out(l.Indent, "ssl_min_protocol = "+v, l.Comment)
			return true
		}
		c.lost(l, "no protocol is left")
		return true
	},
	"ssl_options": func(c *converter, l conf.SourceLine, _ *conf.Node, _ string) bool {
		words := settings.Words(l.Value)
		kept := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "no_compression" })
		if len(kept) == len(words) {
			return false
		}
		c.out(l.Indent, strings.TrimRight("ssl_options = "+strings.Join(kept, " "), " "), l.Comment)
		return true
	},
	"ssl_cert_file": oldFile("ssl_server_cert_file"), "ssl_key_file": oldFile("ssl_server_key_file"), "ssl_ca_file": oldFile("ssl_server_ca_file"),
	"ssl_disable": func(c *converter, l conf.SourceLine, _ *conf.Node, _ string) bool {
		c.out(l.Indent, "ssl = "+negate(l.Value), l.Comment)
		return true
	},
}

func oldFile(name string) func(*converter, conf.SourceLine, *conf.Node, string) bool {
	return func(c *converter, l conf.SourceLine, _ *conf.Node, _ string) bool {
		c.out(l.Indent, name+" = "+write24(l.Value, false), l.Comment)
		return true
	}
}

// oldestProtocol is what ssl_protocols means as a ssl_min_protocol (clause C14.2).
func oldestProtocol(v string) string {
	known := []string{"SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2"}
	on, off := map[string]bool{}, map[string]bool{}
	for _, w := range settings.Words(v) {
		if name, no := strings.CutPrefix(w, "!"); no {
			off[name] = true
		} else {
			on[w] = true
		}
	}
	for _, k := range known {
		if len(on) > 0 && on[k] && !off[k] || len(on) == 0 && !off[k] {
			return k
		}
	}
	return ""
}

// nested writes one line in a block of its own.
func (c *converter) nested(l conf.SourceLine, head, inner string) {
	c.out(l.Indent, head+" {", l.Comment)
	c.out(l.Indent+"  ", inner, "")
	c.out(l.Indent, "}", "")
}

// sslCA is for clients' certificates and, in outgoing connections, for servers'.
func (c *converter) sslCA(l conf.SourceLine, _ *conf.Node, _ string) bool {
	path := l.Value
	switch {
	case l.Form == conf.FromFile:
		path = c.path(l)
	case path != "":
		path = "inline:" + path
	}
	for _, name := range []string{"ssl_server_ca_file", "ssl_client_ca_file"} {
		c.out(l.Indent, name+" = "+write24(path, false), l.Comment)
	}
	return true
}

// pairs writes words key=value as a block.
func (c *converter) pairs(l conf.SourceLine, name, value string) {
	c.out(l.Indent, name+" {", l.Comment)
	for _, w := range strings.Fields(value) {
		k, v, _ := strings.Cut(w, "=")
		v, bad := percent24(name, v)
		if len(bad) > 0 {
			c.note(l, "not converted: "+oneLine(w)+": "+noCounterpart(l.Raw, bad))
			c.out(l.Indent+"  ", "# not converted: "+w, "")
			continue
		}
		c.out(l.Indent+"  ", quoteElement(k)+" = "+write24(v, false), "")
	}
	c.out(l.Indent, "}", "")
}

// environment is import_environment: in 2.4 a block that adds to what is built in.
func (c *converter) environment(l conf.SourceLine, _ *conf.Node, _ string) bool {
	c.out(l.Indent, "import_environment {", l.Comment)
	for _, w := range strings.Fields(l.Value) {
		if w == "$import_environment" {
			continue
		}
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			v = "%{env:" + k + "}"
		}
		c.out(l.Indent+"  ", quoteElement(k)+" = "+write24(v, false), "")
	}
	c.out(l.Indent, "}", "")
	return true
}

// locationKeys are the parts of a mail location with a name.
var locationKeys = map[string]string{
	"INDEX": "mail_index_path", "INDEXPVT": "mail_index_private_path", "INDEXCACHE": "mail_cache_path", "CONTROL": "mail_control_path",
	"INBOX": "mail_inbox_path", "ALT": "mail_alt_path", "VOLATILEDIR": "mail_volatile_path", "LAYOUT": "mailbox_list_layout",
	"SUBSCRIPTIONS": "mailbox_subscriptions_filename", "DIRNAME": "mailbox_directory_name", "MAILBOXDIR": "mailbox_root_directory_name",
	"ITERINDEX": "mailbox_list_iter_from_index_dir", "LISTINDEX": "mailbox_list_index_prefix",
}

// location is mail_location, or location of a namespace: driver:path:KEY=value...
func (c *converter) location(l conf.SourceLine, n *conf.Node, prefix string) bool {
	if l.Key == "location" && n.Type != "namespace" {
		return false
	}
	if l.Form == conf.FromFile || l.Form == conf.Variable && namesVariable(l.Value) {
		c.lost(l, "in 2.4 it is mail_driver, mail_path and so on")
		return true
	}
	if l.Value == "" {
		c.out(l.Indent, "# "+l.Key+" is empty", l.Comment)
		return true
	}
	driver, rest, _ := strings.Cut(l.Value, ":")
	parts := strings.Split(rest, ":")
	lines := []string{"mail_driver = " + driver}
	in := ""
	if n.Type == "namespace" {
		in = inNamespace
	}
	path, bad := percent24(in+"mail_path", parts[0])
	if parts[0] != "" {
		lines = append(lines, "mail_path = "+write24(path, false))
	}
	for _, p := range parts[1:] {
		key, v, has := strings.Cut(p, "=")
		name := locationKeys[key]
		if name == "" {
			bad = append(bad, p)
			continue
		}
		v, more := percent24(in+name, v)
		bad = append(bad, more...)
		if !has {
			v = "yes"
		}
		if name == "mailbox_list_layout" {
			v = strings.ToLower(v)
		}
		lines = append(lines, name+" = "+write24(v, false))
	}
	if len(bad) > 0 {
		c.lost(l, noCounterpart(l.Raw, bad))
		return true
	}
	for i, text := range lines {
		comment := ""
		if i == 0 {
			comment = l.Comment
		}
		c.out(l.Indent, prefix+text, comment)
	}
	return true
}
