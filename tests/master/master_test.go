// Package master_test runs the echo program, which is package process/service and hardly
// anything else, as submission-login of the real Dovecot master (clause P1).
package master_test

import (
	"fmt"
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

	"dovetail/internal/testkit/echoclient"
	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/need"
)

var program struct {
	once sync.Once
	path string
	err  error
}

func TestMain(m *testing.M) {
	status := m.Run()
	if program.path != "" {
		os.RemoveAll(filepath.Dir(program.path))
	}
	os.Exit(status)
}

// echo returns the program, for tests under the real master.
func echo(t *testing.T) string {
	t.Helper()
	need.Root(t)
	need.Dovecot(t)
	return build(t)
}

// build builds the program once, as the Makefile builds the real ones.
func build(t testing.TB) string {
	t.Helper()
	p := &program
	p.once.Do(func() {
		var dir string
		if dir, p.err = os.MkdirTemp("", "echo"); p.err != nil {
			return
		}
		os.Chmod(dir, 0o755)
		p.path = filepath.Join(dir, "echo")
		cmd := exec.Command(need.Program(t, "go"), "build", "-trimpath", "-ldflags", "-s -w -E dovetail_entry", "-o", p.path, "./testdata/echo")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			p.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if p.err != nil {
		t.Fatal(p.err)
	}
	return p.path
}

// start runs a master with the echo program and the given lines in the service block, and
// more configuration behind it.
func start(t *testing.T, block, more string) *instance.Instance {
	t.Helper()
	return startArgs(t, "", block, more)
}

func startArgs(t *testing.T, args, block, more string) *instance.Instance {
	t.Helper()
	if !strings.Contains(block, "vsz_limit") {
		block += "\nvsz_limit = 0\n"
	}
	return instance.Start(t, fmt.Sprintf("service submission-login {\nexecutable = %s%s\n%s}\n%s", echo(t), args, block, more))
}

// pids returns the processes of the service.
func pids(t *testing.T, i *instance.Instance) []int {
	t.Helper()
	out, err := i.Doveadm("process", "status", "submission-login")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var all []int
	for line := range strings.Lines(out) {
		f := strings.Fields(line) // name pid available_count total_count idle_start last_status_update last_kill_sent
		if len(f) > 1 && f[0] == "submission-login" {
			pid, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(out)
			}
			all = append(all, pid)
		}
	}
	return all
}

// quiet fails for what the master, or anybody, complains of. ok are parts of lines that
// may be there.
func quiet(t *testing.T, i *instance.Instance, ok ...string) {
	t.Helper()
	for line := range strings.Lines(i.Log()) {
		bad := strings.Contains(line, "Error: ") || strings.Contains(line, "Fatal: ") || strings.Contains(line, "Panic: ") || strings.Contains(line, "Warning: ")
		if bad && !slices.ContainsFunc(ok, func(o string) bool { return strings.Contains(line, o) }) {
			t.Errorf("log: %s", line)
		}
	}
}

// gone waits until a process has ended.
func gone(t *testing.T, i *instance.Instance, pid int) {
	t.Helper()
	i.Until(fmt.Sprintf("process %d ends", pid), func() bool { return syscall.Kill(pid, 0) != nil })
}

// As Dovecot ships it: each client has a process, which ends with it.
func TestShipped(t *testing.T) {
	i := start(t, "", "")
	seen := map[int]bool{}
	for range 5 {
		x := echoclient.Connect(t, i.Addr("submission"))
		if seen[x.PID] {
			t.Errorf("process %d has a second client", x.PID)
		}
		seen[x.PID] = true
		x.Want("hello", "250 hello")
		x.Want("QUIT", "221 Bye")
		x.Ends("")
		gone(t, i, x.PID)
	}
	// At the same time, too.
	var all []*echoclient.Session
	for range 5 {
		all = append(all, echoclient.Connect(t, i.Addr("submission")))
	}
	for _, x := range all {
		x.Want("QUIT", "221 Bye")
		gone(t, i, x.PID)
	}
	quiet(t, i)
}

// process_min_avail processes are there before any client is.
func TestProcessMinAvail(t *testing.T) {
	i := start(t, "process_min_avail = 3\nservice_count = 2\nclient_limit = 1\n", "")
	i.Until("3 processes", func() bool { return len(pids(t, i)) == 3 })
	before := pids(t, i)
	x := echoclient.Connect(t, i.Addr("submission"))
	if !slices.Contains(before, x.PID) {
		t.Errorf("process %d is not one of %v", x.PID, before)
	}
	x.Want("QUIT", "221 Bye")
	quiet(t, i)
}

// client_limit and service_count together: three clients a process, two at a time.
func TestLimits(t *testing.T) {
	i := start(t, "client_limit = 2\nservice_count = 3\n", "")
	addr := i.Addr("submission")
	a, b := echoclient.Connect(t, addr), echoclient.Connect(t, addr)
	if a.PID != b.PID {
		t.Errorf("processes %d and %d", a.PID, b.PID)
	}
	c := echoclient.Connect(t, addr)
	if c.PID == a.PID {
		t.Error("three at a time")
	}
	c.Want("QUIT", "221 Bye")
	a.Want("QUIT", "221 Bye")
	b.Want("QUIT", "221 Bye")
	// Both processes have room. Together they take what is left, one at a time.
	ended := map[int]bool{}
	for range 10 {
		x := echoclient.Connect(t, addr)
		if ended[x.PID] {
			t.Fatalf("process %d has too many clients", x.PID)
		}
		x.Want("QUIT", "221 Bye")
		x.Ends("")
		if syscall.Kill(x.PID, 0) != nil {
			ended[x.PID] = true
		}
	}
	quiet(t, i)
}

// Without limits one process has all.
func TestOneProcess(t *testing.T) {
	i := start(t, "client_limit = 100\nservice_count = 0\nprocess_limit = 1\n", "")
	addr := i.Addr("submission")
	first := echoclient.Connect(t, addr)
	var all []*echoclient.Session
	for range 50 {
		x := echoclient.Connect(t, addr)
		if x.PID != first.PID {
			t.Fatalf("process %d, first %d", x.PID, first.PID)
		}
		all = append(all, x)
	}
	for _, x := range all {
		x.Want("QUIT", "221 Bye")
	}
	first.Want("still here", "250 still here")
	if got := pids(t, i); !slices.Equal(got, []int{first.PID}) {
		t.Errorf("processes %v", got)
	}
	quiet(t, i)
}

// Every listener works with client_limit 1, and is told to the client.
func TestListeners(t *testing.T) {
	i := start(t, `service_count = 0
client_limit = 1
inet_listener submissions {
  port = @PORT:submissions@
  ssl = yes
}
inet_listener proxied {
  port = @PORT:proxied@
  haproxy = yes
}
unix_listener a-socket {
  mode = 0600
}
fifo_listener a-fifo {
  mode = 0600
}
`, "ssl = yes\nssl_cert = x\nssl_key = x\n")
	for range 3 {
		for _, l := range []struct{ addr, want string }{
			{i.Addr("proxied"), "proxied - haproxy"},
			{i.Socket("a-socket"), "a-socket - -"},
			{i.Addr("submission"), "submission - -"},
			{i.Addr("submissions"), "submissions ssl -"},
		} {
			x := echoclient.Dial(t, l.addr)
			if got := x.Greeted(); got != l.want {
				t.Errorf("came by %q, want %q", got, l.want)
			}
			x.Want("QUIT", "221 Bye")
			x.Ends("")
		}
	}
	quiet(t, i, "a-fifo is a fifo")
}

// An idle process that is not needed is told to go, and goes.
func TestIdleKill(t *testing.T) {
	i := start(t, "service_count = 0\nidle_kill = 1s\n", "")
	x := echoclient.Connect(t, i.Addr("submission"))
	x.Want("QUIT", "221 Bye")
	gone(t, i, x.PID)
	y := echoclient.Connect(t, i.Addr("submission"))
	if y.PID == x.PID {
		t.Error("the same process")
	}
	quiet(t, i)
}

// A reload: the session stays, new clients come to the new processes with new settings,
// and after 6 s the master's SIGTERM ends the old session with 421 (clause P1.6.4).
func TestReload(t *testing.T) {
	i := start(t, "client_limit = 10\nservice_count = 0\n", "")
	old := echoclient.Connect(t, i.Addr("submission"))
	conf, err := os.ReadFile(i.Conf)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(conf), "client_limit = 10", "client_limit = 20", 1)
	if err := os.WriteFile(i.Conf, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := i.Doveadm("reload"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	i.WaitLog("SIGHUP received")
	i.Until("new clients have another process", func() bool {
		x := echoclient.Connect(t, i.Addr("submission"))
		defer x.Want("QUIT", "221 Bye")
		return x.PID != old.PID
	})
	for range 10 {
		if x := echoclient.Connect(t, i.Addr("submission")); x.PID == old.PID {
			t.Error("the old process has a new client")
		}
	}
	old.Want("still here", "250 still here")
	old.Ends("421 4.3.2 Shutting down")
	gone(t, i, old.PID)
	quiet(t, i, "SIGHUP received", "echo: Warning: Killed with signal 15 (by pid=", "ent SIGTERM to 1 ")
}

// With shutdown_clients = no the session stays as long as it likes.
func TestReloadWithoutShutdown(t *testing.T) {
	i := startArgs(t, " -keep", "client_limit = 10\nservice_count = 0\n", "shutdown_clients = no\n")
	old := echoclient.Connect(t, i.Addr("submission"))
	if out, err := i.Doveadm("reload"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	i.WaitLog("SIGHUP received")
	i.Until("new clients have another process", func() bool {
		x := echoclient.Connect(t, i.Addr("submission"))
		defer x.Want("QUIT", "221 Bye")
		return x.PID != old.PID
	})
	time.Sleep(7 * time.Second) // for the SIGTERM that must not come
	old.Want("still here", "250 still here")
	old.Want("QUIT", "221 Bye")
	gone(t, i, old.PID)
	quiet(t, i, "SIGHUP received")
}

// A stop leaves the session, and nothing that would keep another master from starting.
func TestStop(t *testing.T) {
	i := start(t, "client_limit = 10\nservice_count = 0\nunix_listener login/a-socket {\nmode = 0600\n}\n", "")
	old := echoclient.Connect(t, i.Addr("submission"))
	if out, err := i.Doveadm("stop"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	i.Until("the master is gone", func() bool {
		_, err := os.Stat(filepath.Join(i.Base, "master.pid"))
		return os.IsNotExist(err)
	})
	old.Want("still here", "250 still here")
	again := exec.Command(i.Dovecot, "-F", "-c", i.Conf)
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		again.Process.Signal(syscall.SIGTERM)
		again.Wait()
	}()
	i.Until("another master serves", func() bool { return strings.Count(i.Log(), "starting up for") == 2 })
	echoclient.Connect(t, i.Addr("submission")).Want("QUIT", "221 Bye")
	old.Want("still here", "250 still here")
	old.Want("QUIT", "221 Bye")
	gone(t, i, old.PID)
	quiet(t, i, "master: Warning: Killed with signal 15")
}

// doveadm service stop.
func TestServiceStop(t *testing.T) {
	i := start(t, "client_limit = 10\nservice_count = 0\n", "")
	busy := echoclient.Connect(t, i.Addr("submission"))
	if out, err := i.Doveadm("service", "stop", "submission-login"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	busy.Want("still here", "250 still here")
	busy.Want("QUIT", "221 Bye")
	gone(t, i, busy.PID)
	quiet(t, i)
}

// doveadm kick, and an admin's kill, are SIGTERM.
func TestKill(t *testing.T) {
	i := start(t, "client_limit = 10\nservice_count = 0\n", "")
	x := echoclient.Connect(t, i.Addr("submission"))
	if err := syscall.Kill(x.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	x.Ends("421 4.3.2 Shutting down")
	gone(t, i, x.PID)
	line := fmt.Sprintf("echo: Warning: Killed with signal 15 (by pid=%d uid=0 code=kill)", os.Getpid())
	i.WaitLog(line)
	quiet(t, i, line)
}

// All processes are full: the oldest client goes, the new one is served.
func TestQueueFull(t *testing.T) {
	for _, c := range []struct{ name, block string }{
		{"one process", "client_limit = 2\nservice_count = 0\nprocess_limit = 1\n"},
		{"one client a process", "client_limit = 1\nservice_count = 1\nprocess_limit = 2\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := start(t, c.block, "")
			addr := i.Addr("submission")
			oldest, newer := echoclient.Connect(t, addr), echoclient.Connect(t, addr)
			third := echoclient.Dial(t, addr)
			if strings.HasPrefix(c.name, "one process") {
				oldest.Ends("421 4.0.0 Connection queue full")
				newer.Want("still here", "250 still here")
			}
			third.Greeted()
			third.Want("x", "250 x")
			quiet(t, i, "connections are being dropped")
		})
	}
}

// A logged Fatal is all the log has of a death: the master's own line is left out. A panic
// is a session's affair.
func TestDeath(t *testing.T) {
	i := start(t, "client_limit = 10\nservice_count = 0\n", "")
	x := echoclient.Connect(t, i.Addr("submission"))
	x.Say("FATAL")
	x.Ends("")
	i.WaitLog("echo: Fatal: told to die")
	a, b := echoclient.Connect(t, i.Addr("submission")), echoclient.Connect(t, i.Addr("submission"))
	a.Say("PANIC")
	a.Ends("421 4.3.0 A bug")
	i.WaitLog(`echo: Panic: panic in a session: oops?second line`)
	i.WaitLog("echo: Error: Raw backtrace: #0 dovetail/internal/testkit/echo.serve[echo.go:")
	c := echoclient.Connect(t, i.Addr("submission"))
	if c.PID == b.PID {
		t.Error("the process takes clients after a panic")
	}
	b.Want("still here", "250 still here")
	b.Want("QUIT", "221 Bye")
	gone(t, i, b.PID)
	quiet(t, i, "echo: Fatal: told to die", "echo: Panic: ", "echo: Error: Raw backtrace")
}

// A failure at the start is one line, and the master's remark that it will try again.
func TestFailingStart(t *testing.T) {
	i := startArgs(t, " -fail setup", "process_min_avail = 1\n", "")
	i.WaitLog("echo: Fatal: ssl_cert: no such file")
	i.WaitLog("command startup failed, throttling for 2.000 secs")
	quiet(t, i, "echo: Fatal: ssl_cert: no such file", "command startup failed, throttling")
}

// The shipped limit of address space: a line that says what to do, no dump of the runtime.
// A master that may raise limits leaves it to the program, which then just serves.
func TestAddressSpace(t *testing.T) {
	i := start(t, "vsz_limit = 256M\nprocess_min_avail = 1\n", "")
	const line = "submission-login: Fatal: The address space limit is too low to start: this program reserves more than 1 GiB, " +
		"and uses little of it. Set vsz_limit = 0 in service submission-login\n"
	if !mayRaiseLimits(t) {
		i.WaitLog(line)
		quiet(t, i, line[:len(line)-1], "command startup failed, throttling")
		return
	}
	x := echoclient.Connect(t, i.Addr("submission"))
	x.Want("MEMLIMIT", fmt.Sprint("250 ", 256<<20/100*80))
	quiet(t, i)
}

// mayRaiseLimits says whether the test, and so the master, has CAP_SYS_RESOURCE.
func mayRaiseLimits(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			const sysResource = 24
			return caps&(1<<sysResource) != 0
		}
	}
	t.Fatal("no CapEff in /proc/self/status")
	return false
}

// What vsz_limit leaves of real memory bounds the heap.
func TestMemoryLimit(t *testing.T) {
	i := start(t, "vsz_limit = 2G\n", "")
	echoclient.Connect(t, i.Addr("submission")).Want("MEMLIMIT", fmt.Sprint("250 ", 2<<30/100*80))
	quiet(t, i)
}

// Rights: every thread is the login user, with its group alone, in its directory.
func TestRights(t *testing.T) {
	i := startArgs(t, " -drop", "client_limit = 10\nservice_count = 0\n", "")
	x := echoclient.Connect(t, i.Addr("submission"))
	if root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", x.PID)); err != nil || root != filepath.Join(i.Base, "login") {
		t.Errorf("root is %s, %v", root, err)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", x.PID))
	if err != nil || len(tasks) < 3 {
		t.Fatalf("%v, %v", tasks, err)
	}
	uid, gid := ids(t, "dovenull")
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			want := ""
			switch f[0] {
			case "Uid:":
				want = strings.Repeat(" "+uid, 4)
			case "Gid:":
				want = strings.Repeat(" "+gid, 4)
			case "Groups:":
				want = " " + gid
			case "CapEff:", "CapPrm:":
				want = " 0000000000000000"
			}
			if want != "" && strings.Join(f, " ") != f[0]+want {
				t.Errorf("%s: %s", path, line)
			}
		}
	}
	quiet(t, i)
}

// ids returns the ids of a user as text.
func ids(t *testing.T, name string) (uid, gid string) {
	t.Helper()
	b, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(line, ":"); f[0] == name && len(f) > 3 {
			return f[2], f[3]
		}
	}
	need.Missing(t, "the user "+name)
	return "", ""
}

// Root is not what a login process may be.
func TestRootIsRefused(t *testing.T) {
	i := startArgs(t, " -drop", "user = root\nchroot =\nprocess_min_avail = 1\n", "")
	i.WaitLog("echo: Fatal: this program must not run as root: set user in service submission-login")
}
