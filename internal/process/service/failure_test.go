package service_test

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/testkit/echoclient"
	"dovetail/internal/testkit/fakemaster"
)

// A panic in one session: 421 there, its stack in the log, the others go on, and the
// process retires.
func TestPanic(t *testing.T) {
	for _, verb := range []string{"PANIC", "PANIC GO"} {
		t.Run(verb, func(t *testing.T) {
			s := self(t)
			s.Env.ClientLimit = 3
			addr := s.TCP(tcpListener())
			c := s.Start()
			a, b := echoclient.Connect(t, addr), echoclient.Connect(t, addr)
			a.Say(verb)
			a.Ends("421 4.3.0 A bug")
			c.AwaitNoListeners()
			b.Want("still here", "250 still here")
			b.Want("QUIT", "221 Bye")
			if status := c.AwaitExit(); status != 0 {
				t.Errorf("exit status %d", status)
			}
			s.AwaitLog("echo: Panic: panic in a session: oops")
			if trace := s.AwaitLog("Raw backtrace: "); !strings.HasPrefix(trace, "echo: Error: Raw backtrace: #0 dovetail/internal/testkit/echo.serve") {
				t.Error(trace)
			}
			if log := s.Log(); len(log) != 2 {
				t.Errorf("log %q", log)
			}
		})
	}
}

// What Then says goes on as Serve did: the slot is taken, the connection open, a panic ends
// the session alone.
func TestThen(t *testing.T) {
	s := self(t)
	s.Env.ClientLimit = 2
	addr := s.TCP(tcpListener())
	c := s.Start()
	a, b := echoclient.Connect(t, addr), echoclient.Connect(t, addr)
	a.Want("THEN on", "250 then on")
	a.Want("as it was", "as it was")
	c.AwaitCount(0)
	b.Want("THEN panic", "250 then panic")
	b.Ends("421 4.3.0 A bug")
	a.Want("still here", "still here")
	a.Close()
	if status := c.AwaitExit(); status != 0 { // it retired
		t.Errorf("exit status %d", status)
	}
	s.AwaitLog("echo: Panic: panic in a session: oops later")
}

// What goes wrong at the start is one Fatal line and status 89, before any record.
func TestFailingStart(t *testing.T) {
	for _, c := range []struct {
		args []string
		log  string
	}{
		{[]string{"-fail", "setup"}, "echo: Fatal: ssl_cert: no such file"},
		{[]string{"-fail", "start"}, "echo: Fatal: auth: no such socket"},
		{[]string{"-fail", "panic"}, "echo: Panic: panic at the start: not thought of"},
		{[]string{"-x"}, "echo: Fatal: command line: flag provided but not defined: -x"},
	} {
		s := self(t, c.args...)
		s.TCP(tcpListener())
		child := s.Start()
		if status := child.AwaitExit(); status != 89 {
			t.Errorf("%v: exit status %d", c.args, status)
		}
		s.AwaitLog(c.log)
		if r := child.Records(); len(r) != 0 {
			t.Errorf("%v: records %v", c.args, r)
		}
	}
}

// A process that is not ready yet ends all the same.
func TestEndBeforeReady(t *testing.T) {
	for name, end := range map[string]func(*fakemaster.Service, *fakemaster.Child){
		"dead pipe": func(s *fakemaster.Service, _ *fakemaster.Child) { s.Die() },
		"SIGTERM":   func(_ *fakemaster.Service, c *fakemaster.Child) { c.Signal(syscall.SIGTERM) },
		"SIGQUIT":   func(_ *fakemaster.Service, c *fakemaster.Child) { c.Signal(syscall.SIGQUIT) },
	} {
		s := self(t, "-slow")
		s.TCP(tcpListener())
		c := s.Start()
		for !strings.HasPrefix(c.Cmdline(), "dovecot/") || !catches(t, c.PID) {
			time.Sleep(time.Millisecond)
		}
		end(s, c)
		if status := c.AwaitExit(); status != 0 {
			t.Errorf("%s: exit status %d", name, status)
		}
	}
}

// catches says whether a process has come so far that it listens to signals: only then
// SIGPIPE is ignored, by which the runtime never does.
func catches(t *testing.T, pid int) bool {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "SigIgn:"); ok {
			mask, _ := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return mask&(1<<(syscall.SIGPIPE-1)) != 0
		}
	}
	return false
}

