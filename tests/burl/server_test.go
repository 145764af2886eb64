package burl

import (
	"fmt"
	"strings"
	"testing"

	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/mailbox"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/tlsfiles"
)

// An other is a Dovecot elsewhere, as far as the submission service can tell: users and
// mail are its own, and it is asked by IMAP.
type other struct {
	*instance.Instance
	alice, bob mailbox.Account
	ca         tlsfiles.CA
}

// startOther runs it. Its name is imap.example.test, and every user's password "pass".
func startOther(t *testing.T) *other {
	ca := tlsfiles.NewCA(t, "other CA")
	pair := ca.Issue(t, tlsfiles.Request{CN: host, Names: []string{host, "127.0.0.1"}})
	dir := t.TempDir()
	cert, key := pair.Write(t, dir, "other")
	d := instance.Start(t, fmt.Sprintf(`
protocols = imap
ssl = yes
ssl_cert = <%s
ssl_key = <%s
imap_urlauth_host = %s
imap_urlauth_submit_user = submit
mail_attribute_dict = file:%%h/dovecot-attributes
imap_metadata = yes
service imap-login {
  inet_listener imap {
    port = @PORT:imap@
  }
  inet_listener imaps {
    port = @PORT:imaps@
    ssl = yes
  }
}
service submission-login {
  inet_listener submission {
    port = 0
  }
}
`, cert, key, host)+mailbox.RepairConf)
	mailbox.RepairTokens(t, d.Base)
	account := func(user string) mailbox.Account {
		return mailbox.Account{Addr: d.Addr("imap"), User: user, Password: "pass"}
	}
	return &other{d, account("alice"), account("bob@example.test"), ca}
}

// With dovetail_burl_imap_host URLs with URLAUTH are fetched from that server, under
// Dovecot and standalone, with TLS of either kind and without. Those without cannot be.
func TestOtherServer(t *testing.T) {
	o := startOther(t)
	o.alice.Append(t, "INBOX", simple, parts)
	o.bob.Append(t, "INBOX", simple, large(1<<20))
	for _, sys := range []system.System{system.Standalone, system.OursBoth} {
		for _, mode := range []string{"imaps", "starttls", "no"} {
			t.Run(sys.String()+" "+mode, func(t *testing.T) {
				t.Parallel()
				port := o.Port("imap")
				if mode == "imaps" {
					port = o.Port("imaps")
				}
				settings := []string{
					"dovetail_burl_imap_host = 127.0.0.1", fmt.Sprint("dovetail_burl_imap_port = ", port), "dovetail_burl_imap_ssl = " + mode,
					"dovetail_burl_imap_user = submit", "dovetail_burl_imap_password_file = {dir}/etc/submit",
				}
				if sys.Master == system.Theirs {
					settings = append(append([]string{"plugin {"}, settings...), "}")
				}
				w := start(t, sys, system.Setup{
					Config: append([]string{"ssl_client_ca_file = {dir}/etc/other.pem"}, settings...),
					Files:  map[string]system.File{"etc/submit": {Data: "pass\n", Mode: 0o600}, "etc/other.pem": {Data: string(o.ca.Cert)}},
				}, relay.Options{})
				if got := w.before(); got != "BURL imap" {
					t.Errorf("announced before the login: %s", got)
				}
				c := w.login(w.alice)
				c.Do("RSET", "250")
				if lines := strings.Join(c.Do("EHLO x", "250"), "|"); !strings.Contains(lines, "|250-BURL imap imap://"+host+"|") {
					t.Errorf("announced: %s", lines)
				}
				for n, m := range []struct {
					owner mailbox.Account
					uid   int
					more  string
					want  string
				}{{o.alice, 1, "", string(simple)}, {o.alice, 2, "/;SECTION=2/;PARTIAL=11.1000", ""}, {o.bob, 1, "", string(simple)}, {o.bob, 2, "", string(large(1 << 20))}} {
					if m.want == "" {
						_, m.want, _ = strings.Cut(string(parts), "8bit\r\n\r\n")
						m.want = m.want[11:1011]
					}
					url := m.owner.Mint(t, rump(m.owner.User, "INBOX", m.uid, m.more, "alice"))
					if got := burl(c, url); !strings.HasPrefix(got, "250 2.0.0 Ok") {
						t.Fatalf("%s: %s", url, got)
					}
					if got := w.body(n + 1); string(got) != m.want {
						t.Errorf("%s: %d octets", url, len(got))
					}
				}
				// The submit user could fetch what is for others; the worker sees to it.
				for url, want := range map[string]string{
					o.bob.Mint(t, rump("bob@example.test", "INBOX", 1, "", "carol")):            "No 'submit+carol' access allowed for user alice",
					rump("alice", "INBOX", 1, "", "alice") + ":internal:" + badToken:            "554 5.6.6 IMAP URLAUTH resolution failed",
					rump("alice", "INBOX", 1, "/;SECTION=X", "alice") + ":internal:" + badToken: "554 5.6.6 IMAP URLAUTH resolution failed",
					rump("nobody", "INBOX", 1, "", "alice") + ":internal:" + badToken:           "554 5.6.6 IMAP URLAUTH resolution failed",
					plain("INBOX", 1, ""): "554 5.7.14 No IMAP access available",
				} {
					if got := burl(c, url); got != want && !strings.HasSuffix(got, ": "+want) {
						t.Errorf("%s\n got %s\nwant %s", url, got, want)
					}
				}
			})
		}
	}
}

