package doveconf

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dovetail/internal/conf/settings"
	"dovetail/internal/conf/settings/all"
)

// Files of every kind of line, right and wrong, with every kind of option, said by both
// the installed doveconf 2.3 and ours.
func TestLiveWild(t *testing.T) {
	doveconf := installed(t)
	var v verdict
	dir := t.TempDir()
	c := testCase{version: "2.3", dir: dir, name: "main", env: map[string]string{"FOO": "from env", "EMPTY": ""}}
	names := allNames()
	jobs := make([]job, 0, *rounds)
	for i := range *rounds {
		w := newWild(*seed+1000, i)
		in := c
		in.dir = filepath.Join(dir, fmt.Sprint(i))
		w.files(t, in.dir)
		for range 3 {
			jobs = append(jobs, job{in, w.options(names), fmt.Sprintf("round %d", i)})
		}
	}
	v.all(t, doveconf, jobs)
	t.Logf("%d rounds: %+v", *rounds, v)
}

// A wild makes configurations for 2.3 that need not be right.
type wild struct {
	generator
	rows  []*all.Row // settings outside of sections
	wrong int        // one in so many lines is wrong
}

func newWild(seed uint64, i int) *wild {
	w := &wild{generator: generator{rand.New(rand.NewPCG(seed, uint64(i)))}}
	for _, r := range all.V23().Inside("") {
		if r.Kind == 0 {
			w.rows = append(w.rows, r)
		}
	}
	w.wrong = []int{4, 20, 60, 1000}[w.IntN(4)]
	return w
}

// files writes main.conf and what it may include.
func (w *wild) files(t *testing.T, dir string) {
	t.Helper()
	write(t, dir, map[string]string{
		"main.conf": w.text(2 + w.IntN(14)), "conf.d/10-a.conf": w.text(w.IntN(5)), "conf.d/20-b.conf": w.text(w.IntN(4)),
		"conf.d/.hidden.conf": w.text(1), "sub/c.part": w.text(w.IntN(3)), "a b.part": w.text(1),
		"value.txt":     w.of("of a file", "two\nlines\n", "", "trail ", "#x", "a\r\nb", "=key pass=1", "7", "yes"),
		"sub/value.txt": "in sub",
	})
}

// write makes files below dir.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *wild) odds(n int) bool { return w.IntN(n) == 0 }
func (w *wild) bad() bool       { return w.odds(w.wrong) }

// text is n items, then spoilt now and then.
func (w *wild) text(n int) string {
	var b strings.Builder
	if w.bad() && w.odds(6) {
		b.WriteString("\xef\xbb\xbf")
	}
	for range n {
		w.item(&b, 0, "")
	}
	s := b.String()
	switch {
	case w.odds(12):
		s = strings.ReplaceAll(s, "\n", "\r\n")
	case w.odds(12):
		s = strings.TrimSuffix(s, "\n")
	case w.bad() && w.odds(4) && s != "":
		i := w.IntN(len(s))
		s = s[:i] + w.of("{", "}", "\\\n", "\"", "'", "#", " ", "\n", "=", "$", "\x00", "\t", "<", "/") + s[i:]
	case w.bad() && w.odds(4) && s != "":
		i := w.IntN(len(s))
		s = s[:i] + s[min(len(s), i+1+w.IntN(3)):]
	}
	return s
}

// line writes one logical line in one of its many forms.
func (w *wild) line(b *strings.Builder, depth int, text string) {
	pad := strings.Repeat(w.of("  ", "  ", "\t", " "), depth)
	if w.odds(25) && strings.Contains(text, " ") {
		words := strings.SplitN(text, " ", 2)
		text = words[0] + w.of(" \\\n", "\\\n  ", " \\ # note\n", "  \\\n\t") + words[1]
	}
	if w.bad() && w.odds(4) {
		text += w.of(" \\", " \\\n\n", " \\\n# x\n", "\\")
	}
	switch w.IntN(14) {
	case 0:
		text += " # comment"
	case 1:
		text += w.of(" ", "\t", "  \t ")
	case 2:
		if w.bad() {
			text += w.of("#glued", " 'it # x", " \"open # y")
		}
	}
	b.WriteString(pad + text + "\n")
}

