package authd

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/conf"
	"dovetail/internal/dovecot/config"
	"dovetail/internal/process/event"
	"dovetail/internal/standalone/configd"
	"dovetail/internal/testkit/need"
)

var record = flag.Bool("record", false, "record testdata/dialogs/*.txt from private instances of the installed Dovecot (as root)")

// A dialog is a configuration, passwd-files, and what is said on the auth service's
// sockets, recorded from Dovecot. One file, one dialog:
//
//	# comments, anywhere
//	conf:             dovecot.conf without what every one needs (baseConf); @DIR@ is its place
//	file NAME:        @DIR@/NAME
//	dialog:
//	L: AUTH|1|PLAIN|$A|resp={b64:\0alice\0apass}     sent on the socket login; | is TAB
//	l: OK|1|user=alice                              the reply
//	!: OK|1|user=alice|more                         ours, where we differ; a comment says why
//	log:              lines of the log, likewise; "!" alone: we have no such line; + only we
//
// Sockets: L login, M auth-master, C auth-client, U auth-userdb. After the letter stands the
// number of reply lines if it is not 1, x if the connection is closed, + for the greeting
// before anything is sent. $A is what every AUTH has, $PID our process ID, $COOKIE the
// cookie of L. {cram:user:password}, {scram-sha-1:user:password:authzid} and {next} are
// what a client answers. "do NAME ARGS" does something to the files.
//
// To record anew: go test ./internal/standalone/authd -run TestRecord -record
type dialog struct {
	path  string
	conf  string
	files [][2]string
	steps []string // of dialog:
	log   []string
}

const baseConf = `base_dir = @DIR@/run
state_dir = @DIR@/state
log_path = @DIR@/log
log_timestamp = ""
default_internal_user = root
default_internal_group = root
default_login_user = root
protocols = submission
listen = 127.0.0.1
hostname = mail.example.org
ssl = no
auth_failure_delay = 0
auth_verbose = yes
service submission-login {
  inet_listener submission {
    port = 0
  }
}
`

const commonFields = "service=submission|no-penalty|session=s1|lip=127.0.0.1|rip=127.0.0.1|lport=587|rport=40000"

func readDialog(t *testing.T, path string) dialog {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := dialog{path: path}
	section := ""
	for _, l := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		name, isFile := strings.CutPrefix(l, "file ")
		switch {
		case l == "conf:" || l == "dialog:" || l == "log:":
			section = l
		case isFile && strings.HasSuffix(l, ":") && section != "dialog:":
			section = "file"
			d.files = append(d.files, [2]string{strings.TrimSuffix(name, ":")})
		case section == "conf:":
			d.conf += l + "\n"
		case section == "file":
			d.files[len(d.files)-1][1] += l + "\n"
		case section == "dialog:":
			d.steps = append(d.steps, l)
		case section == "log:":
			d.log = append(d.log, l)
		}
	}
	return d
}

// head is the text of the file before "dialog:".
func (d dialog) head() string {
	b, _ := os.ReadFile(d.path)
	head, _, _ := strings.Cut(string(b), "dialog:\n")
	return head
}

