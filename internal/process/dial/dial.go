// Package dial connects to the Unix sockets of other services. Their queues can be full for
// a moment, and a reload of the master makes the sockets anew.
package dial

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

// Patience is how long Dovecot waits for most services with full queues (clause P0.5).
const Patience = time.Second

const (
	away  = time.Second // how long a socket may take to be made anew
	pause = 10 * time.Millisecond
)

// Unix connects to the socket at path. While its queue is full it tries again, for as long
// as patience; with anew also while there is no such socket, or nobody listens there, for a
// second. Errors are what the system said last, or the cause of ctx's end.
func Unix(ctx context.Context, path string, patience time.Duration, anew bool) (*net.UnixConn, error) {
	var d net.Dialer
	for began := time.Now(); ; {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		var most time.Duration
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, syscall.EAGAIN):
			most = patience
		case anew && (errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)):
			most = away
		}
		if time.Since(began) >= most {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}
