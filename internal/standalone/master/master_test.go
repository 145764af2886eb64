package master

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
)

// A service has no process until somebody connects, and again none when a process has
// served as many as it is to serve.
func TestLifeOfAService(t *testing.T) {
	w := run(t, config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 5, ServiceCount: 1, ClientLimit: 1}))
	w.processes("log", 1, 1)
	w.processes("echo", 0, 0)
	a := w.dial("echo")
	pidA := a.say("pid")
	w.processes("echo", 1, 0)
	b := w.dial("echo")
	if pidB := b.say("pid"); pidA == "" || pidA == pidB {
		t.Errorf("both clients are served by process %s", pidA)
	}
	w.processes("echo", 2, 0)
	if got := a.say("env SERVICE_NAME"); got != "echo" {
		t.Errorf("SERVICE_NAME is %q", got)
	}
	a.Close()
	b.Close()
	w.processes("echo", 0, 0)
	if got := w.dial("echo").say("still there"); got != "still there" {
		t.Errorf("a third client got %q", got)
	}
	if strings.Contains(w.log()+w.ownLog(), "Error") {
		t.Error("there are errors")
	}
}

func TestProcessMinAvail(t *testing.T) {
	w := run(t, config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 20, ProcessMinAvail: 13, ClientLimit: 1, ServiceCount: 1}))
	w.processes("echo", 13, 13)
	c := w.dial("echo")
	c.say("x")
	w.processes("echo", 14, 13) // the busy one is replaced
}

// A program that fails as soon as it starts is not started all the time; clients are not
// kept waiting meanwhile; and when it works again everything is as before.
func TestThrottling(t *testing.T) {
	cfg := config(t, Service{Name: "echo", Command: program("fail"), ProcessLimit: 5, ClientLimit: 1})
	w := run(t, cfg)
	for _, want := range []string{"0.020", "0.040", "0.080", "0.080"} {
		if got := w.dial("echo").hear(); got != "" {
			t.Errorf("got %q", got)
		}
		w.says(w.ownLog, "service(echo): command startup failed, throttling for "+want+" secs")
		w.until("throttling ends", func() bool { return !w.service("echo").throttled.pending() })
	}
	w.says(w.log, "Fatal: master: service(echo): child")
	w.says(w.log, "returned error 7")
	w.in(func() { w.service("echo").Command = program("echo") })
	c := w.dial("echo")
	if c.say("x") != "x" {
		t.Error("not served after throttling")
	}
	c.say("pid")
}

// After a successful exit a service is not throttled for clients that crash their process.
func TestCrashesAfterSuccess(t *testing.T) {
	w := run(t, config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 50, ServiceCount: 1}))
	w.dial("echo").Close()
	w.until("a success", func() bool { return w.service("echo").everSucceeded })
	for range maxExitFailures + 2 {
		w.dial("echo").say("exit 3")
	}
	w.says(w.log, "returned error 3")
	if w.dial("echo").say("x") != "x" {
		t.Error("not served")
	}
	if strings.Contains(w.ownLog(), "throttling") {
		t.Error("throttled")
	}
}

func TestCrashesWithoutSuccess(t *testing.T) {
	w := run(t, config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 50, ServiceCount: 1}))
	for range 2 {
		w.dial("echo").say("exit 3")
	}
	w.says(w.log, "returned error 3")
	if strings.Contains(w.ownLog(), "throttling") {
		t.Error("throttled after two")
	}
	for end := time.Now().Add(patience); !strings.Contains(w.ownLog(), "throttling"); {
		if time.Now().After(end) {
			t.Fatal("never throttled")
		}
		w.in(func() { // so many in this second, without waiting for them
			s := w.service("echo")
			s.failedIn, s.failures = time.Now().Unix(), maxExitFailures
		})
		w.dial("echo").say("exit 3")
	}
}

func TestFirstStatusIsAwaited(t *testing.T) {
	cfg := config(t, Service{Name: "echo", Command: program("silent")})
	old := testTimes.firstStatus
	testTimes.firstStatus = 50 * time.Millisecond
	t.Cleanup(func() { testTimes.firstStatus = old })
	w := run(t, cfg)
	c := w.dial("echo")
	w.says(w.ownLog, "service(echo): Initial status notification not received in")
	w.says(w.log, "killed with signal 9")
	c.hear()
}

