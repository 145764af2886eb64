// Package standalone tests the dovetail program as an admin meets it: `dovetail run` with
// configuration files, and the words that ask it. What the SMTP clients see is tested by
// transcripts and interop.
package standalone

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }

const patience = 40 * time.Second

// A world is a directory with a configuration, and perhaps a server that runs it.
type world struct {
	t    *testing.T
	dir  string
	bin  string // path of dovetail
	port int
	mta  *relay.Relay
	as   uint32 // the user to run as; 0 is the caller

	cmd  *exec.Cmd
	out  bytes.Buffer // of the server; read after done
	done chan struct{}
}

// nobody is who unprivileged servers run as.
const nobody = 65534

// base is in front of every configuration. @DIR@, @PORT@, @RELAY@ and @BIN@ are replaced.
const base = `
base_dir = @DIR@/run
state_dir = @DIR@/state
log_path = @DIR@/log
protocols = submission
listen = 127.0.0.1
ssl = no
hostname = sub.example.test
disable_plaintext_auth = no
first_valid_uid = 1
auth_failure_delay = 0
submission_relay_host = 127.0.0.1
submission_relay_port = @RELAY@
service submission-login {
  inet_listener submission {
    port = @PORT@
  }
}
`

// users is for those that do not test users. Who is not root can be himself alone.
const users = `
passdb {
  driver = static
  args = password=secret
}
userdb {
  driver = static
  args = uid=mail gid=mail home=@DIR@/home
}
`

// programs are the two halves as this project's; theirs as Dovecot's.
const theirs = `
version_ignore = yes
mail_location = maildir:@DIR@/mail
service submission-login {
  executable = @LIBEXEC@/submission-login
}
service submission {
  executable = @LIBEXEC@/submission
}
`

// lay writes a configuration, as the user it is for.
func lay(t *testing.T, as uint32, conf string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "dt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, as: as, bin: binaries(t), port: system.Hold(t).Number, mta: relay.Start(t, relay.Options{})}
	for _, name := range []string{"mail", "home"} {
		if err := os.Mkdir(dir+"/"+name, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir+"/"+name, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	w.write("dovecot.conf", conf)
	if as != 0 {
		if err := os.Chown(dir, int(as), int(as)); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// binaries builds what standalone needs, and returns the path of dovetail.
func binaries(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"submission-login", "submission"} {
		system.Binary(t, p)
	}
	return system.Binary(t, "dovetail")
}

func (w *world) fill(text string) string {
	if strings.Contains(text, "@LIBEXEC@") {
		text = strings.ReplaceAll(text, "@LIBEXEC@", need.Dovecot(w.t).Libexec)
	}
	if id := os.Geteuid(); id != 0 {
		text = strings.ReplaceAll(text, "uid=mail gid=mail", fmt.Sprintf("uid=%d gid=%d", id, id))
	}
	return strings.NewReplacer("@DIR@", w.dir, "@PORT@", strconv.Itoa(w.port), "@RELAY@", strconv.Itoa(w.mta.Port), "@BIN@", filepath.Dir(w.bin)).Replace(text)
}

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(w.fill(text)), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// command is `dovetail args...` as the world's user. The configuration is named by -c
// behind the first word.
func (w *world) command(args ...string) *exec.Cmd {
	args = append([]string{args[0], "-c", filepath.Join(w.dir, "dovecot.conf")}, args[1:]...)
	cmd := exec.Command(w.bin, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TZ=UTC", "NO_COLOR=1"}
	cmd.Dir = w.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if w.as != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: w.as, Gid: w.as}
	}
	return cmd
}

// ask runs `dovetail args...` and returns what it says and its status.
func (w *world) ask(args ...string) (string, int) {
	w.t.Helper()
	cmd := w.command(args...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// start runs the server in the foreground; it ends with the test.
func (w *world) start() {
	w.t.Helper()
	w.cmd = w.command("run", "-F")
	w.cmd.Stdout, w.cmd.Stderr = &w.out, &w.out
	if err := w.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.done = make(chan struct{})
	go func() { // ends with the server
		_ = w.cmd.Wait()
		close(w.done)
	}()
	w.t.Cleanup(func() {
		w.stop()
		if w.t.Failed() {
			w.t.Logf("output:\n%s\nlog:\n%s", w.out.String(), w.log())
		}
	})
	w.until("the server runs", func() bool {
		select {
		case <-w.done:
			w.t.Fatalf("the server ended:\n%s\nlog:\n%s", w.out.String(), w.log())
		default:
		}
		b, _ := os.ReadFile(w.dir + "/run/master.pid")
		return len(b) > 0
	})
}

// run lays and starts.
func run(t *testing.T, conf string) *world {
	t.Helper()
	w := lay(t, 0, conf)
	w.start()
	return w
}

// stop ends the server and everything in its process group. It may be called twice.
func (w *world) stop() {
	if w.cmd == nil {
		return
	}
	group := -w.cmd.Process.Pid
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-w.done:
	case <-time.After(patience):
		w.t.Error("the server does not end")
	}
	w.cmd = nil
	_ = syscall.Kill(group, syscall.SIGTERM)
	for end := time.Now().Add(patience); syscall.Kill(group, 0) != syscall.ESRCH; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			_ = syscall.Kill(group, syscall.SIGKILL)
			w.t.Error("processes are left")
			return
		}
	}
}

func (w *world) log() string {
	b, _ := os.ReadFile(w.dir + "/log")
	return string(b)
}

// says waits until the log has text.
func (w *world) says(text string) {
	w.t.Helper()
	w.until(fmt.Sprintf("the log says %q", text), func() bool { return strings.Contains(w.log(), text) })
}

func (w *world) until(what string, f func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("not in time: %s", what)
		}
	}
}

