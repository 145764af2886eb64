package settings

// Own are the settings that Dovecot does not have. Under Dovecot they stand in plugin { },
// as which the config service sends them in any case: "plugin/dovetail_log_format".
var Own = []Setting{
	{Name: "dovetail_burl_imap_host", Type: Str},
	{Name: "dovetail_burl_imap_password_file", Type: Str},
	{Name: "dovetail_burl_imap_port", Type: Port, Default: "0"},
	{Name: "dovetail_burl_imap_ssl", Type: Enum, Enum: []string{"imaps", "starttls", "no"}, Default: "imaps"},
	{Name: "dovetail_burl_imap_user", Type: Str},
	{Name: "dovetail_log_format", Type: Enum, Enum: []string{"text", "json"}, Default: "text"},
}

// A BURLServer is the IMAP server from which BURL fetches what URLs with URLAUTH stand for,
// in place of Dovecot's services on this machine.
//
//	dovetail_burl_imap_host           name or address; empty: there is no such server
//	dovetail_burl_imap_port           0 is 993 with TLS from the first octet, otherwise 143
//	dovetail_burl_imap_ssl            imaps, starttls, or no: neither user nor mail is protected
//	dovetail_burl_imap_user           the submit user of that server (RFC 4468 section 3)
//	dovetail_burl_imap_password_file  path of a file with that user's password
//
// The server's certificate must be good for the host, by the ssl_client_ca_* settings. The
// file must be root's, or the user's who starts the program, and nobody else may read it.
type BURLServer struct {
	Host         string `setting:"dovetail_burl_imap_host"`
	Port         uint16 `setting:"dovetail_burl_imap_port"`
	SSL          string `setting:"dovetail_burl_imap_ssl"`
	User         string `setting:"dovetail_burl_imap_user"`
	PasswordFile string `setting:"dovetail_burl_imap_password_file"`
}

// DecodeOwn is Decode for settings of ours, and get that of a program.
func DecodeOwn[T any](get func(name string) (string, bool)) (T, []error) {
	return Decode[T](func(name string) (string, bool) { return get("plugin/" + name) })
}

func findOwn(name string) *Setting {
	for i := range Own {
		if Own[i].Name == name {
			return &Own[i]
		}
	}
	return nil
}
