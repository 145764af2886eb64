package standalone

import (
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/system"
)

func plain(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
}

// dumpServices run the program dump as both halves, with everything that a service block
// can say.
const dumpServices = `
version_ignore = yes
import_environment = FOO=bar
service submission-login {
  executable = @DUMP@ -l  -x
  vsz_limit = 2 G
  process_limit = 7
  idle_kill = 3 mins
  unix_listener extra {
    mode = 0600
  }
  inet_listener submission {
    port = @PORT:a@
    haproxy = yes
  }
  inet_listener other {
    port = @PORT:b@
    address = 127.0.0.1, ::1
  }
}
service submission {
  executable = @DUMP@
  vsz_limit = 0
  client_limit = 3
  service_count = 0
  drop_priv_before_exec = yes
  user = mail
  extra_groups = nogroup
  privileged_group = mail
  unix_listener worker {
    mode = 0666
  }
}
`

// A program cannot tell our master from Dovecot's: arguments, environment, descriptors,
// limits, ids (clauses P1.1 to P1.4).
func TestContractAsDovecot(t *testing.T) {
	need.Root(t)
	need.Dovecot(t)
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dump := filepath.Join(dir, "dump")
	build := exec.Command("go", "build", "-o", dump, "./testdata/dump")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	conf := strings.ReplaceAll(dumpServices, "@DUMP@", dump)

	real := instance.Start(t, conf)
	w := lay(t, 0, base+users+strings.NewReplacer("@PORT:a@", "@PORT@", "@PORT:b@", strconv.Itoa(system.Hold(t).Number)).Replace(conf))
	w.start()
	for _, sock := range []string{"extra", "worker"} {
		normal := func(text, base string) string {
			text = strings.ReplaceAll(text, base, "BASE")
			text = regexp.MustCompile(`GENERATION=\d+`).ReplaceAllString(text, "GENERATION=n")
			// Dovecot offers statistics, and started other things before.
			text = regexp.MustCompile(`(?m)^env STATS_WRITER_SOCKET_PATH=.*\n`).ReplaceAllString(text, "")
			// In the foreground Dovecot leaves its standard output as it is. Its null device
			// can be written to only.
			text = regexp.MustCompile(`(?m)^fd [01] .*\n`).ReplaceAllString(text, "")
			return text
		}
		want := normal(hear(t, filepath.Join(real.Base, sock)), real.Base)
		got := normal(hear(t, filepath.Join(w.dir, "run", sock)), w.dir+"/run")
		if want == "" {
			t.Fatalf("Dovecot: nothing from %s\n%s", sock, real.Log())
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: Dovecot (-), Dovetail (+):\n%s", sock, d)
		}
	}
}

