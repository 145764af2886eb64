package ipc

import (
	"bufio"
	"context"
	"crypto/md5"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/instance"
)

// To record testdata anew, as root: go test -run Real -record ./internal/dovecot/ipc
var recording = flag.Bool("record", false, "write what a private real Dovecot says to testdata")

// backend is an SMTP server that a login process proxies to: every login is right.
func backend(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends when l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends when the proxy closes
				defer c.Close()
				br := bufio.NewReader(c)
				fmt.Fprint(c, "220 backend\r\n")
				for {
					line, err := br.ReadString('\n')
					switch {
					case err != nil:
						return
					case strings.HasPrefix(line, "EHLO"):
						fmt.Fprint(c, "250-backend\r\n250 AUTH PLAIN\r\n")
					case strings.HasPrefix(line, "AUTH"):
						fmt.Fprint(c, "235 2.7.0 OK\r\n")
					default:
						fmt.Fprint(c, "250 OK\r\n")
					}
				}
			}()
		}
	}()
}

// proxied logs user in and returns the connection, over which the backend is talked to.
func proxied(t *testing.T, addr, auth string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	br := bufio.NewReader(c)
	for _, step := range []struct{ say, want string }{{"", "220 "}, {"AUTH PLAIN " + auth + "\r\n", "235 "}} {
		if _, err := io.WriteString(c, step.say); err != nil {
			t.Fatal(err)
		}
		if line, err := br.ReadString('\n'); err != nil || !strings.HasPrefix(line, step.want) {
			t.Fatalf("%q: %q, %v", step.say, line, err)
		}
	}
	return c
}

var handshakePID = regexp.MustCompile(`proxy\\t[0-9]+`)

const (
	authAlice = "AGFsaWNlAHBhc3M="     // pass
	authOdd   = "AG9kZC9uYW1lAHBhc3M=" // odd/name
	proxyConf = `
login_trusted_networks = 127.0.0.0/8
auth_username_chars =
passdb {
  driver = static
  args = password=pass proxy=y host=127.0.0.1 port=@PORT:backend@ user_mail=%u@example.org user_org=x	y
}
service submission-login {
  service_count = 0
  process_limit = 1
  client_limit = 50
}
`
)

func hash(user string) string {
	sum := md5.Sum([]byte(user))
	return fmt.Sprint(binary.BigEndian.Uint32(sum[:]))
}

// asked are sent to the real login process, in this order, while alice (twice) and
// odd/name are proxied.
var asked = []string{
	"LIST-FULL", "LIST-FULL\tx", "LIST", "KICK", "KICK\tnobody", "KICK-HOST", "KICK-HOST\t192.0.2.1\t192.0.2.2", "KICK-HOST\tnonsense",
	"KICK-ALT", "KICK-ALT\tmail", "KICK-ALT\tmail\tnobody@example.org", "KICK-ALT\tnofield\tx", "KICK-DIRECTOR-HASH",
	"KICK-DIRECTOR-HASH\t5", "KICK-DIRECTOR-HASH\tx", "kick\talice", "FOO\tbar",
	"KICK-DIRECTOR-HASH\t" + hash("nobody"), "KICK-DIRECTOR-HASH\t" + hash("odd/name") + "\t127.0.0.1",
	"KICK-DIRECTOR-HASH\t" + hash("odd/name") + "\tnonsense",
	"KICK-ALT\tuser_mail\talice@example.org\tx@example.org", "LIST-FULL", "KICK-DIRECTOR-HASH\t" + hash("odd/name") + "\t127.0.0.2", "LIST-FULL",
}

// TestRealLogin records what the real login process answers to the ipc service.
func TestRealLogin(t *testing.T) {
	i := instance.Start(t, proxyConf)
	backend(t, i.Addr("backend"))
	path := i.Socket("login/ipc-proxy")
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{authAlice, authAlice, authOdd} {
		proxied(t, i.Addr("submission"), a)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	br := bufio.NewReader(conn)
	var all strings.Builder
	for range 2 {
		line, err := br.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "H: %q\n", line)
	}
	fmt.Fprint(conn, "VERSION\tipc-proxy\t1\t0\n")
	for n, c := range asked {
		fmt.Fprintf(conn, "%d\t%s\n", n+1, c)
		fmt.Fprintf(&all, "C: %q\n", c)
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				t.Fatalf("%q: %v\n%s", c, err, all.String())
			}
			tag, rest, _ := strings.Cut(line, "\t")
			if tag != fmt.Sprint(n+1) {
				t.Fatalf("%q: answer %q", c, line)
			}
			fmt.Fprintf(&all, "S: %q\n", rest)
			if rest[0] != ':' {
				break
			}
		}
	}
	if *recording {
		text := strings.NewReplacer(i.Addr("backend")[len("127.0.0.1:"):], "@PORT@").Replace(all.String())
		text = handshakePID.ReplaceAllString(text, `proxy\t1234`)
		for path, text := range map[string]string{"testdata/login.golden": text, "testdata/version": i.Version + "\n"} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The real ipc service forwards what doveadm asks, and we answer.
func TestRealService(t *testing.T) {
	i := instance.Start(t, "")
	p := &proxies{all: three()}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		NewServer(p, nil).Run(ctx, i.Socket("login/ipc-proxy"), os.Getpid())
	}()
	defer func() { cancel(); <-done }()
	doveadm := func(want string, args ...string) {
		t.Helper()
		var out string
		i.Until(fmt.Sprintf("doveadm %q says %q", args, want), func() bool {
			var err error
			out, err = i.Doveadm(args...)
			return err == nil && strings.Contains(strings.Join(strings.Fields(out), " "), want)
		})
	}
	doveadm("username user_mail user_org proto src ip dest ip port "+
		"odd/name odd/name@example.org x y submission 127.0.0.1 127.0.0.1 2525 "+
		"alice alice@example.org x y submission 192.0.2.7 127.0.0.1 2525 "+
		"alice submission 2001:db8::9 198.51.100.1 587", "proxy", "list")
	doveadm("1 connections kicked", "proxy", "kick", "-h", "198.51.100.1")
	doveadm("1 connections kicked", "proxy", "kick", "odd/name", "nobody")
	doveadm("alice alice@example.org x y submission 192.0.2.7 127.0.0.1 2525", "proxy", "list")
	doveadm("1 connections kicked", "proxy", "kick", "-f", "user_mail", "alice@example.org")
	if len(p.all) != 0 {
		t.Errorf("left %v", p.all)
	}
}
