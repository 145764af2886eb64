// Package clients runs `dovetail run` as root with the configuration of an installation:
// the files of Debian's package, in which is changed what an admin would change. Mail
// programs that others wrote submit messages to it.
package clients

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/tlsfiles"
)

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }

const (
	// patience is how long is waited for what should happen soon, on a busy machine.
	patience = 120 * time.Second
	pause    = 5 * time.Millisecond

	tree     = "/usr/share/dovecot" // where Debian's package has the files it makes /etc/dovecot of
	password = "secret"
	sender   = "alice@example.org"
	rcpt     = "bob@example.net"
)

// uids of the users. 500 is the least that Dovecot takes.
var uids = map[string]int{"alice": 12001, "bob": 12002}

// A server is one that runs.
type server struct {
	dir           string
	port, tlsPort int    // STARTTLS, and TLS from the first octet
	ca            string // path of the CA's certificate
	pair          tlsfiles.Pair
	mta           *sink

	t    *testing.T
	bin  string
	cmd  *exec.Cmd
	out  bytes.Buffer // of the server; read after done
	done chan struct{}
}

// local is the admin's own file.
const local = `
base_dir = {dir}/run
state_dir = {dir}/state
log_path = {dir}/log
listen = 127.0.0.1
hostname = mail.example.test
submission_relay_host = 127.0.0.1
submission_relay_port = {relay}
`

// edits are what an admin does to the files of the package: users in a file, keys, ports.
var edits = map[string][]string{
	"conf.d/10-auth.conf": {
		"\n!include auth-system.conf.ext", "\n#!include auth-system.conf.ext",
		"\n#!include auth-passwdfile.conf.ext", "\n!include auth-passwdfile.conf.ext",
	},
	"conf.d/auth-passwdfile.conf.ext": {"/etc/dovecot/users", "{dir}/users"},
	"conf.d/10-ssl.conf":              {"</etc/dovecot/private/", "<{dir}/private/"},
	"conf.d/10-master.conf": {
		"  inet_listener submission {\n    #port = 587\n  }\n",
		"  inet_listener submission {\n    port = {port}\n  }\n  inet_listener submissions {\n    port = {tlsport}\n    ssl = yes\n  }\n",
	},
}

// installed returns a server with Debian's files.
func installed(t *testing.T) *server {
	t.Helper()
	need.Root(t)
	if _, err := os.Stat(tree + "/conf.d/10-master.conf"); err != nil {
		need.Missing(t, "the files of Debian's dovecot-core in "+tree)
	}
	dir, err := os.MkdirTemp("", "dt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &server{dir: dir, t: t, mta: startSink(t), port: system.Hold(t).Number, tlsPort: system.Hold(t).Number}
	for _, p := range []string{"submission-login", "submission"} {
		system.Binary(t, p)
	}
	s.bin = system.Binary(t, "dovetail")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.lay()
	s.start()
	return s
}

func (s *server) lay() {
	t := s.t
	t.Helper()
	fill := strings.NewReplacer("{dir}", s.dir, "{port}", strconv.Itoa(s.port), "{tlsport}", strconv.Itoa(s.tlsPort), "{relay}", strconv.Itoa(s.mta.port))
	edited := 0
	err := filepath.WalkDir(tree, func(path string, e fs.DirEntry, err error) error {
		name, _ := filepath.Rel(tree, path)
		if err != nil || e.IsDir() || name != "dovecot.conf" && !strings.HasPrefix(name, "conf.d/") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text := string(b)
		for edit := edits[name]; len(edit) > 0; edit = edit[2:] {
			if !strings.Contains(text, edit[0]) {
				t.Errorf("%s has no %q", path, edit[0])
			}
			text = strings.ReplaceAll(text, edit[0], fill.Replace(edit[1]))
			edited++
		}
		s.write(name, text, 0o644)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if edited != 5 {
		t.Fatalf("%d edits were made, not 5", edited)
	}
	s.write("local.conf", fill.Replace(local), 0o644)
	var users strings.Builder
	for name, uid := range uids {
		fmt.Fprintf(&users, "%s:{PLAIN}%s:%d:%d::/nonexistent::\n", name, password, uid, uid)
	}
	s.write("users", users.String(), 0o644)
	ca := tlsfiles.NewCA(t, "test CA")
	s.pair = ca.Pair
	cert := ca.Issue(t, tlsfiles.Request{CN: "mail.example.test", Names: []string{"mail.example.test", "localhost", "127.0.0.1"}})
	s.ca = s.write("ca.pem", string(ca.Cert), 0o644)
	s.write("private/dovecot.pem", string(cert.Cert), 0o644)
	s.write("private/dovecot.key", string(cert.Key), 0o600)
}

// write writes a file below the directory and returns its path.
func (s *server) write(name, text string, mode os.FileMode) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), mode)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *server) start() {
	t := s.t
	t.Helper()
	s.cmd = exec.Command(s.bin, "run", "-F", "-c", s.dir+"/dovecot.conf")
	s.cmd.Env = []string{"PATH=/usr/bin:/bin", "TZ=UTC", "NO_COLOR=1", "GORACE=atexit_sleep_ms=0"}
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.done = make(chan struct{})
	go func() { // ends with the master
		_ = s.cmd.Wait()
		close(s.done)
	}()
	t.Cleanup(s.stop)
	s.until("the server runs", func() bool {
		select {
		case <-s.done:
			t.Fatalf("the server ended:\n%s\nlog:\n%s", s.out.String(), s.log())
		default:
		}
		pid, _ := os.ReadFile(s.dir + "/run/master.pid")
		return len(pid) > 0
	})
}

// stop ends the server, and fails the test for what it leaves behind.
func (s *server) stop() {
	t := s.t
	t.Helper()
	group := -s.cmd.Process.Pid
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(patience):
		t.Error("the server does not end")
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	for end := time.Now().Add(patience); syscall.Kill(group, 0) != syscall.ESRCH; time.Sleep(pause) {
		if time.Now().After(end) {
			t.Error("processes are left")
			_ = syscall.Kill(group, syscall.SIGKILL)
			break
		}
	}
	for line := range strings.Lines(s.log()) {
		if strings.Contains(line, "Error: ") || strings.Contains(line, "Panic: ") || strings.Contains(line, "Fatal: ") || strings.Contains(line, "DATA RACE") {
			t.Errorf("log: %s", line)
		}
	}
	if t.Failed() {
		t.Logf("output:\n%s\nlog:\n%.20000s", s.out.String(), s.log())
	}
}

func (s *server) log() string {
	b, _ := os.ReadFile(s.dir + "/log")
	return string(b)
}

func (s *server) until(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(pause) {
		if time.Now().After(end) {
			s.t.Fatalf("not in time: %s", what)
		}
	}
}

// ask runs `dovetail args...` and returns what it says and its status.
func (s *server) ask(args ...string) (string, int) {
	s.t.Helper()
	cmd := exec.Command(s.bin, append([]string{args[0], "-c", s.dir + "/dovecot.conf"}, args[1:]...)...)
	cmd.Env = s.cmd.Env
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// processes returns the pids of the server's processes by service, as `dovetail status` has
// them.
func (s *server) processes() map[string][]int {
	s.t.Helper()
	found := map[string][]int{}
	out, _ := s.ask("status")
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if pid, err := strconv.Atoi(f[0]); err == nil {
			found[f[1]] = append(found[f[1]], pid)
		}
	}
	return found
}
