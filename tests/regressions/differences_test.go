package regressions

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dovetail/internal/testkit/authserver"
	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// What differs from Dovecot on purpose and no transcript can show
// (tests/transcripts/differences.txt).

// A hundred commands are on their way to the relay before it has answered the first one.
// Dovecot has five.
func TestCommandsWaiting(t *testing.T) {
	t.Parallel()
	const waiting, all = 100, 150
	port := patientRelay(t, waiting)
	s := dovetail.Start(t, dovetail.Setup{Users: []dovetail.User{{Name: "alice", Fields: []string{dovetail.Relay(port)}}}})
	for _, w := range []dovetail.Way{dovetail.Clear, dovetail.TLS} {
		c := s.Login(t, w, "alice")
		text := "MAIL FROM:<alice@example.test>\r\n"
		for n := 1; n < all; n++ {
			text += fmt.Sprintf("RCPT TO:<%d@dest.test>\r\n", n)
		}
		c.Write(text + "QUIT\r\n")
		c.Expect("250 2.1.0 command 1")
		for n := 2; n <= all; n++ {
			c.Expect(fmt.Sprintf("250 2.0.0 command %d", n))
		}
		c.ExpectCode("221")
		c.ExpectEOF()
	}
}

// patientRelay answers nothing behind EHLO until it has had so many commands, on each of its
// connections. It returns its port.
func patientRelay(t *testing.T, commands int) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go beLatePatiently(conn, commands) // ends with the connection
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func beLatePatiently(conn net.Conn, commands int) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(dovetail.Patience))
	_, _ = io.WriteString(conn, "220 relay.test\r\n")
	lines := bufio.NewScanner(conn)
	late := ""
	for n := 0; lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "EHLO ") {
			_, _ = io.WriteString(conn, "250-relay.test\r\n250 PIPELINING\r\n")
			continue
		}
		n++
		late += fmt.Sprintf("250 command %d\r\n", n)
		if n >= commands {
			_, _ = io.WriteString(conn, late)
			late = ""
		}
	}
}

// What is more than 128 KiB goes on to the relay while the client still sends, and no file
// keeps it.
func TestLargeMessagesAreStreamed(t *testing.T) {
	t.Parallel()
	for name, caps := range map[string][]string{"BDAT": {"PIPELINING", "CHUNKING"}, "DATA": {"PIPELINING"}} {
		for _, by := range []string{"DATA", "BDAT"} {
			t.Run("by "+by+" to "+name, func(t *testing.T) {
				t.Parallel()
				l := &counting{Listener: system.Hold(t).Listen(t)}
				r := newRelay(t, relay.Options{Caps: caps, Listener: l})
				s := serve(t, r, false, "")
				c := s.Login(t, dovetail.TLS, "alice")
				text := strings.Repeat("0123456789abcde\r\n", 1<<20/17)
				envelope(c)
				if by == "DATA" {
					c.Do("DATA", "354")
					c.Write(text)
				} else {
					c.Write(fmt.Sprintf("BDAT %d LAST\r\n%s", len(text)+10, text))
				}
				s.Until(t, "most of the message is at the relay", func() bool { return l.octets.Load() > int64(len(text)*3/4) })
				for _, pid := range s.Processes()["submission"] {
					for _, f := range leak.FilesOf(pid) {
						if _, to, _ := strings.Cut(f, " "); strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "/dev/") && !strings.HasPrefix(to, "/sys/") {
							t.Errorf("the worker has a file open: %s", f)
						}
					}
				}
				if by == "DATA" {
					c.Write("the end\r\n.\r\n")
				} else {
					c.Write("the end!\r\n")
				}
				c.ExpectCode("250")
				m := r.WaitMessages(1)[0]
				if want := strings.Contains(string(m.Data), text+"the end"); !want || len(m.Data) > len(text)+1000 {
					t.Errorf("%d octets arrived", len(m.Data))
				}
			})
		}
	}
}

// A counting listener counts what its connections read.
type counting struct {
	net.Listener
	octets atomic.Int64
}

func (l *counting) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return countingConn{conn, l}, err
}

type countingConn struct {
	net.Conn
	l *counting
}

func (c countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.l.octets.Add(int64(n))
	return n, err
}

