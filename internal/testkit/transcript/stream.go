package transcript

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxUnexpected bounds what is read of a line that is not the expected one.
	maxUnexpected = 4 << 20
)

// eventTimeout bounds each wait for the system. The tests of the replayer shorten it.
var eventTimeout = 15 * time.Second

// Hurry makes every wait of later replays short.
func Hurry() { eventTimeout = 2 * time.Second }

// A stream is one side's view of a connection. It belongs to one goroutine; close may be
// called by any.
type stream struct {
	conn net.Conn // TLS once there is some
	raw  net.Conn
	in   []byte // read, not yet compared
}

func newStream(conn net.Conn) *stream { return &stream{conn: conn, raw: conn} }

// expect reads what t stands for and compares it. ended is the error that ended the
// connection instead, if it did before another octet came.
func (s *stream) expect(t Text, v Values) (got string, ended, err error) {
	feeds, fixed := t.lineFeeds()
	have := 0
	for {
		if fixed > 0 && len(s.in) >= fixed {
			have = fixed
			break
		}
		if fixed == 0 {
			if have = afterLines(s.in, feeds); have >= 0 {
				break
			}
		}
		if len(s.in) > maxUnexpected {
			return "", nil, fmt.Errorf("got %d octets without the expected line end", len(s.in))
		}
		if err := s.fill(time.Now().Add(eventTimeout)); err != nil {
			got = string(s.in)
			if got == "" && !isTimeout(err) {
				return "", err, fmt.Errorf("the connection ended (%v)\nwant %s", err, show(t.Source))
			}
			return got, nil, fmt.Errorf("got  %s\\c (%v)\nwant %s", show(got), err, show(t.Source))
		}
	}
	got = string(s.in[:have])
	body, ok := got, true
	if fixed == 0 {
		var cut []byte
		cut, ok = bytes.CutSuffix(s.in[:have], []byte("\r\n"))
		body = string(cut)
	}
	s.in = s.in[have:]
	if !ok {
		return got, nil, fmt.Errorf("the line does not end in CRLF: %s", show(got))
	}
	if !t.Matches(body, v) {
		return got, nil, fmt.Errorf("got  %s\nwant %s", show(body), show(t.Source))
	}
	return got, nil, nil
}

// afterLines returns the offset behind the n-th LF, or -1.
func afterLines(b []byte, n int) int {
	at := 0
	for ; n > 0; n-- {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return -1
		}
		at += i + 1
	}
	return at
}

func (s *stream) fill(deadline time.Time) error {
	_ = s.conn.SetReadDeadline(deadline)
	buf := make([]byte, 64<<10)
	n, err := s.conn.Read(buf)
	s.in = append(s.in, buf[:n]...)
	if n > 0 {
		return nil
	}
	return err
}

// expectEOF wants the end. A reset is one, too: the peer closed while something it had
// not read lay in its buffer, which is a matter of microseconds.
func (s *stream) expectEOF() error {
	for len(s.in) == 0 {
		if err := s.fill(time.Now().Add(eventTimeout)); err != nil {
			if isTimeout(err) {
				return errors.New("the connection stays open\nwant its end")
			}
			return nil
		}
	}
	return fmt.Errorf("got %s\nwant the end of the connection", show(string(s.in)))
}

// excess returns what came and was not expected, without waiting.
func (s *stream) excess() string {
	if len(s.in) == 0 && s.conn == s.raw {
		if sc, ok := s.raw.(syscall.Conn); ok {
			if raw, err := sc.SyscallConn(); err == nil {
				buf := make([]byte, 4096)
				_ = raw.Control(func(fd uintptr) {
					n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT|unix.MSG_PEEK)
					if err == nil && n > 0 {
						s.in = append(s.in, buf[:n]...)
					}
				})
			}
		}
	}
	return string(s.in)
}

func (s *stream) write(data string) error {
	_ = s.conn.SetWriteDeadline(time.Now().Add(eventTimeout))
	_, err := io.WriteString(s.conn, data)
	return err
}

func (s *stream) handshake(make func(net.Conn) *tls.Conn) error {
	tc := make(s.conn)
	_ = s.conn.SetDeadline(time.Now().Add(eventTimeout))
	err := tc.Handshake()
	_ = s.conn.SetDeadline(time.Time{})
	s.conn = tc
	return err
}

// close closes the socket as the recorder did: without TLS's close_notify.
func (s *stream) close() {
	if s != nil {
		s.raw.Close()
	}
}

// closeWrite ends the stream to the peer; what it sends is still read.
func (s *stream) closeWrite() error {
	if cw, ok := s.conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return fmt.Errorf("%T cannot be closed by half", s.conn)
}

func (s *stream) reset() {
	if tcp, ok := s.raw.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	s.raw.Close()
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// closed says whether this side has closed the socket.
func (s *stream) closed() bool {
	sc, ok := s.raw.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}
