package doveconf

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dovetail/internal/conf"
)

// corpus are the configurations for 2.3 that are right.
func corpus(t testing.TB, folders ...string) []string {
	t.Helper()
	var out []string
	for _, f := range folders {
		found, err := filepath.Glob(filepath.Join("../../../tests/doveconf/2.3", f, "*.conf"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no cases in %s: %v", f, err)
		}
		for _, path := range found {
			if _, diags := conf.Load(path, conf.Options{Schema: conf.Dovecot23Sieve()}); !onLines(diags) {
				out = append(out, path)
			}
		}
	}
	return out
}

// Every line of the input is in the result, converted or as a comment; the result is
// right for 2.4; and converting it again changes nothing.
func TestConvertLosesNothing(t *testing.T) {
	notes := 0
	files := corpus(t, "deploy", "deploy/panel-sql-tree", "feature")
	for _, path := range files {
		opt := conf.Options{Schema: conf.Dovecot23Sieve()}
		c := newConverter(path, opt)
		text, n, err := c.proven()
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		notes += len(n)
		have := map[string]bool{}
		for _, l := range c.lines {
			have[fmt.Sprint(l.from.File, l.from.Line)] = true
		}
		conf.Walk(path, opt, func(l conf.SourceLine) {
			if l.Kind == conf.SourceSet && !have[fmt.Sprint(l.File, l.Line)] && !replaced(c, l) {
				t.Errorf("%s: line %d of %s is lost: %s", path, l.Line, l.File, strings.TrimSpace(l.Raw))
			}
		})
		file := filepath.Join(t.TempDir(), "out.conf")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, diags := conf.Load24(file, conf.Options{}); onLines(diags) {
			t.Errorf("%s: the result is wrong: %v\n%s", path, diags, text)
		}
		var again, errs bytes.Buffer
		env := Env{Stdout: &again, Stderr: &errs, LookupEnv: os.LookupEnv}
		if status := Main([]string{"convert", "--to", "2.4", file}, env); status != 0 || again.String() != text {
			t.Errorf("%s: converting the result again: status %d, %s", path, status, errs.String())
		}
	}
	t.Logf("%d files, %d notes", len(files), notes)
}

// replaced says whether l stands in a passdb or userdb: there only the last line of a key
// counts, and driver and name become the head.
func replaced(_ *converter, l conf.SourceLine) bool {
	return l.Key == "driver" || l.Key == "name" || l.Key == "args" || l.Key == "pass" || l.Key == "default_fields" || l.Key == "override_fields"
}

func TestConvert(t *testing.T) {
	for _, x := range []struct{ name, in, out string }{
		{"names and values", "disable_plaintext_auth = no # why\nssl_cert = </a.pem\nssl_prefer_server_ciphers = yes\nsubmission_max_recipients = 0\n",
			"auth_allow_cleartext = yes # why\nssl_server_cert_file = /a.pem\nssl_server_prefer_ciphers = server\nsubmission_max_recipients = unlimited\n"},
		{"comments", "# one\n\nhostname = a \\\n  b  # two\n", "# one\n\nhostname = a b # two\n"},
		{"variables", "hostname = a\nlogin_greeting = $hostname ready\nauth_default_realm = $ENV:X y\n",
			"hostname = a\nlogin_greeting = $SET:hostname ready\nauth_default_domain = $ENV:X y\n"},
		{"lists", "protocols = $protocols submission\nlisten = *, ::\nmail_plugins = quota\nprotocol imap {\n  mail_plugins = $mail_plugins acl\n}\n",
			"protocols {\n  submission = yes\n}\nlisten = * ::\nmail_plugins = quota\nprotocol imap {\n  mail_plugins {\n    acl = yes\n  }\n}\n"},
		{"passdb", "passdb {\n  # c\n  driver = passwd-file\n  args = scheme=PLAIN username_format=%Ln /etc/%d/u\n  default_fields = uid=5 home=/h/%u\n  override_fields = a=b\n}\npassdb {\n  driver = passwd-file\n  args = /x\n}\n",
			"passdb passwd-file {\n  # c\n  default_password_scheme = PLAIN\n  auth_username_format = %{user | username | lower}\n  passwd_file_path = /etc/%{user | domain}/u\n  fields {\n    uid:default = 5\n    home:default = /h/%{user}\n    a = b\n  }\n}\npassdb passwd-file-2 {\n  driver = passwd-file\n  passwd_file_path = /x\n}\n"},
		{"static", "passdb {\n  driver = static\n  args = password=p nopassword=y\n}\nuserdb {\n  driver = static\n  args = uid=1 gid=2 allow_all_users=yes\n}\n",
			"passdb static {\n  passdb_static_password = p\n  fields {\n    nopassword = y\n  }\n}\nuserdb static {\n  userdb_static_allow_all_users = yes\n  fields {\n    uid = 1\n    gid = 2\n  }\n}\n"},
		{"services", "service submission-login {\n  service_count = 0\n  process_limit = 0\n  inet_listener x {\n    address = 127.0.0.1, ::1\n    reuse_port = yes\n    port = 7\n  }\n}\nservice auth {\n  unix_listener my-userdb {\n    user = $default_internal_user\n  }\n}\n",
			"service submission-login {\n  restart_request_count = unlimited\n  # process_limit = 0 is the default; 2.4 does not take it\n  inet_listener x {\n    listen = 127.0.0.1 ::1\n    # reuse_port is a setting of the service in 2.4\n    port = 7\n  }\n  reuse_port = yes\n}\nservice auth {\n  unix_listener my-userdb {\n    type = userdb\n    user = $SET:default_internal_user\n  }\n}\n"},
		{"several names", "local_name \"a.b c.d\" {\n  ssl_cert = </x\n}\n", "local_name a.b {\n  ssl_server_cert_file = /x\n}\nlocal_name c.d {\n  ssl_server_cert_file = /x\n}\n"},
		{"mail location", "mail_location = maildir:~/M:INDEX=/i/%u:LAYOUT=fs\n", "mail_driver = maildir\nmail_path = ~/M\nmail_index_path = /i/%{user}\nmailbox_list_layout = fs\n"},
		{"plugin", "plugin {\n  quota_rule = *:storage=1G\n}\n", "# plugin {\n  # not converted: the plug-in's settings have other names in 2.4\n  #   quota_rule = *:storage=1G\n# }\n"},
		{"quotes", "login_greeting = 'it''s # in'\nauth_realms = \"a\\\"b\"\nhostname = \" x\"\n", "login_greeting = \"it''s # in\"\nauth_realms = \"a\\\"b\",\nhostname = \" x\"\n"},
	} {
		t.Run(x.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "in.conf")
			if err := os.WriteFile(file, []byte(x.in), 0o600); err != nil {
				t.Fatal(err)
			}
			got, _, err := Convert(file, conf.Options{})
			if err != nil {
				t.Fatal(err)
			}
			want := "dovecot_config_version = 2.4.4\ndovecot_storage_version = 2.4.4\n\n" + x.out
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestPercent(t *testing.T) {
	for _, x := range [][3]string{
		{"namespace_prefix", "Shared/%%u/", "Shared/$user/"}, {"namespace_prefix", "%%d/%%n/", "$domain/$username/"}, {"namespace_prefix", "%%Lu", "!%%Lu"},
		{"namespace_mail_path", "%%Lh/M:%%n%u", "%{owner_home | lower}/M:%{owner_user | username}%{user}"}, {"namespace_mail_path", "%%x", "!%%x"},
	} {
		got, bad := percent24(x[0], x[1])
		if len(bad) > 0 {
			got = "!" + strings.Join(bad, " ")
		}
		if got != x[2] {
			t.Errorf("%s = %s: %s, want %s", x[0], x[1], got, x[2])
		}
	}
	for v, want := range map[string]string{
		"%Lu": "%{user | lower}", "100%%": "100%", "%%{x": "%%{x", "%1.2n": "%{user | username | substr(1, 2)}", "%{env:X}": "%{env:X}",
		"%{if;%u;eq;a;b;c}": "!%{if;%u;eq;a;b;c}", "%2.256Nu": "!%2.256Nu", "%Mu/%d": "%{user | md5}/%{user | domain}", "%": "%",
	} {
		got, bad := percent24("x", v)
		if len(bad) > 0 {
			got = "!" + strings.Join(bad, " ")
		}
		if got != want {
			t.Errorf("%s: %s, want %s", v, got, want)
		}
	}
}
