package configd

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/conf"
	"dovetail/internal/dovecot/config"
	"dovetail/internal/process/event"
)

const golden = "../../dovecot/config/testdata/"

// write puts a file into dir.
func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// load reads a configuration without the checks of standalone.
func load(t testing.TB, path string) *conf.Config {
	t.Helper()
	cfg, diags := conf.Load(path, conf.Options{Expand: true})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return cfg
}

// The recorded dialogs of Dovecot's config service: the same header, the same lines. Their
// order does not matter; that an unnamed passdb has an empty name is left out.
func TestAnswersAreDovecots(t *testing.T) {
	dir := t.TempDir()
	text, err := os.ReadFile(golden + "golden.conf")
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "cert.pem", "-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n")
	write(t, dir, "key.pem", "-----BEGIN KEY-----\r\nnot one\n-----END KEY-----")
	cfg := load(t, write(t, dir, "dovecot.conf", strings.ReplaceAll(string(text), "@DIR@", dir)))
	files, _ := filepath.Glob(golden + "*.golden")
	if len(files) == 0 {
		t.Fatal("no golden files")
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		client, closed := dial(t, New(cfg, nil))
		var want []string
		ask := ""
		check := func() {
			if ask == "" {
				return
			}
			got := read(t, client, strings.HasPrefix(ask, "REQ"))
			if a, b := normal(got, dir), normal(want, dir); a != b {
				t.Errorf("%s: %s:\n%s", filepath.Base(f), ask, diff(a, b))
			}
		}
		for _, l := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
			switch {
			case strings.HasPrefix(l, "C: "):
				check()
				ask, want = "", nil
				if _, err := io.WriteString(client.conn, l[3:]+"\n"); err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(l, "C: REQ") || strings.HasPrefix(l, "C: FILTERS") {
					ask = l[3:]
				}
			case l == "closed":
				if s, err := client.br.ReadString('\n'); err != io.EOF {
					t.Errorf("%s: %s: answered %q, %v", f, ask, s, err)
				}
				ask = ""
			default:
				want = append(want, strings.TrimPrefix(l, "S: "))
			}
		}
		check()
		client.conn.Close()
		<-closed
	}
}

type client struct {
	conn net.Conn
	br   *bufio.Reader
}

// dial connects to a server; closed is closed when it has ended.
func dial(t testing.TB, s *Server) (client, <-chan struct{}) {
	a, b := net.Pipe()
	closed := make(chan struct{})
	go func() { // ends when b is closed
		s.Serve(context.Background(), a)
		close(closed)
	}()
	if err := b.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(b, "VERSION\tconfig\t2\t0\n"); err != nil {
		t.Fatal(err)
	}
	return client{b, bufio.NewReader(b)}, closed
}

// read reads a reply: up to an empty line, which with a header cannot be the first.
func read(t testing.TB, c client, header bool) (lines []string) {
	for {
		l, err := c.br.ReadString('\n')
		if err != nil {
			t.Fatalf("%v after %q", err, lines)
		}
		lines = append(lines, strings.TrimSuffix(l, "\n"))
		if l == "\n" && (len(lines) > 1 || !header) {
			return lines
		}
	}
}

func normal(lines []string, dir string) string {
	head, rest := lines[0], slices.Clone(lines[1:])
	if strings.HasPrefix(head, "FILTER") {
		return strings.Join(lines, "\n")
	}
	rest = slices.DeleteFunc(rest, func(l string) bool { return strings.HasSuffix(l, "/name=") })
	for i := range rest {
		rest[i] = strings.ReplaceAll(rest[i], dir, "@DIR@")
	}
	slices.Sort(rest)
	return head + "\n" + strings.Join(rest, "\n")
}

func diff(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	var b strings.Builder
	for _, l := range g {
		if !slices.Contains(w, l) {
			b.WriteString("more: " + l + "\n")
		}
	}
	for _, l := range w {
		if !slices.Contains(g, l) {
			b.WriteString("less: " + l + "\n")
		}
	}
	if b.Len() == 0 {
		return "in another order:\n" + got
	}
	return b.String()
}

// What the protocol does not allow ends the connection, without an answer.
func TestRefusals(t *testing.T) {
	cfg := load(t, write(t, t.TempDir(), "c", "hostname = x\n"))
	for _, line := range []string{"REQ\tlname=" + strings.Repeat("x", 1100) + "\n", strings.Repeat("x", 1025)} {
		var said []string
		log := event.New(event.SinkFunc(func(_ event.Level, _, text string) { said = append(said, text) }), "", false)
		c, closed := dial(t, New(cfg, log))
		_, _ = io.WriteString(c.conn, line)
		if s, err := c.br.ReadString('\n'); err != io.EOF {
			t.Errorf("%.20q: %q, %v", line, s, err)
		}
		<-closed
		if len(said) != 1 || !strings.Contains(said[0], "1024") {
			t.Errorf("%.20q: logged %q", line, said)
		}
	}
	// The longest line is answered; so is one after words that nobody knows.
	c, closed := dial(t, New(cfg, nil))
	line := "REQ\tservice=submission\tlname="
	for _, l := range []string{"NOSUCH\tword\n", "\n", line + strings.Repeat("x", config.MaxRequest-len(line)-1) + "\n"} {
		if _, err := io.WriteString(c.conn, l); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, c, true); !slices.Contains(got, "hostname=x") {
		t.Errorf("%q", got)
	}
	c.conn.Close()
	<-closed
}

// Another protocol or version is refused.
func TestVersion(t *testing.T) {
	cfg := load(t, write(t, t.TempDir(), "c", "hostname = x\n"))
	for _, line := range []string{"VERSION\tconfig\t3\t0\n", "VERSION\tauth\t2\t0\n", "REQ\n"} {
		a, b := net.Pipe()
		done := make(chan struct{})
		go func() { // ends at the first line
			New(cfg, nil).Serve(context.Background(), a)
			close(done)
		}()
		if _, err := io.WriteString(b, line); err != nil {
			t.Fatal(err)
		}
		<-done
		if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%q: %d, %v", line, n, err)
		}
	}
}

// Stopping the process closes idle connections.
func TestStop(t *testing.T) {
	cfg := load(t, write(t, t.TempDir(), "c", ""))
	ctx, cancel := context.WithCancel(context.Background())
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() { // ends when ctx is done
		New(cfg, nil).Serve(ctx, a)
		close(done)
	}()
	if _, err := io.WriteString(b, "VERSION\tconfig\t2\t0\n"); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
}

// A configuration that is wrong is told in one line.
func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(write(t, dir, "bad", "protocols = submission\nhostnam = x\nssl = maybe\n")); err == nil ||
		err.Error() != dir+"/bad line 2: Unknown setting: hostnam (and 1 more errors)" && !strings.Contains(err.Error(), "more errors") {
		t.Errorf("%v", err)
	}
	if _, err := Load(filepath.Join(dir, "nosuch")); err == nil || !strings.Contains(err.Error(), "open("+dir+"/nosuch) failed: No such file or directory") {
		t.Errorf("%v", err)
	}
}

func BenchmarkAnswer(b *testing.B) {
	s := New(load(b, write(b, b.TempDir(), "c", "hostname = x\nlocal_name *.example.org {\n  login_greeting = x\n}\nprotocol submission {\n  mail_plugins = y\n}\n")), nil)
	r := config.Request{Modules: []string{"submission-login", "ssl-server"}, Service: "submission", LocalName: "mx.example.org"}
	var out []byte
	for b.Loop() {
		var err error
		if out, err = s.Answer(out[:0], r); err != nil {
			b.Fatal(err)
		}
	}
}
