package config

import (
	"bufio"
	"bytes"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/need"
)

var record = flag.Bool("record", false, "record testdata/*.golden from a private instance of the installed Dovecot (as root)")

// The golden files hold what Dovecot's config service answered, one dialog a file:
// request lines after "C: ", reply lines after "S: ". version is the recorded program's.
//
// To record anew: go test -run TestRecord -record ./internal/dovecot/config
var dialogs = map[string][]string{
	"login":         {"REQ\tmodule=submission-login\tmodule=ssl-server\tservice=submission"},
	"login-local":   {"REQ\tmodule=submission-login\tmodule=ssl-server\tservice=submission\tlip=192.0.2.7\trip=203.0.113.9"},
	"login-remote":  {"REQ\tmodule=submission-login\tservice=submission\tlip=127.0.0.1\trip=198.51.100.9"},
	"login-name":    {"REQ\tmodule=submission-login\tservice=submission\tlip=127.0.0.1\trip=203.0.113.9\tlname=MX.Example.NET", "REQ\tmodule=submission-login\tservice=submission\tlname=b.example.com"},
	"login-exclude": {"REQ\tmodule=login\tmodule=ssl\tservice=submission\texclude=ssl_client_ca_file\texclude=login_greeting"},
	"worker":        {"REQ\tmodule=submission\tmodule=ssl\tservice=submission\tuser=alice\tlip=127.0.0.1\trip=198.51.100.9"},
	"auth":          {"REQ\tmodule=auth\tservice=auth", "REQ\tmodule=auth\tservice=submission"},
	"other-service": {"REQ\tmodule=submission\tservice=imap", "REQ\tmodule=login\tservice=pop3"},
	"no-service":    {"REQ\tmodule=login", "REQ\tmodule=submission\tlip=192.0.2.7"},
	"conflict":      {"REQ\tmodule=login\tlip=192.0.2.7\trip=198.51.100.1"},
	"unknown":       {"HELLO\tthere", "REQ\tmodule=nosuch\tservice=submission", "REQ\tmodule=stats\tservice=stats\tfoo=bar\tlip=nonsense"},
	"filters":       {"FILTERS"},
	"everything":    {"REQ", "REQ\tservice=submission"},
}

func TestRecord(t *testing.T) {
	need.Asked(t, *record, "-record")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("testdata/golden.conf")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"run", "state"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "cert.pem"), "-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n")
	write(t, filepath.Join(dir, "key.pem"), "-----BEGIN KEY-----\r\nnot one\n-----END KEY-----")
	conf := filepath.Join(dir, "dovecot.conf")
	write(t, conf, strings.ReplaceAll(string(text), "@DIR@", dir))
	cmd := exec.Command("dovecot", "-F", "-c", conf)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	sock := filepath.Join(dir, "run/config")
	for deadline := time.Now().Add(10 * time.Second); ; {
		if c, err := net.Dial("unix", sock); err == nil {
			c.Close()
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // polling, with the deadline above
	}
	version, err := exec.Command("dovecot", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	write(t, "testdata/version", string(version))
	for name, lines := range dialogs {
		write(t, "testdata/"+name+".golden", strings.ReplaceAll(dialog(t, sock, lines), dir, "@DIR@"))
	}
}

// dialog sends each line on one new connection and returns what was said.
func dialog(t *testing.T, sock string, lines []string) string {
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(conn)
	var out strings.Builder
	if _, err := io.WriteString(conn, versionCmd); err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		out.WriteString("C: " + l + "\n")
		if _, err := io.WriteString(conn, l+"\n"); err != nil {
			t.Fatal(err)
		}
		word, _, _ := strings.Cut(l, "\t")
		for first := word == "REQ"; word == "REQ" || word == "FILTERS"; first = false {
			s, err := br.ReadString('\n')
			if err == io.EOF { // it cannot answer
				return out.String() + "closed\n"
			}
			if err != nil {
				t.Fatalf("%s: %v after %s", l, err, out.String())
			}
			out.WriteString("S: " + s)
			if s == "\n" && !first {
				break
			}
		}
	}
	return out.String()
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// golden returns the dialogs of a golden file as pairs of request line and raw reply.
func golden(t *testing.T, path string) (out [][2]string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.SplitAfter(string(b), "\n") {
		if c, ok := strings.CutPrefix(l, "C: "); ok {
			out = append(out, [2]string{strings.TrimSuffix(c, "\n"), ""})
		} else if s, ok := strings.CutPrefix(l, "S: "); ok {
			out[len(out)-1][1] += s
		}
	}
	return out
}

// Every recorded answer is read, and written again to the byte.
func TestAnswerMatchesDovecot(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.golden")
	if len(files) == 0 {
		t.Fatal("no golden files")
	}
	for _, f := range files {
		for _, d := range golden(t, f) {
			if !strings.HasPrefix(d[0], "REQ") || !strings.HasSuffix(d[1], "\n\n") {
				continue
			}
			a, err := ReadAnswer(bufio.NewReader(strings.NewReader(d[1])))
			if err != nil {
				t.Errorf("%s: %s: %v", f, d[0], err)
				continue
			}
			var pairs []Pair
			for _, l := range strings.Split(d[1], "\n")[1:] {
				if k, v, ok := strings.Cut(l, "="); ok {
					pairs = append(pairs, Pair{k, decode(v)})
				}
			}
			if got := a.AppendPairs(nil, pairs); !bytes.Equal(got, []byte(d[1])) {
				t.Errorf("%s: %s:\ngot  %q\nwant %q", f, d[0], got, d[1])
			}
			for i := range len(d[1]) {
				if _, err := ReadAnswer(bufio.NewReader(strings.NewReader(d[1][:i]))); err == nil {
					t.Errorf("%s: %s: the first %d bytes are taken for an answer", f, d[0], i)
				}
			}
		}
	}
}
