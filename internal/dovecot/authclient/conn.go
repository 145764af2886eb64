package authclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/dial"
)

const (
	handshakeTimeout = 30 * time.Second // clause P3.18
	writeTimeout     = 10 * time.Second // the server reads at once, or is not well

	// replyTimeout is how long an answer may take: the server drops a request 150 s after
	// its last activity, without a word (clause P3.16).
	replyTimeout = 155 * time.Second

	maxReply          = 64 << 10 // of a server's line; fields of a user can be long
	maxHandshakeLines = 256
)

// A Conn is one connection to the auth service. Any goroutine may call its methods; an
// Exchange belongs to the goroutine that began it.
type Conn struct {
	nc         net.Conn
	br         *bufio.Reader // the handshake's, then readLoop's alone
	mechanisms []Mechanism   // set by the handshake, then constant, as are spid and cookie
	spid       uint32
	cookie     Cookie

	done chan struct{} // closed with err set

	mu      sync.Mutex           // held for map access, never for a read or a write
	pending map[uint32]*Exchange // guarded by mu; nil once the connection is dead
	lastID  uint32               // guarded by mu; 0 is never sent
	err     error                // guarded by mu
	cut     int                  // guarded by mu: exchanges that were lost with the connection

	wmu  sync.Mutex // held for one write
	wbuf []byte     // guarded by wmu
}

// Dial connects to the auth service's socket at path and waits at most 30 seconds for its
// greeting. pid must be unique among the connections to that service: a process has one
// connection at a time (clause P3.2).
func Dial(ctx context.Context, path string, pid uint32) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	nc, err := dial.Unix(ctx, path, dial.Patience, true)
	if err != nil {
		return nil, err
	}
	return NewConn(ctx, nc, pid)
}

// NewConn makes a Conn of a connection on which nothing has been sent: it says who we are
// and reads the greeting, for at most 30 seconds. It takes nc.
func NewConn(ctx context.Context, nc net.Conn, pid uint32) (*Conn, error) {
	return newConn(ctx, nc, pid, 0)
}

// errSame says that the service is still the process that it was.
var errSame = errors.New("the auth service is the same process as before")

// newConn is NewConn; with known, the process of a connection that there is, it is only for
// another process of the service, and otherwise ends in errSame without having said who we
// are: a service would not take us twice (clause P3.2).
func newConn(ctx context.Context, nc net.Conn, pid, known uint32) (*Conn, error) {
	c := &Conn{nc: nc, br: bufio.NewReaderSize(nc, 4096), done: make(chan struct{}), pending: map[uint32]*Exchange{}}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	err := c.handshake(pid, known)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("handshake with the auth service: %w", err)
	}
	go c.readLoop() // ends when the connection does
	return c, nil
}

func (c *Conn) handshake(pid, known uint32) error {
	if pid == 0 {
		return errors.New("process ID 0")
	}
	if err := c.nc.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	if known == 0 { // the service does not wait for that, either
		if err := c.introduce(pid); err != nil {
			return err
		}
	}
	if err := c.greeting(); err != nil {
		return err
	}
	if known != 0 {
		if c.spid == known {
			return errSame
		}
		if err := c.introduce(pid); err != nil {
			return err
		}
	}
	return c.nc.SetDeadline(time.Time{})
}

func (c *Conn) introduce(pid uint32) error {
	_, err := fmt.Fprintf(c.nc, "VERSION\t%d\t%d\nCPID\t%d\n", major, minor, pid)
	return err
}

// greeting reads what the service says of itself.
func (c *Conn) greeting() error {
	var version, cookie bool
	for range maxHandshakeLines {
		line, _, err := readLine(c.br)
		if err != nil {
			return err
		}
		f := tabline.Split(line)
		switch f[0] {
		case "VERSION":
			if len(f) < 2 || f[1] != strconv.Itoa(major) {
				return fmt.Errorf("auth service speaks another version: %.40q", line)
			}
			version = true
		case "MECH":
			m, err := parseMechanism(f[1:])
			if err != nil {
				return err
			}
			c.mechanisms = append(c.mechanisms, m)
		case "SPID":
			n, err := strconv.ParseUint(strings.Join(f[1:], "\t"), 10, 32)
			if err != nil {
				return fmt.Errorf("auth service sent a broken SPID: %w", err)
			}
			c.spid = uint32(n)
		case "COOKIE":
			if c.cookie, err = ParseCookie(strings.Join(f[1:], "\t")); err != nil {
				return fmt.Errorf("auth service sent a broken cookie: %w", err)
			}
			cookie = true
		case "DONE":
			switch {
			case !version:
				return errors.New("auth service sent no version")
			case !cookie:
				return errors.New("auth service sent no cookie")
			case len(c.mechanisms) == 0:
				return errors.New("auth service has no mechanisms")
			}
			return nil
		}
	}
	return fmt.Errorf("auth service's greeting has more than %d lines", maxHandshakeLines)
}

