package burl

import (
	"strings"
	"syscall"
	"testing"

	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// Which way is taken, and why, is one debug line; whichever it is, the same comes.
func TestWays(t *testing.T) {
	// Who is in no other userdb.
	prefetch := []string{"passdb p {", "  driver = passwd-file", "  args = {dir}/etc/prefetch", "}", "userdb p {", "  driver = prefetch", "}", "mail_debug = yes"}
	const fields = "pre:{PLAIN}pw::::::userdb_uid=12001 userdb_gid=12001 userdb_home={dir}/mail/pre userdb_mail=maildir:{dir}/mail/pre/Elsewhere"
	// Whose mailbox would be another one without what the passdb says, with the same rights.
	silent := append([]string{"mail_uid = 12001", "mail_gid = 12001", "mail_home = {dir}/mail/other"}, prefetch...)
	// A script that lets nobody use IMAP.
	script := append([]string{"service imap {", "  executable = imap imap-postlogin", "}", "service imap-postlogin {", "  executable = script-login /bin/true", "  unix_listener imap-postlogin {", "  }", "}"}, prefetch...)
	const saysMore = "more:{PLAIN}pw::::::userdb_mail=maildir:{dir}/mail/more/Elsewhere" // and its userdb is not prefetch
	more := []string{"passdb p {", "  driver = passwd-file", "  args = {dir}/etc/more", "}", "mail_debug = yes"}
	global := []string{"mail_uid = 12001", "mail_gid = 12001", "mail_debug = yes"}
	users := []string{"more:{PLAIN}other:12001:12001::{dir}/mail/more::", "nouid:{PLAIN}pw::::{dir}/mail/nouid::", "nouid2:{PLAIN}pw::::{dir}/mail/nouid2::userdb_mail=maildir:{dir}/mail/nouid2/Elsewhere"}
	const override = "over:{PLAIN}pw:12001:12001::{dir}/mail/over::userdb_mail=maildir:{dir}/mail/over/Elsewhere"
	for name, c := range map[string]struct {
		config []string
		user   string
		auth   string // what the URL with URLAUTH is answered
		log    []string
	}{
		"handed over": {[]string{"mail_debug = yes"}, "alice", "250 ", []string{
			"Debug: burl: URLs with URLAUTH are fetched by a handed-over login: imap-urlauth-login of Dovecot 2.3 aborts",
			"Debug: burl: URLs without URLAUTH are fetched by a handed-over login: login/imap is there"}},
		"prefetch": {prefetch, "pre", "", []string{
			"Debug: burl: URLs without URLAUTH are fetched by running imap: a userdb is prefetch, which knows no handed-over logins"}},
		"silent prefetch": {silent, "pre", "", []string{
			"Debug: burl: URLs without URLAUTH are fetched by running imap: a userdb is prefetch, which knows no handed-over logins"}},
		"prefetch and script": {script, "pre", "", []string{
			"Error: burl: IMAP session of the user: imap program: it is not run without what stands behind it in executable of service imap: imap-postlogin"}},
		"passdb says more": {more, "more", "", []string{
			"Debug: burl: URLs without URLAUTH are fetched by running imap: the userdb alone does not say the same of him"}},
		"auth-userdb is closed": {[]string{"mail_debug = yes", "service auth {", "  unix_listener auth-userdb {", "    mode = 0600", "  }", "}"}, "alice", "250 ", []string{
			"Debug: burl: URLs without URLAUTH are fetched by running imap: the userdb alone was not told: dial unix "}},
		"no uid": {global, "nouid", "250 ", []string{
			"Debug: burl: URLs without URLAUTH are fetched by a handed-over login: login/imap is there"}},
		"no uid, override": {global, "nouid2", "250 ", []string{
			"Debug: burl: URLs without URLAUTH are fetched by running imap: it is not known whether his settings are from the userdb"}},
		"no uid, two homes": {append([]string{"mail_home = {dir}/mail/other"}, global...), "nouid", "250 ", []string{
			"Debug: burl: URLs without URLAUTH are fetched by running imap: it is not known whether his settings are from the userdb"}},
		"override": {[]string{"mail_debug = yes"}, "over", "250 ", []string{"Debug: burl: URLs without URLAUTH are fetched by a handed-over login: login/imap is there"}},
		"no attributes": {[]string{"mail_attribute_dict = ", "mail_debug = yes"}, "alice", "554 5.7.14 No IMAP URLAUTH access available", []string{
			"Debug: burl: URLs with URLAUTH are not fetched: mail_attribute_dict is not set"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, system.OursWorker, system.Setup{Config: c.config, Users: append(users, override), Files: map[string]system.File{"etc/prefetch": {Data: fields + "\n"}, "etc/more": {Data: saysMore + "\n"}}}, relay.Options{})
			a := w.alice
			if c.user != "alice" {
				a = w.account(c.user, "pw")
			}
			denied := name == "prefetch and script"
			if !denied {
				a.Append(t, "INBOX", simple)
			}
			s := w.login(a)
			got := burl(s, plain("INBOX", 1, ""))
			if denied {
				if got != "451 4.4.1 IMAP server unavailable" {
					t.Error(got)
				}
			} else if !strings.HasPrefix(got, "250 ") || string(w.body(1)) != string(simple) {
				t.Errorf("%s", got)
			}
			if c.auth != "" {
				url := rump(a.User, "INBOX", 1, "", a.User) + ":internal:" + badToken
				if c.auth == "250 " {
					url = a.Mint(t, rump(a.User, "INBOX", 1, "", a.User))
				}
				if got := burl(s, url); !strings.HasPrefix(got, c.auth) {
					t.Errorf("by token: %s", got)
				}
			}
			for _, line := range c.log {
				w.WaitLine(line)
			}
		})
	}
}