// Beyond process_limit clients wait, are warned about, and dropped (clause P1.7.5).
func TestClientsBeyondTheLimit(t *testing.T) {
	for _, c := range []struct {
		Service
		want string
	}{
		{Service{ProcessLimit: 1, ClientLimit: 1, ServiceCount: 1}, "service(echo): client_limit/service_count (1) reached, client connections are being dropped"},
		{Service{ProcessLimit: 1, ClientLimit: 2}, "service(echo): client_limit (2) reached, client connections are being dropped"},
		{Service{ProcessLimit: 2, ClientLimit: 1}, "service(echo): process_limit (2) reached, client connections are being dropped"},
		{Service{ProcessLimit: 2, ClientLimit: 1, Type: Worker}, "service(echo): process_limit (2) reached, client connections are being dropped"},
		{Service{ProcessLimit: 2, ClientLimit: 1, Type: Login}, "service(echo): process_limit (2) reached, client connections are being dropped"},
	} {
		t.Run(fmt.Sprintf("%d of %d, type %d", c.ProcessLimit, c.ClientLimit, c.Type), func(t *testing.T) {
			c.Name, c.Command = "echo", program("echo")
			old := testTimes.drop
			testTimes.drop = time.Second // after the warning of workers
			defer func() { testTimes.drop = old }()
			w := run(t, config(t, c.Service))
			var in []*client
			for range c.ProcessLimit * c.ClientLimit {
				x := w.dial("echo")
				if x.say("x") != "x" {
					t.Fatal("not served")
				}
				in = append(in, x)
			}
			late := w.dial("echo")
			w.says(w.ownLog, "Warning: "+c.want)
			if c.Type == Login {
				w.until("the full flag", func() bool { return w.service("echo").full })
				for got := ""; got != "1 true"; {
					got = in[0].say("full")
					if got == "" {
						t.Fatal("closed")
					}
				}
			}
			if got := late.say("x"); got != "" {
				t.Errorf("the late one got %q", got)
			}
			in[0].Close()
			w.until("there is room", func() bool {
				s := w.service("echo")
				return s.avail > 0 || len(s.processes) < int(s.ProcessLimit)
			})
			if c.Type == Login {
				w.until("the full flag is gone", func() bool { return !w.service("echo").full })
			}
			if got := w.dial("echo").say("y"); got != "y" {
				t.Errorf("after one has left another one got %q", got)
			}
		})
	}
}

// A client that waits gets the place of one that leaves in time.
func TestClientsWaitForAPlace(t *testing.T) {
	old := testTimes.drop
	testTimes.drop = patience
	t.Cleanup(func() { testTimes.drop = old })
	w := run(t, config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 1, ServiceCount: 1}))
	a := w.dial("echo")
	a.say("x")
	b := w.dial("echo")
	w.says(w.ownLog, "reached")
	a.Close()
	if got := b.say("y"); got != "y" {
		t.Errorf("got %q", got)
	}
}

// Idle processes beyond process_min_avail go (clause P1.7.1).
func TestIdleKill(t *testing.T) {
	w := run(t, config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 5, ClientLimit: 1, ProcessMinAvail: 1, IdleKill: 20 * time.Millisecond}))
	w.processes("echo", 1, 1)
	var cs []*client
	for range 3 {
		c := w.dial("echo")
		c.say("x")
		cs = append(cs, c)
	}
	w.processes("echo", 4, 1)
	for _, c := range cs {
		c.Close()
	}
	w.processes("echo", 1, 1)
}

// How processes end is logged in Dovecot's words (clause P1.9.1).
func TestExitTexts(t *testing.T) {
	s := &service{Service: &Service{Name: "echo", VSZLimit: 256 << 20}}
	exit := func(n int) unix.WaitStatus { return unix.WaitStatus(n << 8) }
	for _, c := range []struct {
		st   unix.WaitStatus
		want string
	}{
		{exit(1), "returned error 1"},
		{exit(80), "returned error 80 (Can't open log file)"},
		{exit(81), "returned error 81 (Can't write to log file)"},
		{exit(82), "returned error 82 (Internal logging error)"},
		{exit(83), "returned error 83 (Out of memory (service echo { vsz_limit=256 MB }, you may need to increase it))"},
		{exit(84), "returned error 84 (exec() failed)"},
		{exit(89), "returned error 89 (Fatal failure)"},
		{unix.WaitStatus(9), "killed with signal 9"},
		{unix.WaitStatus(11), "killed with signal 11 (core not dumped)"},
		{unix.WaitStatus(6 | 0x80), "killed with signal 6 (core dumped)"},
	} {
		got, isFatal := s.exitText(42, c.st)
		if want := "service(echo): child 42 " + c.want; got != want {
			t.Errorf("%#x:\n got %s\nwant %s", c.st, got, want)
		}
		if isFatal != (c.st == exit(89)) {
			t.Errorf("%#x: fatal %v", c.st, isFatal)
		}
	}
}