// readLine returns a line without its LF. A longer one than maxReply is read to its end
// and cut: long is then true.
func readLine(br *bufio.Reader) (line string, long bool, err error) {
	part, err := br.ReadSlice('\n')
	if err == nil {
		return string(part[:len(part)-1]), false, nil
	}
	var all []byte
	for err == bufio.ErrBufferFull {
		if len(all) < maxReply {
			all = append(all, part...)
		} else {
			long = true
		}
		part, err = br.ReadSlice('\n')
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return "", false, err
	}
	if len(all) < maxReply {
		all = append(all, part...)
	} else {
		all, long = append(all, '\n'), true
	}
	return string(all[:len(all)-1]), long, nil
}

// Mechanisms returns the server's mechanisms in its order (auth_mechanisms). The caller
// must not change the slice.
func (c *Conn) Mechanisms() []Mechanism { return c.mechanisms }

// Find returns the mechanism with that name, in any case.
func (c *Conn) Find(name string) (Mechanism, bool) { return find(c.mechanisms, name) }

func find(ms []Mechanism, name string) (Mechanism, bool) {
	for _, m := range ms {
		if strings.EqualFold(m.Name, name) {
			return m, true
		}
	}
	return Mechanism{}, false
}

// SPID is the auth service's process ID, and Cookie the connection's cookie: both go into
// the hand-over to the worker (clause P5.2).
func (c *Conn) SPID() uint32 { return c.spid }

// Cookie: see SPID.
func (c *Conn) Cookie() Cookie { return c.cookie }

// Done is closed when the connection is lost; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection is lost; nil while it is not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// lost returns how many exchanges the end of the connection cut off.
func (c *Conn) lost() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}

// Close ends the connection, and all its exchanges with ErrLost.
func (c *Conn) Close() error {
	c.fail(net.ErrClosed)
	return nil
}

func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	c.cut = len(c.pending)
	c.nc.Close()
	for _, e := range c.pending {
		e.lost = true
		e.notify()
	}
	c.pending = nil
	close(c.done)
}

func (c *Conn) readLoop() {
	for {
		line, long, err := readLine(c.br)
		if err != nil {
			c.fail(err)
			return
		}
		id, r, err := parseReply(line)
		if err != nil {
			c.fail(err)
			return
		}
		if long {
			r = tempFail // what was cut cannot be used, but others' exchanges go on
		}
		c.deliver(id, r)
	}
}

// deliver gives r to its exchange. A reply for nobody is normal: the failure of an
// exchange that was cancelled comes late.
func (c *Conn) deliver(id uint32, r Reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.pending[id]
	if e == nil {
		return
	}
	if r.Kind == Continue && e.full {
		r = tempFail // two challenges in a row
	}
	if r.Kind != Continue {
		delete(c.pending, id)
		e.claimable = r.Kind == OK
	}
	e.reply, e.full = r, true
	e.notify()
}

// write sends what f appends to an empty buffer, which may be a password.
func (c *Conn) write(f func(b []byte) []byte) error {
	c.wmu.Lock()
	b := f(c.wbuf[:0])
	err := c.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = c.nc.Write(b)
	}
	clear(b)
	c.wbuf = b
	c.wmu.Unlock()
	if err != nil {
		c.fail(err)
		return ErrLost
	}
	return nil
}

// Begin starts an exchange. The caller must Close it. Errors: ErrMechanism, ErrBase64 and
// ErrTooLong for requests that must not be sent, ErrLost.
func (c *Conn) Begin(r *Request) (*Exchange, error) {
	m, ok := c.Find(r.Mechanism)
	if !ok {
		return nil, ErrMechanism
	}
	if r.Service == "" {
		return nil, errors.New("auth request without a service")
	}
	if r.HasInitial && string(r.Initial) != "=" {
		if err := checkBase64(r.Initial); err != nil {
			return nil, err
		}
	}
	e := &Exchange{conn: c, ready: make(chan struct{}, 1)}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, ErrLost
	}
	for c.lastID++; c.lastID == 0 || c.pending[c.lastID] != nil; c.lastID++ {
	}
	e.id = c.lastID
	c.pending[e.id] = e
	c.mu.Unlock()
	long := false
	err := c.write(func(b []byte) []byte {
		b = r.append(b, e.id, m.Name)
		if long = len(b) > MaxLine; long {
			clear(b)
			return b[:0]
		}
		return b
	})
	if long {
		c.forget(e)
		return nil, ErrTooLong
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (c *Conn) forget(e *Exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, e.id)
}

