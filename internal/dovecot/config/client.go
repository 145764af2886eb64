package config

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/dial"
)

const (
	timeout = 10 * time.Second // of a whole request, as in Dovecot's own client (clause P2.12)

	// Bounds of an answer. Values are files at most: certificates and their like.
	maxValue  = 16 << 20 // of one line
	maxAnswer = 64 << 20 // of all lines
)

// A Client is a connection to the config service. A process keeps one for its life, which
// goes on working when the service is replaced (clause P2.13) until the old one ends. Any
// goroutine may use it; requests wait for each other.
type Client struct {
	mu   sync.Mutex
	conn net.Conn      // guarded by mu
	br   *bufio.Reader // guarded by mu
	err  error         // guarded by mu; once set the connection is closed
}

// Dial connects to the config service's socket at path. Only root, or who owns the
// socket, can.
func Dial(path string) (*Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := dial.Unix(ctx, path, dial.Patience, true)
	if err != nil {
		return nil, fmt.Errorf("config service: %w", err)
	}
	c := NewClient(conn)
	if _, err := io.WriteString(conn, versionCmd); err != nil {
		conn.Close()
		return nil, fmt.Errorf("config service: %w", err)
	}
	return c, nil
}

// NewClient makes a Client of a connection on which nothing has been sent, or only the
// version. It takes conn.
func NewClient(conn net.Conn) *Client {
	return &Client{conn: conn, br: bufio.NewReader(conn)}
}

// Close ends the connection.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = net.ErrClosed
		return c.conn.Close()
	}
	return nil
}

// Request asks for settings and waits at most 10 seconds for the whole answer. After an
// error the connection is closed, and every further Request returns the same error.
func (c *Client) Request(r Request) (Answer, error) {
	line := r.Append(nil)
	if len(line) > MaxRequest {
		return Answer{}, fmt.Errorf("config service: request of %d bytes, at most %d are allowed", len(line), MaxRequest)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return Answer{}, c.err
	}
	a, err := c.exchangeLocked(line)
	if err != nil {
		c.err = fmt.Errorf("config service: %w", err)
		c.conn.Close()
		return Answer{}, c.err
	}
	return a, nil
}

func (c *Client) exchangeLocked(line []byte) (Answer, error) {
	if err := c.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return Answer{}, err
	}
	if _, err := c.conn.Write(line); err != nil {
		return Answer{}, err
	}
	return ReadAnswer(c.br)
}

// ReadAnswer reads one answer. io.ErrUnexpectedEOF: the server closed before its end, as
// it does when it cannot answer.
func ReadAnswer(br *bufio.Reader) (Answer, error) {
	a := Answer{Values: map[string]string{}}
	head, err := readLine(br)
	if err != nil {
		return a, err
	}
	a.parseHeader(head)
	for total := 0; total <= maxAnswer; {
		line, err := readLine(br)
		if err != nil {
			return a, err
		}
		if line == "" {
			return a, nil
		}
		if text, ok := strings.CutPrefix(line, "ERROR "); ok {
			return a, errors.New(text)
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return a, fmt.Errorf("answer line without =: %.100q", line)
		}
		a.Values[key] = decode(value)
		total += len(line)
	}
	return a, fmt.Errorf("answer of more than %d bytes", maxAnswer)
}

// readLine returns a line without its LF.
func readLine(br *bufio.Reader) (string, error) {
	part, err := br.ReadSlice('\n')
	if err == nil {
		return string(part[:len(part)-1]), nil
	}
	var long []byte
	for err == bufio.ErrBufferFull {
		if len(long) > maxValue {
			return "", fmt.Errorf("answer line of more than %d bytes", maxValue)
		}
		long = append(long, part...)
		part, err = br.ReadSlice('\n')
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return "", err
	}
	long = append(long, part...)
	return string(long[:len(long)-1]), nil
}

// Append adds the request's line to b.
func (r Request) Append(b []byte) []byte {
	b = append(b, "REQ"...)
	add := func(key, value string) {
		b = append(b, '\t')
		b = append(b, key...)
		b = append(b, '=')
		b = tabline.AppendEscaped(b, value)
	}
	for _, m := range r.Modules {
		add("module", m)
	}
	for _, x := range r.Exclude {
		add("exclude", x)
	}
	for _, f := range []struct{ key, value string }{{"service", r.Service}, {"user", r.User}} {
		if f.value != "" {
			add(f.key, f.value)
		}
	}
	if r.LocalIP.IsValid() {
		add("lip", r.LocalIP.Unmap().String())
	}
	if r.RemoteIP.IsValid() {
		add("rip", r.RemoteIP.Unmap().String())
	}
	if r.LocalName != "" {
		add("lname", r.LocalName)
	}
	return append(b, '\n')
}
