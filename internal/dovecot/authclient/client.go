package authclient

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"dovetail/internal/process/dial"
	"dovetail/internal/process/event"
)

const (
	// Waits between attempts to connect double from the first to the last of these. A
	// connection that stood for stable is followed by an attempt at once.
	firstWait = 50 * time.Millisecond
	lastWait  = 5 * time.Second
	stable    = 5 * time.Second

	renewals = 3               // attempts of Renew to connect
	renewal  = 5 * time.Second // for it, while new exchanges wait
)

// A Client keeps a connection to the auth service: it connects in the background, and
// again when the connection is lost. Any goroutine may use it.
type Client struct {
	dial   func(ctx context.Context, known uint32) (*Conn, error)
	log    *event.Log
	cancel context.CancelFunc
	ended  chan struct{} // closed when run has ended
	renew  chan struct{} // has room for one; Renew was called

	mu    sync.Mutex
	conn  *Conn         // guarded by mu; nil while there is none
	ready chan struct{} // guarded by mu; closed while conn is set
	since time.Time     // guarded by mu: when conn changed
	ever  bool          // guarded by mu
	err   error         // guarded by mu: why the last attempt failed, or the connection was lost
	other chan struct{} // guarded by mu; nil, or closed when Renew has done what it could
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
		return dial.Unix(ctx, path, dial.Patience, false)
	}, pid, log)
}

// NewClientOver is NewClient with another way to connect: dial, whose connections it takes.
func NewClientOver(dial func(context.Context) (net.Conn, error), pid uint32, log *event.Log) *Client {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		dial: func(ctx context.Context, known uint32) (*Conn, error) {
			nc, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			return newConn(ctx, nc, pid, known)
		},
		log: log, cancel: cancel,
		ended: make(chan struct{}), renew: make(chan struct{}, 1), ready: make(chan struct{}), since: time.Now(),
	}
	go c.run(ctx) // ends with Close
	return c
}

// Close ends the connection and its exchanges.
func (c *Client) Close() {
	c.cancel()
	<-c.ended
}

// Renew makes new exchanges go to another process of the service, if one is behind the
// socket now: after a reload, when those who claim users ask that one. What has begun, and
// who was not claimed yet, stays with the connection that there was. Without another
// process nothing changes. Begin waits meanwhile.
func (c *Client) Renew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil || c.other != nil {
		return
	}
	c.other = make(chan struct{})
	c.renew <- struct{}{}
}

// renewed ends what Renew began. conn is nil if there is no other process.
func (c *Client) renewed(conn *Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn != nil {
		c.conn = conn
	}
	close(c.other)
	c.other = nil
}

// connectOther connects to another process of the service than conn's; nil: there is none.
func (c *Client) connectOther(ctx context.Context, conn *Conn) *Conn {
	ctx, cancel := context.WithTimeout(ctx, renewal)
	defer cancel()
	for range renewals {
		fresh, err := c.dial(ctx, conn.SPID())
		if err == nil {
			return fresh
		}
		if errors.Is(err, errSame) {
			return nil
		}
		select {
		case <-time.After(firstWait):
		case <-ctx.Done():
			return nil
		}
	}
	return nil // it is being stopped, as it seems
}

func (c *Client) run(ctx context.Context) {
	defer close(c.ended)
	var old []*Conn // still used by who began there
	defer func() {
		for _, conn := range old {
			conn.Close()
		}
	}()
	wait, logged := firstWait, ""
	for ctx.Err() == nil {
		conn, err := c.dial(ctx, 0)
		if err == nil {
			if logged != "" {
				c.log.Info("auth-client: connected to the auth service again")
				logged = ""
			}
			began := time.Now()
			c.set(conn, nil)
			for conn.Err() == nil {
				select {
				case <-c.renew:
					fresh := c.connectOther(ctx, conn)
					if fresh != nil {
						old = slices.DeleteFunc(append(old, conn), func(o *Conn) bool { return o.Err() != nil })
						conn = fresh
					}
					c.renewed(fresh)
				case <-conn.Done():
				case <-ctx.Done():
					conn.Close()
				}
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
	if c.other != nil { // the next attempt is Renew's, too
		select {
		case <-c.renew:
		default:
		}
		close(c.other)
		c.other = nil
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
// returns ErrLost at once, unless Renew is about to make another one.
func (c *Client) Begin(r *Request) (*Exchange, error) {
	c.mu.Lock()
	other := c.other
	c.mu.Unlock()
	if other != nil {
		select {
		case <-other:
		case <-c.ended:
		}
	}
	conn := c.Conn()
	if conn == nil {
		return nil, ErrLost
	}
	return conn.Begin(r)
}

// IsTemporary says whether err of an exchange is the auth service's trouble: the SMTP
// client is to try again later.
func IsTemporary(err error) bool { return errors.Is(err, ErrLost) || errors.Is(err, ErrTimeout) }
