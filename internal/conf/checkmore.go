package conf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"golang.org/x/sys/unix"
)

// The checks of clause C16 that concern other services than ours.

// split splits at the given characters; empty parts are left out.
func split(s, at string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(at, r) })
}

// set fails if one of the words in the setting name is not among right, or begins with one
// of them that ends in = or :. what is how Dovecot calls such a word.
func (c *checker) set(name, what, separators string, right ...string) bool {
	for _, w := range split(c.v.Value(name), separators) {
		known := slices.ContainsFunc(right, func(r string) bool {
			return strings.EqualFold(w, r) || strings.ContainsAny(r[len(r)-1:], "=:") && len(w) >= len(r) && strings.EqualFold(w[:len(r)], r)
		})
		if !known {
			c.fail(c.v.Range(name), fmt.Sprintf("%s: Unknown %s: %s", name, what, w), "One of "+strings.Join(right, ", ")+".")
			return false
		}
	}
	return true
}

func (c *checker) workarounds(name string, right ...string) bool {
	return c.set(name, "workaround", " ,", right...)
}

func (c *checker) imap() {
	c.workarounds("imap_client_workarounds", "delay-newmail", "tb-extra-mailbox-sep", "tb-lsub-flags")
}

func (c *checker) lmtp() {
	c.workarounds("lmtp_client_workarounds", "whitespace-before-path", "mailbox-for-path")
}

func (c *checker) submission() {
	c.workarounds("submission_client_workarounds", "whitespace-before-path", "mailbox-for-path", "implicit-auth-external", "exotic-backend")
}

func (c *checker) pop3() {
	if c.workarounds("pop3_client_workarounds", "outlook-no-nuls", "oe-ns-eoh") &&
		c.v.Value("pop3_delete_type") == "flag" && c.v.Value("pop3_deleted_flag") == "" {
		c.fail(c.v.Range("pop3_delete_type"), "pop3_delete_type=flag, but pop3_deleted_flag not set", "")
	}
}

func (c *checker) pop3c() { c.set("pop3c_features", "feature", " ,", "no-pipelining") }

func (c *checker) imapc() {
	if c.v.Value("imapc_max_idle_time") == "0" {
		c.fail(c.v.Range("imapc_max_idle_time"), "imapc_max_idle_time must not be 0", "")
		return
	}
	for _, w := range split(c.v.Value("imapc_features"), " ,") {
		if len(w) < 9 || !strings.EqualFold(w[:9], "throttle:") {
			continue
		}
		numbers := strings.Split(w[9:], ":")
		if len(numbers) != 3 || slices.ContainsFunc(numbers, func(n string) bool { _, err := strconv.ParseUint(n, 10, 32); return err != nil }) {
			c.fail(c.v.Range("imapc_features"), "imapc_features: Invalid throttle settings", "`throttle:INIT:MAX:SHRINK`, in milliseconds.")
			return
		}
	}
	c.set("imapc_features", "feature", " ,", "rfc822.size", "guid-forced", "fetch-headers", "gmail-migration", "search", "zimbra-workarounds", "no-examine",
		"proxyauth", "fetch-msn-workarounds", "fetch-fix-broken-mails", "modseq", "delay-login", "fetch-bodystructure", "send-id", "fetch-empty-is-expunged",
		"no-msn-updates", "acl", "throttle:")
}

func (c *checker) director() {
	if parseSecs(c.v.Value("director_user_expire")) < 10 {
		c.fail(c.v.Range("director_user_expire"), "director_user_expire is too low", "At least 10 secs.")
	}
}

func (c *checker) doveadm() {
	for _, name := range []string{"dsync_hashed_headers", "dsync_alt_char"} {
		if c.v.Value(name) == "" {
			c.fail(c.v.Range(name), name+" must not be empty", "")
			return
		}
	}
	c.set("dsync_features", "feature", " ,", "empty-header-workaround")
}

