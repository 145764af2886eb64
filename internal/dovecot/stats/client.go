package stats

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/event"
)

const (
	handshake        = "VERSION\tstats-client\t4\t0\n"
	serverMajor      = "4"
	handshakeTimeout = 5 * time.Second       // until the service's filter is there
	writeTimeout     = 5 * time.Second       // of what has been collected
	closeTimeout     = time.Second           // of what is left at the end
	flushDelay       = 20 * time.Millisecond // for which events are collected
	flushSize        = 8 << 10               // bytes that are written without a delay
	maxBuffer        = 256 << 10             // bytes that wait for the service; more: the connection is given up
	maxFilter        = 1 << 20               // bytes of a line from the service
	firstRetry       = 10 * time.Second      // until a lost connection is made anew; doubled each time ...
	lastRetry        = 5 * time.Minute       // ... up to this
)

// errSlow: the service does not read what it wanted to have.
var errSlow = errors.New("it does not read, events are lost")

// A Client is a process's connection to the stats service. Any goroutine may use it, and
// nobody ever waits for the service. A lost connection is made anew in the background. The
// nil Client does nothing.
type Client struct {
	path, service string
	log           *event.Log
	retry         time.Duration // firstRetry
	cancel        context.CancelFunc
	done          chan struct{} // closed when the Client's goroutine has ended
	kick          chan struct{} // holds one: there is something to write

	wanted atomic.Uint64 // a bit for each Name

	mu     sync.Mutex
	gen    uint64 // guarded by mu; of the connection: what was begun on another has to begin again. 0: none
	lastID uint64 // guarded by mu; 0 is never sent
	buf    []byte // guarded by mu; to be written
	up     bool   // guarded by mu; there is a connection
	waits  bool   // guarded by mu; there is no filter yet, so nothing is written
	slow   bool   // guarded by mu; buf was full
}

// Dial connects to the stats service's socket at path ($STATS_WRITER_SOCKET_PATH). It is to
// be called while the process may; later connections are tried, and may be in vain.
// service is the service's name ("submission-login"); what goes wrong later is a Debug
// line on log. Close ends it.
func Dial(ctx context.Context, path, service string, log *event.Log) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	return start(conn, path, service, log, firstRetry), nil
}

func start(conn net.Conn, path, service string, log *event.Log, retry time.Duration) *Client {
	c := &Client{path: path, service: service, log: log, retry: retry, done: make(chan struct{}), kick: make(chan struct{}, 1)}
	c.begin()
	var ctx context.Context
	ctx, c.cancel = context.WithCancel(context.Background())
	go c.run(ctx, conn) // ends with Close
	return c
}

// Close writes what is left, for at most a second, and ends the connection.
func (c *Client) Close() {
	if c == nil {
		return
	}
	c.cancel()
	<-c.done
}

// Wants says whether somebody may want an event. Before the service has said so, the
// answer is yes, and what is sent waits for it.
func (c *Client) Wants(n Name) bool { return c != nil && c.wanted.Load()&(1<<n) != 0 }

// WantsAny says whether somebody may want one of the events.
func (c *Client) WantsAny(names []Name) bool {
	for _, n := range names {
		if c.Wants(n) {
			return true
		}
	}
	return false
}

// run holds a connection until ctx ends.
func (c *Client) run(ctx context.Context, conn net.Conn) {
	defer close(c.done)
	for retry := c.retry; ; {
		if conn != nil {
			start := time.Now()
			if err := c.serve(ctx, conn); ctx.Err() == nil {
				c.log.Debug("stats: connection lost: %v", err)
			}
			if time.Since(start) > lastRetry {
				retry = c.retry
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetry)
		var err error
		var d net.Dialer
		if conn, err = d.DialContext(ctx, "unix", c.path); err == nil {
			c.begin()
		} else {
			conn = nil
		}
	}
}

// begin starts with a new connection: everything may be wanted.
func (c *Client) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	c.up, c.waits, c.slow = true, true, false
	c.wanted.Store(1<<numNames - 1)
}

func (c *Client) appendHandshake(b []byte) []byte {
	b = append(b, handshake...)
	b = tabline.Append(b, "CATEGORY", "service:"+c.service)
	for _, k := range kinds {
		if k.category != "" {
			b = tabline.Append(b, "CATEGORY", k.category)
		}
	}
	return b
}

// serve uses a connection, which it takes, until it is lost or ctx ends.
func (c *Client) serve(ctx context.Context, conn net.Conn) error {
	lost := make(chan error, 1)
	ended := make(chan struct{})
	go func() { // ends with conn
		defer close(ended)
		lost <- c.read(conn)
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Now().Add(closeTimeout)) })
	err := c.write(ctx, conn, lost)
	stop()
	conn.Close()
	<-ended
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nothingLocked()
	return err
}

