// Package dovetail runs our programs by themselves, by `dovetail run`, for tests of what
// clients and relays see of them. It needs neither root nor Dovecot: as root everything
// has its own uid, as another user all is one. It counts what the processes hold, so that
// a test can tell that nothing has leaked.
package dovetail

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/tlsfiles"
)

const (
	// Patience is how long anything is waited for that should happen soon: the machine may
	// be busy with other tests.
	Patience = 60 * time.Second

	pause = 3 * time.Millisecond

	// Password is everybody's.
	Password = "secret"

	uid = 12001 // of everybody's worker, if we are root
)

// Main runs the tests of a package; most of them wait most of the time, so many run at
// once.
func Main(m *testing.M, parallel int) int {
	return system.MainParallel(m, parallel)
}

// A Setup is what a server is given.
type Setup struct {
	Users  []User
	Config string // behind the base configuration; {dir} is replaced

	// Shared makes one process of each half serve all clients. Otherwise each client has
	// processes of its own, as shipped.
	Shared bool

	Hasty bool // minutes of fixed timers are seconds (package process/pace)
}

// A User is one that can log in, with fields that the userdb has for him: settings, mostly.
type User struct {
	Name   string
	Fields []string // "submission_relay_port=2525"
}

// Relay is the field that gives a user a relay at a port of this machine.
func Relay(port int) string { return "submission_relay_port=" + strconv.Itoa(port) }

// A Server is a running one.
type Server struct {
	Dir     string
	Addr    string // of the listener without TLS
	TLSAddr string // of the one that begins with TLS
	HAProxy string // of one that wants a PROXY header

	t    testing.TB
	cert tlsfiles.Pair
	bin  string // path of dovetail
	cmd  *exec.Cmd
	done chan struct{}
	out  *os.File
}

const base = `
base_dir = {dir}/run
state_dir = {dir}/state
log_path = {dir}/log
log_timestamp =
protocols = submission
listen = 127.0.0.1
hostname = sub.example.test
login_greeting = ready.
ssl = yes
ssl_cert = <{dir}/cert.pem
ssl_key = <{dir}/key.pem
disable_plaintext_auth = no
auth_failure_delay = 0
auth_mechanisms = plain login
first_valid_uid = 1
haproxy_trusted_networks = 127.0.0.0/8
mail_max_userip_connections = 0
submission_relay_host = 127.0.0.1
default_process_limit = 1000
default_client_limit = 5000
passdb {
  driver = passwd-file
  args = {dir}/users
}
userdb {
  driver = passwd-file
  args = {dir}/users
}
service submission-login {
  inet_listener submission {
    port = {port}
  }
  inet_listener submissions {
    port = {tlsport}
    ssl = yes
  }
  inet_listener proxied {
    port = {haport}
    haproxy = yes
  }
}
service submission {
  process_limit = 1000
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
`

const shared = `
service submission-login {
  service_count = 0
  client_limit = 5000
  process_limit = 1
  process_min_avail = 1
}
service submission {
  service_count = 0
  client_limit = 5000
  process_limit = 1
  process_min_avail = 1
}
`

// underRace is for programs with the race detector, which reserves address space without
// end and says on standard error, which is the log, what it finds.
const underRace = `
default_vsz_limit = 0
import_environment = TZ GORACE=atexit_sleep_ms=0
service submission {
  vsz_limit = 0
}
service submission-login {
  vsz_limit = 0
}
`

