package service_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/service"
	"dovetail/internal/testkit/echo"
	"dovetail/internal/testkit/echoclient"
	"dovetail/internal/testkit/fakemaster"
)

// The test binary is the program that the fake master starts.
func TestMain(m *testing.M) {
	if slices.Contains(os.Environ(), "DOVECOT_CHILD_PROCESS=1") || os.Getenv("SERVICE_TEST_BY_HAND") != "" {
		if d, err := time.ParseDuration(os.Getenv("SERVICE_TEST_DELAY")); err == nil {
			service.ShortenForTest(d)
		}
		service.Main(echo.Program())
	}
	os.Exit(m.Run())
}

// self starts processes of this test binary. delay stands for all of the runtime's.
func self(t *testing.T, args ...string) *fakemaster.Service {
	t.Helper()
	s := fakemaster.New(t, "/proc/self/exe", args...)
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.Path = path
	s.Environ = []string{"SERVICE_TEST_DELAY=100ms", "GORACE=atexit_sleep_ms=0"}
	return s
}

func tcpListener() masterproto.Listener { return masterproto.Listener{Name: "submission"} }

// One process a client, as Dovecot ships it: ready, full, gone. The records are those
// of the real login (masterproto's testdata).
func TestOneClientAProcess(t *testing.T) {
	s := self(t)
	s.Env.ServiceCount = 1
	addr := s.TCP(tcpListener())
	c := s.Start()
	c.AwaitCount(1)
	x := echoclient.Connect(t, addr)
	x.Want("hello", "250 hello")
	c.AwaitCount(0)
	x.Want("QUIT", "221 Bye")
	x.Ends("")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	if r := c.Records(); !slices.Equal(r, []uint32{1, 0}) {
		t.Errorf("records %v", r)
	}
	if log := s.Log(); len(log) != 0 {
		t.Errorf("log %q", log)
	}
}

// available = min(client_limit, clients left) - active; the process ends after the last.
func TestClientLimitAndServiceCount(t *testing.T) {
	s := self(t)
	s.Env.ClientLimit, s.Env.ServiceCount = 2, 3
	addr := s.TCP(tcpListener())
	c := s.Start()
	c.AwaitCount(2)
	a := echoclient.Connect(t, addr)
	c.AwaitCount(1)
	b := echoclient.Connect(t, addr)
	c.AwaitCount(0)
	a.Want("QUIT", "221 Bye") // left 2, active 1
	c.AwaitCount(1)
	d := echoclient.Connect(t, addr) // left 2, active 2
	c.AwaitCount(0)
	b.Want("QUIT", "221 Bye") // left 1, active 1
	d.Want("still here", "250 still here")
	d.Want("QUIT", "221 Bye")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// Without service_count the process stays; what does not fit waits for a slot.
func TestSlotsAreFreed(t *testing.T) {
	s := self(t)
	s.Env.ClientLimit = 1
	addr := s.TCP(tcpListener())
	c := s.Start()
	for range 20 {
		a := echoclient.Connect(t, addr)
		b := echoclient.Dial(t, addr)
		a.Want("x", "250 x")
		a.Want("QUIT", "221 Bye")
		b.Greeted()
		b.Want("QUIT", "221 Bye")
		b.Ends("")
	}
	c.AwaitCount(1)
	if !c.Running() {
		t.Error("the process ended")
	}
}

// A listener that waits holds no slot (the trap of clause P1.10.2), and each client knows
// by which one it came.
func TestSeveralListeners(t *testing.T) {
	s := self(t)
	addrs := []string{
		s.TCP(masterproto.Listener{Name: "submission"}),
		s.TCP(masterproto.Listener{Name: "submissions", SSL: true}),
		s.TCP(masterproto.Listener{Name: "behind a proxy", HAProxy: true}),
		s.Unix(masterproto.Listener{Name: "login-sock"}),
	}
	s.Env.Listeners[2].Name = "proxied"
	s.Start()
	for range 5 {
		for _, i := range []int{3, 1, 0, 2} {
			x := echoclient.Dial(t, addrs[i])
			want := []string{"submission - -", "submissions ssl -", "proxied - haproxy", "login-sock - -"}[i]
			if got := x.Greeted(); got != want {
				t.Fatalf("came by %q, want %q", got, want)
			}
			x.Want("QUIT", "221 Bye")
			x.Ends("")
		}
	}
}

// A fifo among the listeners is no client's way in, and no trouble; a program that wants to
// reads it.
func TestFifoListener(t *testing.T) {
	for _, args := range [][]string{nil, {"-pipe"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) { fifoListener(t, args) })
	}
}

