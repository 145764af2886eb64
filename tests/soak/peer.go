// Package soak has the long runs (`make soak`): thousands of messages through a relay and
// clients that fail at any place; processes that are killed, reloads and restarts under
// busy clients. What is always true is checked each time: a message that was answered with
// 250 is at the relay once, octet for octet, and one that was refused, or not sent whole, is
// not there. Without the tag soak the runs are short.
package soak

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"dovetail/internal/testkit/dovetail"
)

// patience is how long a client waits for anything.
const patience = dovetail.Patience

// A server is where clients connect.
type server struct {
	clear, tls string // addresses
	trust      *tls.Config
}

// A peer is one client connection. Unlike testkit/client it takes whatever happens for a
// result.
type peer struct {
	conn net.Conn
	br   *bufio.Reader
	last string // line of a reply
	err  error  // that ended it, once nothing more comes
}

// connect connects in a way, up to the greeting. What the server says instead of 220 is in
// last, or in err.
func (s *server) connect(way dovetail.Way) (*peer, error) {
	addr := s.clear
	if way == dovetail.TLS {
		addr = s.tls
	}
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	p := &peer{}
	p.use(conn)
	if way == dovetail.TLS && !p.handshake(s.trust) {
		return p, nil
	}
	if p.reply() == "220" && way == dovetail.StartTLS && p.say("STARTTLS\r\n") == "220" {
		p.handshake(s.trust)
	}
	return p, nil
}

func (p *peer) use(conn net.Conn) {
	p.conn, p.br = conn, bufio.NewReader(conn)
}

func (p *peer) handshake(trust *tls.Config) bool {
	tc := tls.Client(p.conn, trust)
	_ = p.conn.SetDeadline(time.Now().Add(patience))
	p.err = tc.Handshake()
	p.use(tc)
	return p.err == nil
}

// write is false when the server has gone; what it said may still be there to be read.
func (p *peer) write(text string) bool {
	_ = p.conn.SetWriteDeadline(time.Now().Add(patience))
	_, err := io.WriteString(p.conn, text)
	return err == nil
}

// say writes and returns the code of the next reply.
func (p *peer) say(text string) string {
	p.write(text)
	return p.reply()
}

// reply returns the code of the next reply, "" at the end of the connection.
func (p *peer) reply() string {
	for p.err == nil {
		_ = p.conn.SetReadDeadline(time.Now().Add(patience))
		line, err := p.br.ReadString('\n')
		if err != nil {
			p.err = err
			if line != "" {
				p.err = fmt.Errorf("half a line: %.100q: %w", line, err)
			}
			break
		}
		p.last = strings.TrimRight(line, "\r\n")
		if len(p.last) < 3 || strings.Trim(p.last[:3], "0123456789") != "" {
			p.err = fmt.Errorf("no reply: %.100q", p.last)
			break
		}
		if len(p.last) == 3 || p.last[3] == ' ' {
			return p.last[:3]
		}
	}
	return ""
}

// drop ends the connection: cleanly, or by a RST.
func (p *peer) drop(reset bool) {
	if p == nil {
		return
	}
	if reset {
		conn := p.conn
		if tc, ok := conn.(*tls.Conn); ok {
			conn = tc.NetConn()
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		conn.Close()
		return
	}
	p.conn.Close()
}

// halfClose sends the end, and nothing more.
func (p *peer) halfClose() {
	if c, ok := p.conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
}

// ended says how the server ended the connection, after the last reply that was read.
func (p *peer) ended() string {
	for p.err == nil {
		p.reply()
	}
	switch err := p.err; {
	case err == io.EOF:
		if strings.HasPrefix(p.last, "421") {
			return "421"
		}
		return "closed"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, io.ErrUnexpectedEOF) && !strings.HasPrefix(err.Error(), "half a line"):
		return "cut" // TLS without its end
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "silence"
	default:
		return err.Error()
	}
}

// gone says whether a code means that nothing more comes.
func gone(code string) bool { return code == "" || code == "421" }

func plain(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
}