// hear returns all that is said by who listens at a socket.
func hear(t *testing.T, path string) string {
	t.Helper()
	conn, err := net.DialTimeout("unix", path, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Directories and sockets have the owners and modes that Dovecot gives them (clause P0.6).
func TestLayoutAsDovecot(t *testing.T) {
	need.Root(t)
	real := instance.Start(t, "")
	w := run(t, base+users)
	list := func(dir string) map[string]string {
		out := map[string]string{}
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			st := info.Sys().(*syscall.Stat_t)
			out[strings.TrimPrefix(path, dir)] = fmt.Sprintf("%v %d:%d", info.Mode(), st.Uid, st.Gid)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	theirs, ours := list(real.Base), list(w.dir+"/run")
	for path, mode := range ours {
		if theirs[path] != mode {
			t.Errorf("%s: %s, Dovecot has %q", path, mode, theirs[path])
		}
	}
	for _, path := range []string{"", "/master", "/config", "/anvil", "/auth-master", "/auth-userdb", "/login/login", "/login/submission",
		"/token-login/tokenlogin", "/empty", "/log-errors", "/master.pid"} {
		if ours[path] == "" {
			t.Errorf("there is no %s", path)
		}
	}
}

// Everything that is wrong is found before anything is started, all of it is said, and the
// exit status is 89.
func TestErrorsAtTheStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	port, port2 := fmt.Sprint(taken.Addr().(*net.TCPAddr).Port), fmt.Sprint(other.Addr().(*net.TCPAddr).Port)
	for name, c := range map[string]struct {
		conf string
		want []string
	}{
		"port in use": {base + users + `
service submission-login {
  inet_listener submission {
    port = ` + port + `
  }
  inet_listener second {
    port = ` + port2 + `
  }
}
`, []string{
			"dovecot.conf line 15: service(submission-login): listen(127.0.0.1, " + port + ") failed: Address already in use",
			"Another program listens there. inet_listener submission is to listen at 127.0.0.1, port " + port + ".",
			"dovecot.conf line 33: service(submission-login): listen(127.0.0.1, " + port2 + ") failed: Address already in use",
			"2 errors",
		}},
		"unreadable key":  {base + users + "ssl = yes\nssl_cert = <@DIR@/none.pem\nssl_key = <@DIR@/none.key\n", []string{"none.pem", "none.key"}},
		"unknown driver":  {base + "passdb {\n  driver = ldap\n  args = x\n}\nuserdb {\n  driver = sql\n  args = x\n}\n", []string{"passdb: driver ldap is not supported by standalone", "userdb: driver sql is not supported by standalone"}},
		"unknown setting": {base + users + "no_such = 1\nnor_this = 2\n", []string{"Unknown setting: no_such", "Unknown setting: nor_this", "2 errors"}},
		"log directory":   {base + users + "log_path = @DIR@/none/log\n", []string{"Can't open log file", "No such file or directory", "log_path = "}},
		"program":         {base + users + "service submission {\n  executable = @DIR@/none\n}\n", []string{"service(submission): access(", "none) failed: No such file or directory"}},
		"base_dir":        {base + users + "base_dir = /proc/none\n", []string{"base_dir: "}},
	} {
		t.Run(name, func(t *testing.T) {
			w := lay(t, 0, c.conf)
			out, status := w.ask("run", "-F")
			if status != 89 {
				t.Errorf("status %d", status)
			}
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if left := sockets(w.dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if t.Failed() {
				t.Logf("%.4000s", out)
			}
		})
	}
}

// sockets returns all files below dir/run that are no directories.
func sockets(dir string) (left []string) {
	_ = filepath.WalkDir(dir+"/run", func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			left = append(left, path)
		}
		return nil
	})
	return left
}

func TestUnknownUsers(t *testing.T) {
	need.Root(t)
	w := lay(t, 0, base+users+"default_login_user = nosuchuser\nservice auth {\n  user = norhim\n}\n")
	out, status := w.ask("run")
	for _, want := range []string{"default_login_user doesn't exist: nosuchuser", "there is no user norhim"} {
		if status != 89 || !strings.Contains(out, want) {
			t.Errorf("status %d, %q is not said in\n%s", status, want, out)
		}
	}
}

// In the background: the command returns when the server runs; a second start with the
// same base_dir is refused; stop ends it, and says when there is nothing to stop.
func TestBackground(t *testing.T) {
	w := lay(t, 0, base+users)
	t.Cleanup(func() { w.ask("stop") })
	if out, status := w.ask("run"); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	w.connect()
	out, status := w.ask("run")
	pid, _ := os.ReadFile(w.dir + "/run/master.pid")
	want := "Dovetail is already running with PID " + strings.TrimSpace(string(pid)) + " (read from " + w.dir + "/run/master.pid)"
	if status != 89 || !strings.Contains(out, want) {
		t.Errorf("second start: status %d\n%s", status, out)
	}
	w.connect()
	if out, status := w.ask("status"); status != 0 || !strings.Contains(out, "submission-login") {
		t.Errorf("status: %d\n%s", status, out)
	}
	if out, status := w.ask("stop"); status != 0 {
		t.Errorf("stop: %d\n%s", status, out)
	}
	if left := sockets(w.dir); len(left) > 0 && !slices.Equal(left, []string{w.dir + "/run/auth-token-secret.dat"}) {
		t.Errorf("left behind: %v", left)
	}
	if out, status := w.ask("stop"); status != 1 || !strings.Contains(out, "not running") {
		t.Errorf("second stop: %d\n%s", status, out)
	}
	if out, status := w.ask("status"); status != 3 || !strings.Contains(out, "not running") {
		t.Errorf("status afterwards: %d\n%s", status, out)
	}
}

// The same rights as under Dovecot (clause P1.4).
func TestRightsOfProcesses(t *testing.T) {
	need.Root(t)
	w := run(t, base+users)
	s := w.login("alice")
	if got := s.say("NOOP"); !strings.HasPrefix(got, "250 ") {
		t.Errorf("NOOP: %q", got)
	}
	early := w.connect()
	defer early.Close()
	for service, want := range map[string]string{
		"log": "dovecot", "anvil": "dovecot", "auth": "dovecot", "config": "root", "submission": "mail", "submission-login": "dovenull",
	} {
		pids := w.pids(service)
		if len(pids) == 0 {
			t.Errorf("no process of %s", service)
		}
		for _, pid := range pids {
			for _, bad := range wrongThreads(t, pid, want) {
				t.Errorf("%s: %s", service, bad)
			}
			root, _ := os.Readlink(fmt.Sprintf("/proc/%d/root", pid))
			if want := map[string]string{"submission-login": w.dir + "/run/login", "anvil": w.dir + "/run/empty"}[service]; want != "" && root != want {
				t.Errorf("%s has the root directory %s", service, root)
			}
		}
	}
}

// wrongThreads returns the threads of a process that are not user's, in all ids and groups.
func wrongThreads(t *testing.T, pid int, name string) (bad []string) {
	t.Helper()
	out, err := exec.Command("id", "-u", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	uid := strings.TrimSpace(string(out))
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if len(tasks) == 0 {
		return []string{"no threads"}
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			ids := strings.Fields(value)
			switch {
			case key == "Uid" && !slices.Equal(ids, []string{uid, uid, uid, uid}),
				key == "Groups" && name != "root" && slices.Contains(ids, "0"),
				key == "Gid" && name != "root" && slices.Contains(ids, "0"):
				bad = append(bad, task+": "+strings.TrimSpace(line))
			}
		}
	}
	return bad
}

// As another user everything runs as that one, with one warning.
func TestUnprivileged(t *testing.T) {
	need.Root(t) // to become somebody else
	w := lay(t, nobody, base+strings.ReplaceAll(users, "uid=mail gid=mail", "uid=65534 gid=65534"))
	w.start()
	s := w.login("alice")
	if got := s.say("NOOP"); !strings.HasPrefix(got, "250 ") {
		t.Errorf("NOOP: %q", got)
	}
	if n := strings.Count(w.log(), "Warning:"); n != 1 || !strings.Contains(w.log(), "Not started as root: everything runs as user nobody") {
		t.Errorf("%d warnings", n)
	}
	for _, service := range []string{"log", "anvil", "auth", "config", "submission", "submission-login"} {
		for _, pid := range w.pids(service) {
			for _, bad := range wrongThreads(t, pid, "nobody") {
				t.Errorf("%s: %s", service, bad)
			}
		}
	}
	if out, status := w.ask("who"); status != 0 || !strings.Contains(out, "alice") {
		t.Errorf("who: %d\n%s", status, out)
	}
}

// who and kick: by user, by address, and one of several users.
func TestWhoAndKick(t *testing.T) {
	need.Root(t)
	w := run(t, base+users)
	alice, bob := w.login("alice"), w.login("bob")
	w.until("both are listed", func() bool {
		out, _ := w.ask("who")
		return regexp.MustCompile(`(?m)^alice +1 submission +\(\d+\) \(127\.0\.0\.1\) *$`).MatchString(out) &&
			regexp.MustCompile(`(?m)^bob +1 submission`).MatchString(out)
	})
	if out, _ := w.ask("who", "ali*"); strings.Contains(out, "bob") || !strings.Contains(out, "alice") {
		t.Errorf("who ali*:\n%s", out)
	}
	if out, _ := w.ask("who", "192.0.2.0/24"); strings.Contains(out, "alice") {
		t.Errorf("who of another network:\n%s", out)
	}
	if out, status := w.ask("kick", "carol"); status != 68 || !strings.Contains(out, "no users kicked") {
		t.Errorf("kick of nobody: %d %s", status, out)
	}
	if out, status := w.ask("kick", "alice", "127.0.0.0/8"); status != 0 || !strings.Contains(out, "alice") {
		t.Errorf("kick: %d %s", status, out)
	}
	if got := alice.hear(); !strings.HasPrefix(got, "421 4.3.2 ") {
		t.Errorf("alice got %q", got)
	}
	if got := bob.say("NOOP"); !strings.HasPrefix(got, "250 ") {
		t.Errorf("bob got %q", got)
	}
	if out, status := w.ask("kick"); status != 64 {
		t.Errorf("kick without anybody: %d %s", status, out)
	}
	if got := instanceDoveadm(t, w, "who"); !strings.Contains(got, "bob") {
		t.Errorf("doveadm who:\n%s", got)
	}
}

// instanceDoveadm runs Dovecot's doveadm against our server.
func instanceDoveadm(t *testing.T, w *world, args ...string) string {
	t.Helper()
	bin := need.Dovecot(t)
	out, err := exec.Command(bin.Doveadm, append([]string{"-c", w.dir + "/dovecot.conf"}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("doveadm %v: %v", args, err)
	}
	return string(out)
}

// doveadm's questions to a master and to the log process are answered.
func TestDoveadm(t *testing.T) {
	need.Root(t)
	w := run(t, base+users)
	w.connect()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"service", "status", "submission-login"}, "process_limit: 100"},
		{[]string{"process", "status"}, "submission-login"},
		{[]string{"penalty"}, ""},
		{[]string{"log", "errors"}, ""},
		{[]string{"service", "stop", "submission-login"}, ""},
	} {
		if got := instanceDoveadm(t, w, c.args...); !strings.Contains(got, c.want) {
			t.Errorf("doveadm %v:\n%s", c.args, got)
		}
	}
}