var wildStrings = append(textValues, "'it''s'", `'a\'b'`, `"a\\b"`, `"a" and "b"`, `"open`, `open"`, `'mixed"`, `"$hostname"`, "x$hostname", "$hostname,", "a $hostname b", "$listen", "a  b\t c", "a\t$hostname",
	"$nosuch", "$passdb", "$ssl", "$haproxy_timeout", "$submission_max_mail_size", "$EMPTY", "$ENV:EMPTY x", "$ENV:NOSUCH", "$", "< value.txt", "<sub/value.txt", "<nosuch.txt", "<", "<<value.txt", "<\"value.txt\"", "%{env:FOO}", "a;b:c", "key =x", "pass=a;b", "my_secret=x",
	"password = x", "https://a@b@c/d", "ftp://x:y@h", "{", "}", "a{b", "=", "==", "0", "10", "yes", "no", "-", "*", "::", "[::]", "127.0.0.1", "127.0.0.1:25", "[::1]:143", "host.example:993", "a,b", ", ,", "\x01\x7f", "\xff", `\\`, `a\`, "'", `"`, `""`, "''", `"""`, `" "`, "''''")

func (w *wild) valueOf(r *all.Row) string {
	if w.odds(30) {
		return w.of(wildStrings...)
	}
	good := func(list ...string) string {
		if w.bad() {
			return w.of("", "-1", "+1", "0x10", "1.5", "maybe", "4294967296", "18446744073709551616", "99999999999999999999999", "1 h 2 m", "10 \t s", "1P", "$hostname", "<value.txt", "\"\"", "- 1", "1 -", "65536", "YES please", "n", "true", "0888", "Required")
		}
		return w.of(list...)
	}
	switch r.Type {
	case settings.Bool:
		return good("yes", "no", "Yes", "NO", "y", "Y", "1", `"yes"`, "'no'")
	case settings.Uint:
		return good("0", "1", "7", "0007", "100", "4294967295", `"5"`)
	case settings.Octal:
		return good("0600", "0666", "0", "00", "0000", "600", "777", "07777", "0123456701")
	case settings.Size:
		return good("0", "1", "1023", "1024", "40M", "40 MiB", "1 g", "3t", "40mb", "7b", "1048576", "1536k", "5 kI")
	case settings.Time:
		return good("0", "1s", "60 secs", "90 s", "2 hours", "48h", "7 days", "1w", "1000 ms", "60000msecs", "3 min", "5 m", "2 weeks", "0 s", "61 mins", "1 MIN")
	case settings.MSecs:
		return good("0", "1ms", "1500 ms", "30 s", "2 m", "1 h", "1 milliseconds", "4 mil")
	case settings.Port:
		return good("0", "25", "065", "65535", "587")
	case settings.Enum:
		return good(r.Enum...)
	}
	return w.of(wildStrings...)
}

// setting is a line `key = value` for one of rows.
func (w *wild) setting(rows []*all.Row, prefix string) string {
	r := rows[w.IntN(len(rows))]
	key, value := r.Key, w.valueOf(r)
	if w.odds(12) && r.Type <= settings.StrVars {
		value = w.of("$"+key+" more", "$"+key, "pre $"+key, "$"+key+" $"+key, "a  $"+key)
	}
	if w.bad() && w.odds(3) {
		key = w.of("nosuch", "Hostname", `"hostname"`, "hostname{", "", "ssl_server_cert_file", "dovecot_config_version", "client_limit", "plugin", "passdb", "service", "name", "path", "driver", key+"s", "!include", "}")
	}
	return prefix + key + w.of(" = ", " = ", "=", " =", "= ", "\t=\t") + value
}

func (w *wild) inside(path string) []*all.Row {
	var out []*all.Row
	head, _ := all.V23().Row(path)
	for _, r := range all.V23().Inside(path) {
		// Two blocks of one name are printed inside each other.
		if r.Kind == 0 && (r.Key != head.NameAt || head.Kind != all.Unique) {
			out = append(out, r)
		}
	}
	return out
}

var (
	wildServices = []string{"auth", "submission", "submission-login", "imap-login", "imap", "new", `"with blank"`, "anvil", "stats", "dict", "log", "auth-worker", "dns-client", "dns_client", "config", `a\sb`, `'q'`, "x/y", "pop3-login", "indexer"}
	wildFilters  = []string{"protocol submission", "protocol imap", "protocol !imap", "protocol lmtp", "protocol", "protocol !", `protocol "a b"`, "local 10.0.0.0/8", "local 10.1.2.3", "local 10.1.0.0/16", "local ::1", "local [::1]", "local 0.0.0.0/0",
		"remote 192.0.2.0/24", "remote 192.0.2.9", "remote ::1/64", "remote 10.1", "local_name mx.example.org", "local_name *.example.org", `local_name "a.example mx.example.org"`, "local_name", "local_name MX.example.org", "protocol managesieve"}
	wildWrong = []string{"}", "} x", "foo", "service x", "= 1", "!include nosuch", "!include", "x {", "service a b {", `service "a {`, "service auth { client_limit = 1 }", "{", "passdb{", "local 10.0.0.0/33 {", "local 300.1.1.1 {", "remote {", "namespace", "!includex a", "key", "plugin = x", "passdb = 0", "passdb = a b",
		"service = new2 new3", "userdb =", "dict = x", "hostname {", "ssl {", "listen x {", "service {", "service/nosuch/client_limit = 1", "service/auth = 1", "service/auth/ = 1", "/ = 1", "a/b = 1", "plugin/a/b = 1", "plugin/ = 2", "passdb/0/driver = x", "passdb/9/driver = y", "metric = m", "service auth/x {", "}}", `"service" x {`}
	wildLines = []string{"service/auth/client_limit = 4000", "service/submission-login/inet_listener/submission/port = 588", `service/submission/unix_listener/login\ssubmission/mode = 0660`, "plugin/quota = x", "plugin/a b = y", "plugin/x_key = z", "!include_try nosuch.conf", "", "# comment", "   ", "!include_try conf.d/20*", "!include sub/c.part",
		"  !include \t conf.d/10-a.conf", "!include a b.part", "!include conf.d/{10-a,20-b}.conf", "!include {sub,conf.d}/*.*", "!include conf.d/*.conf", "!include conf.d/[12]0-?.conf", "!include conf.d", "!include_try conf.d/.*.conf", "!include main.conf", "!include ./sub/../sub/c.part", "!include_try sub/c.part # c", "!include conf.d/*.conf conf.d/*",
		"service/new/client_limit = 3", "dict/x = y", "namespace/inbox/prefix = a"}
	wildChecks = []string{"listen =", "first_valid_uid = 70000\nlast_valid_uid = 60000", "default_login_user = nosuch", "default_internal_user = root", "protocols = imap nosuch", "protocols = none", "protocols = none imap", "protocols = submission", "protocols = imap pop3 lmtp submission", "protocols = imap,submission", "auth_worker_max_count = 0", "auth_cache_size = 1000 B",
		"auth_cache_size = 100", "auth_verbose_passwords = x", "auth_verbose_passwords = sha1:0", "auth_verbose_passwords = plain:3", "auth_policy_server_url = http://x", "ssl_verify_client_cert = yes", "ssl_options = no_ticket, x", "ssl_options = compression", "syslog_facility = x", "submission_client_workarounds = whitespace-before-path bad", "submission_client_workarounds = Mailbox-For-Path, exotic-backend",
		"imap_client_workarounds = delay-newmail, x", "pop3_client_workarounds = oe-ns-eoh", "lmtp_client_workarounds = bad", "mail_plugin_dir = /nosuch\nmail_plugins = a", "mail_plugins = quota", "default_process_limit = 2000", "default_client_limit = 10", "default_vsz_limit = 1k", "last_valid_gid = 0\nfirst_valid_gid = 5", "base_dir = /tmp/x/", "log_core_filter = (", "ssl = no", "ssl = required",
		"auth_proxy_self = 127.0.0.1", "passdb {\n}", "userdb {\n}", "passdb {\n driver = static\n pass = yes\n result_success = continue\n}", "passdb {\n driver = pam\n pass = yes\n}", "service submission-login {\n process_min_avail = 200\n}", "service auth {\n process_limit = 2\n}", "service auth {\n client_limit = 10\n}", "service anvil {\n client_limit = 1\n}", "service submission {\n vsz_limit = 1k\n}",
		"service submission {\n chroot = x\n drop_priv_before_exec = yes\n}", "service x {\n type = bad\n}", "service x {\n name = y\n}", "service {\n}", "service x {\n name =\n}", "service auth {\n unix_listener /run/dovecot/y {\n }\n}", "service auth {\n unix_listener mine {\n  path = other\n }\n}", "service auth {\n unix_listener \"\" {\n }\n}", "service stats {\n inet_listener a {\n  port = 99\n }\n inet_listener b {\n  port = 99\n }\n}",
		"service auth {\n fifo_listener auth-userdb {\n }\n}", "service submission-login {\n inet_listener submissions {\n  port = 465\n  ssl = yes\n }\n}", "mail_max_userip_connections = 0", "auth_master_user_separator = *", "recipient_delimiter = +-", "log_path = /dev/stderr", "service submission {\n process_limit = 1\n service_count = 5\n}", "service imap-hibernate {\n process_limit = 50\n service_count = 0\n}"}
	wildObsolete = []string{"ssl_protocols = !SSLv3 !TLSv1", "ssl_protocols = TLSv1.2", "ssl_protocols = SSLv2", "ssl_protocols = !SSLv3 !TLSv1 !TLSv1.1 !TLSv1.2", "ssl_cert_file = value.txt", "ssl_key_file =", "ssl_ca_file = /x", "ssl_disable = yes", "ssl_disable = maybe", "ssl_parameters_regenerate = 1", "ssl_dh_parameters_length = 2", "protocols = imaps", "protocols = imap imaps pop3s", "login_dir = x", "dbox_rotate_min_size = 1",
		"dbox_rotate_days = 1", "director_consistent_hashing = yes", "mail_log_max_lines_per_sec = 1", "maildir_copy_preserve_filename = yes", "login_chroot = no", "login_chroot = yes", "login_user = x", "login_executable = y", "login_process_size = 64", "login_process_per_connection = no", "login_processes_count = 3", "login_max_processes_count = 128", "login_max_connections = 256", "max_mail_processes = 512", "mail_executable = /x", "mail_process_size = 256",
		"mail_drop_priv_before_exec = yes", "auth_executable = /y", "auth_process_size = 100", "auth_user = root", "auth_chroot = c", "auth_count = 1", "auth_cache_size = 10", "auth_cache_size = 2000", "listen = *:143", "listen = 192.0.2.1, [2001:db8::1] localhost", "listen = *, [::]", "ssl_listen = *:993", "sieve = ~/.dovecot.sieve", "sieve_storage = ~/sieve", "fsync_disable = yes", "fsync_disable = no", "dbox_rotate_size = 2M", "mail_cache_compress_min_size = 1k",
		"mail_cache_compress_delete_percentage = 5", "imap_client_workarounds = outlook-idle delay-newmail", "imap_client_workarounds = netscape-eoh", "service dns_client {\n client_limit = 2\n}", "protocol managesieve {\n hostname = x\n}", "plugin {\n imap_zlib_compress_level = 3\n}", "protocol imap {\n listen = *:144\n}", "protocol imap {\n ssl_listen = 10.0.0.1\n}", "protocol pop3 {\n login_user = z\n listen = 10.0.0.2\n}", "protocol sieve {\n listen = *:2000\n}",
		"auth default {\n mechanisms = plain login\n passdb sql {\n  args = /x\n }\n userdb passwd {\n }\n user = root\n socket listen {\n  master {\n   path = /run/dovecot/auth-master\n   mode = 0600\n   user = vmail\n  }\n  client {\n   path = /var/spool/postfix/auth\n   mode = 0660\n  }\n }\n}", "auth default {\n socket listen {\n  client {\n   path = x-master\n  }\n }\n}", "auth x {\n verbose = yes\n nosuch = 1\n}", "login_process_per_connection = yes"}
)

func (w *wild) item(b *strings.Builder, depth int, section string) {
	if depth > 5 {
		return
	}
	block := func(head string, n int, inner func()) {
		w.line(b, depth, head+w.of(" {", " {", " {", "\t{", "  {"))
		for range n {
			inner()
		}
		if !(w.bad() && w.odds(5)) {
			w.line(b, depth, "}")
		}
	}
	many := func(list []string) {
		for _, l := range strings.Split(w.of(list...), "\n") {
			w.line(b, depth, l)
		}
	}
	switch w.IntN(26) {
	case 0:
		block(w.of("plugin", "plugin", "plugin named"), w.IntN(4), func() {
			w.line(b, depth+1, w.of("quota", "a", "api_key", "zz key", "sieve_dir", "x_password", "1", "a.b", "a-b", "Z", "mykey", "ssl_dhx", "n_nonce", "q2", "q10", "a/b")+w.of(" = ", "=")+w.of(wildStrings...))
		})
	case 1:
		typ := w.of("passdb", "userdb")
		rows := w.inside(typ)
		block(typ+w.of("", "", "", " named", ` "n b"`), 1+w.IntN(4), func() {
			if w.odds(2) {
				w.line(b, depth+1, "driver = "+w.of("static", "passwd-file", "pam", "sql"))
			} else {
				w.line(b, depth+1, w.setting(rows, ""))
			}
		})
	case 2, 3:
		rows := w.inside("service")
		block("service "+w.of(wildServices...), w.IntN(5), func() {
			if w.odds(2) {
				w.line(b, depth+1, w.setting(rows, ""))
				return
			}
			kind := w.of("inet_listener", "unix_listener", "fifo_listener")
			inner := w.inside("service/" + kind)
			head := kind + " " + w.of("submission", "x", "auth-userdb", "a/b", `"c d"`, "e,f=g", "login/submission", "/run/dovecot/x", "imaps", `a\b`, "y {", "")
			w.line(b, depth+1, strings.TrimSuffix(head, " {")+" {")
			for range w.IntN(3) {
				w.line(b, depth+2, w.setting(inner, ""))
			}
			w.line(b, depth+1, "}")
		})
	case 4:
		rows, inner := w.inside("namespace"), w.inside("namespace/mailbox")
		block("namespace "+w.of("inbox", "shared", `"a b"`, ""), w.IntN(5), func() {
			if w.odds(2) {
				w.line(b, depth+1, w.setting(rows, ""))
				return
			}
			w.line(b, depth+1, "mailbox "+w.of("Trash", `"Sent Messages"`, "Spam", `"a\"b"`, "*", "a/b")+" {")
			for range w.IntN(3) {
				w.line(b, depth+2, w.setting(inner, ""))
			}
			w.line(b, depth+1, "}")
		})
	case 5:
		typ := w.of("metric", "event_exporter")
		rows := w.inside(typ)
		block(typ+" "+w.of("m", "n", `"o p"`, ""), w.IntN(4), func() { w.line(b, depth+1, w.setting(rows, "")) })
	case 6:
		block(w.of("dict", "dict x"), w.IntN(3), func() {
			w.line(b, depth+1, w.of("quota", "acl")+" = "+w.of(wildStrings...))
		})
	case 7, 8, 9, 10:
		if depth > 0 && !w.odds(4) {
			w.line(b, depth, w.setting(w.rows, ""))
			return
		}
		block(w.of(wildFilters...), 1+w.IntN(3), func() {
			if w.odds(3) {
				w.item(b, depth+1, section)
			} else {
				w.line(b, depth+1, w.setting(w.rows, ""))
			}
		})
	case 11, 12:
		many(wildLines)
	case 13, 14:
		if w.bad() {
			many(wildWrong)
		} else {
			many(wildChecks)
		}
	case 15:
		many(wildObsolete)
	case 16, 17:
		many(wildChecks)
	default:
		w.line(b, depth, w.setting(w.rows, ""))
	}
}

// options is a command line, options in any order.
func (w *wild) options(names []string) []string {
	args := []string{"-c", "main.conf"}
	add := func(odds int, more ...string) {
		if w.odds(odds) {
			args = append(args, more...)
		}
	}
	add(2, w.of("-n", "-n", "-N", "-a", "-s", "-nP", "-Na", "-ns", "-nN"))
	add(4, "-x")
	add(6, "-P")
	add(8, "-S")
	add(12, "-h")
	add(30, "-p")
	add(40, "-d")
	for w.odds(4) {
		args = append(args, "-f", w.of("protocol=submission", "service=imap", "protocol=lmtp", "local=10.1.2.3", "local=10.1.0.0/16", "remote=192.0.2.9", "remote=::1", "lname=mx.example.org", "lname=a.example", "protocol=", "local=::1", "protocol=!imap", "lname="))
	}
	for w.odds(12) {
		args = append(args, "-m", w.of("master", "login", "submission", "submission-login", "mail", "auth", "ssl", "ssl-server", "stats", "lda", "lmtp", "imap", "imap-login", "imap-urlauth", "imap-urlauth-login", "imap-urlauth-worker", "dict", "doveadm", "smtp-submit", "nosuch", "pop3", "director", "maildir"))
	}
	for w.odds(3) {
		args = append(args, names[w.IntN(len(names))])
	}
	if w.odds(60) {
		args = append(args, w.of("-Z", "-f", "-f bad", "-fx=y", "-flocal=300.1", "-e", "-i x", "-H", "--", "-Hn", "-k", "-ofoo=bar", "-O", "-L", "-m"))
		args[len(args)-1] = strings.Fields(args[len(args)-1])[0]
	}
	return args
}

// allNames are names to ask for.
func allNames() []string {
	out := strings.Fields(`plugin passdb passdb/0 passdb/1/driver userdb service service/auth service/submission-login service/submission-login/inet_listener
		service/submission-login/inet_listener/submission service/submission-login/inet_listener/submission/port service/auth/unix_listener service/auth/unix_listener/auth-userdb
		service/auth/unix_listener/auth-userdb/mode service/submission/unix_listener/login\ssubmission/mode service/new service/new/client_limit plugin/a plugin/quota plugin/api_key namespace
		namespace/inbox namespace/inbox/prefix namespace/inbox/mailbox namespace/inbox/mailbox/Trash dict dict/quota metric metric/m nosuch nosuch/x ssl protocol local hostname/x passdb/ service/
		service/with\_blank passdb/0/name userdb/0/args service/submission/process_limit service/fifo_listener event_exporter hostname listen protocols mail_plugins`)
	for _, r := range all.V23().Inside("") {
		out = append(out, r.Key)
	}
	return append(out, "", "plugin/zz key", "a b")
}
