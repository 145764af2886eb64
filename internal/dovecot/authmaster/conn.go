package authmaster

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
	handshakeTimeout = 30 * time.Second
	writeTimeout     = 10 * time.Second

	// RequestTimeout is how long a Request waits: the server gives up after 150 seconds
	// (clause P4.9).
	RequestTimeout = 155 * time.Second

	maxReply = 256 << 10 // of a line; userdb fields may hold whole settings
	listRoom = 64        // names of a LIST that wait for their taker
)

// A Conn is a connection to the auth service. Any goroutine may call its methods; calls
// do not wait for each other.
type Conn struct {
	nc   net.Conn
	spid uint32 // set by the handshake
	br   *bufio.Reader
	done chan struct{} // closed with err set

	mu      sync.Mutex
	pending map[uint32]chan []string // guarded by mu; nil once the connection is dead
	lastID  uint32                   // guarded by mu
	err     error                    // guarded by mu

	wmu sync.Mutex // held for one write
}

// Dial connects to the socket at path, which takes root for auth-master, and waits at
// most 30 seconds for the greeting.
func Dial(ctx context.Context, path string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	nc, err := dial.Unix(ctx, path, dial.Patience, true)
	if err != nil {
		return nil, err
	}
	return NewConn(ctx, nc)
}

// NewConn makes a Conn of a connection on which nothing has been said. It takes nc.
func NewConn(ctx context.Context, nc net.Conn) (*Conn, error) {
	c := &Conn{nc: nc, br: bufio.NewReaderSize(nc, 4096), done: make(chan struct{}), pending: map[uint32]chan []string{}}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	err := c.handshake()
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

func (c *Conn) handshake() error {
	if err := c.nc.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	var version bool
	for range 16 {
		line, err := readLine(c.br)
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
		case "SPID":
			n, err := strconv.ParseUint(strings.Join(f[1:], "\t"), 10, 32)
			if err != nil || !version {
				return errors.New("auth service sent a broken greeting")
			}
			c.spid = uint32(n)
			if _, err := fmt.Fprintf(c.nc, "VERSION\t%d\t%d\n", major, minor); err != nil {
				return err
			}
			return c.nc.SetDeadline(time.Time{})
		}
	}
	return errors.New("auth service sent no SPID")
}

// readLine returns a line without its LF. The connection cannot go on behind a longer one
// than maxReply.
func readLine(br *bufio.Reader) (string, error) {
	part, err := br.ReadSlice('\n')
	if err == nil {
		return string(part[:len(part)-1]), nil
	}
	var all []byte
	for err == bufio.ErrBufferFull {
		if len(all) > maxReply {
			return "", fmt.Errorf("auth service sent a line of more than %d bytes", maxReply)
		}
		all = append(all, part...)
		part, err = br.ReadSlice('\n')
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return "", err
	}
	all = append(all, part...)
	return string(all[:len(all)-1]), nil
}

// SPID is the auth service's process ID. A hand-over with another one comes from before
// the service was started anew, and cannot be claimed.
func (c *Conn) SPID() uint32 { return c.spid }

// Done is closed when the connection is lost; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection is lost; nil while it is not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection, and all requests with ErrLost.
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
	c.nc.Close()
	c.pending = nil
	close(c.done)
}

func (c *Conn) readLoop() {
	for {
		line, err := readLine(c.br)
		if err != nil {
			c.fail(err)
			return
		}
		f := tabline.Split(line)
		if len(f) < 2 {
			c.fail(fmt.Errorf("auth service sent a broken line: %.40q", line))
			return
		}
		id, err := strconv.ParseUint(f[1], 10, 32)
		if err != nil {
			c.fail(fmt.Errorf("auth service sent %.40q without an ID", f[0]))
			return
		}
		c.mu.Lock()
		ch := c.pending[uint32(id)]
		if ch != nil && f[0] != "LIST" {
			delete(c.pending, uint32(id))
		}
		c.mu.Unlock()
		if ch == nil {
			continue // nobody waits any more
		}
		if f[0] != "LIST" {
			select {
			case ch <- f: // the last one, for which there is room, unless names are in the way
				continue
			default:
			}
		}
		select {
		case ch <- f:
		case <-c.done:
			return
		}
	}
}

// call sends a line, to which f adds all but the first word and the ID, and gives a
// channel on which the replies come.
func (c *Conn) call(room int, f func(b []byte, id uint32) []byte) (uint32, chan []string, error) {
	ch := make(chan []string, room)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return 0, nil, ErrLost
	}
	for c.lastID++; c.lastID == 0 || c.pending[c.lastID] != nil; c.lastID++ {
	}
	id := c.lastID
	c.pending[id] = ch
	c.mu.Unlock()
	b := f(make([]byte, 0, 256), id)
	if len(b) > MaxLine {
		c.forget(id)
		return 0, nil, fmt.Errorf("request to the auth service of %d bytes, at most %d are allowed", len(b), MaxLine)
	}
	c.wmu.Lock()
	err := c.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = c.nc.Write(b)
	}
	c.wmu.Unlock()
	if err != nil {
		c.fail(err)
		return 0, nil, ErrLost
	}
	return id, ch, nil
}

