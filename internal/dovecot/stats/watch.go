package stats

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dovetail/internal/process/event"
	"dovetail/internal/process/fdpass"
)

// Open is Dial for a program at its start: path is $STATS_WRITER_SOCKET_PATH, "" with a
// master that has no stats service. It returns nil if there is nobody to tell, after an
// Error line unless the socket just is not there.
func Open(ctx context.Context, path, service string, log *event.Log) *Client {
	if path == "" {
		return nil
	}
	c, err := Dial(ctx, path, service, log)
	if err == nil {
		return c
	}
	if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
		log.Error("%v", err)
	}
	return nil
}

// Watch tells of a connection to another service, by the socket at path: that it is there,
// and, when it is closed, that it has gone. It takes conn, and returns what is to be used
// in its place.
func (c *Client) Watch(conn net.Conn, path string) net.Conn {
	if c == nil {
		return conn
	}
	w := &watched{Conn: conn, path: path, since: time.Now()}
	w.pid, w.uid = fdpass.Peer(conn)
	w.scope.Begin(c, nil, AuthClient, nil)
	w.scope.Event(AuthConnected).With(w.fields).Send(w.since)
	return w
}

// watched is a connection that is told of.
type watched struct {
	net.Conn
	path     string
	pid, uid int // of the peer
	since    time.Time
	in, out  atomic.Int64
	once     sync.Once
	scope    Scope
}

func (w *watched) fields(f *Fields) {
	f.Str("socket_path", w.path)
	f.Int("remote_pid", int64(w.pid))
	f.Int("remote_uid", int64(w.uid))
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	w.in.Add(int64(n))
	return n, err
}

func (w *watched) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	w.out.Add(int64(n))
	return n, err
}

func (w *watched) Close() error {
	err := w.Conn.Close()
	w.once.Do(func() {
		w.scope.Event(AuthDisconnected).Str("reason", "Connection closed").With(w.fields).
			Int("bytes_in", w.in.Load()).Int("bytes_out", w.out.Load()).Send(w.since)
		w.scope.End()
	})
	return err
}
