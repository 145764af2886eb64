package conf

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
)

// Lines and what is shown of them.
func TestVeil(t *testing.T) {
	for _, x := range [][2]string{
		{"submission_relay_password = hunter2#x9", "submission_relay_password = **********"},
		{"  submission_relay_pasword=hünter2 # c", "  submission_relay_pasword=***********"},
		{"submission_relaypasword hunter2", "submission_relaypasword *******"},
		{"Imapc_Passwrod: hunter2", "Imapc_Passwrod: *******"},
		{"foo_pw = x", "foo_pw = *"}, {"pass = yess", "pass = ****"},
		{"doveadm_api_key = x\r\n", "doveadm_api_key = *\r\n"},
		{"oauth2_client_secret = \"x\"", "oauth2_client_secret = ***"},
		{"password = \\\n  a \\\n  b\n", "password = \\\n****\\\n***\n"},
		{"args = scheme=PLAIN \\\n password=x", "args = *************\\\n***********"},
		{"args = pasword=x uid=1", "args = ***************"},
		{"passdb { args = password=x }", "passdb *********************"},
		{"service x { foo_pasword = y }", "service *********************"},
		{"dict = mysql://u:p@host/db", "dict = *******************"},
		{"hostname = a # password = x", "hostname = ****************"},
		// No secrets: files, what exists and is none, heads, what only looks alike.
		{"ssl_key = </etc/ssl/private/mail.key", ""},
		{"ssl_cert = </etc/ssl/mail.pem", ""},
		{"submission_relay_password = <pw", ""},
		{"ssl_key = /etc/ssl/private/mail.key", ""},
		{"ssl_server_key_file = /etc/ssl/private/mail.key", ""},
		{"auth_verbose_passwords = maybe", ""},
		{"auth_cache_verify_password_with_worker = x", ""},
		{"  pass = yes", ""}, {"passdb {", ""}, {"pasdb {", ""}, {"passdb passwd-file {", ""}, {"  driver = passwd-file", ""},
		{"args = scheme=CRYPT username_format=%u /etc/dovecot/passwd", ""},
		{"!include /etc/dovecot/passwords.conf", ""},
		{"hostnam = x", ""}, {"login_greeting = a=b", ""}, {"mail_location = maildir:~/Maildir", ""},
		{"dict = redis:host=a@b", ""}, {"}", ""}, {"", ""}, {"\x01 garbage \xff", ""},
	} {
		want := x[1]
		if want == "" {
			want = x[0]
		}
		if got := Veil(x[0]); got != want {
			t.Errorf("%q: %q, want %q", x[0], got, want)
		}
	}
}

// Neither Write nor a summary has anything of a secret, wherever the mistake is.
func TestNoSecretsInMessages(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, x := range []struct{ conf, note string }{
		{"submission_relay_password = hunter2#hunter3\n", "the # may be meant"},
		{"submission_relay_pasword = hunter2\n", "a typo"},
		{"submission_relay_password hunter2\n", "no ="},
		{"submission_relay_password: hunter2\n", "no ="},
		{"submission_relay_password = $hunter2\n", "no variable"},
		{"submission_relay_password = \\\n  a \\\n  $hunter2 hunter3\n", "on the third line"},
		{"submission_relay_password = " + strings.Repeat("x \\\n", maxContinued) + " hunter2#hunter3\n", "far away"},
		{"plugin {\n  a/b_password = hunter2\n}\n", "no slash there"},
		{"passdb {\n  arsg = password=hunter2\n}\n", "a typo before it"},
		{"passdb {\n  args = password=hunter2#3\n}\n", "in args"},
		{"passdb { args = password=hunter2 }\n", "one line"},
		{"dovecot_config_version = 2.4.4\ndovecot_storage_version = 2.4.4\nsubmission_relay_password = hunter2%{x\n", "2.4"},
		{"dovecot_config_version = 2.4.4\ndovecot_storage_version = 2.4.4\nsubmission_relay_password = $SET:hunter2\n", "2.4, no such setting"},
		{"dovecot_config_version = 2.4.4\ndovecot_storage_version = 2.4.4\npassdb static {\n  fields {\n    password = hunter2%{x\n  }\n}\n", "2.4, in a list"},
	} {
		file(t, "main.conf", x.conf)
		opt := Options{Expand: true, Own: true, NoChecks: true}
		var c *Config
		var diags hcl.Diagnostics
		if strings.HasPrefix(x.conf, "dovecot") {
			c24, d := Load24("main.conf", opt)
			c, diags = &Config{Files: c24.Files}, d
		} else {
			c, diags = Load("main.conf", opt)
		}
		var b bytes.Buffer
		if err := Write(&b, c, diags); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(b.String(), "hunter") || len(diags) == 0 || !strings.Contains(b.String(), " | ") {
			t.Errorf("%s:\n%s", x.note, &b)
		}
	}
}

// A veiled line is as long as it was, to the letter.
func FuzzVeil(f *testing.F) {
	f.Add("submission_relay_password = hunter2#x9\n")
	f.Add("args = scheme=PLAIN \\\n password=\xff\xfe\r\n")
	f.Fuzz(func(t *testing.T, line string) {
		got := Veil(line)
		if utf8.RuneCountInString(got) != utf8.RuneCountInString(line) || strings.Count(got, "\n") != strings.Count(line, "\n") {
			t.Errorf("%q: %q", line, got)
		}
	})
}