// An Exchange is one authentication, from AUTH to OK, FAIL or CANCEL.
type Exchange struct {
	conn  *Conn
	id    uint32
	ready chan struct{} // holds one token when there is something to look at

	// Guarded by conn.mu.
	reply     Reply
	full      bool // reply has not been taken
	lost      bool
	claimable bool // OK came, and the server keeps the request for a worker
	closed    bool
	asked     bool // the last reply taken is a challenge
}

// notify needs conn.mu.
func (e *Exchange) notify() {
	select {
	case e.ready <- struct{}{}:
	default:
	}
}

// ID is the request's number for the hand-over (clause P5.2).
func (e *Exchange) ID() uint32 { return e.id }

// Conn is the connection of the exchange, whose SPID and Cookie the hand-over needs.
func (e *Exchange) Conn() *Conn { return e.conn }

// Next waits for the server's next reply, at most 155 seconds. Errors: ErrLost, ErrTimeout,
// ctx's cause. After an error, OK or Fail there is nothing more to wait for.
func (e *Exchange) Next(ctx context.Context) (Reply, error) {
	t := time.NewTimer(replyTimeout)
	defer t.Stop()
	for {
		e.conn.mu.Lock()
		r, full, over := e.reply, e.full, e.lost || e.closed
		if full {
			e.reply, e.full, e.asked = Reply{}, false, r.Kind == Continue
		}
		if full && r.Kind != Continue {
			e.reply = r // Close looks at it
		}
		e.conn.mu.Unlock()
		switch {
		case full:
			return r, nil
		case over:
			return Reply{}, ErrLost
		}
		select {
		case <-e.ready:
		case <-ctx.Done():
			return Reply{}, context.Cause(ctx)
		case <-t.C:
			return Reply{}, ErrTimeout
		}
	}
}

// Continue answers a challenge with what the SMTP client sent: base64, or nothing. Errors:
// ErrBase64 and ErrTooLong, after which the exchange can only be closed, ErrLost.
func (e *Exchange) Continue(b64 []byte) error {
	if err := checkBase64(b64); err != nil {
		return err
	}
	if len("CONT\t4294967295\t\n")+len(b64) > MaxLine {
		return ErrTooLong
	}
	e.conn.mu.Lock()
	ok, lost := e.asked && !e.closed && !e.full, e.lost
	e.asked = false
	e.conn.mu.Unlock()
	if lost {
		return ErrLost
	}
	if !ok { // it would get "Unexpected continuation"
		return errors.New("auth exchange: no challenge to answer")
	}
	return e.conn.write(func(b []byte) []byte {
		b = append(b, "CONT\t"...)
		b = strconv.AppendUint(b, uint64(e.id), 10)
		b = append(b, '\t')
		b = append(b, b64...)
		return append(b, '\n')
	})
}

// HandedOver says that the worker took the client: the server's request is the worker's
// now, and Close does not cancel it.
func (e *Exchange) HandedOver() {
	e.conn.mu.Lock()
	defer e.conn.mu.Unlock()
	e.claimable = false
}

// Close ends the exchange and may be called more than once. Unless it failed, or was
// handed over, the server is told that nobody will ask for it any more (clause P3.15). A
// Next that waits in another goroutine gets ErrLost.
func (e *Exchange) Close() {
	c := e.conn
	c.mu.Lock()
	if e.closed {
		c.mu.Unlock()
		return
	}
	e.closed = true
	cancel := c.pending[e.id] == e
	delete(c.pending, e.id)
	if e.claimable {
		// The server keeps neither proxied logins nor refused ones.
		f := e.reply.Fields()
		cancel = !f.Has("proxy") && !f.Has("nologin")
	}
	cancel = cancel && c.err == nil
	e.notify()
	c.mu.Unlock()
	if cancel {
		_ = c.write(func(b []byte) []byte { // a lost connection cancels, too
			b = append(b, "CANCEL\t"...)
			b = strconv.AppendUint(b, uint64(e.id), 10)
			return append(b, '\n')
		})
	}
}
