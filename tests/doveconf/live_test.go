package doveconf

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/testkit/need"
)

var (
	rounds = flag.Int("rounds", 60, "how many generated configurations are compared with the installed doveconf 2.3")
	seed   = flag.Uint64("seed", 1, "for the generated configurations")
)

// installed is the path of doveconf 2.3. Without it the test is skipped, or fails where
// CI=true promises that everything is there.
func installed(t *testing.T) string {
	t.Helper()
	path := need.Program(t, "doveconf")
	head, _ := exec.Command(path, "-n", "-c", "/dev/null").Output()
	if !bytes.HasPrefix(head, []byte("# 2.3.")) {
		need.Missing(t, fmt.Sprintf("a doveconf of 2.3; %s is %.60q", path, head))
	}
	return path
}

// real runs the installed doveconf. ok is false if it crashed.
func real(t *testing.T, path string, c testCase, args ...string) (stdout, stderr string, status int, ok bool) {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Args[0] = "doveconf" // getopt names it
	cmd.Dir = c.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "LANG=C.UTF-8"}
	for k, v := range c.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return normalise(o.String()), normalise(e.String()), cmd.ProcessState.ExitCode(), cmd.ProcessState.Exited()
}

// lostBrace says whether want is got without closing braces (clause C22.1).
func lostBrace(got, want string) bool {
	bare := func(s string) string {
		var out []string
		for _, l := range strings.Split(s, "\n") {
			if strings.TrimSpace(l) != "}" {
				out = append(out, l)
			}
		}
		return strings.Join(out, "\n")
	}
	return len(got) > len(want) && bare(got) == bare(want)
}

// A verdict counts comparisons.
type verdict struct{ equal, braces, crashed int }

func (v *verdict) compare(t *testing.T, doveconf string, c testCase, args ...string) bool {
	t.Helper()
	wantOut, wantErr, wantStatus, ok := real(t, doveconf, c, args...)
	if !ok {
		v.crashed++
		return true
	}
	gotOut, gotErr, gotStatus := c.lite(t, args...)
	if gotOut != wantOut && lostBrace(gotOut, wantOut) {
		v.braces++
		gotOut = wantOut
	}
	want, got := wantOut+"--- stderr\n"+wantErr+exit(wantStatus), gotOut+"--- stderr\n"+gotErr+exit(gotStatus)
	if got == want {
		v.equal++
		return true
	}
	t.Errorf("doveconf %s\n%s", strings.Join(args, " "), diff(want, got))
	return false
}

// A job is one comparison; where says what to look at when it fails.
type job struct {
	testCase
	args  []string
	where string
}

// show is the text of the files, if -v asks for it.
func (j job) show() string {
	if !testing.Verbose() {
		return ""
	}
	var b strings.Builder
	_ = filepath.WalkDir(j.dir, func(path string, d os.DirEntry, err error) error {
		if text, err := os.ReadFile(path); err == nil {
			fmt.Fprintf(&b, "--- %s\n%s\n", strings.TrimPrefix(path, j.dir+"/"), text)
		}
		return err
	})
	return b.String()
}

// said is what a program said.
type said struct {
	out, err string
	status   int
	ok       bool // it did not crash
}

// all compares many command lines. The installed program runs beside ours.
func (v *verdict) all(t *testing.T, doveconf string, jobs []job) {
	t.Helper()
	wants := make([]said, len(jobs))
	next := make(chan int)
	ready := make([]chan struct{}, len(jobs))
	for i := range ready {
		ready[i] = make(chan struct{})
	}
	var wg sync.WaitGroup
	for range max(runtime.GOMAXPROCS(0), 2) {
		wg.Go(func() { // ends when next is closed
			for i := range next {
				w := &wants[i]
				w.out, w.err, w.status, w.ok = real(t, doveconf, jobs[i].testCase, jobs[i].args...)
				close(ready[i])
			}
		})
	}
	go func() { // ends when all are given out
		for i := range jobs {
			next <- i
		}
		close(next)
	}()
	for i, j := range jobs {
		var got said
		got.out, got.err, got.status = j.lite(t, j.args...)
		<-ready[i]
		if !v.same(t, j, got, wants[i]) && j.where != "" {
			t.Errorf("%s\n%s", j.where, j.show())
		}
	}
	wg.Wait()
}