// storageReads are the settings that storage looks at.
var storageReads = []string{
	"mailbox_idle_check_interval", "mail_nfs_index", "mmap_disable", "mail_fsync", "lock_method", "mail_cache_max_size", "mail_cache_purge_delete_percentage",
	"pop3_uidl_format", "mail_attachment_hash", "mail_attachment_detection_options", "mail_cache_fields", "mail_always_cache_fields", "mail_never_cache_fields",
}

func (c *checker) storage() {
	v := c.v
	fail := func(name, text string) { c.fail(v.Range(name), text, "") }
	nfs := v.Value("mail_nfs_index") == "yes"
	switch {
	case v.Value("mailbox_idle_check_interval") == "0":
		fail("mailbox_idle_check_interval", "mailbox_idle_check_interval must not be 0")
	case nfs && v.Value("mmap_disable") != "yes":
		fail("mail_nfs_index", "mail_nfs_index=yes requires mmap_disable=yes")
	case nfs && v.Value("mail_fsync") != "always":
		fail("mail_nfs_index", "mail_nfs_index=yes requires mail_fsync=always")
	case !slices.Contains([]string{"fcntl", "flock", "dotlock"}, strings.ToLower(v.Value("lock_method"))):
		fail("lock_method", "Unknown lock_method: "+v.Value("lock_method"))
	case parseSize(v.Value("mail_cache_max_size")) > 1<<30:
		fail("mail_cache_max_size", "mail_cache_max_size can't be over 1 GB")
	case number(v.Value("mail_cache_purge_delete_percentage")) > 100:
		fail("mail_cache_purge_delete_percentage", "mail_cache_purge_delete_percentage can't be over 100")
	}
	if bad := uidlFormat(v.Value("pop3_uidl_format")); bad != "" {
		fail("pop3_uidl_format", bad)
	}
	if bad := hashFormat(v.Value("mail_attachment_hash")); bad != "" {
		fail("mail_attachment_hash", bad)
	}
	for _, w := range split(v.Value("mail_attachment_detection_options"), " ") {
		if !slices.Contains([]string{"add-flags", "add-flags-on-save", "no-flags-on-fetch", "exclude-inlined"}, w) && !strings.HasPrefix(w, "content-type=") {
			fail("mail_attachment_detection_options", "mail_attachment_detection_options: Unknown option: "+w)
			break
		}
	}
	for _, name := range []string{"mail_cache_fields", "mail_always_cache_fields", "mail_never_cache_fields"} {
		for _, w := range split(v.Value(name), " ,") {
			if len(w) >= 4 && strings.EqualFold(w[:4], "hdr.") && strings.ContainsFunc(w[4:], func(r rune) bool { return r < 33 || r > 126 || r == ':' }) {
				fail(name, fmt.Sprintf("Invalid %s: %s is not a valid header name", name, w))
				break
			}
		}
	}
}

// uidlFormat says what is wrong with pop3_uidl_format.
func uidlFormat(v string) string {
	good := false
	for i := 0; i+1 < len(v); i++ {
		if v[i] != '%' {
			continue
		}
		i++
		switch key := variableKey(v[i:]); {
		case key == "%":
		case key != "" && strings.Contains("vumfg", key):
			good = true
		default:
			return "Unknown pop3_uidl_format variable: %" + key
		}
	}
	if !good {
		return "pop3_uidl_format setting doesn't contain any %% variables."
	}
	return ""
}

// variableKey is the letter of a %variable of 2.3 without its width and modifiers (clause
// C12.1); "{" for one with a long name.
func variableKey(v string) string {
	digits := func() { v = strings.TrimLeft(v, "-0123456789") }
	digits()
	if rest, ok := strings.CutPrefix(v, "."); ok {
		v = rest
		digits()
	}
	v = strings.TrimLeft(v, "LUEXRHNMDT")
	return v[:min(1, len(v))]
}

// hashBits are the lengths of hashes.
var hashBits = map[string]uint64{"md4": 128, "md5": 128, "sha1": 160, "sha256": 256, "sha384": 384, "sha512": 512, "sha3-256": 256, "sha3-512": 512, "size": 64}