// The master's notice of a death comes after all that the process has said, under its
// prefix, and not at all if it has said the same (clause P1.9.2).
func TestLastWords(t *testing.T) {
	w := run(t, config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 9, ServiceCount: 1}))
	c := w.dial("echo")
	pid := c.say("pid")
	c.say(fmt.Sprintf(`raw "\x01\x08%s prefix=echo(alice): \n\x01\x02%s hello\n"`, pid, pid))
	c.say("kill 9")
	w.says(w.log, "echo(alice): Fatal: master: service(echo): child "+pid+" killed with signal 9\n")
	w.says(w.log, "echo(alice): Info: hello\n")

	c = w.dial("echo")
	pid = c.say("pid")
	c.say(fmt.Sprintf(`raw "\x01\x08%s ip=192.0.2.7\n"`, pid))
	c.say("exit 1")
	w.says(w.log, "echo: Fatal: master: service(echo): child "+pid+" returned error 1 [last ip=192.0.2.7]\n")

	c = w.dial("echo")
	pid = c.say("pid")
	c.say(fmt.Sprintf(`raw "\x01\x05%s cannot go on\n"`, pid))
	c.say("exit 89")
	w.says(w.log, "echo: Fatal: cannot go on\n")
	c = w.dial("echo")
	c.say("exit 2")
	w.says(w.log, "returned error 2\n")
	if strings.Contains(w.log(), "child "+pid+" ") {
		t.Error("the master says what the process has said")
	}
}

// The log process is always there, and what is said while it is not is not lost.
func TestLogProcessRestarts(t *testing.T) {
	w := run(t, config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 9}))
	c := w.dial("echo")
	c.say("log before")
	w.says(w.log, "echo: Info: before\n")
	w.in(func() {
		for pid := range w.service("log").processes {
			unix.Kill(pid, unix.SIGKILL)
		}
	})
	for i := range 50 {
		c.say("log during " + strconv.Itoa(i))
	}
	for i := range 50 {
		w.says(w.log, fmt.Sprintf("echo: Info: during %d\n", i))
	}
	w.says(w.ownLog, "killed with signal 9")
}

// SIGUSR1: files that were moved away are made anew.
func TestLogFilesAreReopened(t *testing.T) {
	w := run(t, config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 9}))
	c := w.dial("echo")
	c.say("log one")
	w.says(w.log, "one")
	w.until("the log process knows the control channel", func() bool {
		for _, p := range w.service("log").processes {
			return p.control.ready
		}
		return false
	})
	path := w.cfg.LogFiles[0]
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	unix.Kill(os.Getpid(), unix.SIGUSR1)
	for end := time.Now().Add(patience); ; {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no new file")
		}
		time.Sleep(time.Millisecond)
	}
	w.until("all orders answered", func() bool {
		for _, p := range w.service("log").processes {
			return len(p.control.waiting) == 0
		}
		return false
	})
	c.say("log two")
	w.says(w.log, "two")
	if b, _ := os.ReadFile(path + ".1"); strings.Contains(string(b), "two") {
		t.Error("the old file is written to")
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v", st.Mode(), err)
	}
}

