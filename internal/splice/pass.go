package splice

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	writeTimeout = 10 * time.Minute // for a side to take what the other says
	halfClosed   = 10 * time.Minute // for a server to end after its client has
)

// An End is one side: Conn carries the octets, Sock lies beneath it. Without TLS they are
// the same.
type End struct {
	Conn net.Conn
	Sock *Socket
}

// Plain is the End of a connection without TLS.
func Plain(s *Socket) End { return End{s, s} }

func (e End) isPlain() bool { return e.Conn == net.Conn(e.Sock) }

func (e End) closeWrite() {
	if c, ok := e.Conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}

// A Stream is a client and a server between which octets pass. All fields are set before
// Run.
type Stream struct {
	Client, Server End
	ToServer       []byte          // sent first
	ToClient       []byte          // sent first
	Go             func(fn func()) // starts a goroutine; nil: the go statement
	Linger         func()          // called when the server has ended, before the client's connection is closed; may be nil

	in, out atomic.Uint64 // octets to the server, to the client
	last    atomic.Int64  // when something passed, in ns
	once    sync.Once
	result  Result
}

// A Result says how a Stream has ended.
type Result struct {
	ByServer bool  // it ended first
	Err      error // nil: by closing
}

// In and Out are the octets that have passed to the server and to the client.
func (s *Stream) In() uint64 { return s.in.Load() }

// Out: see In.
func (s *Stream) Out() uint64 { return s.out.Load() }

// Idle is how long nothing has passed.
func (s *Stream) Idle() time.Duration { return time.Duration(time.Now().UnixNano() - s.last.Load()) }

// Run passes octets until the server ends, or the client does and the server has followed,
// and closes both. A client that has finished sending still gets what the server says.
// Close ends it from another goroutine.
func (s *Stream) Run() Result {
	s.last.Store(time.Now().UnixNano())
	for _, e := range []End{s.Client, s.Server} {
		e.Sock.SetDeadline(time.Time{})
		e.Sock.NoWait = true
	}
	done := make(chan struct{})
	start := s.Go
	if start == nil {
		start = func(f func()) { go f() }
	}
	start(func() { // ends when the client has, or Close closed its socket
		defer close(done)
		err := s.pump(s.Client, s.Server, s.ToServer, &s.in)
		s.ended(false, err)
		if err != nil {
			s.Server.Sock.Close() // nobody wants to hear more
			return
		}
		s.Server.closeWrite()
		s.Server.Sock.SetReadDeadline(time.Now().Add(halfClosed))
	})
	err := s.pump(s.Server, s.Client, s.ToClient, &s.out)
	s.ended(true, err)
	if s.Linger != nil && s.result.ByServer {
		s.Linger()
	}
	s.Client.closeWrite()
	s.Close()
	<-done
	return s.result
}

// Close closes both sides.
func (s *Stream) Close() {
	s.Client.Sock.Close()
	s.Server.Sock.Close()
}

// ended keeps how the first side ended.
func (s *Stream) ended(server bool, err error) {
	s.once.Do(func() { s.result = Result{server, err} })
}

// pump passes octets one way until from ends (nil), or something fails.
func (s *Stream) pump(from, to End, early []byte, count *atomic.Uint64) error {
	write := func(b []byte) error {
		to.Sock.SetWriteDeadline(time.Now().Add(writeTimeout))
		n, err := to.Conn.Write(b)
		count.Add(uint64(n))
		s.last.Store(time.Now().UnixNano())
		return err
	}
	if len(early) > 0 {
		if err := write(early); err != nil {
			return err
		}
	}
	for {
		b, n, err := from.read()
		if n > 0 {
			werr := write((*b)[:n])
			buffers.Put(b)
			if werr != nil {
				return werr
			}
			if n == size && from.isPlain() && to.isPlain() {
				if err := s.bulk(from, to, count); err != nil {
					return closed(err)
				}
			}
		}
		if err != nil {
			return closed(err)
		}
	}
}

// closed makes nil of the ways in which a side just ends.
func closed(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// read waits for input and reads it into a buffer of the pool, which the caller puts back
// if n is not 0.
func (e End) read() (b *[]byte, n int, err error) {
	if e.isPlain() {
		return e.Sock.readPooled()
	}
	for {
		b = buffers.Get().(*[]byte)
		if n, err = e.Conn.Read(*b); n > 0 {
			return b, n, err
		}
		buffers.Put(b)
		if err == nil {
			continue
		}
		if !errors.Is(err, errWouldBlock) {
			return nil, 0, err
		}
		if err := e.Sock.Wait(); err != nil {
			return nil, 0, err
		}
	}
}