// forget gives up a call. Replies that are on their way are dropped.
func (c *Conn) forget(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// wait returns the next reply to a call.
func (c *Conn) wait(ctx context.Context, t *time.Timer, ch chan []string) ([]string, error) {
	select {
	case f := <-ch:
		return f, nil
	default:
	}
	select {
	case f := <-ch:
		return f, nil
	case <-c.done:
		select {
		case f := <-ch:
			return f, nil
		default:
		}
		return nil, ErrLost
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-t.C:
		return nil, ErrTimeout
	}
}

// one makes a call with one reply.
func (c *Conn) one(ctx context.Context, f func(b []byte, id uint32) []byte) ([]string, error) {
	id, ch, err := c.call(1, f)
	if err != nil {
		return nil, err
	}
	defer c.forget(id)
	t := time.NewTimer(RequestTimeout)
	defer t.Stop()
	return c.wait(ctx, t, ch)
}

// Request claims a login and returns the user, whose Name may differ from the login's. It
// waits at most 155 seconds. Errors: ErrNotFound, *FailError, ErrLost, ErrTimeout, ctx's
// cause.
func (c *Conn) Request(ctx context.Context, r Request) (User, error) {
	f, err := c.one(ctx, r.append)
	if err != nil {
		return User{}, err
	}
	return userReply(f, "USER")
}

// userReply reads a reply to a lookup; want is the word of success.
func userReply(f []string, want string) (User, error) {
	switch {
	case f[0] == "NOTFOUND":
		return User{}, ErrNotFound
	case f[0] == "FAIL":
		return User{}, &FailError{tabline.ParseFields(f[2:])}
	case f[0] != want:
		return User{}, fmt.Errorf("auth service answered %.40q, want %s", f[0], want)
	case want == "PASS":
		u := User{Fields: tabline.ParseFields(f[2:])}
		u.Name, _ = u.Fields.Get("user")
		return u, nil
	case len(f) < 3 || f[2] == "":
		return User{}, errors.New("auth service sent a user without a name")
	}
	fields := f[3:]
	if len(fields) == 1 && fields[0] == "" { // a user without fields: "USER 1 bob " (clause P0.3)
		fields = nil
	}
	return User{Name: f[2], Fields: tabline.ParseFields(fields)}, nil
}

// User looks a user up without a login (clause P4.7). Errors as for Request.
func (c *Conn) User(ctx context.Context, name string, info Info) (User, error) {
	return c.lookup(ctx, "USER", name, info)
}

// Pass looks up what the passdbs say of a user: Fields are the passdb's, such as proxy=y,
// host. Errors as for Request.
func (c *Conn) Pass(ctx context.Context, name string, info Info) (User, error) {
	return c.lookup(ctx, "PASS", name, info)
}

func (c *Conn) lookup(ctx context.Context, word, name string, info Info) (User, error) {
	if info.Service == "" {
		return User{}, errors.New("auth lookup without a service")
	}
	f, err := c.one(ctx, func(b []byte, id uint32) []byte {
		b = append(b, word...)
		b = append(b, '\t')
		b = strconv.AppendUint(b, uint64(id), 10)
		b = append(b, '\t')
		b = tabline.AppendEscaped(b, name)
		return append(info.append(b), '\n')
	})
	if err != nil {
		return User{}, err
	}
	return userReply(f, word)
}

// List calls each with the name of every user that the userdbs list, until it returns
// false. mask is not looked at by every userdb. each must not wait for other calls on the
// connection.
func (c *Conn) List(ctx context.Context, mask string, info Info, each func(name string) bool) error {
	id, ch, err := c.call(listRoom, func(b []byte, id uint32) []byte {
		b = append(b, "LIST\t"...)
		b = strconv.AppendUint(b, uint64(id), 10)
		if mask != "" {
			b = append(b, "\tuser="...)
			b = tabline.AppendEscaped(b, mask)
		}
		return append(info.append(b), '\n')
	})
	if err != nil {
		return err
	}
	defer func() {
		c.forget(id)
		for { // names on their way must not hold the reader up
			select {
			case <-ch:
			default:
				return
			}
		}
	}()
	t := time.NewTimer(RequestTimeout)
	defer t.Stop()
	for {
		f, err := c.wait(ctx, t, ch)
		if err != nil {
			return err
		}
		switch {
		case f[0] == "LIST" && len(f) == 3:
			if !each(f[2]) {
				return nil
			}
			t.Reset(RequestTimeout)
		case f[0] == "DONE" && (len(f) < 3 || f[2] == ""):
			return nil
		case f[0] == "DONE" || f[0] == "FAIL":
			return &FailError{tabline.ParseFields(f[2:])}
		default:
			return fmt.Errorf("auth service answered %.40q, want LIST", f[0])
		}
	}
}

// CacheFlush empties the auth cache of the users, or of all if there are none, and returns
// how many entries were in it.
func (c *Conn) CacheFlush(ctx context.Context, users ...string) (int, error) {
	f, err := c.one(ctx, func(b []byte, id uint32) []byte {
		b = append(b, "CACHE-FLUSH\t"...)
		b = strconv.AppendUint(b, uint64(id), 10)
		for _, u := range users {
			b = append(b, '\t')
			b = tabline.AppendEscaped(b, u)
		}
		return append(b, '\n')
	})
	if err != nil {
		return 0, err
	}
	if f[0] != "OK" || len(f) < 3 {
		return 0, &FailError{tabline.ParseFields(f[2:])}
	}
	return strconv.Atoi(f[2])
}
