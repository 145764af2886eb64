package splice

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dovetail/internal/process/pace"
)

// writeTimeout is how long a side may leave what the other says untaken. Tests do not wait
// that long.
var writeTimeout = 10 * time.Minute / pace.Haste

const (
	halfClosed = 10 * time.Minute / pace.Haste // for a server to end after its client has

	lastWords = time.Second // for a client to read what its server said last, and to leave

	blockedAfter = 100 * time.Millisecond // of a write
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
	if !e.isPlain() { // TLS has an end of its own
		e.Sock.CloseWrite()
	}
}

// A Stream is a client and a server between which octets pass. All fields are set before
// Run.
type Stream struct {
	Client, Server End
	ToServer       []byte          // sent first
	ToClient       []byte          // sent first
	Go             func(fn func()) // starts a goroutine; nil: the go statement

	// Ended, if not nil, is called once when nothing passes any more, before the client's
	// connection is closed. What it returns is how long the client stays connected, unless
	// it leaves: what it sends is dropped then.
	Ended func(Result) time.Duration

	in, out  atomic.Uint64   // octets to the server, to the client
	last     atomic.Int64    // when something passed, in ns
	unsent   [2]atomic.Int64 // octets of a write that goes on, by direction
	since    [2]atomic.Int64 // when it began, in ns
	deaf     atomic.Bool     // the server is gone, and the client does not know yet
	finished atomic.Bool     // Close was called

	mu     sync.Mutex
	over   bool   // guarded by mu: result is set
	result Result // guarded by mu
}

// Directions, as indexes.
const (
	toServer = iota
	toClient
)

// A Result says how a Stream has ended.
type Result struct {
	ByServer bool  // it ended first
	Err      error // nil: by closing
}

// In and Out are the octets that have passed to the server and to the client.
func (s *Stream) In() uint64 { return s.in.Load() }

// Out: see In.
func (s *Stream) Out() uint64 { return s.out.Load() }

// Unsent are the octets that the client, and the server, have not been taking for a while.
func (s *Stream) Unsent() (client, server int) {
	blocked := func(way int) int {
		n := s.unsent[way].Load()
		if time.Duration(time.Now().UnixNano()-s.since[way].Load()) < blockedAfter {
			n = 0 // it is just being written
		}
		return int(n)
	}
	return blocked(toClient), blocked(toServer)
}

// Idle is how long nothing has passed.
func (s *Stream) Idle() time.Duration { return time.Duration(time.Now().UnixNano() - s.last.Load()) }

// Run passes octets until the server ends, or the client does and the server has followed,
// and closes both. A client that has finished sending still gets what the server says.
// Close and Leave end it from another goroutine.
func (s *Stream) Run() Result {
	s.last.Store(time.Now().UnixNano())
	for _, e := range []End{s.Client, s.Server} {
		e.Sock.SetDeadline(time.Time{})
		e.Sock.NoWait = true
	}
	if s.finished.Load() { // before the deadlines were taken back
		s.Close()
	}
	done := make(chan struct{})
	start := s.Go
	if start == nil {
		start = func(f func()) { go f() }
	}
	start(func() { // ends when the client has, or its socket was closed
		defer close(done)
		r := s.pump(s.Client, s.Server, toServer)
		s.ended(r)
		if r.Err != nil {
			s.Server.Sock.Close() // nobody wants to hear more
			return
		}
		s.Server.closeWrite()
		s.Server.Sock.SetReadDeadline(time.Now().Add(halfClosed))
	})
	s.ended(s.pump(s.Server, s.Client, toClient))
	var stay time.Duration
	if s.Ended != nil {
		stay = s.Ended(s.how())
	}
	if last := s.how(); stay == 0 && last.ByServer && last.Err == nil {
		// A client that is still sending would be reset, perhaps before it has read what
		// the server said last.
		s.Client.closeWrite()
		stay = lastWords
	}
	if stay > 0 {
		s.deaf.Store(true)
		s.Server.Sock.Close()
		s.Client.Sock.SetReadDeadline(time.Now().Add(stay))
		<-done
	}
	s.Client.closeWrite()
	s.Close()
	<-done
	return s.how()
}

// Close closes both sides.
func (s *Stream) Close() {
	s.finished.Store(true)
	s.Client.Sock.Close()
	s.Server.Sock.Close()
}

// Leave closes the server's side: the Stream ends as if the server had.
func (s *Stream) Leave() { s.Server.Sock.Close() }

// ended keeps how the first side ended. A reset that a write hears of looks like a plain end
// to who reads then, and may say so first.
func (s *Stream) ended(r Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	more := r.ByServer == s.result.ByServer && s.result.Err == nil && errors.Is(r.Err, syscall.ECONNRESET)
	if !s.over || more {
		s.over, s.result = true, r
	}
}

func (s *Stream) how() Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result
}

// pump passes octets one way until from ends, or something fails. When the server takes
// nothing any more, the client is still read: Run decides what becomes of it.
func (s *Stream) pump(from, to End, way int) Result {
	early := &s.ToServer
	if way == toClient {
		early = &s.ToClient
	}
	if r, ended := s.write(to, *early, way); ended {
		return r
	}
	*early = nil
	for {
		b, n, err := from.read()
		if n > 0 {
			r, ended := s.write(to, (*b)[:n], way)
			buffers.Put(b)
			if !ended && n == size && from.isPlain() && to.isPlain() && !s.deaf.Load() {
				r, ended = s.bulk(from, to, way)
			}
			if ended {
				return r
			}
		}
		if err != nil {
			return Result{way == toClient, closed(err)}
		}
	}
}

// write writes to one side. ended: nothing can pass this way any more.
func (s *Stream) write(to End, b []byte, way int) (r Result, ended bool) {
	if len(b) == 0 || way == toServer && s.deaf.Load() {
		return r, false
	}
	n, err := 0, error(nil)
	if to.isPlain() {
		n, err = to.Sock.tryWrite(b) // which mostly is all, and needs no deadline
	}
	if m := 0; err == nil && n < len(b) {
		s.waits(to, way, int64(len(b)-n))
		m, err = to.Conn.Write(b[n:])
		n += m
		s.waited(to, way, int64(len(b)-n))
	}
	s.count(way).Add(uint64(n))
	s.last.Store(time.Now().UnixNano())
	if err != nil {
		return s.refuses(way, err)
	}
	return r, false
}

// waits says that a write of n octets begins.
func (s *Stream) waits(to End, way int, n int64) {
	now := time.Now()
	s.since[way].Store(now.UnixNano())
	s.unsent[way].Store(n)
	to.Sock.SetWriteDeadline(now.Add(writeTimeout))
}

// waited says that it is over; left is what it has not written. A deadline that is left
// behind would end a later write.
func (s *Stream) waited(to End, way int, left int64) {
	s.unsent[way].Store(left)
	if to.isPlain() {
		to.Sock.SetWriteDeadline(time.Time{})
	}
}

// refuses is what follows when a side does not take octets.
func (s *Stream) refuses(way int, err error) (r Result, ended bool) {
	r = Result{way == toServer, closed(err)}
	if way == toClient {
		return r, true
	}
	s.ended(r)
	s.deaf.Store(true)
	s.Server.Sock.Close() // Run hears of it
	return r, false
}

func (s *Stream) count(way int) *atomic.Uint64 {
	if way == toServer {
		return &s.in
	}
	return &s.out
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
