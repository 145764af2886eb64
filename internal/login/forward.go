package login

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

const (
	forwardSize  = 32 << 10         // read at a time
	writeTimeout = 10 * time.Minute // for a client to take what the worker says
	cutAfter     = 5 * time.Second  // at a shutdown: for the worker to say its 421
)

// A forwarder passes octets between a client and its worker: behind TLS, or when the
// client had sent more than the hand-over could hold. Waiting takes no buffer on either
// side.
type forwarder struct {
	near  *socket // the worker has the other end
	early []byte  // what the client has sent already
}

// run passes octets until the worker closes, and closes both. A client that has finished
// sending still gets what the worker says. ctx's end gives the worker a moment to say why.
func (f *forwarder) run(ctx context.Context, se *session) {
	defer f.near.Close()
	defer se.sock.Close()
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(cutAfter, func() { se.sock.Close(); f.near.Close() })
	})
	defer stop()
	client := se.c.Conn()
	se.sock.SetDeadline(time.Time{})
	se.sock.NoWait = true
	done := make(chan struct{})
	se.client.Go(func() { // ends when the client has, or run closes its socket
		defer close(done)
		if f.fromClient(client, se.sock) != nil {
			f.near.Close() // the client is gone: the worker hears of it
		} else {
			f.near.CloseWrite()
		}
	})
	f.toClient(client, se.sock)
	if c, ok := client.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
	se.sock.Close()
	<-done
}

// fromClient returns nil at the end of what the client sends.
func (f *forwarder) fromClient(client net.Conn, sock *socket) error {
	if len(f.early) > 0 {
		if _, err := f.near.Write(f.early); err != nil {
			return err
		}
		f.early = nil
	}
	for {
		b := buffers.Get().(*[]byte)
		n, err := client.Read(*b)
		if n > 0 {
			_, werr := f.near.Write((*b)[:n])
			buffers.Put(b)
			if werr != nil {
				return werr
			}
		} else {
			buffers.Put(b)
		}
		switch {
		case err == nil:
		case errors.Is(err, errWouldBlock):
			if err := sock.Wait(); err != nil {
				return err
			}
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		default:
			return err
		}
	}
}

// toClient returns when the worker has closed, or the client is gone.
func (f *forwarder) toClient(client net.Conn, sock *socket) {
	for {
		b, n, err := f.near.readPooled()
		if err != nil {
			return
		}
		sock.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err = client.Write((*b)[:n])
		buffers.Put(b)
		if err != nil {
			return
		}
	}
}
