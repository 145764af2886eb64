package conf

import (
	"testing"
)

// The first error of 2.4's checks, as doveconf 2.4.4 prints it.
func TestChecks24(t *testing.T) {
	t.Chdir(t.TempDir())
	for conf, want := range map[string]string{
		"hostname = a\n":                    "",
		"log_debug = event=%{user}\n":       "Invalid log_debug: event filter: syntax error, unexpected end of file, expecting '=' or '>' or '<'",
		"syslog_facility = $SET:hostname\n": "Unknown syslog_facility: " + unknownValue,
		"ssl_options = FOO\n":               "ssl_options: unknown flag: 'FOO'",
		"ssl_options = %{user}\n":           "ssl_options: unknown flag: '" + unknownValue + "'",
		"last_valid_uid = %{user}\n":        "",
		// What belongs to a filter by its name is checked in the filter, after the root, and
		// does not see what is set around it.
		"oauth2_client_id = x\nlast_valid_uid = 0\n":       "last_valid_uid must not be 0",
		"oauth2 {\n  client_id = x\n}\n":                   "oauth2_client_id and oauth2_client_secret must be provided together",
		"ssl = no\nssl_server_request_client_cert = yes\n": "ssl_server_request_client_cert=yes, but ssl_server_ca_file not provided",
	} {
		file(t, "main.conf", "dovecot_config_version = 2.4.4\ndovecot_storage_version = 2.4.4\n"+conf)
		c, _ := Load24("main.conf", Options{})
		got := ""
		if len(c.Checked) > 0 {
			got = c.Checked[0].Text
		}
		if got != want {
			t.Errorf("%s: %q, want %q", conf, got, want)
		}
	}
}