// write writes files and configuration below dir.
func (d dialog) write(t *testing.T, dir string) (confPath string) {
	t.Helper()
	for _, sub := range []string{"run", "run/login", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range d.files {
		writeFile(t, filepath.Join(dir, f[0]), strings.ReplaceAll(f[1], "@DIR@", dir))
	}
	confPath = filepath.Join(dir, "dovecot.conf")
	writeFile(t, confPath, strings.ReplaceAll(baseConf+d.conf, "@DIR@", dir))
	return confPath
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// normalLog replaces what differs from run to run.
func normalLog(dir string, lines []string) []string {
	var out []string
	for _, l := range lines {
		l = strings.ReplaceAll(l, dir, "@DIR@")
		l = strings.ReplaceAll(l, "\t", "|")
		l = regexp.MustCompile(`\(created \d+ msecs ago(, handshake \d+ msecs ago)?\)`).ReplaceAllString(l, "(created ...)")
		l = strings.ReplaceAll(l, strconv.Itoa(os.Getpid()), "$PID")
		l = strings.ReplaceAll(l, strconv.Itoa(os.Getpid()+1), "$PID1")
		l = regexp.MustCompile(`\b[0-9a-f]{40}\b`).ReplaceAllString(l, "*")
		l = regexp.MustCompile(`\b[0-9a-f]{32}\b`).ReplaceAllString(l, "*")
		l = regexp.MustCompile(`uid=\d+\)`).ReplaceAllString(l, "uid=*)")
		if regexp.MustCompile(`^Debug: (client passdb out: CONT|master userdb out: |client in: CONT)`).MatchString(l) {
			l = regexp.MustCompile(`(CONT\|\d+\|).+`).ReplaceAllString(l, "$1*")
		}
		// What every instance of Dovecot says at start, and files read at other times.
		l = regexp.MustCompile(`^(\w+: passwd-file [^:]+:)(User)`).ReplaceAllString(l, "$1 $2") // Dovecot lacks the blank
		if regexp.MustCompile(`^Warning: Event 0x[0-9a-f]+ leaked`).MatchString(l) {
			continue // Dovecot's own
		}
		if strings.Contains(l, "auth token secret") || strings.Contains(l, "Loading modules") || strings.Contains(l, "Module loaded") ||
			regexp.MustCompile(`^Debug: passwd-file .*: ?Read \d+ users`).MatchString(l) {
			continue
		}
		out = append(out, l)
	}
	return out
}

func TestRecord(t *testing.T) {
	need.Asked(t, *record, "-record")
	need.Root(t)
	b := need.Dovecot(t)
	writeFile(t, "testdata/dialogs/version", b.Version+"\n")
	paths, _ := filepath.Glob("testdata/dialogs/*.txt")
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			d := readDialog(t, path)
			dir, err := os.MkdirTemp("", "authd")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(b.Dovecot, "-F", "-c", d.write(t, dir))
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			stop := func() {
				if cmd.Process != nil {
					_ = cmd.Process.Signal(syscall.SIGTERM)
					_ = cmd.Wait()
					cmd.Process = nil
				}
			}
			defer stop()
			for deadline := time.Now().Add(10 * time.Second); ; {
				if _, err := os.Stat(filepath.Join(dir, "run/auth-master")); err == nil {
					break
				} else if time.Now().After(deadline) {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond) // polling, with the deadline above
			}
			p := newPlayer(t, dir)
			said := p.play(d.steps)
			p.close()
			time.Sleep(200 * time.Millisecond) // for the log
			stop()
			text, err := os.ReadFile(filepath.Join(dir, "log"))
			if err != nil {
				t.Fatal(err)
			}
			var log []string
			for _, l := range strings.Split(string(text), "\n") {
				if l, ok := strings.CutPrefix(l, "auth: "); ok {
					log = append(log, l)
				}
			}
			out := d.head() + "dialog:\n" + strings.Join(keepOurs(d.steps, said), "\n") + "\nlog:\n"
			for _, l := range keepOurs(d.log, normalLog(dir, log)) {
				out += l + "\n"
			}
			writeFile(t, path, out)
		})
	}
}

// keepOurs puts the lines of old that are about us behind the same lines of new.
func keepOurs(old, new []string) []string {
	var out []string
	used := map[int]bool{}
	isOurs := func(l string) bool {
		return strings.HasPrefix(l, "!") || strings.HasPrefix(l, "+") || strings.HasPrefix(l, "#")
	}
	for i := 0; i < len(old) && isOurs(old[i]) && !contains(new, old[i]); i++ {
		out = append(out, old[i])
		used[i] = true
	}
	for _, n := range new {
		out = append(out, n)
		for i, l := range old {
			if l != n || isOurs(l) || used[i] {
				continue
			}
			used[i] = true
			for j := i + 1; j < len(old) && isOurs(old[j]) && !contains(new, old[j]); j++ {
				out = append(out, old[j])
				used[j] = true
			}
			break
		}
	}
	return out
}

