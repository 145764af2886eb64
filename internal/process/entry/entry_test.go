//go:build linux && (amd64 || arm64)

package entry

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"dovetail/internal/testkit/need"
)

// build returns the test program with the stub, or without.
func build(t *testing.T, stub bool, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755) // other users run it, too
	}
	path := filepath.Join(dir, "program")
	args := append([]string{"build", "-o", path}, flags...)
	if stub {
		args = append(args, "-ldflags", "-E dovetail_entry")
	}
	cmd := exec.Command(need.Program(t, "go"), append(args, "./testdata/program")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

type result struct {
	out, err string
	status   int
	pid      int
}

// nobody is a user without capabilities.
var nobody = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}

// run starts the program under prlimit with the given limits.
func run(t *testing.T, as *syscall.SysProcAttr, path string, env []string, limits ...string) result {
	t.Helper()
	args := append(append([]string{}, limits...), "--", path, "a", "b c")
	cmd := exec.Command(need.Program(t, "prlimit"), args...)
	cmd.Env = env
	cmd.SysProcAttr = as
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatal(err)
	}
	return result{out.String(), stderr.String(), cmd.ProcessState.ExitCode(), cmd.ProcessState.Pid()}
}

const (
	text   = "The address space limit is too low to start: this program reserves more than 1 GiB, and uses little of it. Set vsz_limit = 0"
	hello  = "started [a b c]\n"
	stock  = 256 << 20 // Dovecot's vsz_limit
	enough = 1280 << 20
)

func TestAddressSpace(t *testing.T) {
	var who *syscall.SysProcAttr
	if mayRaiseLimits(t) { // what that allows has a test of its own
		who = nobody
	}
	for name, flags := range map[string][]string{"exe": nil, "pie": {"-buildmode=pie"}} {
		if name == "pie" && !pieWorks(t) {
			continue
		}
		path := build(t, true, flags...)
		as := func(soft, hard int) string { return fmt.Sprintf("--as=%d:%d", soft, hard) }
		data := func(soft, hard int) string { return fmt.Sprintf("--data=%d:%d", soft, hard) }
		master := []string{"SERVICE_NAME_=x", "DOVECOT_CHILD_PROCESS=1", "SERVICE_NAME=submission-login", "LOG_SERVICE=1"}
		for _, c := range []struct {
			what    string
			limits  []string
			env     []string
			started bool
			line    string // "%d" is the pid
		}{
			{"no limit", nil, master, true, ""},
			{"the soft limit is raised", []string{as(stock, enough)}, master, true, ""},
			{"just enough", []string{as(enough, enough)}, master, true, ""},
			{"real memory is bounded", []string{data(stock, stock)}, master, true, ""},
			{"little real memory, for the moment", []string{data(40<<20, stock)}, master, true, ""},
			{"little real memory", []string{data(40<<20, 40<<20)}, master, false, "\x01\x05%d " + text + " in service submission-login\n"},
			{"vsz_limit", []string{as(stock, stock), data(stock, stock)}, master, false, "\x01\x05%d " + text + " in service submission-login\n"},
			{"a limit that the runtime dies of", []string{as(1200<<20, 1200<<20)}, master, false, "\x01\x05%d " + text + " in service submission-login\n"},
			{"one byte too low", []string{as(enough-1, enough-1)}, master, false, "\x01\x05%d " + text + " in service submission-login\n"},
			{"no log service", []string{as(stock, stock)}, []string{"A=b", "SERVICE_NAME=x\ny"}, false, "Fatal: " + text + " in service x\n"},
			{"no master", []string{as(stock, stock)}, nil, false, "Fatal: " + text + "\n"},
			{"names that only begin alike", []string{as(stock, stock)}, []string{"LOG_SERVICES=1", "SERVICE_NAMES=x", "LOG_SERV=1", "SERVICE_=x", ""}, false, "Fatal: " + text + "\n"},
			{"a long name", []string{as(stock, stock)}, []string{"SERVICE_NAME=" + strings.Repeat("n", 300)}, false, "Fatal: " + text + " in service " + strings.Repeat("n", 200) + "\n"},
		} {
			got := run(t, who, path, c.env, c.limits...)
			want := result{pid: got.pid}
			if c.started {
				want.out = hello
			} else {
				want.status, want.err = 89, c.line
				if strings.Contains(c.line, "%d") {
					want.err = fmt.Sprintf(c.line+"\x01\x08%d prefix=submission-login: \n", got.pid, got.pid)
				}
			}
			if got != want {
				t.Errorf("%s: %s:\n got %+v\nwant %+v", name, c.what, got, want)
			}
		}
	}
}