// A master user has the rights that the acl plugin gives him, and not those of the user he
// logs in as.
func TestMasterUser(t *testing.T) {
	config := strings.Split(`auth_master_user_separator = *
passdb masters {
  driver = passwd-file
  args = {dir}/etc/masters
  master = yes
}
mail_plugins = acl
protocol imap {
  mail_plugins = acl imap_acl
}
plugin {
  acl = vfile
}
mail_debug = yes`, "\n")
	for _, sys := range []system.System{system.Dovecot, system.OursBoth} {
		t.Run(sys.String(), func(t *testing.T) {
			t.Parallel()
			w := start(t, sys, system.Setup{Config: config, Files: map[string]system.File{"etc/masters": {Data: "boss:{PLAIN}bpass\n"}}}, relay.Options{})
			w.alice.Append(t, "INBOX", simple)
			w.alice.Append(t, "shown", parts)
			w.alice.Raw(t, "SETACL shown boss lr")
			boss := w.account("alice*boss", "bpass")
			if got := boss.Raw(t, "SELECT INBOX"); !strings.Contains(got, " NO ") {
				t.Fatalf("he can read it by IMAP: %s", got)
			}
			s := w.login(boss)
			if got := burl(s, plain("shown", 1, "")); !strings.HasPrefix(got, "250 ") || string(w.body(1)) != string(parts) {
				t.Errorf("what he may read: %s", got)
			}
			if got := burl(s, plain("INBOX", 1, "")); !strings.HasPrefix(got, "554 5.6.6 IMAP URL resolution failed: ") {
				t.Errorf("what he may not read: %s", got)
			}
			if got := burl(w.login(w.alice), plain("INBOX", 1, "")); !strings.HasPrefix(got, "250 ") {
				t.Errorf("she herself: %s", got)
			}
			if sys == system.OursBoth {
				w.WaitLine("Debug: burl: URLs without URLAUTH are fetched by running imap: a master user has logged in")
				w.WaitLine("Debug: burl: URLs without URLAUTH are fetched by a handed-over login: login/imap is there")
			}
		})
	}
}

