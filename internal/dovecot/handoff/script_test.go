package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/fdpass"
	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/leak"
)

// asked reads a line-based request with its descriptor, as the other side of RunScript and
// AskAccess.
func asked(t *testing.T, conn *net.UnixConn, lines int) (string, int) {
	t.Helper()
	fd := passed(-1)
	var got []byte
	for b := make([]byte, 4096); strings.Count(string(got), "\n") < lines; {
		n, err := fd.readMsg(conn, b)
		if err != nil {
			t.Errorf("request %q: %v", got, err)
			break
		}
		got = append(got, b[:n]...)
	}
	return string(got), fd.take()
}

// parseScriptRequest is the script's side, for the recorded requests.
func parseScriptRequest(b []byte) (r ScriptRequest, err error) {
	text, ok := strings.CutPrefix(string(b), "VERSION\tscript-login\t1\t0\n")
	line, rest, end := strings.Cut(text, "\n")
	f := tabline.Split(line)
	if !ok || !end || rest != "" || len(f) < 3 {
		return r, errors.New("not a request")
	}
	r.User, r.Fields = f[2], f[3:]
	r.Local, err = netip.ParseAddr(f[0])
	if err == nil {
		r.Remote, err = netip.ParseAddr(f[1])
	}
	return r, err
}

var someone = ScriptRequest{
	Local: netip.MustParseAddr("127.0.0.1"), Remote: netip.MustParseAddr("2001:db8::9"),
	User: "al\tice", Fields: []string{"uid=5000", "note=a\nb"},
}

// What the script says decides who comes in, and with which descriptor.
func TestRunScript(t *testing.T) {
	const want = "VERSION\tscript-login\t1\t0\n127.0.0.1\t2001:db8::9\tal\x01tice\tuid=5000\tnote=a\x01nb\n"
	cases := map[string]struct {
		answer string
		with   bool // a descriptor
		user   string
		fields []string
		err    error
		says   string
	}{
		"same":     {"alice\tuid=5000\n", false, "alice", []string{"uid=5000"}, nil, ""},
		"changed":  {"bo\x01tb\tx=1\ty\n", false, "bo\tb", []string{"x=1", "y"}, nil, ""},
		"no field": {"alice\n", false, "alice", nil, nil, ""},
		"with fd":  {"alice\n", true, "alice", nil, nil, ""},
		"denied":   {"", false, "", nil, ErrDenied, ""},
		"cut":      {"alice\tuid", false, "", nil, nil, "in the middle"},
		"cut, fd":  {"alice\tuid", true, "", nil, nil, "in the middle"},
		"two":      {"alice\nbob\n", false, "", nil, nil, "more than one line"},
		"nobody":   {"\tuid=5\n", false, "", nil, nil, "without a user"},
		"long":     {strings.Repeat("x", maxScriptAnswer+2048), false, "", nil, nil, "more than 65536"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			near, far, err := SocketPair()
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			defer far.Close()
			farFD := far.fd
			path := worker(t, func(conn *net.UnixConn) {
				got, fd := asked(t, conn, 2)
				if got != want || fd < 0 {
					t.Errorf("request %q with descriptor %d", got, fd)
				}
				syscall.Close(fd)
				if c.with {
					_ = fdpass.Send(conn, []byte(c.answer), farFD)
				} else {
					_, _ = io.WriteString(conn, c.answer)
				}
			})
			_, server := tcpPair(t)
			a, err := RunScript(t.Context(), path, someone, lend(t, server), time.Minute)
			if c.err != nil || c.says != "" {
				if err == nil || c.err != nil && err != c.err || !strings.Contains(err.Error(), c.says) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if a.User != c.user || fmt.Sprint(a.Fields) != fmt.Sprint(c.fields) || (a.Client != nil) != c.with {
				t.Errorf("answer %+v", a)
			}
			if a.Client != nil {
				say(t, near, a.Client, "NOOP\r\n")
				a.Client.Close()
			}
		})
	}
}

