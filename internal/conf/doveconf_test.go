package conf

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/testkit/need"
)

// stderr is what doveconf -n would write to standard error, with its exit status.
func stderr(c *Config, diags hcl.Diagnostics, opt Options) string {
	var b strings.Builder
	say := func(level, text string) { fmt.Fprintf(&b, "doveconf: %s: %s\n", level, text) }
	for _, d := range diags {
		r := d.Extra.(*Report)
		if r.Text == "" || r.AtEnd {
			continue
		}
		say(r.Level, r.Text)
		if d.Severity == hcl.DiagError {
			return b.String() + "exit: 89\n"
		}
	}
	once := map[string]bool{}
	fatal := ""
	for _, r := range c.Checked {
		if r.Level == "Error" {
			fatal = fmt.Sprintf("Error in configuration file %s: %s", c.Path, r.Text)
			break
		}
		say(r.Level, r.Text)
		once[r.Text] = r.Once
	}
	if v, err := c.View(Filter{}); err == nil {
		for _, level := range []string{"Warning", "Error"} {
			for _, r := range v.Checks(opt) {
				if r.Level == level && !once[r.Text] {
					say(r.Level, r.Text)
				}
			}
		}
	}
	if fatal != "" {
		say("Fatal", fatal)
		return b.String() + "exit: 89\n"
	}
	return b.String() + "exit: 0\n"
}

var (
	rounds = flag.Int("doveconf", 60, "how many random configurations are compared with the installed doveconf 2.3")
	seed   = flag.Uint64("doveconfseed", 1, "for the random configurations")
)

// Random files say the same, in the same words, as the installed doveconf, and the same
// values come out.
func TestAgainstDoveconf(t *testing.T) {
	doveconf := installed(t)
	dir := t.TempDir()
	t.Chdir(dir)
	for _, d := range []string{"sub", "conf.d"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file(t, "value.txt", "from a file")
	for i := range *rounds {
		r := rand.New(rand.NewPCG(*seed, uint64(i)))
		for _, f := range []string{"main.conf", "conf.d/a.conf", "conf.d/b.conf", "sub/c.part"} {
			file(t, f, randomFile(r, 1+r.IntN(9)))
		}
		for _, x := range []bool{false, true} {
			args := []string{"-n", "-c", "main.conf"}
			query := []string{"-c", "main.conf"}
			if x {
				args, query = append(args, "-x"), append(query, "-x")
			}
			c, diags := Load("main.conf", Options{Expand: x, Env: env})
			_, errs, status := run(doveconf, args...)
			if got, want := stderr(c, diags, Options{Expand: x, Env: env}), errs+status; got != want {
				text, _ := os.ReadFile("main.conf")
				t.Fatalf("round %d, expand %v:\n--- got\n%s--- want\n%s--- main.conf\n%s", i, x, got, want, text)
			}
			if strings.Contains(errs, "Fatal") {
				break
			}
			names := []string{"hostname", "mail_plugins", "ssl", "listen", "login_greeting", "submission_max_mail_size",
				"service/auth/client_limit", "service/submission/process_limit", "plugin/a", "plugin/b", "haproxy_timeout"}
			for _, f := range []Filter{
				{},
				{Service: "imap"},
				{Service: "submission", LocalIP: netip.MustParseAddr("10.1.2.3"), RemoteIP: netip.MustParseAddr("192.0.2.5"), LocalName: "x"},
				{Service: "imap", LocalIP: netip.MustParseAddr("10.9.9.9"), RemoteIP: netip.MustParseAddr("::1"), LocalName: "mx.Example.org"},
			} {
				got, want := values(c, f, names, func(args ...string) (string, string, string) {
					return run(doveconf, append(append(query, args...), names...)...)
				})
				if got != want {
					text, _ := os.ReadFile("main.conf")
					t.Fatalf("round %d, expand %v, %+v:\n--- got\n%s--- want\n%s--- main.conf\n%s", i, x, f, got, want, text)
				}
			}
		}
	}
}

// values asks for the values of names for one client, of a Config and of doveconf.
func values(c *Config, f Filter, names []string, doveconf func(...string) (string, string, string)) (got, want string) {
	var args []string
	add := func(key, value string) {
		if value != "" {
			args = append(args, "-f", key+"="+value)
		}
	}
	add("protocol", f.Service)
	add("lname", f.LocalName)
	if f.LocalIP.IsValid() {
		add("local", f.LocalIP.String())
		add("remote", f.RemoteIP.String())
	}
	want, errs, _ := doveconf(args...)
	v, err := c.View(f)
	if err != nil {
		_, errs, _ = strings.Cut(errs, "doveconf: Error: Conflict")
		first, _, _ := strings.Cut(errs, "\n")
		return err.Error(), "Conflict" + first
	}
	var b strings.Builder
	for _, n := range names {
		if strings.Contains("\n"+want, "\n"+n+" = ") { // not if the section has been renamed
			fmt.Fprintf(&b, "%s = %s\n", n, v.Value(n))
		}
	}
	return b.String(), want
}

func env(name string) (string, bool) { return "C", name == "LANG" }

func installed(t *testing.T) string {
	t.Helper()
	path := need.Program(t, "doveconf")
	out, _ := exec.Command(path, "-d", "-h", "protocols", "ssl_cert").CombinedOutput()
	head, _ := exec.Command(path, "-n", "-c", "/dev/null").CombinedOutput()
	if !bytes.HasPrefix(head, []byte("# 2.3.")) {
		need.Missing(t, fmt.Sprintf("a doveconf of 2.3, not %.40q %q", head, out))
	}
	return path
}

func run(name string, args ...string) (stdout, errs, status string) {
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"LANG=C"}
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	_ = cmd.Run()
	return o.String(), e.String(), fmt.Sprintf("exit: %d\n", cmd.ProcessState.ExitCode())
}

