// Package instance runs a private Dovecot for a test: its own directory, its own ports,
// ended with the test. It needs root, as Dovecot does.
package instance

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/need"
)

const (
	startTimeout = 20 * time.Second
	stopTimeout  = 15 * time.Second
	runTimeout   = 30 * time.Second // of one doveadm
	pollPause    = 10 * time.Millisecond
)

// base stands before the test's own configuration: a user of any name with the password
// "pass", mail below @DIR@, everything else as Dovecot has it.
const base = `
base_dir = @DIR@/run
state_dir = @DIR@/state
log_path = @DIR@/log
protocols = submission
listen = 127.0.0.1
hostname = sub.example.test
ssl = no
disable_plaintext_auth = no
first_valid_uid = 1
mail_location = maildir:@DIR@/mail/%u
auth_failure_delay = 0
userdb {
  driver = static
  args = uid=mail gid=mail home=@DIR@/mail/%u
}
service submission-login {
  inet_listener submission {
    port = @PORT:submission@
  }
}
`

// passdb is there unless the test has one.
const passdb = `
passdb {
  driver = static
  args = password=pass
}
`

// An Instance is a running Dovecot.
type Instance struct {
	need.Binaries
	Dir  string // everything it owns
	Base string // base_dir
	Conf string // path of dovecot.conf

	t     testing.TB
	ports map[string]int
}

// Start runs Dovecot with conf behind a base configuration. In conf, @DIR@ stands for the
// instance's directory and @PORT:name@ for a free port, the same for the same name.
func Start(t testing.TB, conf string) *Instance {
	t.Helper()
	need.Root(t)
	bin := need.Dovecot(t)
	dir, err := os.MkdirTemp("", "dovetail")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	i := &Instance{Binaries: bin, Dir: dir, Base: dir + "/run", Conf: dir + "/dovecot.conf", t: t, ports: map[string]int{}}
	for name, mode := range map[string]os.FileMode{"": 0o755, "/run": 0o755, "/state": 0o755, "/mail": 0o777} {
		if err := os.Mkdir(dir+name, mode); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		if err := os.Chmod(dir+name, mode); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(conf, "passdb {") {
		conf = passdb + conf
	}
	if err := os.WriteFile(i.Conf, []byte(i.fill(base+conf)), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin.Dovecot, "-F", "-c", i.Conf)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with the process, which stop ends
		defer close(done)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() { i.stop(cmd.Process, done) })
	deadline := time.Now().Add(startTimeout)
	for !i.started() {
		select {
		case <-done:
			t.Fatalf("dovecot did not start:\n%s%s", out.String(), i.Log())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("dovecot does not start:\n%s", i.Log())
		}
		time.Sleep(pollPause)
	}
	return i
}

// started says whether the services can be reached, and the master's pid is known.
func (i *Instance) started() bool {
	if !strings.Contains(i.Log(), "starting up for") {
		return false
	}
	if pid, _ := os.ReadFile(i.Base + "/master.pid"); !bytes.HasSuffix(pid, []byte("\n")) {
		return false
	}
	c, err := net.Dial("unix", i.Socket("config"))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func (i *Instance) stop(p *os.Process, done <-chan struct{}) {
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-done:
	case <-time.After(stopTimeout):
		_ = p.Kill()
		<-done
		i.t.Errorf("dovecot did not stop")
	}
	if i.t.Failed() {
		i.t.Logf("log of Dovecot:\n%s", i.Log())
	}
}

// fill puts the instance's directory and ports into text.
func (i *Instance) fill(text string) string {
	text = strings.ReplaceAll(text, "@DIR@", i.Dir)
	parts := strings.Split(text, "@PORT:")
	for n, p := range parts[1:] {
		name, rest, ok := strings.Cut(p, "@")
		if !ok {
			i.t.Fatalf("no @ ends @PORT:%.20s", p)
		}
		parts[n+1] = fmt.Sprint(i.Port(name)) + rest
	}
	return strings.Join(parts, "")
}

// Port returns the port called name; a new one is taken from the kernel.
func (i *Instance) Port(name string) int {
	if p, ok := i.ports[name]; ok {
		return p
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		i.t.Fatal(err)
	}
	defer l.Close()
	i.ports[name] = l.Addr().(*net.TCPAddr).Port
	return i.ports[name]
}

// Addr is 127.0.0.1 with the port called name.
func (i *Instance) Addr(name string) string { return fmt.Sprintf("127.0.0.1:%d", i.Port(name)) }

// Socket returns the path of a socket below base_dir.
func (i *Instance) Socket(name string) string { return filepath.Join(i.Base, name) }

// Log returns what has been logged so far.
func (i *Instance) Log() string {
	b, _ := os.ReadFile(i.Dir + "/log")
	return string(b)
}

// WaitLog waits until the log holds text.
func (i *Instance) WaitLog(text string) {
	i.t.Helper()
	i.Until(fmt.Sprintf("log has %q", text), func() bool { return strings.Contains(i.Log(), text) })
}

// Until waits until ok, with the bound of a start, and fails the test otherwise.
func (i *Instance) Until(what string, ok func() bool) {
	i.t.Helper()
	for deadline := time.Now().Add(startTimeout); !ok(); time.Sleep(pollPause) {
		if time.Now().After(deadline) {
			i.t.Fatalf("still not so: %s", what)
		}
	}
}

// Doveadm runs the real doveadm against the instance and returns what it printed.
func (i *Instance) Doveadm(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, i.Binaries.Doveadm, append([]string{"-c", i.Conf}, args...)...).CombinedOutput()
	return string(out), err
}