// same compares what was said.
func (v *verdict) same(t *testing.T, j job, got, want said) bool {
	t.Helper()
	if !want.ok {
		v.crashed++
		return true
	}
	if got.out != want.out && lostBrace(got.out, want.out) {
		v.braces++
		got.out = want.out
	}
	a, b := want.out+"--- stderr\n"+want.err+exit(want.status), got.out+"--- stderr\n"+got.err+exit(got.status)
	if a == b {
		v.equal++
		return true
	}
	t.Errorf("doveconf %s\n%s", strings.Join(j.args, " "), diff(a, b))
	return false
}

// The corpus, said again by the doveconf that is installed.
func TestLiveCorpus(t *testing.T) {
	doveconf := installed(t)
	var v verdict
	var jobs []job
	for _, c := range cases(t, "2.3") {
		if _, needs := c.file(".needs"); needs {
			continue
		}
		for _, args := range [][]string{{"-n"}, {"-a"}, {"-N", "-P"}, {"-s"}, {"-S"}, {"-S", "-n"}, {"-n", "-x"}} {
			jobs = append(jobs, job{c, append(args, "-c", c.name+".conf"), ""})
		}
	}
	v.all(t, doveconf, jobs)
	t.Logf("%+v", v)
}

// Debian's own files.
func TestLiveDebian(t *testing.T) {
	doveconf := installed(t)
	if _, err := os.Stat("/etc/dovecot/dovecot.conf"); err != nil {
		need.Missing(t, "/etc/dovecot/dovecot.conf")
	}
	var v verdict
	c := testCase{version: "2.3", dir: "/"}
	for _, args := range [][]string{{"-n"}, {"-a"}, {"-S"}, {"-d"}, {"-d", "-s"}, {"protocols", "service/submission-login", "passdb"}} {
		v.compare(t, doveconf, c, args...)
	}
	t.Logf("%+v", v)
}

// Generated files.
func TestLiveGenerated(t *testing.T) {
	doveconf := installed(t)
	dir := t.TempDir()
	var jobs []job
	queries := strings.Fields(`hostname mail_plugins ssl service/auth plugin passdb service/auth/unix_listener passdb/0/driver
		service/submission-login/inet_listener/submission/port namespace namespace/inbox/mailbox mail_cache_max_size service/new dict nosuch`)
	var v verdict
	for i := range *rounds {
		g := generator{rand.New(rand.NewPCG(*seed, uint64(i)))}
		c := testCase{version: "2.3", dir: filepath.Join(dir, strconv.Itoa(i)), name: "main", env: map[string]string{"FOO": "from env"}}
		write(t, c.dir, map[string]string{"main.conf": g.file(4 + g.IntN(12)), "conf.d/10-a.conf": g.file(3), "conf.d/20-b.conf": g.file(3), "value.txt": "of a file"})
		filters := []string{"-f", "protocol=submission", "-f", "local=10.1.2.3", "-f", "remote=192.0.2.9", "-f", "lname=mx.example.org"}
		use := filters[:2*g.IntN(5)]
		for _, args := range [][]string{
			{"-n"}, {"-a"}, {"-N"}, {"-n", "-P", "-x"}, {"-S"}, {"-S", "-n"},
			append([]string{"-n"}, use...), append(append([]string{"-x"}, use...), queries...), append([]string{"-h"}, queries[:4]...),
		} {
			jobs = append(jobs, job{c, append(args, "-c", "main.conf"), fmt.Sprintf("round %d", i)})
		}
	}
	v.all(t, doveconf, jobs)
	t.Logf("%d rounds: %+v", *rounds, v)
}

// A generator makes configuration files, most of them right.
type generator struct{ *rand.Rand }

