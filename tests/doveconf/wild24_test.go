package doveconf

import (
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"dovetail/internal/conf/settings"
	"dovetail/internal/conf/settings/all"
	"dovetail/internal/testkit/need"
)

var doveconf24 = flag.String("doveconf24", "", "a doveconf of 2.4.4, built without SQL and LDAP drivers, to compare with")

// The corpus and files of every kind of line, said by a doveconf of 2.4 if one is given:
// there is none in Debian's packages for 2.3.
func TestLive24(t *testing.T) {
	need.Asked(t, *doveconf24 != "", "-doveconf24 PATH")
	var v verdict
	var jobs []job
	for _, c := range cases(t, "2.4") {
		if c.name == "lex-comments-and-quotes" || c.name == "lex-quoted-key" {
			continue // what ours prints is read back
		}
		for _, args := range [][]string{{"-n"}, {"-a"}, {"-N", "-P"}, {"-s"}, {"-n", "-x"}, {"-f", "protocol=submission", "-n"}} {
			jobs = append(jobs, job{c, append(args, "-c", c.name+".conf"), ""})
		}
	}
	v.all(t, *doveconf24, jobs)
	t.Logf("%+v", v)
}

func TestLiveWild24(t *testing.T) {
	need.Asked(t, *doveconf24 != "", "-doveconf24 PATH")
	var v verdict
	dir := t.TempDir()
	var jobs []job
	for i := range *rounds {
		w := newWild24(*seed+2000, i)
		c := testCase{version: "2.4", dir: filepath.Join(dir, fmt.Sprint(i)), name: "main", env: map[string]string{"FOO": "from env", "EMPTY": ""}}
		w.files(t, c.dir)
		for range 3 {
			jobs = append(jobs, job{c, w.options24(), fmt.Sprintf("round %d", i)})
		}
	}
	v.all(t, *doveconf24, jobs)
	t.Logf("%d rounds: %+v", *rounds, v)
}

// A wild24 makes configurations for 2.4 that need not be right.
type wild24 struct {
	*wild
	names []*all.Row24
}

func newWild24(seed uint64, i int) *wild24 {
	w := &wild24{wild: newWild(seed, i)}
	for _, r := range all.V24().Rows {
		if !r.Plugin && r.Name != "dovecot_config_version" && r.Shape != all.ListFilter && ours24(r.Name) {
			w.names = append(w.names, r)
		}
	}
	return w
}

// ours24 says whether a setting matters to a submission server: what other services check
// of theirs is not compared.
func ours24(name string) bool {
	for _, prefix := range strings.Fields("auth_ ssl login_ submission_ service_ inet_listener_ unix_listener_ fifo_listener_ passdb_ userdb_ log_ haproxy_ default_ passwd_file namespace_ mailbox_auto mailbox_comment mail_uid mail_gid mail_home mail_chroot mail_path mail_driver imap_urlauth first_valid last_valid") {
		if strings.HasPrefix(name, prefix) {
			return name != "submission_timeout"
		}
	}
	switch name {
	case "protocols", "listen", "hostname", "recipient_delimiter", "rawlog_dir", "base_dir", "state_dir", "mail_plugins", "mail_debug", "import_environment", "verbose_proctitle", "shutdown_clients", "valid_chroot_dirs", "mail_access_groups":
		return true
	}
	return false
}

func (w *wild24) files(t *testing.T, dir string) {
	head := "dovecot_config_version = " + w.of("2.4.4", "2.4.4", "2.4.4", "2.4.0", "2.4.1", "2.4.2", "2.4.3") + "\n"
	if !w.bad() || !w.odds(3) {
		head += "dovecot_storage_version = 2.4.4\n"
	}
	if w.bad() && w.odds(6) {
		head = w.of("", "hostname = x\n", "# c\n\n", "foo\n", "service x {\n", "dovecot_config_version = 9.9\n") + head
	}
	write(t, dir, map[string]string{
		"main.conf": head + w.text24(1+w.IntN(12)), "conf.d/10-a.conf": w.text24(w.IntN(4)), "conf.d/20-b.conf": w.text24(w.IntN(3)),
		"sub/c.part": w.text24(w.IntN(2)), "value.txt": w.of("of a file", "two\nlines\n", "", "7", "yes"), "sub/value.txt": "in sub",
	})
}