// A process for one client has one thread for Go code. Arguments and environment stay as
// they are, but for one more variable.
func TestOneThread(t *testing.T) {
	path := build(t, true)
	all := runtime.NumCPU()
	for _, c := range []struct {
		env     string
		threads int
	}{
		{"", all},
		{"CLIENT_LIMIT=1", 1},
		{"A=b CLIENT_LIMIT=1 C=d", 1},
		{"A=b C=d E=f CLIENT_LIMIT=1", 1},
		{"CLIENT_LIMIT=10", all},
		{"CLIENT_LIMIT=2", all},
		{"CLIENT_LIMIT=", all},
		{"XCLIENT_LIMIT=1 CLIENT_LIMIT1=1 CLIENT_L=1", all},
		{"CLIENT_LIMIT=1 GOMAXPROCS=3", 3},
		{"GOMAXPROCS=3 CLIENT_LIMIT=1", 3},
	} {
		for _, args := range []string{"threads", "threads x", "threads x y z"} {
			cmd := exec.Command(path, strings.Fields(args)...)
			cmd.Env = strings.Fields(c.env)
			env := c.env
			if c.threads == 1 {
				env += " GOMAXPROCS=1"
			}
			out, err := cmd.CombinedOutput()
			if want := fmt.Sprintf("%d [%s %s] [%s]\n", c.threads, path, args, env); err != nil || string(out) != want {
				t.Errorf("%s, %s: %v\n got %swant %s", c.env, args, err, out, want)
			}
		}
	}
}

// The limit of open files is what it was, for children, too.
func TestFiles(t *testing.T) {
	path := build(t, true)
	for _, c := range []struct{ limit, client, want string }{
		{"200:200", "1", "200 200 [200 200] <nil>\n"},
		{"200:200", "2", "200 200 [200 200] <nil>\n"},
		{"100:200", "1", "199 200 [100 200] <nil>\n"}, // package syscall's doing
		{"100:200", "2", "199 200 [100 200] <nil>\n"},
	} {
		cmd := exec.Command("prlimit", "--nofile="+c.limit, path, "files")
		cmd.Env = append(os.Environ(), "CLIENT_LIMIT="+c.client)
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != c.want {
			t.Errorf("%s, %s: %q, %v, want %q", c.limit, c.client, out, err, c.want)
		}
	}
}

func TestTimerSlack(t *testing.T) {
	for name, want := range map[bool]string{true: "10000000 errno 0\n", false: "50000 errno 0\n"} {
		out, err := exec.Command(build(t, name), "slack").CombinedOutput()
		if err != nil || string(out) != want {
			t.Errorf("stub %v: %q, %v, want %q", name, out, err, want)
		}
	}
}

// Without the flag the runtime is on its own, which is what the stub is for.
func TestWithoutStub(t *testing.T) {
	path := build(t, false)
	if got := run(t, nil, path, nil); got.out != hello {
		t.Errorf("without a limit: %+v", got)
	}
	got := run(t, nil, path, nil, fmt.Sprintf("--as=%d", stock))
	if got.status != 2 || !strings.Contains(got.err, "fatal error: ") {
		t.Errorf("the runtime copes with %d bytes of address space: %+v", stock, got)
	}
}

// A master with the right to do so leaves the stub a way out: the hard limit goes, the
// bound of real memory stays. Without the right (CAP_SYS_RESOURCE) there is none.
func TestHardLimit(t *testing.T) {
	path := build(t, true)
	want := result{status: 89}
	if mayRaiseLimits(t) {
		want = result{out: hello}
	}
	got := run(t, nil, path, nil, fmt.Sprintf("--as=%d", stock), fmt.Sprintf("--data=%d", stock))
	if got.status != want.status || got.out != want.out {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := run(t, nil, path, nil, fmt.Sprintf("--data=%d", 40<<20)); got.status != 89 {
		t.Errorf("with too little real memory: %+v", got)
	}
}

// mayRaiseLimits says whether this process has CAP_SYS_RESOURCE.
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

// pieWorks says whether a position independent program runs here: it needs a loader.
func pieWorks(t *testing.T) bool {
	t.Helper()
	for _, l := range []string{"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"} {
		if _, err := os.Stat(l); err == nil {
			return true
		}
	}
	return false
}