// A reload keeps sessions, takes new settings for new ones, and refuses what is wrong.
func TestReload(t *testing.T) {
	w := run(t, base+users)
	s, early := w.login("alice"), w.connect()
	old := w.pids("submission")
	w.write("dovecot.conf", base+users+"login_greeting = New greeting.\n")
	if out, status := w.ask("reload"); status != 0 {
		t.Fatalf("reload: %d\n%s", status, out)
	}
	w.until("a process of the new generation greets", func() bool {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(w.port)))
		if err != nil {
			return false
		}
		defer conn.Close()
		return strings.Contains((&session{t, conn}).hear(), "New greeting.")
	})
	if got := s.say("NOOP"); !strings.HasPrefix(got, "250 ") {
		t.Errorf("the open session got %q", got)
	}
	early.say("EHLO client.test") // who had not logged in can still do so
	if got := early.auth("bob"); !strings.HasPrefix(got, "235 ") {
		t.Errorf("AUTH after the reload: %q", got)
	}
	if now := w.pids("submission"); len(old) != 1 || !slices.Contains(now, old[0]) {
		t.Errorf("worker %v, now %v", old, now)
	}
	if out, _ := w.ask("who"); !strings.Contains(out, "alice") {
		t.Errorf("who has forgotten alice:\n%s", out)
	}
	if out, _ := w.ask("status"); !strings.Contains(out, "from before a reload") {
		t.Errorf("status does not tell of old processes:\n%s", out)
	}

	w.write("dovecot.conf", base+users+"login_greeting = Newer.\nnonsense = 1\nmore_nonsense = 2\n")
	out, status := w.ask("reload")
	if status != 89 || !strings.Contains(out, "Unknown setting: nonsense") || !strings.Contains(out, "Unknown setting: more_nonsense") {
		t.Errorf("reload of a broken configuration: %d\n%s", status, out)
	}
	_ = syscall.Kill(w.cmd.Process.Pid, syscall.SIGHUP) // who does not ask is told in the log
	w.says("Error: " + w.dir + "/dovecot.conf line")
	w.says("Unknown setting: more_nonsense")
	w.says("the old one goes on")
	if got := s.say("NOOP"); !strings.HasPrefix(got, "250 ") {
		t.Errorf("the open session got %q", got)
	}
	fresh := w.connect()
	fresh.say("EHLO x")
	if got := s.say("QUIT"); !strings.HasPrefix(got, "221 ") {
		t.Errorf("QUIT: %q", got)
	}
}