// Without anything to fetch from, BURL is neither announced nor done, and the log says why.
func TestNoWay(t *testing.T) {
	for name, c := range map[string]struct {
		sys    system.System
		config []string
		users  []string
		why    string
		before string // the login process does not know who comes
	}{
		"standalone":       {system.Standalone, []string{"mail_debug = yes"}, nil, "there is no imap-urlauth service (is imap in protocols?)", ""},
		"chroot":           {system.OursBoth, []string{"mail_debug = yes", "valid_chroot_dirs = {dir}/mail"}, []string{"jailed:{PLAIN}pw:12001:12001::/::userdb_chroot={dir}/mail/jail"}, "the services of Dovecot cannot be reached in the user's chroot", "BURL imap"},
		"no imap, no host": {system.OursBoth, []string{"mail_debug = yes", "protocols = submission", "imap_urlauth_host = "}, nil, "imap_urlauth_host is not set", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, c.sys, system.Setup{Config: c.config, Users: c.users, Files: map[string]system.File{"mail/jail/x": {}}}, relay.Options{})
			a := w.alice
			if c.users != nil {
				a = w.account("jailed", "pw")
			}
			if got := w.before(); got != c.before {
				t.Errorf("announced before the login: %s", got)
			}
			s := w.login(a)
			s.Do("RSET", "250")
			if lines := strings.Join(s.Do("EHLO x", "250"), "|"); strings.Contains(lines, "BURL") {
				t.Errorf("announced: %s", lines)
			}
			if got := burl(s, rump(a.User, "INBOX", 1, "", a.User)+":internal:"+badToken); got != "554 5.7.14 No IMAP URLAUTH access available" {
				t.Error(got)
			}
			want := "554 5.7.14 No IMAP access available"
			if strings.HasPrefix(c.why, "imap_urlauth_host") {
				want = "554 5.6.6 IMAP URL resolution failed: Inappropriate or missing host name"
			}
			if got := burl(s, plain("INBOX", 1, "")); got != want {
				t.Error(got)
			}
			w.WaitLine(": burl: URLs with URLAUTH are not fetched: " + c.why)
		})
	}
}

// After a reload of Dovecot the sockets of a session from before may lead nowhere: a clear
// temporary failure, or data, but nothing else, and the session goes on. A new session has
// it all.
func TestReload(t *testing.T) {
	w := start(t, system.OursBoth, system.Setup{}, relay.Options{})
	w.alice.Append(t, "INBOX", simple)
	auth := w.alice.Mint(t, rump("alice", "INBOX", 1, "", "alice"))
	old, used := w.login(w.alice), w.login(w.alice)
	old.Do("NOOP", "250")
	begin(used)
	used.Do("BURL "+auth, "250 2.0.0 Added")
	used.Do("BURL "+plain("INBOX", 1, ""), "250 2.0.0 Added")
	w.Signal(syscall.SIGHUP)
	w.WaitFor(func([]string) bool { return strings.Contains(w.WholeLog(), "SIGHUP received") })
	w.login(w.alice).Do("NOOP", "250") // the new processes answer
	for _, url := range []string{auth, plain("INBOX", 1, "")} {
		got := burl(old, url)
		t.Logf("%.30s: %s", url, got)
		if got != "451 4.4.1 IMAP server unavailable" && !strings.HasPrefix(got, "250 ") {
			t.Errorf("%s: %s", url, got)
		}
	}
	if got := bdat(used, "BURL "+auth+" LAST"); !strings.HasPrefix(got, "250 ") && got != "451 4.4.1 IMAP server unavailable" {
		t.Error(got)
	}
	begin(old)
	old.Write("BDAT 3 LAST\r\nabc")
	old.ExpectCode("250 2.0.0 Ok")
	fresh := w.login(w.alice)
	for _, url := range []string{auth, plain("INBOX", 1, "")} {
		if got := burl(fresh, url); !strings.HasPrefix(got, "250 ") {
			t.Error(got)
		}
	}
}
