package proxy

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// With verbose_proctitle ps shows what the login process does.
func TestTitles(t *testing.T) {
	onBoth(t, systems, func(t *testing.T, sys system.System) {
		f := start(t, sys, []user{{name: "u", relay: &relay.Options{}}}, oneProcess, "verbose_proctitle = yes", trusting)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", f.RelayPort)) // the worker's
		if err != nil {
			t.Fatal(err)
		}
		relay.Start(t, relay.Options{Listener: l})
		shows := func(want string) {
			t.Helper()
			got := ""
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				titles := f.titles()
				if got = strings.Join(titles, "; "); got == want {
					return
				}
				if time.Now().After(end) {
					t.Fatalf("title %q, want %q", got, want)
				}
			}
		}
		a := f.dial(t, client.Options{From: "127.0.0.2"})
		shows("[127.0.0.2 pre-login]")
		a.Close()
		shows("")
		p := passes(t, f, "u", client.Options{})
		shows("[127.0.0.1 proxy]")
		b := f.dial(t, client.Options{From: "127.0.0.3"})
		shows("[1 pre-login + 1 proxies]")
		w := f.dial(t, client.Options{TLS: f.TLS()})
		w.Plain("alice", "wonder")
		shows("[1 pre-login + 1 proxies + 1 TLS proxies]")
		p.Close()
		b.Close()
		shows("[127.0.0.1 TLS proxy]")
		w.Close()
		shows("")
	})
}

var title = regexp.MustCompile(`submission-login *(\[[^\]]*\])?`)

// titles returns what the login processes show.
func (f *front) titles() (titles []string) {
	for _, pid := range f.Processes("submission-login") {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if m := title.FindStringSubmatch(strings.ReplaceAll(string(cmd), "\x00", " ")); m != nil && m[1] != "" {
			titles = append(titles, m[1])
		}
	}
	return titles
}

var stamp = regexp.MustCompile(`(?m)^\d{10}\.\d{6} `)

// Raw logs: of the login process's clients before the login (-R), and of what it says to
// backends (login_proxy_rawlog_dir). Those of a client under TLS are in clear with ours.
func TestRawlogs(t *testing.T) {
	onBoth(t, []system.System{system.Dovecot, system.OursLogin}, func(t *testing.T, sys system.System) {
		f := frontend{
			users:  []user{{name: "u", relay: &relay.Options{}}},
			config: []string{"login_proxy_rawlog_dir = raw-backend"},
			args:   map[string]string{"submission-login": "-R raw-client"},
			files: map[string]system.File{
				"run/login/raw-client/.keep": {UID: loginUID(t)}, "run/login/raw-backend/.keep": {UID: loginUID(t)},
			},
		}.start(t, sys)
		c := passes(t, f, "u", client.Options{})
		c.Do("NOOP", "250")
		c.Do("QUIT", "221")
		c.ExpectEOF()
		f.WaitLine("Disconnected by server")
		in, out := f.raw(t, "raw-client")
		if want := "AUTH PLAIN " + plain("u", "pw") + "\r\n"; !strings.HasPrefix(in, want) {
			t.Errorf("from the client: %q", in)
		}
		if !strings.HasPrefix(out, "220 sub.example.test Dovecot (Debian) ready.\r\n235 2.7.0 ") {
			t.Errorf("to the client: %q", out)
		}
		in, out = f.raw(t, "raw-backend")
		if !strings.HasPrefix(out, "EHLO sub.example.test\r\nXCLIENT HELO=") || !strings.HasSuffix(out, "\r\nNOOP\r\nQUIT\r\n") {
			t.Errorf("to the backend: %q", out)
		}
		if !strings.HasPrefix(in, "220 relay.test ESMTP ready\r\n250-relay.test\r\n") || !strings.HasSuffix(in, "\r\n221 2.0.0 Bye\r\n") {
			t.Errorf("from the backend: %q", in)
		}
		if !ours(sys) {
			return
		}
		had := f.rawFiles("raw-client")
		c = f.dial(t, client.Options{})
		c.Do("EHLO x", "250")
		c.Do("STARTTLS", "220")
		c.StartTLS(f.TLS())
		c.Do("EHLO under-tls", "250")
		c.Do("QUIT", "221")
		c.ExpectEOF()
		within(t, 5*time.Second, "the files", func() bool {
			for _, name := range f.rawFiles("raw-client") {
				if data, _ := os.ReadFile(name); !slices.Contains(had, name) && strings.Contains(string(data), " EHLO under-tls\r\n") {
					return true
				}
			}
			return false
		})
	})
}

// A directory that is not there means that nothing is to be kept.
func TestNoRawlogs(t *testing.T) {
	onBoth(t, []system.System{system.Dovecot, system.OursLogin}, func(t *testing.T, sys system.System) {
		f := frontend{users: []user{{name: "u", relay: &relay.Options{}}}, config: []string{"login_proxy_rawlog_dir = raw-backend"}, args: map[string]string{"submission-login": "-R raw-client"}}.start(t, sys)
		passes(t, f, "u", client.Options{}).Do("QUIT", "221")
		f.WaitLine("submission-login: Error: access(raw-client, wx) failed: No such file or directory - disabling rawlog")
	})
}

func (f *front) rawFiles(dir string) []string {
	files, _ := filepath.Glob(filepath.Join(f.Dir, "run/login", dir, "*.*"))
	return slices.DeleteFunc(files, func(name string) bool { return strings.HasSuffix(name, "/.keep") })
}

// raw returns what the only two files have, without the times.
func (f *front) raw(t *testing.T, dir string) (in, out string) {
	t.Helper()
	files := f.rawFiles(dir)
	if len(files) != 2 {
		t.Fatalf("files in %s: %q", dir, files)
	}
	for _, name := range files {
		if !regexp.MustCompile(`/\d{8}-\d{6}\.\d+\.\d+\.(in|out)$`).MatchString(name) {
			t.Errorf("file %s", name)
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text := stamp.ReplaceAllString(string(data), "")
		if strings.HasSuffix(name, ".in") {
			in = text
		} else {
			out = text
		}
	}
	return in, out
}