func (g generator) of(list ...string) string { return list[g.IntN(len(list))] }

func (g generator) file(n int) string {
	var b strings.Builder
	for range n {
		g.item(&b, 0)
	}
	if g.IntN(3) == 0 {
		b.WriteString(g.of("!include conf.d/*.conf\n", "!include_try conf.d/20*\n", "!include_try nosuch.conf\n"))
	}
	return b.String()
}

var textValues = []string{"a", "a b", `"a b"`, `" lead"`, `"trail "`, "'single'", `"q\"uo\\te"`, "it's", "x#y", "# none", `"ha#sh"`, "", "$hostname x", "$mail_plugins y", "a=b", "%u@%d",
	"<value.txt", "$ENV:FOO", "key=secret pass=1", `"x # password = p q"`, "http://user:pw@host/ https://h", "password=x;y:z", "api_key = 7", "nopassword=y", "ünï", "\\", `a\tb`, "é\xff", "secret_key=1=2 pass"}

func (g generator) setting(b *strings.Builder, indent int) {
	pad := strings.Repeat(g.of("  ", "\t", " "), indent)
	key := g.of("hostname", "mail_plugins", "login_greeting", "mail_location", "auth_realms", "submission_relay_host", "log_timestamp", "ssl_key", "ssl_dh", "submission_relay_password", "recipient_delimiter")
	value := g.of(textValues...)
	switch g.IntN(4) {
	case 0:
		key, value = g.typed()
	case 1:
		if g.IntN(3) == 0 {
			value = "$" + key + " more"
		}
	}
	fmt.Fprintf(b, "%s%s%s%s\n", pad, key, g.of(" = ", "=", " =", "= "), value)
}

func (g generator) typed() (key, value string) {
	switch g.IntN(7) {
	case 0:
		return g.of("auth_verbose", "mail_debug", "submission_relay_trusted", "version_ignore"), g.of("yes", "no", "Y", "1")
	case 1:
		return g.of("submission_max_mail_size", "mail_cache_max_size", "imap_max_line_length"), g.of("40M", "0", "1 G", "1025", "64 KiB", "40 M")
	case 2:
		return g.of("haproxy_timeout", "mail_max_lock_timeout", "submission_relay_max_idle_time"), g.of("3 secs", "90s", "1h", "29 m", "0")
	case 3:
		return "login_proxy_timeout", g.of("1500ms", "30 secs", "2 days")
	case 4:
		return "ssl", g.of("yes", "no", "required")
	case 5:
		return "imap_urlauth_port", g.of("143", "025", "0")
	}
	return g.of("default_client_limit", "mail_max_userip_connections"), g.of("2000", "0010", "5000")
}

