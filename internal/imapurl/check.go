package imapurl

import (
	"strings"
	"time"
)

// A Reader is a user of the submission service who wants what an URL stands for.
type Reader struct {
	User string // user name; "" cannot read anything
	Host string // imap_urlauth_host; "*" is any host, "" none
	Port uint16 // imap_urlauth_port
}

// anyHost is the value of imap_urlauth_host that allows all.
const anyHost = "*"

// imapPort is that of an URL without one.
const imapPort = 143

func (r Reader) portFits(u *URL) bool {
	if u.Port == 0 {
		return r.Port == imapPort
	}
	return r.Port == u.Port
}

// CheckPlain says what is wrong with reading an URL without URLAUTH as r's own, whatever
// user it names (clause S7.5): the checks that need no mailbox, in their order. The text
// follows "IMAP URL resolution failed: ".
func (r Reader) CheckPlain(u *URL) error {
	switch {
	case r.Host != anyHost && r.Host != u.Host:
		return fault("Inappropriate or missing host name")
	case !r.portFits(u):
		return fault("Inappropriate server port")
	case u.Mailbox == "" || u.UID == 0 || u.Search != "":
		return fault("Invalid messagepart IMAP URL")
	}
	_, err := ParseSection(u.Section)
	return err
}

// CheckAuth says what is wrong with r's reading an URL with URLAUTH at the time now
// (clause S7.6): the checks that need neither mailbox nor key, in their order. The text
// follows `IMAP URLAUTH resolution failed: Failed to fetch URLAUTH "<url>": ` and has no
// control characters.
func (r Reader) CheckAuth(u *URL, now time.Time) error {
	if err := r.checkAuth(u, now); err != nil {
		return fault(printable(err.Error()))
	}
	return nil
}

func (r Reader) checkAuth(u *URL, now time.Time) error {
	access := u.Access
	if u.AccessUser != "" {
		access += "+" + u.AccessUser
	}
	switch {
	case u.Mailbox == "" || u.UID == 0 || u.Search != "" || u.Rump == "" || u.Mechanism == "":
		return fault("Invalid URL: Must be a full URLAUTH URL")
	case u.User == "":
		return fault("Invalid URLAUTH: Missing user name")
	case !strings.EqualFold(u.Mechanism, "INTERNAL"):
		return faultf("Unsupported URLAUTH mechanism: %s", u.Mechanism)
	case !u.Expire.IsZero() && now.Unix() > u.Expire.Unix():
		return fault("URLAUTH has expired")
	case !strings.EqualFold(u.Access, "submit"):
		return faultf("No '%s' access allowed for submission service", access)
	case u.AccessUser == "":
		return fault("URLAUTH `submit' access is missing userid")
	case r.User == "" || !equalFold(u.AccessUser, r.User):
		return faultf("No '%s' access allowed for user %s", access, r.User)
	case r.Host != anyHost && r.Host != u.Host:
		return fault("Invalid URL: Inappropriate host name")
	case !r.portFits(u):
		return fault("Invalid URL: Inappropriate server port")
	}
	return nil
}

// equalFold ignores the case of ASCII letters alone: two users whose names differ by
// other letters that Unicode folds are two users.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		x, y := a[i], b[i]
		if x != y && (x|0x20 != y|0x20 || !isAlpha(x)) {
			return false
		}
	}
	return true
}