func (w *wild24) text24(n int) string {
	var b strings.Builder
	for range n {
		w.item24(&b, 0)
	}
	s := b.String()
	switch {
	case w.odds(14):
		s = strings.ReplaceAll(s, "\n", "\r\n")
	case w.odds(14):
		s = strings.TrimSuffix(s, "\n")
	case w.bad() && w.odds(4) && s != "":
		i := w.IntN(len(s))
		s = s[:i] + w.of("{", "}", "\\\n", "\"", "'", "#", " ", "\n", "=", "$", "\t", "<", "/", "@") + s[i:]
	}
	return s
}

var strings24 = append([]string{"%{user}", "%{user | domain}", "%{user", "%{a b}", "%%{x}", "%u", "$SET:hostname", "$SET:listen", "$SET:nosuch", "$SET:service/auth/service_client_limit", "$SET:ssl_server_cert_file x", "$ENV:FOO y", "a,b c", `"a b", c`, `"a,b" c`,
	`a"b`, `"q\"x"`, `"bad\n"`, "inline:text", "value.txt", "nosuch.txt", "unlimited", "$SET:recipient_delimiter $SET:hostname"}, wildStrings...)

func (w *wild24) value24(r *all.Row24) string {
	if w.odds(25) || r.Shape != all.Value {
		if r.Shape == all.BoolList && !w.odds(6) {
			return w.of("a b", "a", "", "x, y", `"c d" e`, "quota acl", "$SET:"+r.Name+" z", "b a", `"x=y"`, `"#"`)
		}
		return w.of(strings24...)
	}
	switch r.Type {
	case settings.Str, settings.StrVars, settings.File:
		if w.odds(12) {
			return w.of("$SET:"+r.Name+" more", "pre $SET:"+r.Name)
		}
		return w.of(strings24...)
	case settings.Uint, settings.Size, settings.Time:
		if w.odds(6) {
			return w.of("unlimited", "infinite", "$SET:default_client_limit", "Unlimited")
		}
	}
	return w.valueOf(&all.Row{Setting: r.Setting})
}

func (w *wild24) setting24(prefix string) string {
	r := w.names[w.IntN(len(w.names))]
	for range 20 {
		if prefix == "" || strings.HasPrefix(r.Name, prefix) {
			break
		}
		r = w.names[w.IntN(len(w.names))]
	}
	key := r.Name
	if rest, ok := strings.CutPrefix(key, prefix); ok && !w.odds(5) {
		key = rest
	}
	if w.bad() && w.odds(3) {
		key = w.of("nosuch", "Hostname", `"hostname"`, "", "ssl_cert", "client_limit", "plugin", "passdb", "service", "name", "password", "@x", "service/auth/client_limit", "protocols/imap", "ssl_server/cert_file", `"a b"`)
	}
	return key + w.of(" = ", " = ", "=", " =", "= ") + w.value24(r)
}

func (w *wild24) line24(b *strings.Builder, depth int, text string) { w.line(b, depth, text) }

var (
	blocks24 = []string{"service auth", "service submission", "service submission-login", "service new", `service "with blank"`, `service ""`, "service", "passdb static", "passdb passwd-file", "passdb x", "userdb static", "userdb passwd-file", "namespace inbox", "namespace x", "mailbox Trash", `mailbox "Sent Messages"`,
		"unix_listener auth-userdb", "unix_listener a/b", "inet_listener submission", "inet_listener x", "fifo_listener f", "ssl_server", "ssl_client", "auth_policy", "oauth2", "passdb_static", "metric m", "event_exporter e", "quota q", "ssl_server x", "maildir",
		"protocols", "listen", "mail_plugins", "import_environment", "fields", "auth_mechanisms", "protocols x", "nosuch", "plugin", "hostname", "acl a"}
	lines24 = []string{"service/auth/client_limit = 7", "service/submission/service_process_limit = 3", "ssl_server/cert_file = value.txt", "protocols/imap = yes", "protocols/pop3 = no", "import_environment/X = y", "!include_try nosuch.conf", "!include sub/c.part", "!include conf.d/*.conf", "# comment", "", "dovecot_config_version = 2.4.4",
		"protocols = imap submission", "protocols = submission", "listen = *", "ssl = no", "ssl_min_protocol = ANY", "ssl_min_protocol =", "syslog_facility = x", "ssl_options = x", "auth_cache_size = 100", "auth_verbose_passwords = bad", "first_valid_uid = 70000", "last_valid_uid = 0", "submission_client_workarounds = bad", "log_debug = (", "metric m {\n filter = event=x\n}",
		"ssl_server_request_client_cert = yes", "oauth2_client_id = x", "oauth2 {\n client_id = x\n}", "mail_plugins = a b", "mail_plugins {\n a = yes\n b = no\n}", "auth_policy_server_url = http://x", "@mailbox_defaults = english", "@nosuch = x", "@g = one", "@metric_defaults = proxy", "passdb_static_password = p", "ssl_server_dh_file = value.txt", "protocols = nosuch", "dovecot_storage_version = x",
		"service auth {\n process_limit = 2\n}", "service submission {\n client_limit = 0\n}", "service x {\n inet_listener a {\n  port = 99\n }\n inet_listener b {\n  port = 99\n }\n}", "service auth {\n vsz_limit = 1k\n}", "base_dir = /tmp/x", "default_login_user = nosuch", "auth_mechanisms = plain login", "login_trusted_networks = 10.0.0.0/8, ::1", "mail_access_groups = x"}
)

