package anvil

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/dial"
)

const (
	queryTimeout = 5 * time.Second // of an answer (clause P6.5)
	dialPatience = 5 * time.Second // with a full queue (clause P0.5)

	maxAnswer  = 8 << 10 // bytes of a line from the service: an ident is at most a line that was sent, escaped
	maxPending = 4096    // questions that wait for their answers
	maxDump    = 1 << 20 // lines of a dump
)

// Why there is no answer.
var (
	ErrLost = errors.New("anvil: connection lost")
	ErrBusy = errors.New("anvil: too many questions wait for an answer")
)

// A Client is a connection to the anvil service's socket. Any goroutine may ask; answers
// come in order, and nobody waits longer than 5 seconds. A lost connection stays lost:
// the socket is root's, who the process no longer is.
type Client struct {
	conn net.Conn
	done chan struct{} // closed when the connection is lost

	mu      sync.Mutex // held for one write, so that pending is in the order of the questions
	pending []*query   // guarded by mu
	err     error      // guarded by mu; once set nothing is asked
}

// A query waits for an answer: one line, or lines up to an empty one.
type query struct {
	many   bool
	answer chan<- []string // takes the answer without blocking; closed without one: it was lost
}

// Dial connects to the anvil service's socket at path. Only root, or who owns the socket,
// can. The Client's reader ends with the connection.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := dial.Unix(ctx, path, dialPatience, true)
	if err != nil {
		return nil, fmt.Errorf("anvil: %w", err)
	}
	return NewClient(conn)
}

// NewClient makes a Client of a connection, which it takes.
func NewClient(conn net.Conn) (*Client, error) {
	c := &Client{conn: conn, done: make(chan struct{})}
	if err := c.write([]byte(version)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("anvil: %w", err)
	}
	go c.read() // ends when the connection does
	return c, nil
}

// Done is closed when the connection is lost, or was closed.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// Lookup returns how many sessions are counted for i now.
func (c *Client) Lookup(ctx context.Context, i Ident) (int, error) {
	lines, err := c.ask(ctx, false, "LOOKUP", i.String())
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(lines[0], 10, 31)
	if err != nil {
		return 0, fmt.Errorf("anvil: answer %.100q to LOOKUP", lines[0])
	}
	return int(n), nil
}

// A Penalty is kept for an ident, such as an address. The service forgets it when nothing
// has happened for an hour, or for what SetPenaltyExpire said.
type Penalty struct {
	Value uint32
	Last  time.Time // when it last grew; zero: there is none
}

// Penalty returns what is kept for ident.
func (c *Client) Penalty(ctx context.Context, ident string) (Penalty, error) {
	lines, err := c.ask(ctx, false, "PENALTY-GET", ident)
	if err != nil {
		return Penalty{}, err
	}
	v, last, _ := strings.Cut(lines[0], " ")
	value, err1 := strconv.ParseUint(v, 10, 32)
	stamp, err2 := strconv.ParseInt(last, 10, 64)
	if errors.Join(err1, err2) != nil {
		return Penalty{}, fmt.Errorf("anvil: answer %.100q to PENALTY-GET", lines[0])
	}
	p := Penalty{Value: uint32(value)}
	if stamp != 0 {
		p.Last = time.Unix(stamp, 0)
	}
	return p, nil
}

// SetPenalty has value kept for ident, at most MaxPenalty. checksum stands for what failed
// (user and password); when the service has seen the same lately, it keeps value-1, since
// who repeats a mistake is not guessing. 0 with 0 takes the penalty away.
func (c *Client) SetPenalty(ident string, checksum, value uint32) error {
	if value > MaxPenalty || value == 0 && checksum != 0 {
		return fmt.Errorf("anvil: no penalty: %d for checksum %d", value, checksum)
	}
	return c.tell("PENALTY-INC", ident, strconv.FormatUint(uint64(checksum), 10), strconv.FormatUint(uint64(value), 10))
}

