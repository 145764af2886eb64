package system

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/tlsfiles"
)

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 20 * time.Second
	logTimeout   = 10 * time.Second // for a line to appear
	toolTimeout  = 30 * time.Second // of one doveadm
	pollPause    = 2 * time.Millisecond
)

// A Running is an instance of a system.
type Running struct {
	System System
	Dir    string // everything it owns
	Conf   string // path of dovecot.conf
	Host   string // short host name of this machine, as log lines and replies have it

	Port, TLSPort, IMAPPort int // of 127.0.0.1; TLSPort is the listener with TLS from the first octet
	RelayPort               int

	CA     tlsfiles.CA   // signed the client certificate; {dir}/tls/ca.pem
	Cert   tlsfiles.Pair // of the server; {dir}/tls/cert.pem
	Client tlsfiles.Pair // of a client, CN=alice

	t    testing.TB
	cmd  *exec.Cmd
	out  bytes.Buffer // of the master; read after done
	done chan struct{}
	once sync.Once
	skip int // octets of the log that were there when the system had started
}

// Start runs the system until the test ends or Stop.
func (s System) Start(t testing.TB, o Setup) *Running {
	t.Helper()
	s.Need(t)
	dir, err := os.MkdirTemp("", "dt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &Running{System: s, Dir: dir, Conf: dir + "/dovecot.conf", t: t, done: make(chan struct{}), RelayPort: o.RelayPort}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	r.Host, _, _ = strings.Cut(host, ".")
	r.Port, r.TLSPort, r.IMAPPort = Hold(t).Number, Hold(t).Number, Hold(t).Number
	if r.RelayPort == 0 {
		r.RelayPort = Hold(t).Number
	}
	r.lay(o, s.config(o, s.programs(t)))
	r.start()
	return r
}

// lay writes everything below the directory.
func (r *Running) lay(o Setup, config string) {
	t := r.t
	t.Helper()
	for name, mode := range map[string]os.FileMode{"": 0o755, "run": 0o755, "etc": 0o755, "tls": 0o755, "mail": 0o755} {
		path := filepath.Join(r.Dir, name)
		if err := os.MkdirAll(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
	}
	if err := os.Chown(r.Dir+"/mail", UID, UID); err != nil {
		t.Fatal(err)
	}
	r.CA = tlsfiles.NewCA(t, "test CA")
	r.Cert = tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "sub.example.test", Names: []string{"sub.example.test", "localhost", "127.0.0.1", "::1"}})
	r.Client = r.CA.Issue(t, tlsfiles.Request{CN: "alice", Client: true})
	files := map[string]File{
		"dovecot.conf": {Data: config},
		"etc/users":    {Data: strings.Join(append(slices.Clone(users), o.Users...), "\n") + "\n"},
		"etc/pusers":   {Data: strings.Join(proxyUsers, "\n") + "\n"},
		"etc/ck":       {Data: "#!/bin/sh\ncat <&3 >/dev/null\nexit 111\n", Mode: 0o755}, // checkpassword: try later
		"tls/cert.pem": {Data: string(r.Cert.Cert)},
		"tls/key.pem":  {Data: string(r.Cert.Key), Mode: 0o600},
		"tls/ca.pem":   {Data: string(r.CA.Cert)},
	}
	maps.Copy(files, o.Files)
	for name, f := range files {
		r.WriteFile(name, f)
	}
	if len(o.Listen) > 0 {
		// The base has one address; a list is the same setting.
		r.WriteFile("dovecot.conf", File{Data: strings.Replace(r.fill(config), "listen = 127.0.0.1\n", "listen = "+strings.Join(o.Listen, " ")+"\n", 1)})
	}
}

// WriteFile writes a file below the directory, with the directories above it.
func (r *Running) WriteFile(name string, f File) {
	r.t.Helper()
	path := filepath.Join(r.Dir, name)
	if err := r.mkdirAll(filepath.Dir(path), f.UID); err != nil {
		r.t.Fatal(err)
	}
	mode := os.FileMode(f.Mode)
	if mode == 0 {
		mode = 0o644
	}
	err := os.WriteFile(path, []byte(r.fill(f.Data)), mode)
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err == nil && f.UID != 0 {
		err = os.Chown(path, f.UID, f.UID)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// mkdirAll makes what is missing of a path, owned by uid.
func (r *Running) mkdirAll(path string, uid int) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := r.mkdirAll(filepath.Dir(path), uid); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	return os.Chown(path, uid, uid)
}

// fill replaces {dir}, {relayport}, {port}, {port2}, {port3}, {listen}.
func (r *Running) fill(text string) string {
	return strings.NewReplacer("{dir}", r.Dir, "{relayport}", strconv.Itoa(r.RelayPort), "{listen}", "127.0.0.1",
		"{port}", strconv.Itoa(r.Port), "{port2}", strconv.Itoa(r.TLSPort), "{port3}", strconv.Itoa(r.IMAPPort)).Replace(text)
}

// command is how the master is started.
func (r *Running) command() *exec.Cmd {
	if r.System.Master == Ours {
		return exec.Command(Binary(r.t, "dovetail"), "run", "-F", "-c", r.Conf)
	}
	return exec.Command(need.Dovecot(r.t).Dovecot, "-F", "-c", r.Conf)
}

func (r *Running) start() {
	t := r.t
	t.Helper()
	r.cmd = r.command()
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	// Should this process die without its cleanups, the master stops.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the master, which Stop ends
		defer close(r.done)
		_ = r.cmd.Wait()
	}()
	t.Cleanup(r.Stop)
	for end := time.Now().Add(startTimeout); ; time.Sleep(pollPause) {
		if pid, err := os.ReadFile(r.Dir + "/run/master.pid"); err == nil && len(pid) > 0 {
			break
		}
		select {
		case <-r.done:
			t.Fatalf("%v did not start: %v\n%s\nlog:\n%s", r.System, r.cmd.ProcessState, r.out.String(), r.WholeLog())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("%v does not start\nlog:\n%s", r.System, r.WholeLog())
		}
	}
	if r.System.Master == Theirs {
		r.logServes(nil)
	}
	// Lines that belong to the start ("starting up for ...") are there now.
	r.skip = len(r.WholeLog())
}

