package client

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/tlsfiles"
)

// serve accepts one connection and runs f on it; f's end closes it.
func serve(t *testing.T, f func(net.Conn, *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends when f does, or with the listener
		defer close(done)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(Timeout))
		f(nc, bufio.NewReader(nc))
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func TestDialogue(t *testing.T) {
	addr := serve(t, func(nc net.Conn, r *bufio.Reader) {
		_, _ = io.WriteString(nc, "220 hi\r\n")
		for {
			line, err := r.ReadString('\n')
			switch {
			case err != nil:
				return
			case strings.HasPrefix(line, "EHLO"):
				_, _ = io.WriteString(nc, "250-a\r\n250 b\r\n")
			case strings.HasPrefix(line, "AUTH PLAIN AGEAYg=="):
				_, _ = io.WriteString(nc, "235 ok\r\n")
			case strings.HasPrefix(line, "QUIT"):
				_, _ = io.WriteString(nc, "221 bye\r\n")
				return
			}
		}
	})
	c := Dial(t, addr, Options{From: "127.0.0.7"})
	if !strings.HasPrefix(c.Local().String(), "127.0.0.7:") {
		t.Errorf("connected from %s", c.Local())
	}
	c.Expect("220 hi")
	c.Send("EHLO x")
	c.Expect("250-a", "250 b")
	c.Do("EHLO y", "250 b")
	c.Plain("a", "b")
	c.ExpectSilence(5 * time.Millisecond)
	c.Send("QUIT")
	c.ExpectMatch(`^221 b.e$`)
	c.ExpectEOF()
	if d := c.Dialogue(); !strings.Contains(d, "  C: EHLO x\n  S: 250-a\n") {
		t.Errorf("dialogue:\n%s", d)
	}
}

// Nothing is lost or doubled when a write is split.
func TestWriteSplit(t *testing.T) {
	got := make(chan string, 10)
	addr := serve(t, func(nc net.Conn, r *bufio.Reader) {
		defer close(got)
		for {
			buf := make([]byte, 100)
			n, err := nc.Read(buf)
			if err != nil {
				return
			}
			got <- string(buf[:n])
		}
	})
	c := Dial(t, addr, Options{})
	c.WriteSplit("NOOP\r\nNOOP\r\n", 1, 5, 6)
	c.Close()
	var all string
	for piece := range got {
		all += piece
	}
	if all != "NOOP\r\nNOOP\r\n" {
		t.Errorf("arrived: %q", all)
	}
}

func TestTLSAndReset(t *testing.T) {
	pair := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "x", Names: []string{"x.test"}})
	reset := make(chan error, 1)
	addr := serve(t, func(nc net.Conn, r *bufio.Reader) {
		tc := tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{pair.TLS()}})
		_, _ = io.WriteString(tc, "220 secret\r\n")
		_, err := tc.Read(make([]byte, 1))
		reset <- err
	})
	c := Dial(t, addr, Options{TLS: &tls.Config{RootCAs: pair.Pool(), ServerName: "x.test"}})
	c.Expect("220 secret")
	c.Reset()
	if err := <-reset; err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the server saw %v, want a reset", err)
	}
}

// fakeTB keeps what a test says, and does not end.
type fakeTB struct {
	testing.TB
	said string
}

func (f *fakeTB) Fatalf(format string, args ...any) {
	f.said = strings.TrimSpace(format)
	panic(f)
}
func (f *fakeTB) Helper()        {}
func (f *fakeTB) Cleanup(func()) {}

// Each expectation that is not met ends the test.
func TestExpectationsFail(t *testing.T) {
	for name, want := range map[string]func(c *Client){
		"Expect":      func(c *Client) { c.Expect("250 ok") },
		"ExpectMatch": func(c *Client) { c.ExpectMatch("^2") },
		"ExpectCode":  func(c *Client) { c.ExpectCode("250") },
		"ExpectEOF":   func(c *Client) { c.ExpectEOF() },
		"Silence":     func(c *Client) { c.Conn.SetDeadline(time.Time{}); c.ExpectSilence(time.Second) },
	} {
		a, b := net.Pipe()
		go func() { // ends when b is closed
			_, _ = io.WriteString(a, "550 no\r\n")
			a.Close()
		}()
		f := &fakeTB{TB: t}
		c := New(f, b)
		func() {
			defer func() { _ = recover() }()
			want(c)
		}()
		b.Close()
		if f.said == "" {
			t.Errorf("%s accepts 550 no", name)
		}
	}
}
