package master

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/event"
)

// Descriptors of systemd go to the listeners of their address, else of their port; what
// nobody wants is closed, and named.
func TestInheritedListeners(t *testing.T) {
	w := &world{t: t}
	log := event.New(w, "master: ", false)
	ln := func() (int, netip.AddrPort) {
		fd, err := listenInet(netip.MustParseAddrPort("127.0.0.1:0"), 4, false)
		if err != nil {
			t.Fatal(err)
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		return fd, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
	}
	a, addrA := ln()
	b, addrB := ln()
	c, addrC := ln()
	defer unix.Close(a)
	defer unix.Close(b)
	in := &inherited{fds: []int{a, b, c}, addrs: []netip.AddrPort{addrA, addrB, addrC}}
	if got := in.take(addrB); got != b {
		t.Errorf("got %d, want %d", got, b)
	}
	if got := in.take(netip.AddrPortFrom(netip.IPv4Unspecified(), addrA.Port())); got != a {
		t.Errorf("of any address: got %d, want %d", got, a)
	}
	if got := in.take(netip.AddrPortFrom(netip.IPv6Unspecified(), addrC.Port())); got != -1 {
		t.Errorf("of another family: got %d", got)
	}
	in.closeRest(log)
	if !strings.Contains(w.ownLog(), fmt.Sprintf("systemd listens on port %d, but it's not configured", addrC.Port())) {
		t.Errorf("log: %s", w.ownLog())
	}
	if err := unix.Close(c); err != unix.EBADF {
		t.Errorf("it is still open: %v", err)
	}
	for _, env := range []map[string]string{{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": fmt.Sprint(os.Getpid()), "LISTEN_FDS": "x"}} {
		if in := takeInherited(func(n string) string { return env[n] }, log); len(in.fds) > 0 {
			t.Errorf("%v: %v", env, in.fds)
		}
	}
}

// systemd hears of every change.
func TestNotify(t *testing.T) {
	dir, err := os.MkdirTemp("", "dt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", dir+"/notify")
	hears := func(want string) {
		t.Helper()
		b := make([]byte, 1000)
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), want) {
			t.Fatalf("got %q %v, want %s", b[:n], err, want)
		}
	}
	cfg := config(t)
	w := run(t, cfg)
	hears(fmt.Sprintf("READY=1\nSTATUS=v0 running\nMAINPID=%d", os.Getpid()))
	w.in(func() { w.next = cfg })
	unix.Kill(os.Getpid(), unix.SIGHUP)
	hears("RELOADING=1\nMONOTONIC_USEC=")
	hears("READY=1")
	w.m.Stop()
	hears("STOPPING=1")
	w.stop()
	hears("STATUS=stopped")
}

// With reuse_port every process has a socket of its own, besides the one that all share:
// no client is lost to a socket that nobody accepts from.
func TestReusePort(t *testing.T) {
	cfg := config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 4, ProcessMinAvail: 2, ClientLimit: 50})
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	cfg.Services[2].Listeners = append(cfg.Services[2].Listeners, Listener{
		Kind: Inet, Addr: addr, Address: "127.0.0.1", ReusePort: true, Listener: masterproto.Listener{Name: "in"},
	})
	w := run(t, cfg)
	w.processes("echo", 2, 2)
	if got := w.dial("echo").say("env SOCKET_COUNT"); got != "3" {
		t.Errorf("SOCKET_COUNT=%s", got)
	}
	pids := map[string]bool{}
	for range 40 {
		conn, err := net.DialTimeout("tcp", addr.String(), patience)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(conn, "pid")
		b := make([]byte, 20)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal("a client was not served")
		}
		pids[string(b[:n])] = true
	}
	if len(pids) != 2 {
		t.Errorf("served by %v", pids)
	}
}

