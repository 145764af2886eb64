// Package system runs what the transcripts and the interop suite are replayed against: a
// master with the two halves of the submission service, each of them ours or Dovecot's,
// in a directory of its own, with ports from the kernel.
//
// All systems get the same configuration file and users, so that whatever differs is the
// programs' doing.
package system

import (
	"fmt"
	"strings"
	"testing"

	"dovetail/internal/testkit/need"
)

// A Side says whose program takes a part.
type Side uint8

const (
	Theirs Side = iota // the installed Dovecot's
	Ours
)

func (s Side) String() string { return [...]string{"theirs", "ours"}[s] }

// A System is a choice of programs.
type System struct {
	Master, Login, Worker Side
}

// The systems that are tested.
var (
	Dovecot     = System{Theirs, Theirs, Theirs}
	OursLogin   = System{Theirs, Ours, Theirs}
	OursWorker  = System{Theirs, Theirs, Ours}
	OursBoth    = System{Theirs, Ours, Ours}
	Standalone  = System{Ours, Ours, Ours}
	TheirsUnder = System{Ours, Theirs, Theirs} // Dovecot's programs under our master
)

// String names the system: "theirs+ours", and "standalone" or "under ours: theirs+theirs"
// with our master.
func (s System) String() string {
	pair := s.Login.String() + "+" + s.Worker.String()
	switch {
	case s == Standalone:
		return "standalone"
	case s.Master == Ours:
		return "under ours: " + pair
	}
	return pair
}

// IsOurs says whether any part is ours, so that the differences on purpose apply.
func (s System) IsOurs() bool { return s.Master == Ours || s.Login == Ours || s.Worker == Ours }

// A Setup is what one instance is given.
type Setup struct {
	Config []string // lines behind the base configuration; {dir} and {relayport} are replaced
	Unset  []string // base lines that begin with one of these are left out

	RelayPort int             // of the relay or backend; 0: a port where nothing listens
	Users     []string        // more lines for {dir}/etc/users
	Files     map[string]File // more files, by their path below {dir}
	Listen    []string        // addresses of the listeners; nil: 127.0.0.1

	// Programs gives options or a wrapper for a half: "submission" -> "-t 9 post-login".
	// What it returns stands behind the program in `executable =`.
	Args map[string]string
}

// A File is one that a Setup brings.
type File struct {
	Data string // {dir} and {relayport} are replaced
	Mode uint32 // 0: 0644
	UID  int    // owner, and group
}

// Need skips the test unless the system can run here.
func (s System) Need(t testing.TB) {
	t.Helper()
	need.Root(t)
	need.Dovecot(t) // also for Standalone: the two users, and doveadm's password schemes
	s.programs(t)
}

// base is the base configuration of the transcripts (tests/transcripts/README.md).
const base = `base_dir = {dir}/run
state_dir = {dir}/run
instance_name = spec
protocols = submission imap
listen = {listen}
log_path = {dir}/log
log_timestamp = 
auth_verbose = no
hostname = sub.example.test
ssl = yes
ssl_cert = <{dir}/tls/cert.pem
ssl_key = <{dir}/tls/key.pem
ssl_dh = 
mail_location = maildir:{dir}/mail/%u/Maildir
mail_debug = no
first_valid_uid = 12001
auth_failure_delay = 0
auth_mechanisms = plain login
disable_plaintext_auth = yes
postmaster_address = postmaster@example.test
submission_relay_host = 127.0.0.1
submission_relay_port = {relayport}
login_greeting = Dovecot (Debian) ready.
passdb passwd-file {
  driver = passwd-file
  args = {dir}/etc/users
}
userdb passwd-file {
  driver = passwd-file
  args = {dir}/etc/users
}
service submission-login {
  inet_listener submission {
    port = {port}
  }
  inet_listener submissions {
    port = {port2}
    ssl = yes
  }
}
service imap-login {
  inet_listener imap {
    port = {port3}
  }
  inet_listener imaps {
    port = 0
  }
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
service stats {
  inet_listener http {
    port = 0
  }
}
`

// UID is the user and group of everybody's mail.
const UID = 12001

// users are those of the transcripts.
var users = []string{
	"alice:{PLAIN}wonder:12001:12001::{dir}/mail/alice::",
	"bob@example.test:{PLAIN}bpass:12001:12001::{dir}/mail/bob::",
	"carol:{PLAIN}cpass:12001:12001::{dir}/mail/carol::nologin=y",
	"dave:{PLAIN}dpass:12001:12001::{dir}/mail/dave::nologin=y reason=Closed_for_maintenance",
	"erin:{PLAIN}epass:12001:12001::{dir}/mail/erin::allow_nets=10.0.0.0/8",
	"master:{PLAIN}mpass:12001:12001::{dir}/mail/master::",
}

// proxyUsers are those of the proxy cases (tests/transcripts/56-proxy.txt).
var proxyUsers = []string{
	"p1:{PLAIN}pw::::::proxy=y host=127.0.0.1 port={relayport}",
	"pm:{PLAIN}pw::::::proxy=y host=127.0.0.1 port={relayport} destuser=dest@x master=mast pass=mpw",
	"pf:{PLAIN}pw::::::proxy=y host=127.0.0.1 port={relayport} forward_foo=bar forward_x=y",
	"pn:{PLAIN}pw::::::proxy=y host=127.0.0.1 port={relayport} proxy_noauth=y pass=x",
	"pst:{PLAIN}pw::::::proxy=y host=127.0.0.1 port={relayport} starttls=any-cert",
}

// config writes the configuration of s.
func (s System) config(o Setup, programs map[string]string) string {
	var b strings.Builder
	for _, line := range strings.SplitAfter(base, "\n") {
		if !unset(line, o.Unset) {
			b.WriteString(line)
		}
	}
	for _, line := range o.Config {
		b.WriteString(line + "\n")
	}
	for _, half := range []string{"submission-login", "submission"} {
		program, named := programs[half]
		args := o.Args[half]
		if !named && args == "" {
			continue
		}
		if !named {
			program = half // the master's own
		}
		fmt.Fprintf(&b, "service %s {\n  executable = %s\n", half, strings.TrimSpace(program+" "+args))
		if named {
			b.WriteString("  vsz_limit = 0\n") // a Go program reserves more than it uses
		}
		b.WriteString("}\n")
	}
	if s.Master == Ours {
		b.WriteString("version_ignore = yes\n") // Dovecot's programs want a master of their own version
		// There is no IMAP service to run.
		return strings.Replace(b.String(), "protocols = submission imap\n", "protocols = submission\n", 1)
	}
	return b.String()
}

func unset(line string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(line, p) {
			return true
		}
	}
	return false
}
