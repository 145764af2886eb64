package settings

// A Setting is one row of the table.
type Setting struct {
	Name    string // full path by types: "hostname", "service/client_limit"
	Type    Type
	Default string   // in the form doveconf prints
	Enum    []string // of type Enum: its words, the first is the default
	Program string   // "submission": this row is the worker's alone; "" for all
	Hidden  bool     // doveconf prints it with -s only
}

// Normalise converts a value to the form in which doveconf prints it. An error's text is
// Dovecot's (clause C11).
func (s Setting) Normalise(value string) (string, error) { return s.Type.Normalise(value, s.Enum) }

// Lookup returns the row of a setting that a program here reads, as doveconf shows it.
func Lookup(name string) (Setting, bool) {
	if s := find(name, ""); s != nil {
		return *s, true
	}
	return Setting{}, false
}

// Table returns the rows of all settings that the programs here read. It is lent.
func Table() []Setting { return table[:] }

// find is a binary search; of two rows with one name that of the program wins.
func find(name, program string) *Setting {
	lo, hi := 0, len(table)
	for lo < hi {
		if mid := (lo + hi) / 2; table[mid].Name < name {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	var found *Setting
	for ; lo < len(table) && table[lo].Name == name; lo++ {
		if p := table[lo].Program; p == program || p == "" && found == nil {
			found = &table[lo]
		}
	}
	return found
}

// table is sorted by name. Defaults are those of Dovecot 2.3.19.1 as Debian builds it.
var table = [...]Setting{
	{Name: "auth_debug", Type: Bool, Default: "no"},
	{Name: "auth_ssl_require_client_cert", Type: Bool, Default: "no"},
	{Name: "auth_ssl_username_from_cert", Type: Bool, Default: "no"},
	{Name: "auth_verbose", Type: Bool, Default: "no"},
	{Name: "base_dir", Type: Str, Default: "/run/dovecot"},
	{Name: "disable_plaintext_auth", Type: Bool, Default: "yes"},
	{Name: "first_valid_gid", Type: Uint, Default: "1"},
	{Name: "first_valid_uid", Type: Uint, Default: "500"},
	{Name: "haproxy_timeout", Type: Time, Default: "3 secs"},
	{Name: "haproxy_trusted_networks", Type: Str},
	{Name: "hostname", Type: Str},
	{Name: "imap_urlauth_host", Type: Str},
	{Name: "imap_urlauth_port", Type: Port, Default: "143"},
	{Name: "instance_name", Type: Str, Default: "dovecot"},
	{Name: "last_valid_gid", Type: Uint, Default: "0"},
	{Name: "last_valid_uid", Type: Uint, Default: "0"},
	{Name: "login_access_sockets", Type: Str},
	{Name: "login_greeting", Type: StrVars, Default: "Dovecot (Debian) ready."},
	{Name: "login_log_format", Type: Str, Default: "%$: %s"},
	{Name: "login_log_format_elements", Type: Str, Default: "user=<%u> method=%m rip=%r lip=%l mpid=%e %c session=<%{session}>"},
	{Name: "login_proxy_max_disconnect_delay", Type: Time, Default: "0"},
	{Name: "login_proxy_max_reconnects", Type: Uint, Default: "3"},
	{Name: "login_proxy_rawlog_dir", Type: Str},
	{Name: "login_proxy_timeout", Type: MSecs, Default: "30 secs"},
	{Name: "login_source_ips", Type: Str},
	{Name: "login_trusted_networks", Type: Str},
	{Name: "mail_access_groups", Type: Str},
	{Name: "mail_attribute_dict", Type: StrVars},
	{Name: "mail_chroot", Type: StrVars},
	{Name: "mail_debug", Type: Bool, Default: "no"},
	{Name: "mail_gid", Type: Str},
	{Name: "mail_home", Type: StrVars},
	{Name: "mail_log_prefix", Type: Str, Default: "%s(%u)<%{pid}><%{session}>: "},
	{Name: "mail_max_userip_connections", Type: Uint, Default: "10"},
	{Name: "mail_privileged_group", Type: Str},
	{Name: "mail_uid", Type: Str},
	{Name: "rawlog_dir", Type: StrVars},
	{Name: "recipient_delimiter", Type: Str, Default: "+"},
	{Name: "shutdown_clients", Type: Bool, Default: "yes"},
	{Name: "ssl", Type: Enum, Default: "yes", Enum: []string{"yes", "no", "required"}},
	{Name: "ssl_alt_cert", Type: Str},
	{Name: "ssl_alt_key", Type: Str},
	{Name: "ssl_ca", Type: Str},
	{Name: "ssl_cert", Type: Str},
	{Name: "ssl_cert_username_field", Type: Str, Default: "commonName"},
	{Name: "ssl_cipher_list", Type: Str, Default: "ALL:!kRSA:!SRP:!kDHd:!DSS:!aNULL:!eNULL:!EXPORT:!DES:!3DES:!MD5:!PSK:!RC4:!ADH:!LOW@STRENGTH"},
	{Name: "ssl_cipher_suites", Type: Str},
	{Name: "ssl_client_ca_dir", Type: Str},
	{Name: "ssl_client_ca_file", Type: Str},
	{Name: "ssl_client_cert", Type: Str},
	{Name: "ssl_client_key", Type: Str},
	{Name: "ssl_client_require_valid_cert", Type: Bool, Default: "yes"},
	{Name: "ssl_crypto_device", Type: Str},
	{Name: "ssl_curve_list", Type: Str},
	{Name: "ssl_dh", Type: Str},
	{Name: "ssl_key", Type: Str},
	{Name: "ssl_key_password", Type: Str},
	{Name: "ssl_min_protocol", Type: Str, Default: "TLSv1.2"},
	{Name: "ssl_options", Type: Str},
	{Name: "ssl_prefer_server_ciphers", Type: Bool, Default: "no"},
	{Name: "ssl_require_crl", Type: Bool, Default: "yes"},
	{Name: "ssl_verify_client_cert", Type: Bool, Default: "no"},
	{Name: "state_dir", Type: Str, Default: "/var/lib/dovecot"},
	{Name: "submission_backend_capabilities", Type: Str},
	{Name: "submission_client_workarounds", Type: Str},
	{Name: "submission_logout_format", Type: Str, Default: "in=%i out=%o"},
	{Name: "submission_max_mail_size", Type: Size, Default: "0"},
	{Name: "submission_max_mail_size", Type: Size, Default: "40 M", Program: "submission"},
	{Name: "submission_max_recipients", Type: Uint, Default: "0"},
	{Name: "submission_relay_command_timeout", Type: MSecs, Default: "5 mins"},
	{Name: "submission_relay_connect_timeout", Type: MSecs, Default: "30 secs"},
	{Name: "submission_relay_host", Type: Str},
	{Name: "submission_relay_master_user", Type: Str},
	{Name: "submission_relay_max_idle_time", Type: Time, Default: "29 mins"},
	{Name: "submission_relay_password", Type: Str},
	{Name: "submission_relay_port", Type: Port, Default: "25"},
	{Name: "submission_relay_rawlog_dir", Type: StrVars},
	{Name: "submission_relay_ssl", Type: Enum, Default: "no", Enum: []string{"no", "smtps", "starttls"}},
	{Name: "submission_relay_ssl_verify", Type: Bool, Default: "yes"},
	{Name: "submission_relay_trusted", Type: Bool, Default: "no"},
	{Name: "submission_relay_user", Type: Str},
	{Name: "valid_chroot_dirs", Type: Str},
	{Name: "verbose_proctitle", Type: Bool, Default: "no"},
	{Name: "verbose_ssl", Type: Bool, Default: "no"}}