// Who waits at a listener when the master stops is not reset, but finds a clean end.
func TestStopWithClientsWaiting(t *testing.T) {
	cfg := config(t, Service{Name: "echo", Command: program("echo"), ProcessLimit: 1, ClientLimit: 1})
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	cfg.Services[2].Listeners = []Listener{{Kind: Inet, Addr: addr, Address: "127.0.0.1", Listener: masterproto.Listener{Name: "in"}}}
	w := run(t, cfg)
	w.in(func() { w.m.times.drop = patience }) // they wait
	dial := func() net.Conn {
		conn, err := net.DialTimeout("tcp", addr.String(), patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(patience))
		return conn
	}
	busy := &client{dial(), t, nil}
	busy.br = bufio.NewReader(busy)
	if got := busy.say("x"); got != "x" {
		t.Fatalf("%q", got)
	}
	silent, early := dial(), dial()
	fmt.Fprintln(early, "I say something first")
	w.stop()
	for what, conn := range map[string]net.Conn{"a silent client": silent, "an early one": early} {
		if b, err := io.ReadAll(conn); len(b) != 0 || err != nil {
			t.Errorf("%s: %q, %v, want the end", what, b, err)
		}
	}
	if got := busy.say("y"); got != "y" {
		t.Errorf("the session got %q", got)
	}
	if conn, err := net.DialTimeout("tcp", addr.String(), patience); err == nil {
		conn.Close()
		t.Error("somebody listens")
	}
}

// Timers run in their order, and one that was stopped in time does not.
func TestLoop(t *testing.T) {
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	note := func(s string) func() { return func() { got = append(got, s) } }
	var third *timer
	l.after(0, func() { note("first")(); third.stop() })
	l.after(0, note("second"))
	third = l.after(0, note("third"))
	l.after(3*time.Millisecond, func() { note("late")(); l.quit() })
	l.after(2*time.Millisecond, note("later"))
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	unix.Close(p[1])
	var w *watch
	w = l.watch(p[0], func() { note("readable")(); w.stop(); unix.Close(p[0]) })
	l.post(note("posted"))
	if err := l.serve(); err != nil {
		t.Fatal(err)
	}
	l.close()
	l.post(note("never"))
	want := "posted first second readable later late"
	if s := strings.Join(got, " "); s != want && s != "posted first second readable late later" {
		t.Errorf("got %s, want %s", s, want)
	}
	if third.pending() {
		t.Error("a stopped timer is pending")
	}
	var none *timer
	none.stop()
	var nobody *watch
	nobody.stop()
}

// A FIFO stays, whoever writes to it.
func TestFIFO(t *testing.T) {
	cfg := config(t)
	l := cfg.unix("fifo")
	l.Kind, l.Mode = FIFO, 0o620
	s := newSocket(&cfg.Services[0], l)
	if err := os.MkdirAll(cfg.BaseDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.Path, []byte("in the way"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.open(true); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(l.Path)
	if err != nil || st.Mode() != os.ModeNamedPipe|0o620 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	s.undo()
	if b, err := os.ReadFile(l.Path); err != nil || string(b) != "in the way" {
		t.Errorf("undo: %q %v", b, err)
	}
	if err := s.open(true); err != nil {
		t.Fatal(err)
	}
	s.settle()
	s.close()
	if left, _ := filepath.Glob(cfg.BaseDir + "/*~"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A master that was killed leaves its pid file, and processes that close their listeners a
// moment later. That is waited for.
func TestOrphansCloseTheirListeners(t *testing.T) {
	cfg := config(t, Service{Name: "echo", Command: program("echo")})
	inet, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inet.Close()
	cfg.Services[2].Listeners = append(cfg.Services[2].Listeners, Listener{Kind: Inet, Addr: inet.Addr().(*net.TCPAddr).AddrPort()})
	if err := os.MkdirAll(cfg.BaseDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.BaseDir, PIDFile), []byte("99999999\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := net.Listen("unix", filepath.Join(cfg.BaseDir, "echo"))
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends when somebody looks whether it is there
		if conn, err := old.Accept(); err == nil {
			conn.Close()
		}
		old.Close()
		inet.Close()
	}()
	w := run(t, cfg)
	if w.dial("echo").say("x") != "x" {
		t.Error("not served")
	}
}