// Each process dies in turn, while a session is open: what does not need it goes on, and
// logins work again.
func TestCrashOfEachProcess(t *testing.T) {
	need.Root(t)
	w := run(t, base+users)
	s := w.login("alice")
	worker := w.pids("submission")[0]
	for _, service := range []string{"log", "anvil", "auth", "config"} {
		pids := w.pids(service)
		if len(pids) != 1 {
			t.Fatalf("%s has the processes %v", service, pids)
		}
		if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.says(fmt.Sprintf("service(%s): child %d killed with signal 9", service, pids[0]))
		if got := s.say("NOOP"); !strings.HasPrefix(got, "250 ") {
			t.Errorf("after the death of %s the open session got %q", service, got)
		}
		w.until("a login after the death of "+service, func() bool {
			n := w.connect()
			defer n.Close()
			n.say("EHLO x")
			return strings.HasPrefix(n.auth("bob"), "235 ")
		})
	}
	if got := s.say("QUIT"); !strings.HasPrefix(got, "221 ") {
		t.Errorf("QUIT: %q", got)
	}
	// Whose line it is only the first log process was told by itself.
	line := regexp.MustCompile(fmt.Sprintf(`submission\(alice\)<%d><[^>]+>: Info: Disconnected: Logged out`, worker))
	w.until("alice's last line", func() bool { return line.MatchString(w.log()) })
}

