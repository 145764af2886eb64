// Package timedconn makes sure that no wait for a peer is for ever: each read and write of
// a connection has its time, and all of them end with a context.
package timedconn

import (
	"context"
	"net"
	"sync"
	"time"
)

// A Conn is a connection whose waits are bounded. It belongs to one goroutine.
type Conn struct {
	net.Conn
	timeout time.Duration

	mu    sync.Mutex
	cause error // guarded by mu; why a context ended
}

// New takes nc, whose reads and writes will each last timeout at most.
func New(nc net.Conn, timeout time.Duration) *Conn { return &Conn{Conn: nc, timeout: timeout} }

// Timeout is how long a read or write may last.
func (c *Conn) Timeout() time.Duration { return c.timeout }

// Bind ends all waits when ctx ends, until unbind is called. Afterwards the connection is
// of no use: its reads and writes return ctx's cause.
func (c *Conn) Bind(ctx context.Context) (unbind func()) {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cause = context.Cause(ctx)
		_ = c.Conn.SetDeadline(time.Unix(1, 0))
	})
	return func() { stop() }
}

// start sets the deadline of a wait, unless all have been ended.
func (c *Conn) start(set func(time.Time) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	return set(time.Now().Add(c.timeout))
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if err := c.start(c.Conn.SetReadDeadline); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	if err := c.start(c.Conn.SetWriteDeadline); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// Why returns why a context ended instead of err, if one did.
func (c *Conn) Why(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil && err != nil {
		return c.cause
	}
	return err
}