// Who ends badly is reported to anvil, who ends well is not (clause P6.7).
func TestAnvilHearsOfDeaths(t *testing.T) {
	w := run(t, config(t,
		Service{Name: "anvil", Type: Anvil, Command: program("anvil"), ProcessMinAvail: 1},
		Service{Name: "echo", Command: program("echo"), ProcessLimit: 9, ServiceCount: 1}))
	w.processes("anvil", 1, 1)
	w.says(w.log, `anvil: Info: restarted ""`)
	w.says(w.log, "anvil: Info: from others: VERSION anvil 1 0")
	good := w.dial("echo")
	goodPID := good.say("pid")
	good.say("anvil CONNECT 1 x")
	w.says(w.log, "anvil: Info: from others: CONNECT 1 x")
	good.Close()
	w.processes("echo", 0, 0)
	bad := w.dial("echo")
	badPID := bad.say("pid")
	bad.say("kill 9")
	w.says(w.log, "anvil: Info: from master: KILL "+badPID)
	if strings.Contains(w.log(), "KILL "+goodPID) {
		t.Error("one that ended well was reported")
	}

	// Without anvil nobody stands still; the next one says that it is not the first.
	w.in(func() { unix.Kill(w.m.anvil.pid, unix.SIGKILL) })
	c := w.dial("echo")
	for range 3000 {
		c.say("anvil CONNECT 1 " + strings.Repeat("x", 100))
	}
	w.says(w.log, `anvil: Info: restarted "1"`)
	c.say("anvil CONNECT 2 y")
	w.says(w.log, "from others: CONNECT 2 y")
}

// A reload ends no session; new clients get new processes, whatever listener they use.
func TestReload(t *testing.T) {
	cfg := config(t,
		Service{Name: "anvil", Type: Anvil, Command: program("anvil"), ProcessMinAvail: 1},
		Service{Name: "echo", Command: program("echo"), ProcessLimit: 9, ClientLimit: 3, ProcessMinAvail: 1})
	port := freePort(t)
	inet := Listener{Kind: Inet, Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Address: "127.0.0.1", Listener: masterproto.Listener{Name: "in"}}
	cfg.Services[3].Listeners = append(cfg.Services[3].Listeners, inet)
	w := run(t, cfg)
	w.processes("echo", 1, 1)
	w.processes("anvil", 1, 1)
	old := w.dial("echo")
	oldPID := old.say("pid")
	var anvilPID int
	w.in(func() { anvilPID = w.m.anvil.pid })

	next := *cfg
	next.Services = append([]Service{}, cfg.Services...)
	next.Services[3].ClientLimit = 2
	next.Services[3].Listeners = []Listener{inet, cfg.unix("other")}
	w.in(func() { w.next = &next })
	unix.Kill(os.Getpid(), unix.SIGHUP)
	w.says(w.ownLog, "Warning: SIGHUP received - reloading configuration")
	w.until("the new generation runs", func() bool { return w.m.cfg == &next && w.service("echo").avail == 1 })

	if got := old.say("pid"); got != oldPID {
		t.Errorf("the open session got %q", got)
	}
	conn, err := net.Dial("tcp", inet.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "env CLIENT_LIMIT\n")
	var b [10]byte
	if n, _ := conn.Read(b[:]); string(b[:n]) != "2\n" {
		t.Errorf("the inet listener leads to %q", b[:n])
	}
	if got := w.dial("other").say("env CLIENT_LIMIT"); got != "2" {
		t.Errorf("the new listener leads to %q", got)
	}
	if _, err := os.Stat(filepath.Join(cfg.BaseDir, "echo")); err == nil {
		t.Error("the socket that is no longer configured is still there")
	}
	w.in(func() {
		if w.m.anvil.pid != anvilPID {
			t.Error("anvil was restarted")
		}
		if len(w.m.old) != 1 {
			t.Errorf("%d old generations", len(w.m.old))
		}
	})
	w.says(w.log, "anvil: Info: new log pipe")
	if got := old.say("log from the old one"); got == "" {
		t.Error("the old session ended")
	}
	w.says(w.log, "echo: Info: from the old one")
	old.Close()
	w.until("the old generation ends", func() bool { return len(w.m.old) == 0 })
}

