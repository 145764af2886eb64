package all

import "strings"

// A Rename says what became of a setting of 2.3 in 2.4 (clause C20).
type Rename struct {
	To string // the new name, "" if there is none
	// How says how the value changes, if it does: "path" (a leading < goes), "not" (yes is
	// no), "list" (a line still does), "unlimited" (0 is unlimited), "block" (To is a block).
	How  string
	Note string // what to know, a sentence
}

// Help is the advice about an old name.
func (r Rename) Help() string {
	var parts []string
	switch {
	case r.To == "":
		parts = append(parts, "2.4 does not have it.")
	case r.How == "not":
		parts = append(parts, "In 2.4 it is `"+r.To+"`, with the opposite meaning.")
	case r.How == "path":
		parts = append(parts, "In 2.4 it is `"+r.To+" = path`, without <.")
	default:
		parts = append(parts, "In 2.4 it is `"+r.To+"`.")
	}
	if r.Note != "" {
		parts = append(parts, r.Note)
	}
	return strings.Join(parts, " ")
}

// Renamed are the settings of 2.3 that 2.4 has under another name, or not at all. The
// plain rest has the same name.
var Renamed = map[string]Rename{
	"ssl_cert": {"ssl_server_cert_file", "path", ""}, "ssl_key": {"ssl_server_key_file", "path", ""},
	"ssl_alt_cert": {"ssl_server_alt_cert_file", "path", ""}, "ssl_alt_key": {"ssl_server_alt_key_file", "path", ""},
	"ssl_key_password": {"ssl_server_key_password", "", ""}, "ssl_dh": {"ssl_server_dh_file", "path", ""},
	"ssl_ca":                    {"ssl_server_ca_file", "path", "For outgoing connections it is `ssl_client_ca_file`."},
	"ssl_verify_client_cert":    {"ssl_server_request_client_cert", "", ""},
	"ssl_require_crl":           {"ssl_server_require_crl", "", ""},
	"ssl_cert_username_field":   {"ssl_server_cert_username_field", "", ""},
	"ssl_prefer_server_ciphers": {"ssl_server_prefer_ciphers", "ciphers", ""},
	"ssl_client_cert":           {"ssl_client_cert_file", "path", ""}, "ssl_client_key": {"ssl_client_key_file", "path", ""},
	"ssl_protocols": {"ssl_min_protocol", "protocols", ""}, "verbose_ssl": {"log_debug", "debug", "`log_debug = category=ssl`"},
	"disable_plaintext_auth": {"auth_allow_cleartext", "not", ""}, "auth_default_realm": {"auth_default_domain", "", ""},
	"auth_worker_max_count":            {"service auth-worker { process_limit", "worker", ""},
	"auth_stats":                       {"", "", ""},
	"login_access_sockets":             {"", "", ""},
	"config_cache_size":                {"", "", ""},
	"auth_policy_server_timeout_msecs": {"auth_policy { http_client_request_timeout", "policy", ""},
	"default_idle_kill":                {"default_idle_kill_interval", "", ""},
	"mail_location":                    {"mail_driver", "location", "It is `mail_driver`, `mail_path`, `mail_index_path` and so on."},
	"mail_debug":                       {"mail_debug", "", ""},
	"imap_id_log":                      {"", "", "The ID is in the event imap_id_received."},
	"mail_save_crlf":                   {"", "", ""},
	"mail_attachment_fs":               {"mail_ext_attachment { fs_driver", "", ""},
	"mail_attachment_dir":              {"mail_ext_attachment_path", "", ""},
	"mail_attachment_hash":             {"mail_ext_attachment_hash", "", ""},
	"mail_attachment_min_size":         {"mail_ext_attachment_min_size", "", ""},
	"mail_attribute_dict":              {"mail_attribute { dict", "", ""},
	"service_count":                    {"restart_request_count", "unlimited", ""},
	"idle_kill":                        {"idle_kill_interval", "", ""},
	"args":                             {"", "", "Each driver has settings of its own in place of args."},
	"default_fields":                   {"fields", "", "`fields { key:default = value }`"},
	"override_fields":                  {"fields", "", "`fields { key = value }`"},
	"mechanisms":                       {"mechanisms_filter", "", ""},
	"director_servers":                 {"", "", "There is no director in 2.4."},
	"dict":                             {"dict_server { dict", "", ""},
	"plugin":                           {"", "", "The settings of plug-ins stand outside of sections, many under new names."},
	"auth_realms":                      {"auth_realms", "list", ""},
	"last_valid_uid":                   {"last_valid_uid", "unlimited", ""},
	"last_valid_gid":                   {"last_valid_gid", "unlimited", ""},
	"submission_max_recipients":        {"submission_max_recipients", "unlimited", ""},
	"submission_max_mail_size":         {"submission_max_mail_size", "unlimited", ""},
	"auth_policy_request_attributes":   {"auth_policy_request_attributes", "strlist", ""},
	"import_environment":               {"import_environment", "environment", ""},
	"address":                          {"listen", "", "In an inet_listener."},
}