// nothingLocked says that there is nobody who wants events.
func (c *Client) nothingLocked() {
	c.up, c.buf = false, nil
	c.wanted.Store(0)
}

// write writes what is collected, until the connection is lost or ctx ends.
func (c *Client) write(ctx context.Context, conn net.Conn, lost <-chan error) error {
	if err := writeFor(conn, c.appendHandshake(nil), writeTimeout); err != nil {
		return err
	}
	timer := time.NewTimer(handshakeTimeout)
	defer timer.Stop()
	started := false
	for {
		select {
		case <-ctx.Done():
			return c.last(conn, lost)
		case err := <-lost:
			return err
		case <-timer.C:
			if !started {
				return errors.New("no filter came")
			}
			if err := c.flush(conn, writeTimeout); err != nil {
				return err
			}
		case <-c.kick:
			c.mu.Lock()
			waits, slow, size := c.waits, c.slow, len(c.buf)
			c.mu.Unlock()
			switch {
			case slow:
				return errSlow
			case waits:
			case size >= flushSize:
				if err := c.flush(conn, writeTimeout); err != nil {
					return err
				}
				fallthrough
			default:
				started = true
				timer.Reset(flushDelay)
			}
		}
	}
}

// last writes what is left. A process that ends at once may not have heard yet what is
// wanted.
func (c *Client) last(conn net.Conn, lost <-chan error) error {
	end := time.After(closeTimeout)
	for {
		c.mu.Lock()
		ready := !c.waits || len(c.buf) == 0
		c.mu.Unlock()
		if ready {
			return c.flush(conn, closeTimeout)
		}
		select {
		case <-c.kick:
		case err := <-lost:
			return err
		case <-end:
			return nil
		}
	}
}

// flush writes what is collected.
func (c *Client) flush(conn net.Conn, timeout time.Duration) error {
	c.mu.Lock()
	b := c.buf
	c.buf = nil
	c.mu.Unlock()
	if len(b) == 0 {
		return nil
	}
	err := writeFor(conn, b, timeout)
	c.mu.Lock()
	if c.buf == nil && cap(b) <= 2*flushSize {
		c.buf = b[:0]
	}
	c.mu.Unlock()
	return err
}

func writeFor(conn net.Conn, b []byte, timeout time.Duration) error {
	if err := conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := conn.Write(b)
	return err
}

// kickLocked tells run that there is something.
func (c *Client) kickLocked() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// appendLocked has add extend what is to be written. A service that does not read loses
// its connection.
func (c *Client) appendLocked(add func(b []byte) []byte) {
	if !c.up {
		return
	}
	was := len(c.buf)
	c.buf = add(c.buf)
	if len(c.buf) > maxBuffer {
		c.slow = true
		c.nothingLocked()
	}
	if was == 0 || was < flushSize && len(c.buf) >= flushSize || c.slow {
		c.kickLocked()
	}
}

// read takes the service's lines until the connection is lost.
func (c *Client) read(conn net.Conn) error {
	br := bufio.NewReaderSize(conn, 512) // most filters are empty, and the buffer stays
	line, err := readLine(br)
	if err != nil {
		return err
	}
	if f := strings.Split(line, "\t"); len(f) < 4 || f[0] != "VERSION" || f[1] != "stats-server" || f[2] != serverMajor {
		return fmt.Errorf("not a stats service of version %s: %.100q", serverMajor, line)
	}
	for {
		if line, err = readLine(br); err != nil {
			return err
		}
		f := tabline.Split(line)
		if f[0] != "FILTER" {
			continue
		}
		text := ""
		if len(f) > 1 {
			text = f[1]
		}
		c.setFilter(text)
	}
}

func (c *Client) setFilter(text string) {
	f, err := parseFilter(text)
	if err != nil {
		c.log.Debug("stats: filter is not understood, so everything is sent: %v", err)
	}
	events := mask(f, c.service)
	if c.log.Debugging() {
		c.log.Debug("stats: wanted: %s", maskString(events))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.up {
		return
	}
	c.wanted.Store(events)
	if c.waits && events == 0 {
		c.gen++ // what was begun is not said
		c.buf = nil
	}
	c.waits = false
	c.kickLocked()
}

// readLine returns a line without its LF.
func readLine(br *bufio.Reader) (string, error) {
	var long []byte
	for {
		part, err := br.ReadSlice('\n')
		if err == nil && long == nil {
			return string(part[:len(part)-1]), nil
		}
		long = append(long, part...)
		switch {
		case err == nil:
			return string(long[:len(long)-1]), nil
		case err != bufio.ErrBufferFull:
			if err == io.EOF && len(long) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		case len(long) > maxFilter:
			return "", fmt.Errorf("line of more than %d bytes", maxFilter)
		}
	}
}
