package anvild

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/dovecot/anvil"
	"dovetail/internal/process/event"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/need"
)

// lines collects what is logged.
type lines struct {
	mu  sync.Mutex
	all []string // guarded by mu
}

func (l *lines) Log(level event.Level, prefix, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, text)
}

func (l *lines) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.all
	l.all = nil
	return all
}

func newServer() (*Server, *lines) {
	l := &lines{}
	return New(event.New(l, "anvil: ", false)), l
}

// serve runs s behind a socket, as a master would, until the test ends.
func serve(t *testing.T, s *Server, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "anvil")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { // ends when l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.Serve(ctx, c) }) // ends with ctx
		}
	})
	t.Cleanup(func() { l.Close(); cancel(); wg.Wait() })
	return path
}

// A dialog of the golden file: what was sent, what the real anvil said, and whether it
// closed.
type dialog struct {
	sent   string
	got    []string
	closed bool
}

func goldenDialogs(t *testing.T) (all []dialog, log []string) {
	t.Helper()
	b, err := os.ReadFile("../../dovecot/anvil/testdata/dialogs.golden")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		word, quoted, _ := strings.Cut(l, ": ")
		text := ""
		if quoted != "" {
			if text, err = strconv.Unquote(quoted); err != nil {
				t.Fatal(err)
			}
		}
		switch word {
		case "C":
			all = append(all, dialog{sent: text})
		case "S":
			all[len(all)-1].got = append(all[len(all)-1].got, text)
		case "closed":
			all[len(all)-1].closed = true
		case "L":
			log = append(log, text)
		default:
			t.Fatalf("line %q", l)
		}
	}
	return all, log
}

var anyTime = regexp.MustCompile(`[0-9]{10}\b`)

// comparable takes times out, and sorts the lines of a dump, which the real one has in the
// order of a hash.
func comparable(got []string) []string {
	out := make([]string, len(got))
	for i, l := range got {
		out[i] = anyTime.ReplaceAllString(l, "TIME")
	}
	if slices.Contains(out, "\n") {
		slices.Sort(out)
	}
	return out
}

// Everything that the real anvil answered, and logged, this one does.
func TestDialogsOfDovecot(t *testing.T) {
	leak.Check(t)
	s, log := newServer()
	path := serve(t, s, t.TempDir())
	dialogs, wantLog := goldenDialogs(t)
	for _, d := range dialogs {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(conn, d.sent)
		_, _ = io.WriteString(conn, "LOOKUP\tx/y/end\n")
		if !d.closed {
			_ = conn.(*net.UnixConn).CloseWrite()
		}
		b, err := io.ReadAll(conn)
		if err != nil && !d.closed {
			t.Fatalf("%q: %v", d.sent, err)
		}
		text, found := strings.CutSuffix(string(b), "77\n")
		if found == d.closed {
			t.Errorf("%q: closed is %v, want %v", d.sent, !found, d.closed)
		}
		got := strings.SplitAfter(text, "\n")
		got = got[:len(got)-1]
		if g, w := comparable(got), comparable(d.got); !slices.Equal(g, w) {
			t.Errorf("%q:\ngot  %q\nwant %q", d.sent, g, w)
		}
		conn.Close()
	}
	if got := log.take(); !slices.Equal(got, wantLog) {
		t.Errorf("log:\ngot  %q\nwant %q", got, wantLog)
	}
}

// The pipes of a master: everybody's goes on after what is wrong, and only the master
// kills.
func TestPipes(t *testing.T) {
	s, log := newServer()
	err := s.ServePipe(strings.NewReader("CONNECT\t1\told\n"+strings.Repeat("y", 5000)+"\n"+
		"VERSION\tanvil\t1\t0\nCONNECT\t1\ta\nCONNECT\t2\ta\nCONNECT\t2\tb\nVERSION\tanvil\t1\t0\n\nDISCONNECT\t1\ta\n"+
		"DISCONNECT\t1\ta\nKILL\t2\nLOOKUP\ta\nPENALTY-INC\tx\t1\t1\nCONNECT\t1\n"+strings.Repeat("x", 3000)+"\nCONNECT\t3\ta\nCONNECT\t4\tcut"), Everybody)
	if err != nil {
		t.Error(err)
	}
	want := []string{
		"connect limit: disconnection for unknown pid 1 + ident a",
		"Anvil client input error: KILL sent by a non-master connection",
		`Anvil client input error: "LOOKUP\ta" on a FIFO, can't send reply`,
		`Anvil client input error: "PENALTY-INC\tx\t1\t1" on a FIFO, can't send reply`,
		"Anvil client input error: CONNECT: Not enough parameters",
		"Anvil client input error: line of more than 1024 bytes",
	}
	if got := log.take(); !slices.Equal(got, want) {
		t.Errorf("log %q", got)
	}
	if got := fmt.Sprint(s.sessions.idents, s.sessions.pids); got != "map[a:2 b:1] map[2:map[a:1 b:1] 3:map[a:1]]" {
		t.Error(got)
	}
	if err := s.ServePipe(strings.NewReader("VERSION\tanvil\t1\t0\nKILL\t2\nKILL\t99\n"), FromMaster); err != nil {
		t.Error(err)
	}
	if got := fmt.Sprint(s.sessions.idents, s.sessions.pids, s.sessions.pairs); got != "map[a:1] map[3:map[a:1]] 1" {
		t.Error(got)
	}
	if got := log.take(); len(got) > 0 {
		t.Errorf("log %q", got)
	}
}