// pids returns the processes of a service, as `dovetail status` has them.
func (w *world) pids(service string) []int {
	w.t.Helper()
	out, _ := w.ask("status")
	var pids []int
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[1] == service {
			if pid, err := strconv.Atoi(f[0]); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// A session is an SMTP client.
type session struct {
	t *testing.T
	net.Conn
}

// connect waits until the server greets.
func (w *world) connect() *session {
	w.t.Helper()
	var s *session
	w.until("a greeting", func() bool {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(w.port)), patience)
		if err != nil {
			return false
		}
		s = &session{w.t, conn}
		if strings.HasPrefix(s.hear(), "220 ") {
			return true
		}
		conn.Close()
		return false
	})
	w.t.Cleanup(func() { s.Close() })
	return s
}

// hear returns the next line; "" at the end.
func (s *session) hear() string {
	s.t.Helper()
	if err := s.SetReadDeadline(time.Now().Add(patience)); err != nil {
		s.t.Fatal(err)
	}
	var line []byte
	var b [1]byte
	for {
		if _, err := io.ReadFull(s, b[:]); err != nil {
			return ""
		}
		if b[0] == '\n' {
			return strings.TrimSuffix(string(line), "\r")
		}
		line = append(line, b[0])
	}
}

// say sends a line and returns the last line of the reply.
func (s *session) say(line string) string {
	s.t.Helper()
	fmt.Fprintf(s, "%s\r\n", line)
	for {
		got := s.hear()
		if len(got) < 4 || got[3] != '-' {
			return got
		}
	}
}

// login connects and logs in.
func (w *world) login(user string) *session {
	w.t.Helper()
	s := w.connect()
	s.say("EHLO client.test")
	if got := s.auth(user); !strings.HasPrefix(got, "235 ") {
		w.t.Fatalf("login of %s: %q", user, got)
	}
	return s
}

func (s *session) auth(user string) string {
	s.t.Helper()
	return s.say("AUTH PLAIN " + plain(user, "secret"))
}