func fifoListener(t *testing.T, args []string) {
	s := self(t, args...)
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Add(f, masterproto.Listener{Name: "a-fifo"})
	addr := s.TCP(tcpListener())
	c := s.Start()
	x := echoclient.Connect(t, addr)
	x.Want("x", "250 x")
	if args == nil {
		s.AwaitLog("echo: Warning: listener a-fifo is a fifo")
		return
	}
	for _, line := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte(line+"\n"), 0); err != nil {
			t.Fatal(err)
		}
		s.AwaitLog("echo: Info: a-fifo: " + line)
	}
	x.Want("QUIT", "221 Bye")
	c.Signal(syscall.SIGINT) // the fifo keeps no process
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// All processes of a service poll the same sockets; each client gets one of them.
func TestProcessesShareListeners(t *testing.T) {
	s := self(t)
	s.Env.ClientLimit = 1
	addr := s.TCP(tcpListener())
	pids := map[int]bool{}
	const processes = 4
	for range processes {
		c := s.Start()
		c.AwaitCount(1)
		pids[c.PID] = true
	}
	for range 10 {
		var all []*echoclient.Session
		for range processes {
			all = append(all, echoclient.Connect(t, addr))
		}
		seen := map[int]bool{}
		for _, x := range all {
			if !pids[x.PID] || seen[x.PID] {
				t.Fatalf("process %d", x.PID)
			}
			seen[x.PID] = true
			x.Want("QUIT", "221 Bye")
		}
	}
}

// The dead pipe closes the listeners at once; an idle process ends.
func TestDeadPipeIdle(t *testing.T) {
	s := self(t)
	s.TCP(tcpListener())
	c := s.Start()
	c.AwaitCount(1)
	s.Die()
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	if r := c.Records(); !slices.Equal(r, []uint32{1}) {
		t.Errorf("records %v", r)
	}
}

