// Package echoclient is a client of package echo, for tests.
package echoclient

import (
	"bufio"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

const patience = 20 * time.Second // before a test fails

// A Session is one client of the echo program.
type Session struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
	PID  int // of the process that serves it
}

// Connect waits for the greeting.
func Connect(t testing.TB, addr string) *Session {
	t.Helper()
	s := Dial(t, addr)
	s.Greeted()
	return s
}

// Dial connects to host:port or to a path, and does not wait.
func Dial(t testing.TB, addr string) *Session {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &Session{t: t, conn: c, r: bufio.NewReader(c)}
}

// Greeted waits for the greeting and returns the listener and its flags.
func (s *Session) Greeted() string {
	s.t.Helper()
	line := s.Read()
	f := strings.Fields(line)
	if len(f) != 5 || f[0] != "220" {
		s.t.Fatalf("greeting %q", line)
	}
	s.PID, _ = strconv.Atoi(f[1])
	return strings.Join(f[2:], " ")
}

// Read returns a line.
func (s *Session) Read() string {
	s.t.Helper()
	line, err := s.r.ReadString('\n')
	if err != nil {
		s.t.Fatalf("read: %q, %v", line, err)
	}
	return strings.TrimSuffix(line, "\r\n")
}

// Say sends a line.
func (s *Session) Say(line string) {
	s.t.Helper()
	if _, err := s.conn.Write([]byte(line + "\r\n")); err != nil {
		s.t.Fatal(err)
	}
}

// Want sends a line and wants a reply.
func (s *Session) Want(line, reply string) {
	s.t.Helper()
	s.Say(line)
	if got := s.Read(); got != reply {
		s.t.Fatalf("%s: %q, want %q", line, got, reply)
	}
}

// Ends reads a last line, "" for none, and the end of the connection.
func (s *Session) Ends(last string) {
	s.t.Helper()
	b, err := s.r.ReadString('\n')
	if last == "" {
		if b != "" {
			s.t.Fatalf("%q, want the end", b)
		}
		return
	}
	if strings.TrimSuffix(b, "\r\n") != last {
		s.t.Fatalf("%q, %v, want %q", b, err, last)
	}
	if b, err := s.r.ReadString('\n'); err == nil {
		s.t.Fatalf("%q, want the end", b)
	}
}

// Close closes the connection, which otherwise ends with the test.
func (s *Session) Close() { s.conn.Close() }