// The forms of the log: Dovecot's, or JSON; files are made anew at SIGUSR1.
func TestLogs(t *testing.T) {
	w := run(t, base+users+"info_log_path = @DIR@/info\nlog_timestamp = \"%Y-%m-%d %H:%M:%S \"\n")
	info := func() string { b, _ := os.ReadFile(w.dir + "/info"); return string(b) }
	w.login("alice").say("QUIT")
	form := regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d submission-login: Info: Login: user=<alice>, method=PLAIN, rip=127\.0\.0\.1, lip=127\.0\.0\.1, mpid=\d+, secured, session=<[^>]+>$`)
	w.until("the login line", func() bool { return form.MatchString(info()) })
	if strings.Contains(w.log(), "Info:") {
		t.Error("the error log has information")
	}
	if err := os.Rename(w.dir+"/info", w.dir+"/info.1"); err != nil {
		t.Fatal(err)
	}
	_ = syscall.Kill(w.cmd.Process.Pid, syscall.SIGUSR1)
	w.until("a new file", func() bool { _, err := os.Stat(w.dir + "/info"); return err == nil })
	w.until("lines in it", func() bool {
		w.login("bob").say("QUIT")
		return strings.Contains(info(), "user=<bob>")
	})

	j := run(t, base+users+"dovetail_log_format = json\n")
	j.login("carol").say("QUIT")
	j.says(`"level":"info","service":"submission-login","pid":`)
	j.says(`"prefix":"submission-login: ","text":"Login: user=<carol>`)
}

// Settings of services that are not served are checked and left alone.
func TestOtherServices(t *testing.T) {
	w := run(t, base+users+`
protocols = imap submission
service imap-login {
  inet_listener imap {
    port = 1
  }
}
service imap {
  process_limit = 3
}
service stats {
  unix_listener stats-writer {
    mode = 0666
  }
}
service dict {
  unix_listener dict {
    mode = 0600
  }
}
mail_location = maildir:~/Maildir
dict {
  x = file:/tmp/x
}
`)
	w.login("alice").say("QUIT")
	if _, err := os.Stat(w.dir + "/run/stats-writer"); err == nil {
		t.Error("there is a socket of a service that is not served")
	}
}

// Dovecot's own two programs run under our master.
func TestTheirPrograms(t *testing.T) {
	need.Root(t)
	for name, more := range map[string]string{
		"our roles":   "",
		"their roles": "service auth {\n  executable = @LIBEXEC@/auth\n}\nservice anvil {\n  executable = @LIBEXEC@/anvil\n}\nservice config {\n  executable = @LIBEXEC@/config\n}\nservice log {\n  executable = @LIBEXEC@/log\n}\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := run(t, base+users+theirs+more)
			s := w.login("alice")
			if got := s.say("NOOP"); !strings.HasPrefix(got, "250 ") {
				t.Errorf("NOOP: %q", got)
			}
			if out, _ := w.ask("who"); !strings.Contains(out, "alice") {
				t.Errorf("who:\n%s", out)
			}
			w.says("submission-login: Info: Login: user=<alice>")
			if out, status := w.ask("kick", "alice"); status != 0 {
				t.Errorf("kick: %d\n%s", status, out)
			}
			if got := s.hear(); !strings.HasPrefix(got, "421 4.3.2 ") {
				t.Errorf("alice got %q", got)
			}
			w.says("Killed with signal 15 (by pid=")
		})
	}
}