// SetPenaltyExpire says after how long penalties are forgotten.
func (c *Client) SetPenaltyExpire(d time.Duration) error {
	return c.tell("PENALTY-SET-EXPIRE-SECS", strconv.FormatInt(int64(d/time.Second), 10))
}

// A Connection is one line of what is counted: the sessions of an ident in a process.
type Connection struct {
	Ident
	PID   int
	Count int
}

// Connections returns everything that is counted, in no order.
func (c *Client) Connections(ctx context.Context) ([]Connection, error) {
	lines, err := c.ask(ctx, true, "CONNECT-DUMP")
	if err != nil {
		return nil, err
	}
	all := make([]Connection, len(lines))
	for n, l := range lines {
		f := tabline.Split(l)
		if len(f) < 3 {
			return nil, fmt.Errorf("anvil: answer %.100q to CONNECT-DUMP", l)
		}
		pid, err1 := strconv.Atoi(f[1])
		count, err2 := strconv.Atoi(f[2])
		if errors.Join(err1, err2) != nil {
			return nil, fmt.Errorf("anvil: answer %.100q to CONNECT-DUMP", l)
		}
		all[n] = Connection{ParseIdent(f[0]), pid, count}
	}
	return all, nil
}

// tell sends a line that has no answer.
func (c *Client) tell(fields ...string) error { return c.send(nil, fields) }

// ask sends a line and waits for the answer.
func (c *Client) ask(ctx context.Context, many bool, fields ...string) ([]string, error) {
	answer := make(chan []string, 1)
	if err := c.send(&query{many, answer}, fields); err != nil {
		return nil, err
	}
	timer := time.NewTimer(queryTimeout)
	defer timer.Stop()
	select {
	case lines, ok := <-answer:
		if !ok {
			return nil, ErrLost
		}
		return lines, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("anvil: %s: %w", fields[0], context.Cause(ctx))
	case <-timer.C:
		return nil, fmt.Errorf("anvil: %s: no answer within %v", fields[0], queryTimeout)
	}
}

func (c *Client) send(q *query, fields []string) error {
	line := tabline.Append(nil, fields...)
	if len(line) > MaxLine {
		return ErrTooLong
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return c.err
	case len(c.pending) >= maxPending:
		return ErrBusy
	}
	if q != nil {
		c.pending = append(c.pending, q)
	}
	if err := c.write(line); err != nil {
		c.conn.Close() // the reader tells the others
		c.err = ErrLost
		return ErrLost
	}
	return nil
}

func (c *Client) write(b []byte) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(queryTimeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(b)
	return err
}

// read hands answers to those who wait. It ends when the connection does, or says
// something that nobody asked for.
func (c *Client) read() {
	br := bufio.NewReaderSize(c.conn, maxAnswer)
	for c.answer(br) {
	}
	c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = ErrLost
	for _, q := range c.pending {
		close(q.answer)
	}
	c.pending = nil
	close(c.done)
}

// answer reads one answer. Who asked may have left; then it is dropped.
func (c *Client) answer(br *bufio.Reader) bool {
	first, err := readLine(br)
	if err != nil {
		return false
	}
	c.mu.Lock()
	if len(c.pending) == 0 {
		c.mu.Unlock()
		return false
	}
	q := c.pending[0]
	c.mu.Unlock()
	lines := []string{first}
	if q.many {
		lines = lines[:0]
		for l := first; l != ""; l, err = readLine(br) {
			if err != nil || len(lines) >= maxDump {
				return false
			}
			lines = append(lines, l)
		}
		if err != nil {
			return false
		}
	}
	c.mu.Lock()
	c.pending = c.pending[1:]
	c.mu.Unlock()
	q.answer <- lines
	return true
}

// readLine returns a line without its end. A line that fills the reader is an error.
func readLine(br *bufio.Reader) (string, error) {
	b, err := br.ReadSlice('\n')
	if err != nil {
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	return strings.TrimSuffix(string(b[:len(b)-1]), "\r"), nil
}