// What cannot be taken into use leaves everything as it is.
func TestReloadFails(t *testing.T) {
	cfg := config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 9, ClientLimit: 3, ProcessMinAvail: 1})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	w := run(t, cfg)
	w.processes("echo", 1, 1)
	pid := w.dial("echo").say("pid")

	broken := func(change func(*Config)) *Config {
		c := *cfg
		c.Services = append([]Service{}, cfg.Services...)
		change(&c)
		return &c
	}
	for _, c := range []struct {
		next *Config
		want string
	}{
		{nil, ""},
		{broken(func(c *Config) { c.BaseDir = "/elsewhere" }), "base_dir can't be changed by a reload"},
		{broken(func(c *Config) { c.Services[2].Command = []string{"/nonexistent"} }), "access(/nonexistent) failed: No such file or directory"},
		{broken(func(c *Config) {
			c.Services[2].Listeners = append(c.Services[2].Listeners[:1:1], Listener{Kind: Inet, Addr: taken.Addr().(*net.TCPAddr).AddrPort(), Address: "127.0.0.1"})
		}), "failed: Address already in use"},
		{broken(func(c *Config) {
			c.Services[2].Listeners = append(c.Services[2].Listeners[:1:1], c.unix("no/such/directory"))
		}), "net_listen_unix(" + cfg.BaseDir + "/no/such/directory) failed: No such file or directory"},
	} {
		w.in(func() {
			w.next = c.next
			if err := w.m.reload(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
		x := w.dial("echo")
		if got := x.say("pid"); got != pid {
			t.Errorf("%q: served by %q, before by %q", c.want, got, pid)
		}
		x.Close()
	}
}

// A stop leaves nothing behind that listens.
func TestStop(t *testing.T) {
	cfg := config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 9, ServiceCount: 1})
	w := run(t, cfg)
	busy := w.dial("echo")
	pid, _ := strconv.Atoi(busy.say("pid"))
	if got, err := ReadPIDFile(cfg.BaseDir); err != nil || got != 0 { // ourselves
		t.Errorf("pid file: %d %v", got, err)
	}
	b, _ := os.ReadFile(filepath.Join(cfg.BaseDir, PIDFile))
	if string(b) != fmt.Sprintf("%d\n", os.Getpid()) {
		t.Errorf("pid file has %q", b)
	}
	w.stop()
	if got := busy.say("x"); got != "x" {
		t.Errorf("the session got %q", got) // it ends by itself, later
	}
	busy.Close()
	var st unix.WaitStatus
	if _, err := unix.Wait4(pid, &st, 0, nil); err != nil {
		t.Error(err)
	}
	left, _ := os.ReadDir(cfg.BaseDir)
	for _, e := range left {
		if !e.IsDir() {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// A second master in the same directory is refused.
func TestSecondStart(t *testing.T) {
	cfg := config(t)
	w := run(t, cfg)
	w.processes("log", 1, 1)
	_, errs := New(cfg, Options{})
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), "already starting") {
		t.Errorf("got %v", errs)
	}
	if w.dial("config").say("x") != "x" {
		t.Error("the first one does not serve any more")
	}
}

// A pid file of one who died is no obstacle; that of another process is only if that is a
// master.
func TestStalePIDFile(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]int{
		"":                                0,
		"x\n":                             0,
		"-1\n":                            0,
		"99999999\n":                      0,
		fmt.Sprintf("%d\n", os.Getppid()): 0, // go test
	} {
		if err := os.WriteFile(filepath.Join(dir, PIDFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadPIDFile(dir); err != nil || got != want {
			t.Errorf("%q: %d %v", content, got, err)
		}
	}
}

// All listeners that cannot be opened are named, and nothing is left of the others.
func TestEveryListenerIsTried(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().(*net.TCPAddr).AddrPort()
	cfg := config(t, Service{Name: "echo", Command: program("echo")})
	l := &cfg.Services[2].Listeners
	*l = append(*l,
		Listener{Kind: Inet, Addr: addr, Address: "127.0.0.1", Ref: "first", Listener: masterproto.Listener{Name: "one"}},
		Listener{Kind: Inet, Addr: addr, Address: "localhost", Ref: "second", Listener: masterproto.Listener{Name: "two"}},
		cfg.unix(strings.Repeat("long", 30)))
	m, errs := New(cfg, Options{})
	if m != nil || len(errs) != 3 {
		t.Fatalf("got %v", errs)
	}
	want := fmt.Sprintf("service(echo): listen(127.0.0.1, %d) failed: Address already in use", addr.Port())
	if errs[0].Error() != want {
		t.Errorf("got %v\nwant %s", errs[0], want)
	}
	if le, ok := errs[1].(*ListenError); !ok || le.Listener.Ref != "second" {
		t.Errorf("got %#v", errs[1])
	}
	if !strings.Contains(errs[2].Error(), "the path of a socket has at most 107 bytes") {
		t.Errorf("got %v", errs[2])
	}
	left, _ := os.ReadDir(cfg.BaseDir)
	for _, e := range left {
		if !e.IsDir() {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// A socket that a dead master left is replaced; one that somebody listens on is not.
func TestSocketsOfOthers(t *testing.T) {
	cfg := config(t, Service{Name: "echo", Command: program("echo")})
	cfg.Services[2].Listeners = append(cfg.Services[2].Listeners, cfg.unix("login/echo"))
	if err := os.MkdirAll(cfg.BaseDir+"/login", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"echo", "login/echo", "login/old"} {
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(cfg.BaseDir, name)})
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		defer ln.Close()
		if _, errs := New(cfg, Options{}); len(errs) != 1 || !strings.Contains(errs[0].Error(), "ocket already exists: "+cfg.BaseDir+"/"+name) {
			t.Errorf("%s: %v", name, errs)
		}
		ln.Close()
	}
	if err := os.Chmod(cfg.BaseDir+"/login", 0o777); err != nil {
		t.Fatal(err)
	}
	w := run(t, cfg)
	if w.dial("login/echo").say("x") != "x" {
		t.Error("not served")
	}
	if _, err := os.Stat(cfg.BaseDir + "/login/old"); err == nil {
		t.Error("the dead socket is still there")
	}
	st, err := os.Stat(cfg.BaseDir + "/login")
	if err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("login has mode %v", st.Mode())
	}
	w.says(w.ownLog, "Corrected permissions for login directory "+cfg.BaseDir+"/login")
}

// doveadm's questions, and our own.
func TestAdminSocket(t *testing.T) {
	w := run(t, config(t,
		Service{Name: "submission", Command: program("echo"), Own: true, ProcessLimit: 3, ClientLimit: 2},
		Service{Name: "idle", Command: program("echo")}))
	w.processes("log", 1, 1)
	a := w.dial(AdminSocket)
	if got := a.hear(); got != "VERSION\tmaster-server\t1\t0" {
		t.Errorf("greeting %q", got)
	}
	fmt.Fprint(a, "VERSION\tmaster-client\t1\t0\n")
	user := w.dial("submission")
	pid := user.say("pid")
	w.processes("submission", 1, 1)
	var rows []string
	for line := a.say("SERVICE-STATUS"); line != ""; line = a.hear() {
		rows = append(rows, line)
	}
	if want := "submission\t1\t1\t3\t2\t0\t0\t0\t0\tn\tn\tn\t1"; len(rows) != 4 || rows[2] != want {
		t.Errorf("SERVICE-STATUS:\n%s\nwant\n%s", strings.Join(rows, "\n"), want)
	}
	if got := a.say("PROCESS-STATUS\tsubmission"); !strings.HasPrefix(got, "submission\t"+pid+"\t1\t1\t0\t") {
		t.Errorf("PROCESS-STATUS: %q", got)
	}
	a.hear()
	if got := a.say("STOP\tnone"); got != "-Unknown service: none" {
		t.Errorf("STOP: %q", got)
	}
	w.until("the process knows the control channel", func() bool {
		for _, p := range w.service("submission").processes {
			return p.control.ready
		}
		return false
	})
	if got := a.say("KICK\tal*\t192.0.2.0/24"); got != "+1\t"+pid {
		t.Errorf("KICK: %q", got)
	}
	if got := user.hear(); got != "421 4.3.2 al* kicked from 192.0.2.0/24" {
		t.Errorf("the user got %q", got)
	}
	if got := a.say("RELOAD"); got != "-the configuration has errors; the log tells them" {
		t.Errorf("RELOAD: %q", got)
	}
	if got := a.say("STOP\tidle"); got != "+" {
		t.Errorf("STOP: %q", got)
	}
	if conn, err := net.Dial("unix", filepath.Join(w.cfg.BaseDir, "idle")); err == nil {
		conn.Close()
		t.Error("a stopped service can be connected")
	}
	if got := a.say("WHAT"); got != "" {
		t.Errorf("an unknown word: %q", got)
	}
}

// base_dir is made with what is above it; where that cannot be it is an error.
func TestBaseDirectory(t *testing.T) {
	dir := t.TempDir() + "/a/b/c"
	if err := mkdirs(dir); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("%v %v", st, err)
	}
	if err := mkdirs("/proc/none/such"); err == nil {
		t.Error("no error below /proc")
	}
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config(t)
	cfg.BaseDir = dir + "/file"
	if _, errs := New(cfg, Options{}); len(errs) != 1 || !strings.Contains(errs[0].Error(), "is not a directory") {
		t.Errorf("%v", errs)
	}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}