// What is wrong with the settings, the file or the server is told in the log, and the
// client is told to come again.
func TestOtherServerWrong(t *testing.T) {
	o := startOther(t)
	o.alice.Append(t, "INBOX", simple)
	url := o.alice.Mint(t, rump("alice", "INBOX", 1, "", "alice"))
	closed := system.Hold(t).Number
	const later = "451 4.4.1 IMAP server unavailable"
	for name, c := range map[string]struct {
		change    string // of the settings
		file      system.File
		announced bool
		reply     string
		log       string
	}{
		"password":     {"", system.File{Data: "wrong\n", Mode: 0o600}, true, later, "Error: burl: IMAP server 127.0.0.1:{imaps}: login of submit: IMAP server answered NO [AUTHENTICATIONFAILED]"},
		"mode":         {"", system.File{Data: "pass\n", Mode: 0o644}, false, "554 5.7.14 No IMAP URLAUTH access available", "/etc/submit has mode 0644 (want 0600 or 0400: for its owner alone)"},
		"owner":        {"", system.File{Data: "pass\n", Mode: 0o600, UID: system.UID}, false, "554 5.7.14 No IMAP URLAUTH access available", "/etc/submit belongs to uid 12001 (want root)"},
		"name":         {"dovetail_burl_imap_host = localhost", system.File{Data: "pass\n", Mode: 0o600}, true, later, "SSL certificate doesn't match expected host name localhost"},
		"trust":        {"ssl_client_ca_file = {dir}/tls/cert.pem", system.File{Data: "pass\n", Mode: 0o600}, true, later, "Error: burl: IMAP server 127.0.0.1:{imaps}: TLS: "},
		"nobody there": {fmt.Sprint("dovetail_burl_imap_port = ", closed), system.File{Data: "pass\n", Mode: 0o600}, true, later, "connect: connection refused"},
		"no user":      {"dovetail_burl_imap_user = ", system.File{Data: "pass\n", Mode: 0o600}, false, "554 5.7.14 No IMAP URLAUTH access available", "Error: burl: dovetail_burl_imap_user is not set"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			settings := []string{
				"ssl_client_ca_file = {dir}/etc/other.pem", "dovetail_burl_imap_host = 127.0.0.1", fmt.Sprint("dovetail_burl_imap_port = ", o.Port("imaps")),
				"dovetail_burl_imap_user = submit", "dovetail_burl_imap_password_file = {dir}/etc/submit",
			}
			key, _, _ := strings.Cut(c.change, " =")
			for i, s := range settings {
				if strings.HasPrefix(s, key+" =") {
					settings[i] = c.change
				}
			}
			sys := system.Standalone
			if name == "no user" { // standalone does not even start
				sys = system.OursBoth
				settings = append([]string{settings[0], "plugin {"}, append(settings[1:], "}")...)
			}
			w := start(t, sys, system.Setup{Config: settings, Files: map[string]system.File{"etc/submit": c.file, "etc/other.pem": {Data: string(o.ca.Cert)}}}, relay.Options{})
			s := w.login(w.alice)
			s.Do("RSET", "250")
			if lines := strings.Join(s.Do("EHLO x", "250"), "|"); strings.Contains(lines, "BURL imap imap://") != c.announced {
				t.Errorf("announced: %s", lines)
			}
			if got := burl(s, url); got != c.reply {
				t.Errorf("got %s\nwant %s", got, c.reply)
			}
			if got := bdat(s, "BURL "+url+" LAST"); got != "503 5.5.0 Previous data chunk failed, issue RSET first" {
				t.Error(got)
			}
			w.WaitLine(strings.ReplaceAll(c.log, "{imaps}", fmt.Sprint(o.Port("imaps"))))
			if log := w.WholeLog(); strings.Contains(log, "wrong") {
				t.Errorf("the password is in the log:\n%s", log)
			}
			begin(s)
			s.Write("BDAT 3 LAST\r\nabc")
			s.ExpectCode("250 2.0.0 Ok")
			if got := string(w.body(1)); got != "abc" {
				t.Errorf("%q", got)
			}
		})
	}
}