func (w *wild24) item24(b *strings.Builder, depth int) {
	if depth > 4 {
		return
	}
	block := func(head string, n int, inner func()) {
		w.line24(b, depth, head+" {")
		for range n {
			inner()
		}
		if !(w.bad() && w.odds(5)) {
			w.line24(b, depth, "}")
		}
	}
	switch w.IntN(16) {
	case 0, 1, 2, 3, 4:
		head := w.of(blocks24...)
		typ, _, _ := strings.Cut(head, " ")
		row, ok := all.V24().Row(typ)
		block(head, w.IntN(4), func() {
			switch {
			case ok && (row.Shape == all.BoolList || row.Shape == all.StrList) || typ == "fields":
				w.line24(b, depth+1, w.of("a", "imap", "submission", `"k k"`, `"x=y"`, "TZ", "quota")+" = "+w.of("yes", "no", "yes", "x y", "maybe", "$ENV:FOO", "%{user}", "$SET:hostname"))
			case w.odds(3):
				w.item24(b, depth+1)
			default:
				w.line24(b, depth+1, w.setting24(typ+"_"))
			}
		})
	case 5, 6, 7:
		head := w.of(wildFilters...)
		if !w.bad() {
			head = w.of("protocol submission", "protocol imap", "local 10.0.0.0/8", "local 10.1.2.3", "remote 192.0.2.0/24", "local_name mx.example.org", "local_name *.Example.org", "remote ::1")
		}
		block(head, 1+w.IntN(3), func() {
			if w.odds(2) {
				w.item24(b, depth+1)
			} else {
				w.line24(b, depth+1, w.setting24(""))
			}
		})
	case 8:
		block("group "+w.of("@g one", "@g two", "@h one", "@g", "g one", `@g "a b"`), w.IntN(3), func() { w.item24(b, depth+1) })
	case 9, 10, 11:
		for _, l := range strings.Split(w.of(lines24...), "\n") {
			w.line24(b, depth, l)
		}
	case 12:
		if w.bad() {
			w.line24(b, depth, w.of(wildWrong...))
		}
	default:
		w.line24(b, depth, w.setting24(""))
	}
}

var queries24 = strings.Fields(`protocols protocols/submission listen hostname service service/auth service/submission service/submission-login/inet_listener service/submission-login/inet_listener/submissions/port
	service/auth/client_limit service/auth/service_client_limit service_client_limit passdb passdb/static passdb/static/password passdb/static/fields userdb/static/fields/uid ssl_server ssl_server/ ssl_server/cert_file ssl_server_cert_file
	import_environment import_environment/TZ mail_plugins nosuch nosuch/x auth_policy auth_policy/ oauth2/ auth_mechanisms namespace namespace/inbox namespace/inbox/mailbox/Trash submission_relay_host login_greeting metric mail_cache_fields
	service/submission/unix_listener base_dir ssl passdb_static_password auth_policy_hash_nonce imapc imapc/ maildir mbox`)

func (w *wild24) options24() []string {
	args := []string{"-c", "main.conf"}
	add := func(odds int, more ...string) {
		if w.odds(odds) {
			args = append(args, more...)
		}
	}
	add(2, w.of("-n", "-n", "-N", "-nP", "-nN", "-w", "-n"))
	add(4, "-x")
	add(7, "-P")
	add(12, "-h")
	add(20, "-U")
	for w.odds(6) {
		args = append(args, "-f", w.of("protocol=submission", "protocol=imap", "local=10.1.2.3", "remote=192.0.2.9", "local_name=mx.example.org"))
	}
	for w.odds(3) {
		args = append(args, w.of(queries24...))
	}
	for w.odds(6) {
		args = append(args, w.names[w.IntN(len(w.names))].Name)
	}
	return args
}