func TestScriptIsTooSlow(t *testing.T) {
	leak.Check(t)
	path := worker(t, func(conn *net.UnixConn) {
		_, fd := asked(t, conn, 2)
		syscall.Close(fd)
		_, _ = conn.Read(make([]byte, 1)) // until the worker closes
	})
	_, server := tcpPair(t)
	_, err := RunScript(t.Context(), path, someone, lend(t, server), 10*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// Only a clear yes lets a client in.
func TestAskAccess(t *testing.T) {
	cases := map[string]struct {
		answer string
		ok     bool
		says   string
	}{
		"yes":      {"1\n", true, ""},
		"no":       {"0\n", false, ""},
		"closed":   {"", false, ""},
		"half":     {"1", false, "unexpected EOF"},
		"nonsense": {"2\n", false, "neither"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path := worker(t, func(conn *net.UnixConn) {
				got, fd := asked(t, conn, 1)
				if got != "submission\n" || fd < 0 {
					t.Errorf("request %q with descriptor %d", got, fd)
				}
				syscall.Close(fd)
				_, _ = io.WriteString(conn, c.answer)
			})
			_, server := tcpPair(t)
			ok, err := AskAccess(t.Context(), path, "submission", lend(t, server))
			if ok != c.ok || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, %v", ok, err)
			}
		})
	}
	_, server := tcpPair(t)
	if ok, err := AskAccess(t.Context(), t.TempDir()+"/none", "submission", lend(t, server)); ok || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("nobody listens: %v, %v", ok, err)
	}
}

// The real script-login runs scripts for us, and the real worker asks us as if we were one.
func TestRealScripts(t *testing.T) {
	i := instance.Start(t, `
service allow {
  executable = script-login @DIR@/allow.sh
  user = root
  unix_listener allow {
  }
}
service deny {
  executable = script-login @DIR@/deny.sh
  user = root
  unix_listener deny {
  }
}
service submission {
  executable = submission asked
}
`)
	for name, text := range map[string]string{
		"allow.sh": "#!/bin/sh\nUSER=\"$USER-changed\"\nFOO='x\ty'\nUSERDB_KEYS=\"$USERDB_KEYS FOO\"\nexport USER FOO USERDB_KEYS\nexec \"$@\"\n",
		"deny.sh":  "#!/bin/sh\nexit 0\n",
	} {
		if err := os.WriteFile(i.Dir+"/"+name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	someone := someone
	someone.User = "alice" // script-login does not escape it in its answer
	t.Run("allow", func(t *testing.T) {
		_, server := tcpPair(t)
		a, err := RunScript(t.Context(), i.Socket("allow"), someone, lend(t, server), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if a.Client != nil {
			a.Client.Close()
		}
		if a.User != "alice-changed" || !strings.Contains(fmt.Sprintf("%q", a.Fields), `"foo=x\ty"`) {
			t.Errorf("answer %q", a)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		conn, err := connect(t.Context(), i.Socket("allow"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, server := tcpPair(t)
		if err := lendWith(conn, someone.append(nil), lend(t, server)); err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		keep(t, i, "script-answer.bin", raw)
	})
	t.Run("deny", func(t *testing.T) {
		_, server := tcpPair(t)
		if _, err := RunScript(t.Context(), i.Socket("deny"), someone, lend(t, server), time.Minute); err != ErrDenied {
			t.Errorf("got %v", err)
		}
	})
	t.Run("asked", func(t *testing.T) {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: i.Socket("asked")})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a := dialAuth(t, i)
		client, server := tcpPair(t)
		if _, err := Send(t.Context(), i.Socket("login/submission"), a.login(t), lend(t, server)); err != nil {
			t.Fatal(err)
		}
		conn, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		keep(t, i, "script-request.bin", peek(t, conn))
		got, fd := asked(t, conn, 2)
		r, err := parseScriptRequest([]byte(got))
		if err != nil || r.User != "alice" || !strings.Contains(fmt.Sprint(r.Fields), "uid=8") || string(r.append(nil)) != got {
			t.Errorf("%q: %+v, %v", got, r, err)
		}
		syscall.Close(fd)
		conn.Close() // denied
		server.Close()
		_ = client.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("client sees %v", err)
		}
		i.WaitLog("Post-login script denied access to user alice")
	})
}

// The real login process asks us whether its client may come in.
func TestRealAccess(t *testing.T) {
	i := instance.Start(t, "login_access_sockets = access\nservice submission-login {\n  service_count = 0\n}\n")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: i.Socket("login/access")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(i.Socket("login/access"), 0o666); err != nil {
		t.Fatal(err)
	}
	for answer, greeting := range map[string]string{"1\n": "220 ", "0\n": ""} {
		s := dialSMTP(t, i.Addr("submission"), nil)
		conn, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		keep(t, i, "access-request.bin", peek(t, conn))
		got, fd := asked(t, conn, 1)
		if got != "submission\n" || fd < 0 {
			t.Errorf("request %q with descriptor %d", got, fd)
		}
		syscall.Close(fd)
		_, _ = io.WriteString(conn, answer)
		conn.Close()
		line, _ := s.br.ReadString('\n')
		if !strings.HasPrefix(line, greeting) || greeting == "" && line != "" {
			t.Errorf("answer %q: greeting %q", answer, line)
		}
	}
	i.WaitLog("access(access): Client refused (rip=127.0.0.1)")
}