func contains(lines []string, l string) bool {
	for _, x := range lines {
		if x == l {
			return true
		}
	}
	return false
}

// A memory is a log.
type memory struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

func (m *memory) Log(level event.Level, _, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lines = append(m.lines, level.String()+": "+text)
}

func (m *memory) get() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.lines...)
}

// settingsOf loads a configuration the way the auth role does.
func settingsOf(t *testing.T, path string) (Settings, error) {
	t.Helper()
	cfg, diags := conf.Load(path, conf.Options{Expand: true})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	here, there := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends when the pipe is closed
		defer close(done)
		configd.New(cfg, nil).Serve(ctx, there)
	}()
	defer func() { cancel(); here.Close(); <-done }()
	if _, err := io.WriteString(here, "VERSION\tconfig\t2\t0\n"); err != nil {
		t.Fatal(err)
	}
	return Load(config.NewClient(here))
}

// start serves all sockets of a configuration.
func start(t *testing.T, dir, confPath string, opt Options) *Server {
	t.Helper()
	set, err := settingsOf(t, confPath)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(set, opt)
	if err != nil {
		t.Fatal(err)
	}
	listen(t, s, dir)
	return s
}

func listen(t *testing.T, s *Server, dir string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var listeners []net.Listener
	for _, name := range sockets {
		path := filepath.Join(dir, "run", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		wg.Add(1)
		go func() { // ends when the listener is closed
			defer wg.Done()
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Add(1)
				go func() { // ends when the client leaves, or with ctx
					defer wg.Done()
					s.Serve(ctx, c, filepath.Base(path), path)
				}()
			}
		}()
	}
	t.Cleanup(func() {
		s.Close()
		cancel()
		for _, l := range listeners {
			l.Close()
		}
		wg.Wait()
	})
}

// want is the recorded section with our differences put in.
func want(lines []string) (out []string) {
	for _, l := range lines {
		text, ours := strings.CutPrefix(l, "!")
		switch {
		case strings.HasPrefix(l, "#") || l == "":
		case strings.HasPrefix(l, "+"):
			out = append(out, l[1:])
		case ours && strings.HasPrefix(text, ": "):
			last := out[len(out)-1]
			out[len(out)-1] = last[:3] + text[2:]
		case ours && text == "":
			out = out[:len(out)-1]
		case ours:
			out[len(out)-1] = text
		default:
			out = append(out, l)
		}
	}
	return out
}

func diff(want, got []string) string {
	var b strings.Builder
	for i := 0; i < len(want) || i < len(got); i++ {
		w, g := "(nothing)", "(nothing)"
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			fmt.Fprintf(&b, "line %d\n  want %s\n  got  %s\n", i+1, w, g)
		}
	}
	return b.String()
}

// What is said to us gets the replies, and leaves the lines in the log, that Dovecot's auth
// service gave.
func TestDialogs(t *testing.T) {
	if *record {
		return // TestRecord writes them
	}
	paths, _ := filepath.Glob("testdata/dialogs/*.txt")
	if len(paths) == 0 {
		t.Fatal("no dialogs")
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			t.Parallel()
			d := readDialog(t, path)
			dir := shortTemp(t)
			var log memory
			start(t, dir, d.write(t, dir), Options{Log: event.New(&log, "", false)})
			p := newPlayer(t, dir)
			said := p.play(d.steps)
			p.close()
			if text := diff(want(d.steps), want(said)); text != "" {
				t.Errorf("%s: replies\n%s", path, text)
			}
			wanted := want(d.log)
			var got []string
			for deadline := time.Now().Add(10 * time.Second); ; { // lines at the end come when the connection's end is seen
				got = normalLog(dir, log.get())
				if len(got) >= len(wanted) || time.Now().After(deadline) {
					break
				}
				time.Sleep(5 * time.Millisecond) // polling, with the deadline above
			}
			if text := diff(wanted, got); text != "" {
				t.Errorf("%s: log\n%s", path, text)
			}
		})
	}
}

// shortTemp is a directory whose sockets have names that are short enough.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "authd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
