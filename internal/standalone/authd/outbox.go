package authd

import (
	"context"
	"net"
	"sync"
	"time"
)

const (
	// While a client leaves more than this unread, nothing more is read from it (P3.17).
	maxUnread = 50 << 10

	writeTimeout = 60 * time.Second // of a client that reads nothing at all
)

// An outbox writes to a connection in the background, many lines in one write. What it
// holds is bounded by what was read: every command has one reply, and nothing is read
// while there is no room.
type outbox struct {
	nc   net.Conn
	wake chan struct{} // holds one token when there is something to write
	done chan struct{} // closed when nothing is written any more

	mu     sync.Mutex
	buf    []byte        // guarded by mu
	room   chan struct{} // guarded by mu; closed when there is room; nil while there is
	closed bool          // guarded by mu
}

func newOutbox(nc net.Conn) *outbox {
	o := &outbox{nc: nc, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go o.run() // ends with close, or when the client does not read
	return o
}

// write takes lines. It never waits.
func (o *outbox) write(b []byte) {
	o.mu.Lock()
	if !o.closed {
		o.buf = append(o.buf, b...)
		if len(o.buf) > maxUnread && o.room == nil {
			o.room = make(chan struct{})
		}
	}
	o.mu.Unlock()
	o.poke()
}

func (o *outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// waitRoom waits until the client has read enough.
func (o *outbox) waitRoom(ctx context.Context) {
	o.mu.Lock()
	room := o.room
	o.mu.Unlock()
	if room == nil {
		return
	}
	select {
	case <-room:
	case <-o.done:
	case <-ctx.Done():
	}
}

func (o *outbox) run() {
	defer close(o.done)
	defer o.nc.Close()
	var out []byte
	for range o.wake {
		o.mu.Lock()
		out, o.buf = o.buf, out[:0]
		closed := o.closed
		if o.room != nil {
			close(o.room)
			o.room = nil
		}
		o.mu.Unlock()
		if len(out) > 0 {
			err := o.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
			if err == nil {
				_, err = o.nc.Write(out)
			}
			clear(out)
			if err != nil {
				o.mu.Lock()
				o.closed = true
				o.mu.Unlock()
				return
			}
			if cap(out) > 4*maxUnread {
				out = nil
			}
		}
		if closed {
			return
		}
	}
}

// close writes what is left, closes the connection and waits for that.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.poke()
	<-o.done
}