// PID returns the master's process id.
func (r *Running) PID() int { return r.cmd.Process.Pid }

// Processes returns the pids of the master's children whose command line contains name.
func (r *Running) Processes(name string) (pids []int) {
	for _, pid := range leak.Tree(r.PID()) {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(cmd), name) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Append adds a line to the configuration file; {dir} and the like are replaced.
func (r *Running) Append(line string) {
	r.t.Helper()
	f, err := os.OpenFile(r.Conf, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(r.fill(line) + "\n"); err != nil {
		r.t.Fatal(err)
	}
}

// Signal sends a signal to the master.
func (r *Running) Signal(s syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// Reload makes the master read its configuration, and waits until it serves with it.
func (r *Running) Reload() {
	r.t.Helper()
	const line = "SIGHUP received - reloading"
	before, logs := strings.Count(r.WholeLog(), line), r.logProcesses()
	r.Signal(syscall.SIGHUP)
	if r.System.Master == Theirs {
		r.logServes(logs) // it is started when the listeners have changed hands
	}
	for end := time.Now().Add(startTimeout); strings.Count(r.WholeLog(), line) == before || !r.Reachable(); time.Sleep(pollPause) {
		if time.Now().After(end) {
			r.t.Fatalf("%v does not reload\nlog:\n%s", r.System, r.WholeLog())
		}
	}
}

// Reachable says whether somebody listens on the plaintext port, without connecting.
func (r *Running) Reachable() bool {
	tcp, err := os.ReadFile("/proc/net/tcp")
	return err == nil && strings.Contains(string(tcp), fmt.Sprintf(": 0100007F:%04X 00000000:0000 0A ", r.Port))
}

// Stop ends the system, and what it left behind, and fails the test if it did leave
// something. The log stays until the test ends.
func (r *Running) Stop() {
	r.once.Do(func() {
		r.t.Helper()
		tree := leak.Tree(r.PID())
		_ = r.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-r.done:
		case <-time.After(stopTimeout):
			_ = r.cmd.Process.Kill()
			<-r.done
			r.t.Errorf("%v did not stop within %v", r.System, stopTimeout)
		}
		r.reap(tree)
		if r.t.Failed() {
			r.t.Logf("log of %v:\n%s%s", r.System, r.out.String(), r.WholeLog())
		}
	})
}

// reap waits for the children to go, which may still write log lines, and kills those
// that stay: they live below our directory, which is going away.
func (r *Running) reap(tree []int) {
	for end := time.Now().Add(stopTimeout / 2); ; time.Sleep(pollPause) {
		tree = slices.DeleteFunc(tree, func(pid int) bool { return !r.owns(pid) })
		if len(tree) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	for _, pid := range tree {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		r.t.Errorf("process %d (%s) outlived its master", pid, bytes.ReplaceAll(bytes.TrimRight(cmd, "\x00"), []byte{0}, []byte{' '}))
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// owns says whether pid is still a process of this instance: pids are used again.
func (r *Running) owns(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest) // state ppid pgrp
	return len(f) > 2 && f[0] != "Z" && f[2] == strconv.Itoa(r.PID())
}

// Doveadm runs a doveadm command on the instance and returns its output.
func (r *Running) Doveadm(args ...string) string {
	r.t.Helper()
	out, err := r.TryDoveadm(args...)
	if err != nil {
		r.t.Fatalf("doveadm %q: %v\n%s", args, err, out)
	}
	return out
}

// TryDoveadm is Doveadm for a command that may fail.
func (r *Running) TryDoveadm(args ...string) (string, error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, need.Dovecot(r.t).Doveadm, append([]string{"-c", r.Conf}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TLS returns the configuration of a client that trusts the server and has the client
// certificate, which it shows when asked.
func (r *Running) TLS() *tls.Config {
	return &tls.Config{RootCAs: r.Cert.Pool(), ServerName: "sub.example.test", Certificates: []tls.Certificate{r.Client.TLS()}}
}

// Addr is where the plaintext listener is; TLSAddr the one with TLS.
func (r *Running) Addr() string    { return fmt.Sprintf("127.0.0.1:%d", r.Port) }
func (r *Running) TLSAddr() string { return fmt.Sprintf("127.0.0.1:%d", r.TLSPort) }