func file(t *testing.T, path, text string) {
	t.Helper()
	writeFile(t, path, text)
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What random files are made of. A section is closed at once more often than not.
var (
	someKeys   = strings.Fields("hostname mail_plugins ssl listen login_greeting submission_max_mail_size haproxy_timeout client_limit process_limit driver args a b/c nosuch plugin/a service/auth/client_limit inet_listener/submission/port name login_user auth_verbose ssl_protocols sieve auth_user auth_cache_size")
	someValues = []string{"yes", "no", "", `"`, `'x'`, `"a b"`, "a b", "$hostname x", "$mail_plugins more", "$nosuch", "$a", "x$hostname", "40M", "10 secs", "7", "required",
		"# c", "v # c", "v#c", "it's # kept", `"in \"quotes\" # x"`, "<value.txt", "<", "<nosuch.txt", `a\`, `"a`, "a\\ # c", "TLSv1.2", "a\tb  c", "$hostname\t$ssl", " $ENV:LANG  x",
		"TLSv1 TLSv1.1", "5 hours", "1500 ms", "$default_client_limit", "*, ::", "127.0.0.1", "static", "é\xff"}
	someHeads = []string{"service auth {", "service submission {", `service "submission-login" {`, "inet_listener submission {", "inet_listener {", "unix_listener x {", "plugin {", "plugin named {",
		"passdb {", "passdb x {", "userdb {", "protocol submission {", "protocol !imap {", "protocol imap {", "local 10.0.0.0/8 {", "local 10.1.2.3 {", "remote 192.0.2.0/24 {", "remote ::1 {", "local_name *.example.org {",
		`local_name "a b" {`, "service x{", "service x", "x y z {", "hostname {", "auth default {", "nosuch {", "service {", "mailbox x {", "namespace inbox {", "protocol {", "local 300.1.1.1/8/9 {"}
	rightLines = []string{"ssl_disable = yes", "ssl_min_protocol = TLSv1.3", "fsync_disable = yes", "mail_fsync = never", "sieve_storage = y", "plugin/sieve = z", "dbox_rotate_size = 3M", "mdbox_rotate_size = 4M", "ssl_cert_file = x", "ssl_cert = <y", "imap_client_workarounds = netscape-eoh x", "login_chroot = no", "mail_process_size = 30", "ssl_listen = *:5",
		"hostname = a", "hostname = $hostname b", "mail_plugins = $mail_plugins c", "ssl = no", "ssl = required", "login_greeting = $hostname", "plugin/a = 1", "auth_verbose = yes", "auth_cache_size = 10",
		"service/auth/client_limit = 3000", "service auth {\nclient_limit = 4000\n}", "plugin {\na = x\nb = $ENV:LANG\n}", "passdb {\ndriver = static\n}", "protocol imap {\nhostname = imap\n}", "local 10.1.2.3 {\nhostname = l\nssl = yes\n}",
		"protocol submission {\nmail_plugins = $mail_plugins s\n}", "haproxy_timeout = 90 s", "submission_max_mail_size = 40M", "login_user = x", "ssl_protocols = !SSLv3", "sieve = x", "auth_user = y", "listen = 127.0.0.1:4 x", "protocols = imap pop3s",
		"service submission {\ninet_listener x {\nport = 7\n}\nprocess_limit = 9\n}", "remote 192.0.2.0/24 {\nprotocol imap {\nhostname = r\n}\n}", "plugin named {\nb = y\n}", "local_name x {\nmail_plugins = $mail_plugins n\n}", "service submission {\nprocess_limit = 8\n}", "auth {\nverbose = yes\npassdb static {\nargs = x\n}\n}"}
	someLines = []string{"}", "} x", "!include conf.d/*.conf", "!include_try nosuch", "!include nosuch", "!include sub/c.part", "!include {conf.d/a.conf,sub/*}", "foo", "= x", "\\", "", "# comment", "  \t", "{", "!include", "}\r", "key{ = 1"}
)

func randomFile(r *rand.Rand, n int) string {
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	var b strings.Builder
	for range n {
		switch k := r.IntN(40); {
		case k < 12: // most of these are right
			i := r.IntN(len(rightLines))
			b.WriteString(rightLines[i] + "\n")
		case k < 20:
			fmt.Fprintf(&b, "%s = %s\n", pick(someKeys[:5]), pick(someValues))
		case k < 24:
			fmt.Fprintf(&b, "%s = %s\n", pick(someKeys), pick(someValues))
		case k < 30:
			i := r.IntN(len(rightLines))
			fmt.Fprintf(&b, "%s\n  %s\n}\n", pick(someHeads[9:24]), rightLines[i])
		case k < 33:
			fmt.Fprintf(&b, "%s\n  %s = %s\n}\n", pick(someHeads), pick(someKeys), pick(someValues))
		case k < 34:
			fmt.Fprintf(&b, "%s\n", pick(someHeads))
		case k < 36:
			b.WriteString("}\n")
		default:
			b.WriteString(pick(someLines) + "\n")
		}
	}
	return b.String()
}
