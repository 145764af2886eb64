// Package client is an SMTP client for tests: it sends what it is told to the octet, good
// or bad, in the pieces it is told, and says what it got instead of what was expected,
// with the dialogue so far.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Timeout bounds each wait for the peer, unless Options say otherwise.
const Timeout = 10 * time.Second

// maxReply bounds one reply line, in octets: a test of a hostile server must not eat the
// machine.
const maxReply = 64 << 20

// Options say how to connect.
type Options struct {
	From    string        // local address, "" for any
	TLS     *tls.Config   // implicit TLS
	Before  string        // sent before anything else, also before TLS: a PROXY header
	Timeout time.Duration // of each wait; 0: Timeout
}

// A Client is one connection. Its methods end the test when the peer does not behave as
// expected; they belong to the test's goroutine. It is closed with the test.
type Client struct {
	Conn net.Conn // the connection, TLS included

	t       testing.TB
	timeout time.Duration
	in      []byte // read, not yet taken
	dialog  dialog
}

// Dial connects to addr.
func Dial(t testing.TB, addr string, o Options) *Client {
	t.Helper()
	d := net.Dialer{Timeout: Timeout}
	if o.From != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(o.From)}
	}
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	conn, err := d.DialContext(context.Background(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	c := New(t, conn)
	if o.Timeout > 0 {
		c.timeout = o.Timeout
	}
	if o.Before != "" {
		c.Write(o.Before)
	}
	if o.TLS != nil {
		c.StartTLS(o.TLS)
	}
	return c
}

// New takes conn, which it closes with the test.
func New(t testing.TB, conn net.Conn) *Client {
	t.Helper()
	c := &Client{Conn: conn, t: t, timeout: Timeout}
	t.Cleanup(func() { c.Conn.Close() })
	return c
}

// Local returns the address the server sees.
func (c *Client) Local() net.Addr { return c.Conn.LocalAddr() }

// Send sends the lines, each with CRLF behind it, in one write.
func (c *Client) Send(lines ...string) {
	c.t.Helper()
	c.Write(strings.Join(lines, "\r\n") + "\r\n")
}

// Write sends data as it is, in one write.
func (c *Client) Write(data string) {
	c.t.Helper()
	if err := c.TryWrite(data); err != nil {
		c.fatalf("write: %v", err)
	}
}

// TryWrite is Write for when the server may have gone.
func (c *Client) TryWrite(data string) error {
	c.dialog.add('C', data)
	_ = c.Conn.SetWriteDeadline(time.Now().Add(c.timeout))
	_, err := io.WriteString(c.Conn, data)
	return err
}

// WriteSplit sends data in pieces that end at the given offsets; the last one ends at the
// end. On TCP each piece is a segment of its own, and is acknowledged before the next one
// is sent.
func (c *Client) WriteSplit(data string, at ...int) {
	c.t.Helper()
	from := 0
	for _, to := range append(at, len(data)) {
		if to <= from {
			continue
		}
		c.Write(data[from:to])
		from = to
		waitSent(c.Conn, c.timeout)
	}
}

// Line returns the next line from the server, without its line end.
func (c *Client) Line() string {
	c.t.Helper()
	line, err := c.TryLine()
	if err != nil {
		c.fatalf("waiting for a line: %v", err)
	}
	return line
}

// TryLine is Line for when there may be none. At the end of the connection it returns
// io.EOF, with what stood behind the last line end.
func (c *Client) TryLine() (string, error) {
	for {
		if i := bytes.IndexByte(c.in, '\n'); i >= 0 {
			line := string(c.in[:i+1])
			c.in = c.in[i+1:]
			c.dialog.add('S', line)
			return strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"), nil
		}
		if len(c.in) > maxReply {
			return "", fmt.Errorf("a line of more than %d octets", maxReply)
		}
		if err := c.fill(); err != nil {
			rest := string(c.in)
			c.in = nil
			c.dialog.add('S', rest)
			return rest, err
		}
	}
}

// fill reads once.
func (c *Client) fill() error {
	_ = c.Conn.SetReadDeadline(time.Now().Add(c.timeout))
	buf := make([]byte, 16<<10)
	n, err := c.Conn.Read(buf)
	c.in = append(c.in, buf[:n]...)
	if n > 0 {
		return nil
	}
	return err
}

// Reply returns the lines of the next reply, of one or more lines.
func (c *Client) Reply() []string {
	c.t.Helper()
	var lines []string
	for {
		line := c.Line()
		lines = append(lines, line)
		if len(line) < 4 || line[3] != '-' {
			return lines
		}
	}
}

// Expect wants the given reply lines, exactly and in order.
func (c *Client) Expect(want ...string) {
	c.t.Helper()
	for _, w := range want {
		if got := c.Line(); got != w {
			c.fatalf("got  %.300q\nwant %.300q", got, w)
		}
	}
}

// ExpectMatch wants the next line to match a regular expression.
func (c *Client) ExpectMatch(pattern string) string {
	c.t.Helper()
	got := c.Line()
	if !regexp.MustCompile(pattern).MatchString(got) {
		c.fatalf("got %.300q\nwant a match of %s", got, pattern)
	}
	return got
}

// ExpectCode wants a whole reply whose last line begins with prefix ("250", "250 2.1.0").
func (c *Client) ExpectCode(prefix string) []string {
	c.t.Helper()
	lines := c.Reply()
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, prefix) {
		c.fatalf("got %.300q\nwant %s...", lines, prefix)
	}
	return lines
}

