package authclient

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"dovetail/internal/process/event"
)

const (
	// Waits between attempts to connect double from the first to the last of these. A
	// connection that stood for stable is followed by an attempt at once.
	firstWait = 50 * time.Millisecond
	lastWait  = 5 * time.Second
	stable    = 5 * time.Second
)

// A Client keeps a connection to the auth service: it connects in the background, and
// again when the connection is lost. Any goroutine may use it.
type Client struct {
	dial   func(context.Context) (*Conn, error)
	log    *event.Log
	cancel context.CancelFunc
	ended  chan struct{} // closed when run has ended

	mu    sync.Mutex
	conn  *Conn         // guarded by mu; nil while there is none
	ready chan struct{} // guarded by mu; closed while conn is set
	since time.Time     // guarded by mu: when conn changed
	ever  bool          // guarded by mu
	err   error         // guarded by mu: why the last attempt failed, or the connection was lost
}

// A State is how things stand between us and the auth service.
type State struct {
	Ready bool
	Ever  bool      // there has been a connection
	Since time.Time // since when it has been ready, or not
	Err   error     // why it is not ready; nil while the first attempt goes on
}

// NewClient starts to connect to the socket at path, which after a chroot is relative.
// pid is the process's; log gets an error when the service cannot be reached, once until
// that changes. The caller must Close the client.
func NewClient(path string, pid uint32, log *event.Log) *Client {
	return NewClientOver(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}, pid, log)
}

// NewClientOver is NewClient with another way to connect: dial, whose connections it takes.
func NewClientOver(dial func(context.Context) (net.Conn, error), pid uint32, log *event.Log) *Client {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		dial: func(ctx context.Context) (*Conn, error) {
			nc, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			return NewConn(ctx, nc, pid)
		},
		log: log, cancel: cancel,
		ended: make(chan struct{}), ready: make(chan struct{}), since: time.Now(),
	}
	go c.run(ctx) // ends with Close
	return c
}

// Close ends the connection and its exchanges.
func (c *Client) Close() {
	c.cancel()
	<-c.ended
}

func (c *Client) run(ctx context.Context) {
	defer close(c.ended)
	wait, logged := firstWait, ""
	for ctx.Err() == nil {
		conn, err := c.dial(ctx)
		if err == nil {
			if logged != "" {
				c.log.Info("auth-client: connected to the auth service again")
				logged = ""
			}
			began := time.Now()
			c.set(conn, nil)
			select {
			case <-conn.Done():
			case <-ctx.Done():
				conn.Close()
			}
			err = conn.Err()
			c.set(nil, err)
			if n := conn.lost(); n > 0 && ctx.Err() == nil {
				c.log.Warning("auth-client: Auth connection closed with %d pending requests (%v)", n, err)
			}
			if time.Since(began) >= stable {
				wait = firstWait
				continue
			}
		} else {
			c.set(nil, err)
		}
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != logged {
			c.log.Error("auth-client: %s", text)
			logged = text
		}
		t := time.NewTimer(wait/2 + rand.N(wait/2+1))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		wait = min(2*wait, lastWait)
	}
}

func (c *Client) set(conn *Conn, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case conn != nil:
		c.ever, c.since = true, time.Now()
		close(c.ready)
	case c.conn != nil:
		c.since = time.Now()
		c.ready = make(chan struct{})
	}
	c.conn, c.err = conn, err
}

// State says how things stand.
func (c *Client) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return State{Ready: c.conn != nil, Ever: c.ever, Since: c.since, Err: c.err}
}

// Ready waits until there is a connection, or ctx is done, whose cause it returns.
func (c *Client) Ready(ctx context.Context) error {
	c.mu.Lock()
	ready := c.ready
	c.mu.Unlock()
	select {
	case <-ready:
		return nil
	default:
	}
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.ended:
		return net.ErrClosed
	}
}

// Conn returns the connection; nil while there is none. It may be lost at any time.
func (c *Client) Conn() *Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

// Mechanisms returns the mechanisms of the connection; none while there is none.
func (c *Client) Mechanisms() []Mechanism {
	if conn := c.Conn(); conn != nil {
		return conn.Mechanisms()
	}
	return nil
}

// Begin starts an exchange on the connection; see Conn.Begin. Without a connection it
// returns ErrLost at once.
func (c *Client) Begin(r *Request) (*Exchange, error) {
	conn := c.Conn()
	if conn == nil {
		return nil, ErrLost
	}
	return conn.Begin(r)
}

// IsTemporary says whether err of an exchange is the auth service's trouble: the SMTP
// client is to try again later.
func IsTemporary(err error) bool { return errors.Is(err, ErrLost) || errors.Is(err, ErrTimeout) }