// Start runs a server until the test ends.
func Start(t testing.TB, o Setup) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "dt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	tag := ""
	if o.Hasty {
		tag = system.Hasty
	}
	for _, p := range []string{"submission-login", "submission"} {
		system.Build(t, p, tag)
	}
	s := &Server{Dir: dir, t: t, bin: system.Build(t, "dovetail", tag)}
	plain, implicit, proxied := system.Hold(t), system.Hold(t), system.Hold(t)
	s.Addr, s.TLSAddr, s.HAProxy = plain.Addr(), implicit.Addr(), proxied.Addr()
	s.cert = tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "sub.example.test", Names: []string{"sub.example.test"}})
	s.cert.Write(t, dir, "unused")
	conf := base
	if o.Shared {
		conf += shared
	}
	if system.Race {
		conf += underRace
	}
	fill := strings.NewReplacer("{dir}", dir, "{port}", strconv.Itoa(plain.Number), "{tlsport}", strconv.Itoa(implicit.Number), "{haport}", strconv.Itoa(proxied.Number))
	for name, text := range map[string]string{
		"dovecot.conf": fill.Replace(conf + o.Config),
		"users":        userFile(o.Users),
		"cert.pem":     string(s.cert.Cert),
		"key.pem":      string(s.cert.Key),
		"log":          "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func userFile(users []User) string {
	id := os.Geteuid()
	if id == 0 {
		id = uid
	}
	var b strings.Builder
	for _, u := range users {
		fmt.Fprintf(&b, "%s:{PLAIN}%s:%d:%d::/nonexistent::", u.Name, Password, id, id)
		for _, f := range u.Fields {
			b.WriteString(" userdb_" + f)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (s *Server) start() {
	t := s.t
	t.Helper()
	var err error
	if s.out, err = os.OpenFile(s.Dir+"/output", os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600); err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(s.bin, "run", "-F", "-c", s.Dir+"/dovecot.conf")
	s.cmd.Env = []string{"PATH=/usr/bin:/bin", "TZ=UTC", "NO_COLOR=1", "GORACE=atexit_sleep_ms=0"}
	s.cmd.Dir = s.Dir
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	starts := len(s.Lines("master: Info: ", " starting up for "))
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { // ends with the master
		_ = cmd.Wait()
		close(done)
	}(s.cmd, s.done)
	s.Until(t, "the server runs", func() bool {
		select {
		case <-s.done:
			t.Fatalf("the server ended\n%s", s.Log())
		default:
		}
		pid, _ := os.ReadFile(s.Dir + "/run/master.pid")
		return strings.TrimSpace(string(pid)) == strconv.Itoa(s.cmd.Process.Pid) &&
			len(s.Lines("master: Info: ", " starting up for ")) > starts // the log process has its files
	})
}

// Restart starts a server again whose master has died.
func (s *Server) Restart() {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(Patience):
		s.t.Fatal("the master lives")
	}
	s.out.Close()
	s.start()
}

// stop ends the server, and fails the test for what it leaves behind, for panics and for
// data races.
func (s *Server) stop() {
	t := s.t
	t.Helper()
	group := s.cmd.Process.Pid
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(Patience):
		t.Error("the server does not end")
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	if !s.wait(func() bool { return syscall.Kill(-group, 0) == syscall.ESRCH }) {
		t.Error("processes are left behind")
		_ = syscall.Kill(-group, syscall.SIGKILL)
	}
	log := s.Log()
	for _, bad := range []string{"DATA RACE", ": Panic: ", "fatal error: ", "panic: "} {
		if i := strings.Index(log, bad); i >= 0 {
			t.Errorf("the log has %q: %.3000s", bad, log[max(0, i-200):])
		}
	}
	if t.Failed() {
		t.Logf("log:\n%s", tail(log, 20000))
	}
	s.out.Close()
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// Ask runs `dovetail args...` with the server's configuration, named by -c behind the first
// word, and returns what it says, and its exit status.
func (s *Server) Ask(t testing.TB, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command(s.bin, append([]string{args[0], "-c", s.Dir + "/dovecot.conf"}, args[1:]...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TZ=UTC", "NO_COLOR=1", "GORACE=atexit_sleep_ms=0"}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// PID is the master's process.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Log returns the log, and what the master said on its standard error.
func (s *Server) Log() string {
	log, _ := os.ReadFile(s.Dir + "/log")
	out, _ := os.ReadFile(s.Dir + "/output")
	return string(out) + string(log)
}

// Lines returns the log lines that contain all of the texts.
func (s *Server) Lines(texts ...string) (found []string) {
next:
	for line := range strings.Lines(s.Log()) {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue next
			}
		}
		found = append(found, strings.TrimSuffix(line, "\n"))
	}
	return found
}

// WaitLine waits for a log line that contains all of the texts, and returns the first.
func (s *Server) WaitLine(t testing.TB, texts ...string) string {
	t.Helper()
	var found []string
	if !s.wait(func() bool { found = s.Lines(texts...); return len(found) > 0 }) {
		t.Fatalf("no log line has %q", texts)
	}
	return found[0]
}

// wait waits until ok says so.
func (s *Server) wait(ok func() bool) bool {
	for end := time.Now().Add(Patience); !ok(); time.Sleep(pause) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// Until waits until ok says so, and fails the test otherwise.
func (s *Server) Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !s.wait(ok) {
		t.Fatalf("not in time: %s", what)
	}
}

// A Way is how a client connects.
type Way uint8

// The ways.
const (
	Clear    Way = iota // 127.0.0.1 to 127.0.0.1 counts as secured
	TLS                 // from the first octet
	StartTLS            // by command
)

func (w Way) String() string { return [...]string{"clear", "TLS", "STARTTLS"}[w] }

// TLSConfig trusts the server.
func (s *Server) TLSConfig() *tls.Config {
	return &tls.Config{RootCAs: s.cert.Pool(), ServerName: "sub.example.test"}
}

// Connect connects, and does not read the greeting.
func (s *Server) Connect(t testing.TB, w Way) *client.Client {
	t.Helper()
	o := client.Options{Timeout: Patience}
	addr := s.Addr
	if w == TLS {
		addr, o.TLS = s.TLSAddr, s.TLSConfig()
	}
	return client.Dial(t, addr, o)
}

// Greeted connects, and reads the greeting; for StartTLS that is followed by the command
// and the handshake.
func (s *Server) Greeted(t testing.TB, w Way) *client.Client {
	t.Helper()
	c := s.Connect(t, w)
	c.ExpectCode("220")
	if w == StartTLS {
		c.Do("STARTTLS", "220")
		c.StartTLS(s.TLSConfig())
	}
	return c
}

// Login connects and logs in, up to the 235.
func (s *Server) Login(t testing.TB, w Way, user string) *client.Client {
	t.Helper()
	c := s.Greeted(t, w)
	c.Plain(user, Password)
	return c
}

// Plain is the initial response of AUTH PLAIN.
func Plain(user string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + Password))
}

// Processes returns the pids of the server's processes by service: "auth", "submission".
func (s *Server) Processes() map[string][]int {
	found := map[string][]int{}
	for _, pid := range leak.Tree(s.PID()) {
		if name := service(pid); name != "" {
			found[name] = append(found[name], pid)
		}
	}
	return found
}

// service says what a process is; "" if it has gone.
func service(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(b) == 0 {
		return ""
	}
	args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	name, _, _ := strings.Cut(filepath.Base(args[0]), " ")
	return name
}