// The master stops reading: what matters is sent when there is room again.
func TestStatusPipeIsFull(t *testing.T) {
	// The pipe is filled by the test with records of nobody before the process starts.
	s := self(t)
	s.PauseStatus()
	addr := s.TCP(tcpListener())
	c := s.Start()
	x := echoclient.Connect(t, addr) // the process does not wait for its first record
	x.Want("x", "250 x")
	if r := c.Records(); len(r) != 0 {
		t.Errorf("records %v", r)
	}
	s.ResumeStatus()
	c.AwaitCount(0)
	x.Want("QUIT", "221 Bye")
	c.AwaitCount(1)
}

// Nobody reads the status pipe any more: the same as the dead pipe (clause P1.5.9).
func TestStatusPipeIsBroken(t *testing.T) {
	s := self(t)
	addr := s.TCP(tcpListener())
	c := s.Start()
	c.AwaitCount(1)
	s.CloseStatus()
	x := echoclient.Connect(t, addr)
	c.AwaitNoListeners()
	x.Want("still here", "250 still here")
	x.Want("QUIT", "221 Bye")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// Without descriptors the log says so, the clients that are in are served, and others are
// when there are descriptors again.
func TestNoDescriptorsLeft(t *testing.T) {
	s := self(t)
	s.Env.ClientLimit = 1000
	addr := s.TCP(tcpListener())
	c := s.Start()
	c.AwaitCount(1000)
	var limit unix.Rlimit
	if err := unix.Prlimit(c.PID, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 24, Max: 1024}, &limit); err != nil {
		t.Fatal(err)
	}
	first := echoclient.Connect(t, addr)
	for range 24 {
		echoclient.Dial(t, addr)
	}
	s.AwaitLog("too many open files (")
	first.Want("x", "250 x")
	if err := unix.Prlimit(c.PID, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: 1024}, nil); err != nil {
		t.Fatal(err)
	}
	echoclient.Connect(t, addr).Want("x", "250 x")
}

// What the process executes has none of the master's descriptors.
func TestDescriptorsAreNotInherited(t *testing.T) {
	s := self(t)
	s.Login = true
	addr := s.TCP(tcpListener())
	s.Start()
	x := echoclient.Connect(t, addr)
	// 0, 1 and 2 are exec's; 3 is the shell's for the directory it expands.
	x.Say("EXEC cd /proc/self/fd && echo *")
	got := x.Read()
	if got != "250 0 1 2 3 <nil>" {
		t.Errorf("open in a child: %s", got)
	}
}

// A version of the master that this program does not know is warned of once.
func TestMasterVersion(t *testing.T) {
	for version, warns := range map[string]bool{"2.3.19.1": false, "2.3.21.1": false, "": false, "dovetail 1.0": false, "2.4.1": true, "2.2.36": true} {
		s := self(t)
		s.Env.Version = version
		s.TCP(tcpListener())
		c := s.Start()
		c.AwaitCount(1)
		c.Signal(syscall.SIGTERM)
		c.AwaitExit()
		s.AwaitLog("Killed")
		if log := s.Log(); (len(log) == 2) != warns {
			t.Errorf("version %q: %q", version, log)
		} else if warns && log[0] != "echo: Warning: The master's version is "+version+", this program knows Dovecot 2.3 (set version_ignore = yes to silence this)" {
			t.Error(log[0])
		}
	}
}

// A bad environment is told, not served.
func TestBadEnvironment(t *testing.T) {
	s := self(t)
	s.Env.ClientLimit = 0
	c := s.Start()
	if status := c.AwaitExit(); status != 89 {
		t.Errorf("exit status %d", status)
	}
	s.AwaitLog("echo: Fatal: environment: CLIENT_LIMIT is 0")
}

// Somebody who starts the program in a shell reads what it is.
func TestByHand(t *testing.T) {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Env = []string{"SERVICE_TEST_BY_HAND=1"}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 89 {
		t.Errorf("%v", err)
	}
	const want = "echo: a program for tests. It is not started by hand, but by a master: by `dovetail run -c FILE`, " +
		"or by Dovecot with `executable = /path/to/echo` and `vsz_limit = 0` in its service block.\n"
	if string(out) != want {
		t.Errorf("%q", out)
	}
}

// A Fatal from a session ends the process with a line.
func TestFatal(t *testing.T) {
	s := self(t)
	addr := s.TCP(tcpListener())
	c := s.Start()
	echoclient.Connect(t, addr).Say("FATAL")
	if status := c.AwaitExit(); status != 89 {
		t.Errorf("exit status %d", status)
	}
	s.AwaitLog("echo: Fatal: told to die")
}
