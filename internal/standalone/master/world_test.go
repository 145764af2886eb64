package master

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/event"
	"dovetail/internal/process/privs"
	"dovetail/internal/standalone/logd"
)

const patience = 20 * time.Second

// testTimes make failures come soon.
var testTimes = times{
	firstStatus: 5 * time.Second, throttleMin: 20 * time.Millisecond, throttleMax: 80 * time.Millisecond,
	drop: 50 * time.Millisecond, quit: 50 * time.Millisecond,
}

// A world is a running master, and what it has written to its log.
type world struct {
	t    *testing.T
	cfg  *Config
	m    *Master
	next *Config // what a reload loads
	done chan error

	mu    sync.Mutex
	lines []string // guarded by mu; of the master itself
}

func (w *world) Log(level event.Level, prefix, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, level.String()+": "+text)
}

// ownLog is what the master itself has written.
func (w *world) ownLog() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.lines, "\n")
}

// log is what the log process has written.
func (w *world) log() string {
	b, _ := os.ReadFile(filepath.Join(filepath.Dir(w.cfg.BaseDir), "log"))
	return string(b)
}

// config is a configuration with a log process, a config service that nobody asks, and
// these services.
func config(t *testing.T, services ...Service) *Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "dt") // not t.TempDir: sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &Config{
		BaseDir: dir + "/run", ConfigFile: dir + "/conf", InstanceName: "dovecot-test", Protocols: []string{"submission"},
		Unprivileged: true, LoginGID: privs.Unset, ShutdownClients: true, Hostname: "h", HostDomain: "h.test",
		LogEnv:   logd.Settings{Path: dir + "/log", Instance: "test"}.Environ(),
		LogFiles: []string{dir + "/log"},
	}
	c.Services = []Service{
		{Name: "log", Type: Log, Command: program("log"), Own: true, Listeners: []Listener{c.unix("log-errors")}},
		{Name: "config", Type: Settings, Command: program("echo"), Listeners: []Listener{c.unix("config")}},
	}
	for _, s := range services {
		if len(s.Listeners) == 0 {
			s.Listeners = []Listener{c.unix(s.Name)}
		}
		c.Services = append(c.Services, s)
	}
	for i := range c.Services {
		s := &c.Services[i]
		s.UID, s.GID, s.PrivGID = privs.Unset, privs.Unset, privs.Unset
		if s.ProcessLimit == 0 {
			s.ProcessLimit = 1
		}
		if s.ClientLimit == 0 {
			s.ClientLimit = 1
		}
		if s.IdleKill == 0 {
			s.IdleKill = Never
		}
		if s.ServiceCount > 0 {
			s.ClientLimit = min(s.ClientLimit, s.ServiceCount)
		}
	}
	return c
}

// unix is a Unix listener below base_dir.
func (c *Config) unix(name string) Listener {
	return Listener{
		Kind: Unix, Path: filepath.Join(c.BaseDir, name), Mode: 0o600, UID: privs.Unset, GID: privs.Unset,
		Listener: masterproto.Listener{Name: name},
	}
}

// run starts a master; it is stopped with the test.
func run(t *testing.T, cfg *Config) *world {
	t.Helper()
	w := &world{t: t, cfg: cfg, done: make(chan error, 1)}
	m, errs := newMaster(cfg, Options{
		Log: event.New(w, "master: ", false), Name: "Dovetail", Version: "0",
		Load: func() *Config { return w.next },
	}, testTimes)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	w.m = m
	go func() { w.done <- m.Run() }()
	t.Cleanup(func() {
		w.stop()
		reapAll(t)
		if t.Failed() {
			t.Logf("master:\n%s\nothers:\n%s", w.ownLog(), w.log())
		}
	})
	return w
}

// stop stops the master and waits for it. It may be called twice.
func (w *world) stop() {
	w.t.Helper()
	if w.m == nil {
		return
	}
	w.m.Stop()
	select {
	case err := <-w.done:
		if err != nil {
			w.t.Error(err)
		}
	case <-time.After(patience):
		w.t.Error("the master does not stop")
	}
	w.m = nil
}

// reapAll waits for children that a stopped master has left behind. Clients have been
// closed by then.
func reapAll(t *testing.T) {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, unix.WNOHANG, nil)
		if err == unix.ECHILD {
			return
		}
		if pid <= 0 && time.Now().After(end) {
			t.Error("children are left that do not end")
			return
		}
	}
}

// in runs f in the master's loop.
func (w *world) in(f func()) {
	done := make(chan bool)
	w.m.loop.post(func() { f(); close(done) })
	<-done
}

// service is the current generation's service.
func (w *world) service(name string) *service {
	for _, s := range w.m.gen.services {
		if s.Name == name {
			return s
		}
	}
	w.t.Fatalf("no service %s", name)
	return nil
}

// until waits until f, run in the loop, is true.
func (w *world) until(what string, f func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		ok := false
		w.in(func() { ok = f() })
		if ok {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("not in time: %s", what)
		}
	}
}

// processes waits until the service has n processes, of which avail take clients.
func (w *world) processes(name string, n, avail int) {
	w.t.Helper()
	w.until(fmt.Sprintf("%s: %d processes, %d available", name, n, avail), func() bool {
		s := w.service(name)
		for _, p := range s.processes {
			if !p.initialized {
				return false
			}
		}
		return len(s.processes) == n && s.avail == avail
	})
}

// says waits until f contains text.
func (w *world) says(f func() string, text string) {
	w.t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(f(), text); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("the log does not say %q:\n%s", text, f())
		}
	}
}

// A client is connected to a service.
type client struct {
	net.Conn
	t  *testing.T
	br *bufio.Reader
}

func (w *world) dial(name string) *client {
	w.t.Helper()
	return dialPath(w.t, filepath.Join(w.cfg.BaseDir, name))
}

func dialPath(t *testing.T, path string) *client {
	t.Helper()
	conn, err := net.DialTimeout("unix", path, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &client{conn, t, bufio.NewReader(conn)}
}

// say sends a line and returns the answer; "" when the connection is closed.
func (c *client) say(line string) string {
	c.t.Helper()
	fmt.Fprintln(c, line)
	return c.hear()
}

func (c *client) hear() string {
	s, _ := c.br.ReadString('\n')
	return strings.TrimSuffix(s, "\n")
}