// However large a message is, the memory of its worker does not grow with it.
func TestMemoryOfALargeMessage(t *testing.T) {
	t.Parallel()
	limit := int64(8 << 20)
	if system.Race {
		limit *= 4 // each octet has a shadow
	}
	piece := strings.Repeat("0123456789abcdefghijklmnopqrstuvwxyz\r\n", 1<<20/38)
	const pieces = 60
	for name, caps := range map[string][]string{"BDAT": {"SIZE", "PIPELINING", "CHUNKING"}, "DATA": {"SIZE", "PIPELINING"}} {
		for _, by := range []string{"DATA", "BDAT"} {
			t.Run("by "+by+" to "+name, func(t *testing.T) {
				t.Parallel()
				r := newRelay(t, relay.Options{Caps: caps, Discard: true})
				s := serve(t, r, false, "submission_max_mail_size = 100 M\n")
				c := s.Login(t, dovetail.Clear, "alice")
				envelope(c)
				if by == "DATA" {
					c.Do("DATA", "354")
				} else {
					c.Send(fmt.Sprintf("BDAT %d LAST", pieces*len(piece)))
				}
				var most int64
				for range pieces {
					c.Write(piece)
					for _, pid := range s.Processes()["submission"] {
						most = max(most, dovetail.AnonMemory(pid))
					}
				}
				if by == "DATA" {
					c.Send(".")
				}
				c.ExpectCode("250")
				if most == 0 || most > limit {
					t.Errorf("%d KiB", most>>10)
				}
				t.Logf("%d KiB", most>>10)
				if m := r.WaitMessages(1)[0]; m.Size < int64(pieces*len(piece)) {
					t.Errorf("%d octets arrived", m.Size)
				}
				c.Do("QUIT", "221")
			})
		}
	}
}

// A reply of the relay is cut at 2048 octets a line and 100 lines.
func TestLongRepliesOfTheRelay(t *testing.T) {
	t.Parallel()
	script := relay.Script{relay.MAIL: {relay.LongLine("250", 10000)}}
	counts := []int{99, 100, 101, 3000}
	for _, n := range counts {
		script[relay.RCPT] = append(script[relay.RCPT], relay.ManyLines("550", "5.7.1 no", n))
	}
	s := serve(t, newRelay(t, relay.Options{Script: script}), true, "")
	c := s.Login(t, dovetail.Clear, "alice")
	if got := c.Do("MAIL FROM:<a@b>", "250 2.1.0 xxx")[0]; len(got) != len("250 2.1.0 ")+2048 {
		t.Errorf("a line of %d octets", len(got))
	}
	for _, n := range counts {
		if got := c.Do("RCPT TO:<c@d>", "550 5.7.1"); len(got) != min(n, 100) {
			t.Errorf("%d lines of %d", len(got), n)
		}
	}
	c.Do("RCPT TO:<c@d>", "250")
	c.Do("QUIT", "221")
}

// While the auth service is away clients are told so after ten seconds; one that waits is
// greeted when it is back.
func TestAuthServiceAway(t *testing.T) {
	t.Parallel()
	f := newFront(t, nil, authserver.Options{})
	f.Open(t).Do("QUIT", "221")
	f.Auth.Stop()
	f.Service.AwaitLog("auth-client: ") // the process knows
	dial := func() *client.Client { return client.Dial(t, f.Addr, client.Options{Timeout: dovetail.Patience}) }
	began := time.Now()
	c := dial()
	c.Expect("421 4.3.2 front.test Auth process broken")
	c.ExpectEOF()
	if took := time.Since(began); took < 9*time.Second || took > 40*time.Second {
		t.Errorf("after %v", took)
	}
	f.Service.AwaitLog("Warning: Auth process not responding, delayed sending initial response (greeting)")
	waits := dial()
	f.Auth.Restart()
	if err := os.Chmod(f.Auth.Login, 0o777); err != nil {
		t.Fatal(err)
	}
	waits.ExpectCode("220")
	waits.Do("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00alice\x00wrong")), "535")
}

// Who leaves during AUTH is gone at once: the auth service need not go on, and nothing waits
// for its answer.
func TestAuthIsCancelled(t *testing.T) {
	t.Parallel()
	silent := func(authserver.Request) []string { return []string{} }
	for name, o := range map[string]authserver.Options{"the auth service's turn": {OnAuth: silent}, "the client's turn": {}} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t, nil, o)
			for n, leave := range []func(*client.Client){(*client.Client).Close, (*client.Client).Reset} {
				c := f.Open(t)
				c.Send("AUTH LOGIN")
				if o.OnAuth == nil {
					c.ExpectCode("334")
				}
				f.Auth.Wait("AUTH", n+1)
				leave(c)
				f.Auth.Wait("CANCEL", n+1)
			}
		})
	}
}

// A second FORWARD takes the place of the first.
func TestForwardTwice(t *testing.T) {
	t.Parallel()
	f := newFront(t, map[string]string{"login_trusted_networks": "127.0.0.0/8"}, authserver.Options{})
	attr := func(fields string) string {
		return "FORWARD=" + strings.NewReplacer("+", "+2B", "=", "+3D").Replace(base64.StdEncoding.EncodeToString([]byte(fields)))
	}
	for n, says := range [][]string{
		{"XCLIENT " + attr("first=1"), "XCLIENT " + attr("second=2")},
		{"XCLIENT " + attr("first=1") + " " + attr("second=2")},
		{"XCLIENT " + attr("second=2"), "XCLIENT ADDR=192.0.2.1"},
	} {
		c := f.Open(t)
		for _, line := range says {
			c.Do(line, "220")
		}
		c.Do("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00alice\x00wrong")), "535")
		if got, _ := f.Auth.Wait("AUTH", n+1)[n].Get("forward_fields"); got != "second=2" {
			t.Errorf("%q: %q", says, got)
		}
	}
}
