package proxy

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/system"
)

const (
	peerStart = 30 * time.Second
	peerStop  = 15 * time.Second
)

// A peer is a running program that others wrote.
type peer struct {
	Port int
	dir  string
	log  string // path

	t    *testing.T
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{}

	ownGroup bool // it makes a process group of its own
}

// run starts a program in the foreground, waits until it listens, and ends it with the
// test.
func (p *peer) run(name string, args ...string) {
	t := p.t
	t.Helper()
	p.cmd = exec.Command(name, args...)
	p.cmd.Dir = p.dir
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: !p.ownGroup}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.done = make(chan struct{})
	go func() { // ends with the program, which stop ends
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(p.stop)
	for end := time.Now().Add(peerStart); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", p.Addr())
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-p.done:
			t.Fatalf("%s ended:\n%s%s", name, p.out.String(), p.Log())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not listen:\n%s", name, p.Log())
		}
	}
}

func (p *peer) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(peerStop):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // its group, which is its own
		<-p.done
		p.t.Errorf("%s did not stop", p.cmd.Path)
	}
	if p.t.Failed() {
		p.t.Logf("log of %s:\n%s%s", p.cmd.Path, p.out.String(), p.Log())
	}
}

// Addr is where it listens.
func (p *peer) Addr() string { return fmt.Sprintf("127.0.0.1:%d", p.Port) }

// Log returns what it has logged.
func (p *peer) Log() string {
	data, _ := os.ReadFile(p.log)
	return string(data)
}

// newPeer makes the directory of one.
func newPeer(t *testing.T) *peer {
	t.Helper()
	dir, err := os.MkdirTemp("", "dtpeer")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &peer{t: t, dir: dir, log: dir + "/log", Port: system.Hold(t).Number}
}

func (p *peer) write(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// startPostfix runs a private Postfix that relays to relayPort for clients of whom XCLIENT
// says that they have logged in. options are for smtpd: "name=value".
func startPostfix(t *testing.T, relayPort int, options ...string) *peer {
	t.Helper()
	need.Root(t)
	daemons := "/usr/lib/postfix/sbin"
	master := filepath.Join(daemons, "master")
	if _, err := os.Stat(master); err != nil {
		need.Missing(t, "Postfix (Debian package postfix)")
	}
	u, err := osuser.Lookup("postfix")
	if err != nil {
		need.Missing(t, "the user postfix")
	}
	uid, _ := strconv.Atoi(u.Uid)
	p := newPeer(t)
	p.ownGroup = true
	for _, d := range []string{"spool", "data"} {
		if err := os.Mkdir(p.dir+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(p.dir+"/data", uid, -1); err != nil {
		t.Fatal(err)
	}
	opts := ""
	for _, o := range options {
		opts += " -o " + o
	}
	p.write("etc/main.cf", strings.NewReplacer("DIR", p.dir, "RELAY", strconv.Itoa(relayPort), "DAEMONS", daemons).Replace(`compatibility_level = 3.6
queue_directory = DIR/spool
data_directory = DIR/data
command_directory = /usr/sbin
daemon_directory = DAEMONS
maillog_file = DIR/log
maillog_file_prefixes = DIR
myhostname = mta.example.test
mydestination =
mynetworks =
local_recipient_maps =
alias_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_host_lookup = native
disable_dns_lookups = yes
relayhost = [127.0.0.1]:RELAY
smtp_tls_security_level = none
smtpd_tls_security_level = none
smtpd_error_sleep_time = 0
smtpd_sasl_auth_enable = yes
smtpd_sasl_authenticated_header = yes
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
`))
	p.write("etc/master.cf", fmt.Sprintf("127.0.0.1:%d inet n - n - - smtpd%s\n", p.Port, opts)+`cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`)
	if out, err := exec.Command(need.Program(t, "postfix"), "-c", p.dir+"/etc", "check").CombinedOutput(); err != nil {
		t.Fatalf("postfix check: %v\n%s", err, out)
	}
	p.run(master, "-c", p.dir+"/etc", "-s")
	return p
}

// startHAProxy runs a private HAProxy with the given listen section; PORT stands for its
// port.
func startHAProxy(t *testing.T, config string, files map[string]string) *peer {
	t.Helper()
	program := need.Program(t, "haproxy")
	p := newPeer(t)
	for name, text := range files {
		p.write(name, text)
	}
	p.write("haproxy.cfg", strings.NewReplacer("DIR", p.dir, "PORT", strconv.Itoa(p.Port)).Replace(`global
	maxconn 1000
defaults
	mode tcp
	timeout connect 5s
	timeout client 1m
	timeout server 1m
`+config))
	p.run(program, "-db", "-f", p.dir+"/haproxy.cfg")
	return p
}