// With shutdown_clients = yes a busy process goes on for a while, then says 421.
func TestDeadPipeBusy(t *testing.T) {
	s := self(t)
	s.Env.ClientLimit = 3
	addr := s.TCP(tcpListener())
	c := s.Start()
	x := echoclient.Connect(t, addr)
	s.Die()
	c.AwaitNoListeners()
	x.Ends("421 4.3.2 Shutting down")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// With shutdown_clients = no it serves until the client leaves.
func TestDeadPipeWithoutShutdown(t *testing.T) {
	s := self(t, "-keep")
	s.Environ = []string{"SERVICE_TEST_DELAY=1ms"}
	addr := s.TCP(tcpListener())
	c := s.Start()
	x := echoclient.Connect(t, addr)
	s.Die()
	c.AwaitNoListeners()
	time.Sleep(50 * time.Millisecond) // for what must not happen
	x.Want("still here", "250 still here")
	x.Want("QUIT", "221 Bye")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// SIGTERM: the line names who sent it, sessions end with 421, exit 0.
func TestKick(t *testing.T) {
	s := self(t)
	s.Env.ClientLimit = 3
	addr := s.TCP(tcpListener())
	c := s.Start()
	a, b := echoclient.Connect(t, addr), echoclient.Connect(t, addr)
	c.Signal(syscall.SIGTERM)
	a.Ends("421 4.3.2 Shutting down")
	b.Ends("421 4.3.2 Shutting down")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	want := fmt.Sprintf("echo: Warning: Killed with signal 15 (by pid=%d uid=%d code=kill)", os.Getpid(), os.Getuid())
	s.AwaitLog(want)
	c.AwaitCount(0)
}

// A session that does not end is cut off, and the process ends without it.
func TestKickOfTheDeaf(t *testing.T) {
	s := self(t)
	addr := s.TCP(tcpListener())
	c := s.Start()
	x := echoclient.Connect(t, addr)
	x.Want("DEAF", "250 what?")
	c.Signal(syscall.SIGTERM)
	x.Ends("")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	s.AwaitLog("echo: Warning: 1 sessions did not end within 100ms, closing their connections")
}

// SIGINT ends an idle process, and is nothing to a busy one (clause P1.7.1).
func TestIdleKill(t *testing.T) {
	s := self(t)
	addr := s.TCP(tcpListener())
	busy := s.Start()
	x := echoclient.Connect(t, addr)
	busy.Signal(syscall.SIGINT)
	time.Sleep(50 * time.Millisecond) // for what must not happen
	x.Want("still here", "250 still here")
	idle := s.Start()
	idle.AwaitCount(1)
	idle.Signal(syscall.SIGINT)
	if status := idle.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	x.Want("still here", "250 still here")
}

// SIGQUIT: the master goes away; clients stay.
func TestStop(t *testing.T) {
	s := self(t)
	addr := s.TCP(tcpListener())
	c := s.Start()
	x := echoclient.Connect(t, addr)
	c.Signal(syscall.SIGQUIT)
	c.AwaitNoListeners()
	x.Want("still here", "250 still here")
	x.Want("QUIT", "221 Bye")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

func TestHarmlessSignals(t *testing.T) {
	s := self(t)
	addr := s.TCP(tcpListener())
	c := s.Start()
	x := echoclient.Connect(t, addr)
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM} {
		c.Signal(sig)
	}
	x.Want("still here", "250 still here")
	x.Want("QUIT", "221 Bye")
	x.Ends("")
	echoclient.Connect(t, addr)
}

// Retire: no more clients, those that are there stay.
func TestRetire(t *testing.T) {
	s := self(t)
	s.Env.ClientLimit = 3
	addr := s.TCP(tcpListener())
	c := s.Start()
	x := echoclient.Connect(t, addr)
	x.Want("RETIRE", "250 retired")
	c.AwaitNoListeners()
	c.AwaitCount(0)
	x.Want("still here", "250 still here")
	x.Want("QUIT", "221 Bye")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// When all processes are full, the oldest client that may be dropped makes room; one
// that may not stays (clause P1.7.4).
func TestQueueFull(t *testing.T) {
	s := self(t)
	s.Login = true
	s.Env.ClientLimit = 3
	addr := s.TCP(tcpListener())
	c := s.Start()
	spared := echoclient.Connect(t, addr)
	spared.Want("HOLD", "250 held")
	oldest, newer := echoclient.Connect(t, addr), echoclient.Connect(t, addr)
	c.AwaitCount(0)
	waits := echoclient.Dial(t, addr)
	newer.Want("nothing happens without the flag", "250 nothing happens without the flag")
	s.SetFull(true, c)
	oldest.Ends("421 4.0.0 Connection queue full")
	waits.Greeted()
	newer.Want("x", "250 x")
	spared.Want("x", "250 x")
	again := echoclient.Dial(t, addr)
	newer.Ends("421 4.0.0 Connection queue full")
	again.Greeted()
	s.SetFull(false, c)
	patient := echoclient.Dial(t, addr)
	waits.Want("x", "250 x")
	waits.Want("QUIT", "221 Bye")
	patient.Greeted()
	again.Want("x", "250 x")
}

// With one client a process the drop comes after a moment, and the process makes way for
// another one. The flag may have been set before the process was there.
func TestQueueFullOneClientAProcess(t *testing.T) {
	s := self(t)
	s.Login = true
	s.Env.ServiceCount = 1
	addr := s.TCP(tcpListener())
	c := s.Start()
	c.AwaitCount(1)
	s.SetFull(true)
	x := echoclient.Connect(t, addr)
	waits := echoclient.Dial(t, addr)
	x.Ends("421 4.0.0 Connection queue full")
	if status := c.AwaitExit(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	s.Start()
	waits.Greeted()
}

func TestTitle(t *testing.T) {
	s := self(t)
	addr := s.TCP(tcpListener())
	c := s.Start()
	x := echoclient.Connect(t, addr)
	name := c.Cmdline()
	if !strings.HasPrefix(name, "dovecot/") {
		t.Fatal(name)
	}
	for _, text := range []string{"127.0.0.1", "1 clients, 0 of them with TLS, and some more that is longer than the command line", "x", ""} {
		x.Say("TITLE " + text)
		x.Read()
		want := name + " [" + text + "]"
		if text == "" {
			want = name
		}
		if got := c.Cmdline(); got != want {
			t.Errorf("title %q, want %q", got, want)
		}
	}
	long := strings.Repeat("y", 8000)
	x.Say("TITLE " + long)
	x.Read()
	if got := c.Cmdline(); !strings.HasPrefix(got, name+" [yyy") {
		t.Errorf("long title %q", got)
	}
	x.Want("EXEC echo $CONFIG_FILE$SERVICE_NAME", "250 echo <nil>") // the environment is a copy
}