// hashFormat says what is wrong with a text like %{sha1:80}-%B{md5}.
func hashFormat(v string) string {
	const invalid = "Invalid mail_attachment_hash setting: "
	if strings.Contains(v, "/") {
		return "mail_attachment_hash setting must not contain '/' characters"
	}
	for rest := v; ; {
		_, after, found := strings.Cut(rest, "%")
		if !found {
			break
		}
		if after != "" && (after[0] == 'B' || after[0] == 'X') {
			after = after[1:]
		}
		after, ok := strings.CutPrefix(after, "{")
		if !ok {
			return invalid + "No '{' after '%'"
		}
		inner, more, ok := strings.Cut(after, "}")
		if !ok {
			return invalid + "Missing '}'"
		}
		name, bits, cut := strings.Cut(inner, ":")
		if hashBits[name] == 0 {
			return invalid + "Unknown hash method: " + name
		}
		if n, err := strconv.ParseUint(bits, 10, 32); cut && (err != nil || n == 0 || n > hashBits[name]) {
			return invalid + "Invalid :bits number: " + bits
		} else if cut && n%8 != 0 {
			return invalid + "Currently :bits must be divisible by 8: " + bits
		}
		rest = more
	}
	if strings.Contains(v, "-") {
		return "mail_attachment_hash setting must not contain '-' characters"
	}
	return ""
}

// mailUser checks what every mail process reads.
func (c *checker) mailUser() {
	if dir := c.v.Value("mail_plugin_dir"); c.v.Value("mail_plugins") != "" {
		if err := unix.Access(dir, unix.R_OK|unix.X_OK); err != nil {
			c.fail(c.v.Range("mail_plugin_dir"), fmt.Sprintf("mail_plugin_dir: access(%s) failed: %s", dir, reason(err)), "It is looked at because mail_plugins is set.")
		}
	}
	all := c.v.root.Of("namespace")
	for _, ns := range all {
		c.namespace(ns, all)
	}
}

// at is where key stands in b, or b itself.
func at(b *Block, key string) hcl.Range {
	if s, ok := b.Get(key); ok && s.Last != nil {
		return s.Last.Range.Range
	}
	return b.Pos().Range
}

var specialUses = []string{`\all`, `\archive`, `\drafts`, `\flagged`, `\important`, `\junk`, `\sent`, `\trash`}

func (c *checker) namespace(ns *Block, all []*Block) {
	prefix := ns.Value("prefix")
	if len(ns.Value("separator")) > 1 {
		c.fail(at(ns, "separator"), fmt.Sprintf("Namespace '%s': Hierarchy separator must be only one character long", prefix), "Usually / or a dot.")
	}
	if !utf8.ValidString(prefix) {
		c.fail(at(ns, "prefix"), "Namespace prefix not valid UTF8: "+prefix, "")
	}
	if alias, ok := ns.Get("alias_for"); ok && ns.Value("disabled") != "yes" {
		i := slices.IndexFunc(all, func(o *Block) bool { return o.Value("prefix") == alias.Value })
		if i < 0 {
			c.fail(at(ns, "alias_for"), fmt.Sprintf("Namespace '%s': alias_for points to unknown namespace: %s", prefix, alias.Value), "It is the prefix of another namespace.")
		} else if chained, ok := all[i].Get("alias_for"); ok {
			c.fail(at(ns, "alias_for"), fmt.Sprintf("Namespace '%s': alias_for chaining isn't allowed: %s -> %s", prefix, alias.Value, chained.Value), "")
		}
	}
	for _, b := range ns.Of("mailbox") {
		if !utf8.ValidString(b.Name) {
			c.fail(b.Pos().Range, fmt.Sprintf("mailbox %s: name isn't valid UTF-8", b.Name), "")
		}
		for _, use := range split(b.Value("special_use"), " ") {
			if !slices.Contains(specialUses, strings.ToLower(use)) {
				c.fail(at(b, "special_use"), fmt.Sprintf("mailbox %s: unknown special_use: %s", b.Name, use), "One of "+strings.Join(specialUses, ", ")+".")
				break
			}
		}
	}
}

