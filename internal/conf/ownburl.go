package conf

import (
	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf/settings"
)

// burl checks what BURL fetches from: standalone has no mailboxes of its own.
func (p *parser) burl() {
	submission := "submission"
	v, err := p.cfg.view(request{service: &submission})
	if err != nil {
		return // reported by check
	}
	get := func(name string) (string, hcl.Range) {
		if value, ok := v.Get("plugin/" + name); ok {
			return value, v.Range("plugin/" + name)
		}
		if set, ok := v.Root().Get(name); ok {
			return set.Value, set.Last.Range.Range
		}
		return "", hcl.Range{}
	}
	server, at := get("dovetail_burl_imap_host")
	name := v.Value("imap_urlauth_host")
	switch {
	case server == "" && name != "":
		p.ownWarn(v.Range("imap_urlauth_host"), "BURL has nothing to fetch from", "Standalone needs an IMAP server for it: dovetail_burl_imap_host.")
		return
	case server == "":
		return
	case name == "":
		p.ownWarn(at, "dovetail_burl_imap_host is set, but imap_urlauth_host is not", "BURL works only for URLs with the host that imap_urlauth_host names; `*` is any.")
	}
	for _, needed := range []string{"dovetail_burl_imap_user", "dovetail_burl_imap_password_file"} {
		if value, _ := get(needed); value == "" {
			p.ownFail(at, "dovetail_burl_imap_host is set, but "+needed+" is not", "The server's submit user, and a file with that user's password in one line.")
		}
	}
	if ssl, at := get("dovetail_burl_imap_ssl"); ssl == "no" && !isLoopback(server) {
		p.ownWarn(at, "dovetail_burl_imap_ssl is no", "The submit user's password and the mail go to "+server+" unprotected.")
	}
}

func isLoopback(host string) bool {
	a, ok := settings.ParseAddr(host)
	return ok && a.IsLoopback() || host == "localhost"
}