// item adds a setting or a section that may stand at the root.
func (g generator) item(b *strings.Builder, depth int) {
	pad := strings.Repeat("  ", depth)
	open := func(head string) { fmt.Fprintf(b, "%s%s {\n", pad, head) }
	line := func(l string) { fmt.Fprintf(b, "%s  %s\n", pad, l) }
	end := func() { fmt.Fprintf(b, "%s}\n", pad) }
	switch g.IntN(16) {
	case 0:
		open("plugin")
		for range g.IntN(3) {
			line(g.of("quota", "a", "api_key", "zz key", "sieve_dir", "x_password") + " = " + g.of(textValues...))
		}
		end()
	case 1:
		open(g.of("passdb", "userdb", "passdb named", "userdb"))
		line("driver = " + g.of("static", "passwd-file", "pam", "sql"))
		if g.IntN(2) == 0 {
			line("args = " + g.of(textValues...))
		}
		if g.IntN(3) == 0 {
			line(g.of("result_success = continue-ok", "skip = never", "auth_verbose = yes", "default_fields ="))
		}
		end()
	case 2, 3:
		open("service " + g.of("auth", "submission", "submission-login", "imap-login", "new", `"with blank"`, "anvil", "stats"))
		for range g.IntN(4) {
			line(g.of("client_limit = 4000", "process_min_avail = 0", "service_count = 0", "vsz_limit = 1 G", "idle_kill = 90s", "executable = x -y", "user = $default_internal_user", "user =", "chroot = "+g.of("login", "", "a#b")))
		}
		for range g.IntN(3) {
			line(g.of("inet_listener", "inet_listener submission", "inet_listener x", "unix_listener auth-userdb", "unix_listener a/b", `unix_listener "c d"`, "fifo_listener f", "unix_listener e,f=g") + " {")
			if g.IntN(3) > 0 {
				line("  " + g.of("mode = 0660", "user = vmail", "group =", "mode = 0600", "mode = 0"))
			}
			line("}")
		}
		end()
	case 4:
		open("namespace " + g.of("inbox", "shared", `"a b"`))
		line(g.of("inbox = yes", "separator = /", "prefix = x/", "list = children", "hidden = no"))
		for range g.IntN(3) {
			line("mailbox " + g.of("Trash", `"Sent Messages"`, "Spam") + " {")
			if g.IntN(3) > 0 {
				line("  " + g.of("auto = create", `special_use = \Sent`, "autoexpunge = 30d", "auto = no"))
			}
			line("}")
		}
		end()
	case 5:
		open("dict")
		line(g.of("quota", "acl") + " = mysql:/etc/dovecot/x.conf password=1")
		end()
	case 6, 7, 8:
		if depth > 0 {
			g.setting(b, depth)
			return
		}
		heads := []string{"protocol submission", "protocol !imap", "protocol imap", "local 10.0.0.0/8", "local 10.1.2.3", "remote 192.0.2.0/24", "remote ::1/64", "local_name *.example.org", `local_name "a.example mx.example.org"`}
		open(g.of(heads...))
		for range 1 + g.IntN(3) {
			if g.IntN(4) == 0 {
				g.item(b, depth+1)
			} else {
				g.setting(b, depth+1)
			}
		}
		end()
	case 9:
		if depth > 0 {
			return
		}
		open("local 10.0.0.0/8")
		open(g.of("local 10.1.0.0/16", "local_name mx.example.org", "remote 192.0.2.9", "protocol submission"))
		g.setting(b, 1)
		end()
		end()
	case 10:
		if g.IntN(8) == 0 {
			b.WriteString(g.of("}", "foo", "unknown = 1", "ssl = maybe", "service x", "= 1", "!include nosuch", "haproxy_timeout = 5", "protocols = imap nosuch", "service/auth/client_limit = 1", "login_user = x", "ssl_protocols = !SSLv3", "listen =", "service auth {") + "\n")
		}
	default:
		g.setting(b, depth)
	}
}

// What is hidden is hidden in the same way.
func TestLiveSecrets(t *testing.T) {
	doveconf := installed(t)
	parts := []string{"key", "pass", "secret", "=", " ", "http://", "https://", "ftp://", "@", "/", ":", ";", "a", "_", "1", "\"", "'", "#", " # ", "x=1", "\t", "password", "mykey", "é"}
	keys := []string{"a%d", "x%d_key", "k%d_password", "nonce%d", "n%d_nonce", "ssl_dh%d", "key%d"}
	c := testCase{version: "2.3", dir: t.TempDir()}
	var v verdict
	for i := range 50 {
		r := generator{rand.New(rand.NewPCG(*seed, uint64(i)))}
		var b strings.Builder
		b.WriteString("plugin {\n")
		for n := range 40 {
			value := ""
			for range 1 + r.IntN(9) {
				value += r.of(parts...)
			}
			if r.IntN(2) == 0 {
				value = `"` + strings.ReplaceAll(value, `"`, `\"`) + `"`
			}
			fmt.Fprintf(&b, "  "+r.of(keys...)+" = %s\n", n, value)
		}
		b.WriteString("}\n")
		if err := os.WriteFile(filepath.Join(c.dir, "main.conf"), []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		v.compare(t, doveconf, c, "-n", "-c", "main.conf")
	}
	t.Logf("%+v", v)
}
