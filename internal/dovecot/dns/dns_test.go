package dns

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/leak"
)

// To record testdata anew, as root: go test -run Real -record ./internal/dovecot/dns
var recording = flag.Bool("record", false, "write what a private real Dovecot says to testdata")

const serverVersion = "VERSION\tdns\t1\t0\n"

// service is a dns-client service of a test.
type service struct {
	path   string
	mu     sync.Mutex
	conns  int                      // guarded by mu; that were made
	answer func(line string) string // "close" ends the connection
}

func newService(t *testing.T, answer func(line string) string) *service {
	t.Helper()
	s := &service{path: filepath.Join(t.TempDir(), "dns-client"), answer: answer}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { // ends when l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			s.mu.Unlock()
			wg.Go(func() { s.serve(c) }) // ends when the client closes
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return s
}

func (s *service) serve(c net.Conn) {
	defer c.Close()
	_, _ = io.WriteString(c, serverVersion)
	br := bufio.NewReader(c)
	if line, err := br.ReadString('\n'); err != nil || line != clientVersion {
		return
	}
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		a := s.answer(strings.TrimSuffix(line, "\n"))
		if a == "close" {
			return
		}
		if _, err := io.WriteString(c, a); err != nil {
			return
		}
	}
}

func (s *service) made() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// What the service says becomes addresses, a name, or an error with the resolver's words.
func TestLookup(t *testing.T) {
	leak.Check(t)
	s := newService(t, func(line string) string {
		return map[string]string{
			"IP\tone.test":      "0\t192.0.2.1\n",
			"IP\ttwo.test":      "0\t192.0.2.1\t2001:db8::1\r\n",
			"IP\tnone.test":     "-2\tName or service not known\n",
			"IP\tempty.test":    "0\n",
			"IP\tnonsense.test": "0\tx.test\n",
			"IP\tzone.test":     "0\tfe80::1%eth0\n",
			"IP\tword.test":     "yes\t192.0.2.1\n",
			"NAME\t192.0.2.1":   "0\tone.test\n",
		}[line]
	})
	c := NewClient(s.path)
	defer c.Close()
	for name, want := range map[string]string{
		"one.test":                     "[192.0.2.1] <nil>",
		"two.test":                     "[192.0.2.1 2001:db8::1] <nil>",
		"none.test":                    "[] Name or service not known",
		"empty.test":                   `[] dns service answered "0"`,
		"nonsense.test":                `[] dns service answered with the address "x.test"`,
		"zone.test":                    `[] dns service answered with the address "fe80::1%eth0"`,
		"word.test":                    `[] dns service answered "yes\t192.0.2.1"`,
		"192.0.2.9":                    "[192.0.2.9] <nil>",
		"2001:db8::9":                  "[2001:db8::9] <nil>",
		"":                             "[] not a host name",
		"a\nIP\tb":                     "[] not a host name",
		"a b":                          "[] not a host name",
		strings.Repeat("x", maxName+1): "[] not a host name",
	} {
		addrs, err := c.Lookup(t.Context(), name)
		if got := fmt.Sprint(addrs, err); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
	var e *Error
	if _, err := c.Lookup(t.Context(), "none.test"); !errors.As(err, &e) || e.Code != -2 {
		t.Error(err)
	}
	if name, err := c.LookupAddr(t.Context(), netip.MustParseAddr("192.0.2.1")); name != "one.test" || err != nil {
		t.Error(name, err)
	}
	if n := s.made(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// Many questions at once go over few connections, and each gets its own answer.
func TestManyAtOnce(t *testing.T) {
	leak.Check(t)
	s := newService(t, func(line string) string {
		n, _ := strconv.Atoi(strings.TrimPrefix(line, "IP\th"))
		return fmt.Sprintf("0\t10.0.%d.%d\n", n/256, n%256)
	})
	c := NewClient(s.path)
	defer c.Close()
	var wg sync.WaitGroup
	for n := range 300 {
		wg.Go(func() {
			want := fmt.Sprintf("[10.0.%d.%d]", n/256, n%256)
			if addrs, err := c.Lookup(t.Context(), fmt.Sprintf("h%d", n)); err != nil || fmt.Sprint(addrs) != want {
				t.Error(n, addrs, err)
			}
		})
	}
	wg.Wait()
	if n := s.made(); n > maxConns {
		t.Errorf("%d connections", n)
	}
}

// A connection that the service has closed meanwhile is made anew; one that cannot be is
// lost.
func TestServiceCloses(t *testing.T) {
	leak.Check(t)
	var mu sync.Mutex
	closed := false
	s := newService(t, func(string) string {
		mu.Lock()
		defer mu.Unlock()
		if closed = !closed; !closed {
			return "close"
		}
		return "0\t192.0.2.1\n"
	})
	c := NewClient(s.path)
	defer c.Close()
	for range 4 {
		if _, err := c.Lookup(t.Context(), "one.test"); err != nil {
			t.Error(err)
		}
	}
	if n := s.made(); n < 2 {
		t.Errorf("%d connections", n)
	}
	closed = false
	once, err := Dial(t.Context(), s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer once.Close()
	if _, err := once.Lookup(t.Context(), "one.test"); err != nil {
		t.Error(err)
	}
	for range 2 {
		if _, err := once.Lookup(t.Context(), "one.test"); err != ErrLost {
			t.Error(err)
		}
	}
}

// A service that is of another kind, or away, is an error and not a wait.
func TestNoService(t *testing.T) {
	leak.Check(t)
	if _, err := NewClient(filepath.Join(t.TempDir(), "none")).Lookup(t.Context(), "one.test"); err == nil {
		t.Error("no error")
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, greeting := range []string{"VERSION\tdns\t2\t0\n", "VERSION\tdns-client\t1\t0\n", strings.Repeat("x", maxAnswer+1), ""} {
		go func() { // ends with its one client
			if c, err := l.Accept(); err == nil {
				_, _ = io.WriteString(c, greeting)
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}
		}()
		c, err := Dial(t.Context(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel, want := t.Context(), func() {}, ErrLost
		if greeting == "" { // it says nothing
			ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
			want = context.DeadlineExceeded
		}
		if _, err := c.Lookup(ctx, "one.test"); !errors.Is(err, want) {
			t.Errorf("%.20q: %v", greeting, err)
		}
		cancel()
		c.Close()
	}
}

// Who stops waiting does not take the next one's answer away.
func TestLeavesAnAnswer(t *testing.T) {
	leak.Check(t)
	ask, go1 := make(chan string), make(chan string)
	s := newService(t, func(line string) string { ask <- line; return <-go1 })
	c, err := Dial(t.Context(), s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { // ends with ctx
		_, err := c.Lookup(ctx, "first.test")
		first <- err
	}()
	<-ask
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	second := make(chan string, 1)
	go func() { // ends with the answer below
		addrs, err := c.Lookup(t.Context(), "second.test")
		second <- fmt.Sprint(addrs, err)
	}()
	go1 <- "0\t192.0.2.1\n"
	if line := <-ask; line != "IP\tsecond.test" {
		t.Error(line)
	}
	go1 <- "0\t192.0.2.2\n"
	if got := <-second; got != "[192.0.2.2] <nil>" {
		t.Error(got)
	}
}

// A connection that nobody asks is given back.
func TestIdleIsClosed(t *testing.T) {
	leak.Check(t)
	s := newService(t, func(string) string { return "0\t192.0.2.1\n" })
	c := NewClient(s.path)
	defer c.Close()
	if _, err := c.Lookup(t.Context(), "one.test"); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	x := c.conns[0]
	c.mu.Unlock()
	x.closeIdle() // what its timer does
	<-x.done
	if _, err := c.Lookup(t.Context(), "one.test"); err != nil || s.made() != 2 {
		t.Error(err, s.made())
	}
}

var realQuestions = []string{
	"IP\tlocalhost", "IP\t127.0.0.1", "IP\t::1", "IP\tno.such.invalid", "IP\t", "NAME\t127.0.0.1", "NAME\t192.0.2.1", "NAME\tx", "FOO\tx", "IP\tlocalhost\tx",
}

// TestRealService asks the real dns-client, raw and by our client.
func TestRealService(t *testing.T) {
	i := instance.Start(t, "")
	conn, err := net.Dial("unix", i.Socket("dns-client"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(60 * time.Second))
	_, _ = io.WriteString(conn, clientVersion+strings.Join(realQuestions, "\n")+"\n")
	br := bufio.NewReader(conn)
	var all strings.Builder
	for n := range len(realQuestions) + 1 {
		line, err := br.ReadString('\n')
		if err == io.EOF { // it closes on FOO
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", all.String(), err)
		}
		if n > 0 {
			fmt.Fprintf(&all, "C: %q\n", realQuestions[n-1])
		}
		fmt.Fprintf(&all, "S: %q\n", line)
	}
	if *recording {
		for path, text := range map[string]string{"testdata/service.golden": all.String(), "testdata/version": i.Version + "\n"} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	c := NewClient(i.Socket("dns-client"))
	defer c.Close()
	addrs, err := c.Lookup(t.Context(), "localhost")
	if err != nil || !addrs[0].IsLoopback() {
		t.Error(addrs, err)
	}
	var e *Error
	if _, err := c.Lookup(t.Context(), "no.such.invalid"); !errors.As(err, &e) {
		t.Errorf("got %v", err)
	}
	inChroot := NewClient(i.Socket("login/dns-client")) // as the login process sees it
	defer inChroot.Close()
	if _, err := inChroot.Lookup(t.Context(), "localhost"); err != nil {
		t.Error(err)
	}
}

// golden are the lines of the real service.
func golden(t testing.TB) (lines []string) {
	b, err := os.ReadFile("testdata/service.golden")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		if q, ok := strings.CutPrefix(l, "S: "); ok {
			s, err := strconv.Unquote(q)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, strings.TrimSuffix(s, "\n"))
		}
	}
	return lines
}

// The recorded lines are read: the version, answers, and refusals with their code.
func TestLinesOfDovecot(t *testing.T) {
	lines := golden(t)
	if err := parseVersion(lines[0]); err != nil {
		t.Error(err)
	}
	for n, l := range lines[1:] {
		f, err := parseAnswer(l)
		var e *Error
		switch {
		case strings.HasPrefix(l, "0\t"):
			if err != nil || tabs(f) != l[2:] {
				t.Errorf("%q: %q, %v", l, f, err)
			}
		case !errors.As(err, &e) || fmt.Sprintf("%d\t%s", e.Code, e.Text) != l:
			t.Errorf("%q to %q: %v", l, realQuestions[n], err)
		}
	}
	if len(lines) < 8 {
		t.Errorf("%d lines", len(lines))
	}
}

func tabs(f []string) string { return strings.Join(f, "\t") }

// Whatever the service answers: addresses, a few, or an error.
func FuzzAnswer(f *testing.F) {
	for _, l := range golden(f) {
		f.Add(l)
	}
	for _, l := range []string{"", "0", "0\t", "0\t192.0.2.1\t2001:db8::1", "-5\t\x01t", "0\t1.2.3.4\x01", "+0\tx"} {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, line string) {
		_ = parseVersion(line)
		fields, err := parseAnswer(line)
		if err != nil {
			return
		}
		addrs, err := parseAddrs(fields)
		if err == nil && (len(addrs) == 0 || len(addrs) > maxAddrs) {
			t.Errorf("%q: %d addresses", line, len(addrs))
		}
	})
}