// Do sends one line and wants one reply that begins with prefix.
func (c *Client) Do(line, prefix string) []string {
	c.t.Helper()
	c.Send(line)
	return c.ExpectCode(prefix)
}

// Plain logs in by AUTH PLAIN with an initial response.
func (c *Client) Plain(user, password string) {
	c.t.Helper()
	c.Do("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+password)), "235")
}

// ExpectEOF wants the server to close, without another octet.
func (c *Client) ExpectEOF() {
	c.t.Helper()
	line, err := c.TryLine()
	if err == nil || line != "" {
		c.fatalf("got %.300q\nwant the end of the connection", line)
	}
	if !errors.Is(err, io.EOF) {
		c.fatalf("got %v\nwant a clean end of the connection", err)
	}
}

// ExpectGone wants the connection to end, cleanly or by reset, after whatever else comes;
// it returns that.
func (c *Client) ExpectGone() (rest string) {
	c.t.Helper()
	for {
		line, err := c.TryLine()
		rest += line
		var timeout net.Error
		switch {
		case err == nil:
			rest += "\r\n"
		case errors.As(err, &timeout) && timeout.Timeout():
			c.fatalf("the server does not close")
		default:
			return rest
		}
	}
}

// ExpectSilence wants nothing to come for d. It is the one wait for time that passes: keep
// d short.
func (c *Client) ExpectSilence(d time.Duration) {
	c.t.Helper()
	if len(c.in) == 0 {
		_ = c.Conn.SetReadDeadline(time.Now().Add(d))
		buf := make([]byte, 4096)
		n, err := c.Conn.Read(buf)
		c.in = append(c.in, buf[:n]...)
		var timeout net.Error
		if n == 0 && !(errors.As(err, &timeout) && timeout.Timeout()) {
			c.fatalf("got %v\nwant silence", err)
		}
	}
	if len(c.in) > 0 {
		c.fatalf("got %.300q\nwant silence", c.in)
	}
}

// StartTLS makes the handshake; STARTTLS was sent and answered before.
func (c *Client) StartTLS(config *tls.Config) {
	c.t.Helper()
	if err := c.TryStartTLS(config); err != nil {
		c.fatalf("TLS handshake: %v", err)
	}
}

// TryStartTLS is StartTLS for when it may fail.
func (c *Client) TryStartTLS(config *tls.Config) error {
	if len(c.in) > 0 {
		return fmt.Errorf("the server sent %.100q before the handshake", c.in)
	}
	tc := tls.Client(c.Conn, config)
	_ = c.Conn.SetDeadline(time.Now().Add(c.timeout))
	err := tc.Handshake()
	_ = c.Conn.SetDeadline(time.Time{})
	c.dialog.note("TLS handshake: %v", err)
	c.Conn = tc
	return err
}

// CloseWrite sends the end of the stream and still reads (for TLS: close_notify).
func (c *Client) CloseWrite() {
	c.t.Helper()
	cw, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		c.fatalf("%T has no CloseWrite", c.Conn)
	}
	if err := cw.CloseWrite(); err != nil {
		c.fatalf("CloseWrite: %v", err)
	}
}

// Close closes the connection.
func (c *Client) Close() { c.Conn.Close() }

// Reset closes the connection with a RST.
func (c *Client) Reset() {
	conn := c.Conn
	if tc, ok := conn.(*tls.Conn); ok {
		conn = tc.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// Dialogue returns what was said, one line each, cut to a readable size.
func (c *Client) Dialogue() string { return c.dialog.String() }

func (c *Client) fatalf(format string, args ...any) {
	c.t.Helper()
	c.t.Fatalf("%s\ndialogue:\n%s", fmt.Sprintf(format, args...), c.dialog.String())
}
