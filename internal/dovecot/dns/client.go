package dns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	lookupTimeout = 30 * time.Second // of a question, as long as a resolver can take
	ioTimeout     = 10 * time.Second // of a connect and of a write
	idleTimeout   = 10 * time.Second // after which a connection that can be made anew is closed
	maxConns      = 4                // of one client
	maxPending    = 100              // questions on one connection
)

// Why there is no answer, when it is not an Error of the service.
var (
	ErrLost = errors.New("dns service: connection lost")
	ErrBusy = errors.New("dns service: too many questions wait for an answer")

	errTimeout = errors.New("dns service: no answer in time")
)

// A Client asks the service. Any goroutine may; nobody waits longer than 30 seconds.
type Client struct {
	path    string        // "": there is only the connection that Dial made
	dialing chan struct{} // holds the one who connects

	mu    sync.Mutex
	conns []*conn // guarded by mu; alive, at most maxConns
}

// NewClient returns a Client that connects to the service's socket at path whenever it is
// asked: inside a chroot that has it.
func NewClient(path string) *Client { return &Client{path: path, dialing: make(chan struct{}, 1)} }

// Dial returns a Client with one connection, which has to last: for a process that will
// not reach path any more.
func Dial(ctx context.Context, path string) (*Client, error) {
	c := &Client{}
	if _, err := c.dial(ctx, path); err != nil {
		return nil, err
	}
	return c, nil
}

// Close ends the connections. Questions that wait end with ErrLost.
func (c *Client) Close() {
	c.mu.Lock()
	conns := c.conns
	c.conns = nil
	c.mu.Unlock()
	for _, x := range conns {
		x.nc.Close()
		<-x.done
	}
}

// Lookup returns the addresses of name, at least one. An address is its own. Errors: an
// *Error; ErrLost, ErrBusy, or the reason why ctx ended.
func (c *Client) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	f, err := c.ask(ctx, "IP\t"+name+"\n")
	if err != nil {
		return nil, err
	}
	return parseAddrs(f)
}

// LookupAddr returns the name of an address. It comes from the network: of any form.
func (c *Client) LookupAddr(ctx context.Context, a netip.Addr) (string, error) {
	f, err := c.ask(ctx, "NAME\t"+a.Unmap().WithZone("").String()+"\n")
	if err != nil {
		return "", err
	}
	return f[0], nil
}

// ask sends a line and waits for the answer. The service may have closed a connection that
// was used before; then another one is asked, once.
func (c *Client) ask(ctx context.Context, line string) ([]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookupTimeout, errTimeout)
	defer cancel()
	for again := false; ; again = true {
		x, err := c.get(ctx)
		if err != nil {
			return nil, err
		}
		answer, used, err := x.send(line)
		if err == nil {
			select {
			case a, ok := <-answer:
				if ok {
					return a.fields, a.err
				}
				err = ErrLost
			case <-ctx.Done():
				if err = context.Cause(ctx); err == errTimeout && c.path != "" {
					x.nc.Close() // whatever holds it: others are better off with a new one
				}
				return nil, err
			}
		}
		if err != ErrLost || again || !used || c.path == "" {
			return nil, err
		}
	}
}

// get returns the connection with the fewest questions; a new one, if none is idle and
// there may be more.
func (c *Client) get(ctx context.Context) (*conn, error) {
	if x := c.best(); x != nil {
		return x, nil
	}
	if c.path == "" {
		return nil, ErrLost
	}
	select {
	case c.dialing <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-c.dialing }()
	if x := c.best(); x != nil { // somebody else has just made it
		return x, nil
	}
	return c.dial(ctx, c.path)
}

// best returns the connection to ask; nil if a new one is better.
func (c *Client) best() (best *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	least := 0
	for _, x := range c.conns {
		if n, alive := x.waiting(); alive && (best == nil || n < least) {
			best, least = x, n
		}
	}
	if least > 0 && c.path != "" && len(c.conns) < maxConns {
		return nil
	}
	return best
}

func (c *Client) remove(x *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, y := range c.conns {
		if x == y {
			c.conns = append(c.conns[:i], c.conns[i+1:]...)
			return
		}
	}
}

// dial connects and says what we are; the service's version is read with its first answer.
func (c *Client) dial(ctx context.Context, path string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("dns service: %w", err)
	}
	x := &conn{nc: nc, done: make(chan struct{})}
	if err := x.write(clientVersion); err != nil {
		nc.Close()
		return nil, fmt.Errorf("dns service: %w", err)
	}
	if c.path != "" {
		x.idle = time.AfterFunc(idleTimeout, x.closeIdle)
	}
	c.mu.Lock()
	c.conns = append(c.conns, x)
	c.mu.Unlock()
	go func() { // ends with the connection
		x.read()
		c.remove(x)
		x.end()
	}()
	return x, nil
}

// conn is one connection.
type conn struct {
	nc   net.Conn
	idle *time.Timer   // nil: the connection has to last
	done chan struct{} // closed when read has ended

	mu      sync.Mutex      // held for one write, so that pending is in the order of the questions
	pending []chan<- answer // guarded by mu; each takes one answer without blocking
	asked   bool            // guarded by mu
	dead    bool            // guarded by mu; nothing is asked any more
}

type answer struct {
	fields []string
	err    error
}

func (x *conn) waiting() (n int, alive bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.pending), !x.dead
}

// send asks. used: the connection was asked before.
func (x *conn) send(line string) (got <-chan answer, used bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	used, x.asked = x.asked, true
	switch {
	case x.dead:
		return nil, used, ErrLost
	case len(x.pending) >= maxPending:
		return nil, used, ErrBusy
	}
	ch := make(chan answer, 1)
	x.pending = append(x.pending, ch)
	if x.idle != nil {
		x.idle.Stop()
	}
	if err := x.write(line); err != nil {
		x.dead = true
		x.nc.Close() // the reader tells the others
		return nil, used, ErrLost
	}
	return ch, used, nil
}

func (x *conn) write(s string) error {
	if err := x.nc.SetWriteDeadline(time.Now().Add(ioTimeout)); err != nil {
		return err
	}
	_, err := io.WriteString(x.nc, s)
	return err
}

// closeIdle ends a connection that nobody asks.
func (x *conn) closeIdle() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.pending) == 0 {
		x.dead = true
		x.nc.Close()
	}
}

// read hands answers to those who wait. Who asked may have left; then it is dropped.
func (x *conn) read() {
	br := bufio.NewReaderSize(x.nc, maxAnswer)
	line, err := readLine(br)
	if err != nil || parseVersion(line) != nil {
		return
	}
	for {
		if line, err = readLine(br); err != nil {
			return
		}
		x.mu.Lock()
		if len(x.pending) == 0 {
			x.mu.Unlock()
			return // nobody has asked
		}
		ch := x.pending[0]
		if x.pending = x.pending[1:]; len(x.pending) == 0 && x.idle != nil {
			x.idle.Reset(idleTimeout)
		}
		x.mu.Unlock()
		var a answer
		a.fields, a.err = parseAnswer(line)
		ch <- a
	}
}

// end tells those who wait that nothing comes.
func (x *conn) end() {
	x.nc.Close()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.dead = true
	if x.idle != nil {
		x.idle.Stop()
	}
	for _, ch := range x.pending {
		close(ch)
	}
	x.pending = nil
	close(x.done)
}

// readLine returns a line without its end. A line that fills the reader is an error.
func readLine(br *bufio.Reader) (string, error) {
	b, err := br.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(b[:len(b)-1]), "\r"), nil
}