// Penalties are forgotten when nothing has happened for long enough, and the number of
// them is bounded.
func TestPenaltiesEnd(t *testing.T) {
	var p penalties
	p.init()
	now := time.Unix(1795543698, 0)
	p.now = func() time.Time { return now }
	p.set("a", 1, 2)
	now = now.Add(59 * time.Minute)
	p.set("b", 1, 2)
	p.set("c", 0, 5)
	now = now.Add(2 * time.Minute)
	if a, b := p.get("a"), p.get("b"); a != (anvil.Penalty{}) || b.Value != 2 || !b.Last.Equal(now.Add(-2*time.Minute)) {
		t.Error(a, b)
	}
	p.setExpire(time.Minute)
	if b := p.get("b"); b != (anvil.Penalty{}) || len(p.by) != 0 || p.order.Len() != 0 {
		t.Error(b)
	}
	for i := range maxPenalties + 3 {
		p.set(strconv.Itoa(i), 0, 1)
	}
	if len(p.by) != maxPenalties || p.get("2").Value != 0 || p.get("3").Value != 1 {
		t.Error(len(p.by))
	}
}

// More sessions than the bound are not counted, and that is told once.
func TestSessionsAreBounded(t *testing.T) {
	var s sessions
	s.init()
	s.pairs = maxSessions - 1
	for ident, want := range map[string]error{"a": nil} {
		if err := s.connect(1, ident); err != want {
			t.Error(err)
		}
	}
	if err := s.connect(1, "b"); err != errFull {
		t.Error(err)
	}
	if err := s.connect(1, "b"); err != nil {
		t.Error(err)
	}
	if err := s.connect(1, "a"); err != nil || s.count("a") != 2 || s.count("b") != 0 {
		t.Error(err)
	}
	s.kill(1)
	if err := s.connect(1, "b"); err != nil || s.count("b") != 1 {
		t.Error(err)
	}
}

// The real doveadm shows and kicks what we count.
func TestRealDoveadm(t *testing.T) {
	bin := need.Dovecot(t)
	need.Root(t) // doveadm wants to read its configuration as root
	dir := t.TempDir()
	conf := filepath.Join(dir, "dovecot.conf")
	if err := os.WriteFile(conf, []byte("base_dir = "+dir+"\nssl = no\nlog_path = /dev/stderr\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, log := newServer()
	path := serve(t, s, dir)
	if err := os.Symlink(path, filepath.Join(dir, "anvil-auth-penalty")); err != nil {
		t.Fatal(err)
	}
	doveadm := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(bin.Doveadm, append([]string{"-c", conf}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("doveadm %q: %v\n%s", args, err, out)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	victim := exec.Command("sleep", "60") // what kick ends
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // ends with the process, which kick ends
		defer close(ended)
		_ = victim.Wait()
	}()
	defer func() { _ = victim.Process.Signal(syscall.SIGKILL); <-ended }()
	pid := victim.Process.Pid
	err := s.ServePipe(strings.NewReader(fmt.Sprintf("VERSION\tanvil\t1\t0\nCONNECT\t%d\tsubmission/192.0.2.7/alice\nCONNECT\t%d\tsubmission/192.0.2.7/alice\nCONNECT\t4\tsubmission/2001:db8::9/bob\n", pid, pid)), Everybody)
	if err != nil {
		t.Fatal(err)
	}
	out := doveadm("who")
	for _, want := range []string{
		fmt.Sprintf("alice 2 submission (%d) (192.0.2.7)", pid), "bob 1 submission (4) (2001:db8::9)",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("who: %s", out)
		}
	}
	if out := doveadm("who", "bob"); strings.Contains(out, "alice") || !strings.Contains(out, "bob") {
		t.Errorf("who bob: %s", out)
	}
	s.penalties.set("192.0.2.1", 77, 2)
	if out := doveadm("penalty"); !strings.Contains(out, "192.0.2.1 2 ") {
		t.Errorf("penalty: %s", out)
	}
	if out := doveadm("kick", "alice"); !strings.Contains(out, "kicked connections from the following users:") || !strings.Contains(out, "alice") {
		t.Errorf("kick: %s", out)
	}
	<-ended
	if got := log.take(); len(got) > 0 {
		t.Errorf("log %q", got)
	}
}

// Whatever comes on the pipe or a connection, the counts stay consistent.
func FuzzServer(f *testing.F) {
	b, err := os.ReadFile("../../dovecot/anvil/testdata/dialogs.golden")
	if err != nil {
		f.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		if q, ok := strings.CutPrefix(l, "C: "); ok {
			text, _ := strconv.Unquote(q)
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := New(nil)
		if err := s.ServePipe(strings.NewReader(text), FromMaster); err != nil {
			t.Error(err)
		}
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() { // ends with near
			defer close(done)
			s.Serve(context.Background(), far)
		}()
		go func() { _, _ = io.Copy(io.Discard, near) }() // ends with near
		_, _ = io.WriteString(near, text)
		near.Close()
		<-done
		sum, pairs := map[string]int{}, 0
		for _, of := range s.sessions.pids {
			if len(of) == 0 {
				t.Error("a process without sessions")
			}
			for ident, n := range of {
				sum[ident] += n
				pairs++
			}
		}
		if fmt.Sprint(sum) != fmt.Sprint(s.sessions.idents) || pairs != s.sessions.pairs {
			t.Errorf("%v, %d and %v, %d", sum, pairs, s.sessions.idents, s.sessions.pairs)
		}
		if len(s.penalties.by) != s.penalties.order.Len() {
			t.Error("penalties")
		}
	})
}