func (c *checker) stats() {
	metrics, exporters := c.v.root.Of("metric"), c.v.root.Of("event_exporter")
	for _, m := range metrics {
		to := m.Value("exporter")
		if to != "" && len(exporters) > 0 && !slices.ContainsFunc(exporters, func(e *Block) bool { return e.Name == to }) {
			c.fail(at(m, "exporter"), fmt.Sprintf("metric %s refers to non-existent exporter '%s'", m.Name, to), "An `event_exporter` of this name is missing.")
		}
	}
	for _, m := range metrics {
		switch filter := m.Value("filter"); {
		case m.Name == "":
			c.fail(m.Pos().Range, "Metric name can't be empty", "`metric NAME {`")
		case filter == "":
			c.fail(m.Pos().Range, fmt.Sprintf("metric %s { filter } is empty - will not match anything", m.Name), eventFilterHelp)
		default:
			if bad := eventFilter(filter, false); bad != "" {
				c.fail(at(m, "filter"), "event filter: "+bad, eventFilterHelp)
			} else if bad := groupBy(m.Value("group_by")); bad != "" {
				c.fail(at(m, "group_by"), bad, "Fields, each perhaps with `:discrete`, `:exponential:MIN:MAX:BASE` or `:linear:MIN:MAX:STEP`.")
			}
		}
	}
	for _, e := range exporters {
		if key, bad := exporterFault(e); bad != "" {
			c.fail(at(e, key), bad, "")
		}
	}
}

// groupBy says what is wrong with the group_by of a metric.
func groupBy(v string) string {
	for _, w := range split(v, " ") {
		parts := strings.Split(w, ":")
		if len(parts) == 1 {
			continue
		}
		args := parts[2:]
		switch f := parts[1]; f {
		case "discrete":
			if len(args) > 0 {
				return "group_by 'discrete' aggregate function does not take any args"
			}
		case "exponential", "linear":
			var n [3]int64
			good := len(args) == 3
			for i := 0; good && i < 3; i++ {
				var err error
				n[i], err = strconv.ParseInt(args[i], 10, 64)
				good = err == nil && args[i][0] != '+'
			}
			aggregate := fmt.Sprintf("group_by '%s' aggregate function ", f)
			switch lo, hi, step := n[0], n[1], n[2]; {
			case !good:
				return aggregate + "takes 3 int args"
			case lo < 0 || hi < 0 || step < 0:
				return aggregate + "arguments must be >= 0"
			case lo >= hi:
				return aggregate + fmt.Sprintf("min must be < max (%d must be < %d)", lo, hi)
			case f == "exponential" && step != 2 && step != 10:
				return aggregate + fmt.Sprintf("base must be one of: 2, 10 (base=%d)", step)
			case f == "linear" && lo+step > hi:
				return aggregate + fmt.Sprintf("min+step must be <= max (%d must be <= %d)", lo+step, hi)
			}
		default:
			return fmt.Sprintf("unknown aggregation function '%s' on field '%s'", f, parts[0])
		}
	}
	return ""
}

// exporterFault says what is wrong with an event_exporter, and where.
func exporterFault(e *Block) (key, text string) {
	format, transport := e.Value("format"), e.Value("transport")
	switch {
	case e.Name == "":
		return "name", "Exporter name can't be empty"
	case format == "":
		return "format", "Exporter format name can't be empty"
	case !slices.Contains([]string{"none", "json", "tab-text"}, format):
		return "format", fmt.Sprintf("Unknown exporter format '%s'", format)
	case transport == "":
		return "transport", "Exporter transport name can't be empty"
	case !slices.Contains([]string{"drop", "http-post", "log"}, transport):
		return "transport", fmt.Sprintf("Unknown transport type '%s'", transport)
	}
	seen := ""
	for _, w := range split(e.Value("format_args"), " ") {
		if w != "time-rfc3339" && w != "time-unix" {
			return "format_args", "Unknown exporter format arg: " + w
		}
		if seen != "" && seen != w {
			return "format_args", fmt.Sprintf("Exporter '%s' specifies multiple time format args", e.Name)
		}
		seen = w
	}
	if format != "none" && seen == "" {
		return "format_args", format + " exporter format requires a time-* argument"
	}
	return "", ""
}
