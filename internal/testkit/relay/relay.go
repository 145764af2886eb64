// Package relay is a scripted MTA for tests: an SMTP server on the loopback whose
// behaviour at every step can be chosen, and which keeps what it received to the octet.
//
// Without a script it accepts everything. A script gives, for a step, what to do the
// first time, the second time, ...; afterwards the default returns, unless the last one
// is Always. Violations of the protocol by the client are noted: see Conn.Violations.
package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

const (
	// waitTimeout bounds each wait of a test for the relay.
	waitTimeout = 10 * time.Second
	// sessionTimeout bounds each read and write of a session.
	sessionTimeout = 60 * time.Second
	// keepOctets bounds what one session keeps of message data.
	keepOctets = 256 << 20
	// maxLine bounds a command line.
	maxLine = 1 << 20
)

// DefaultCaps are what EHLO announces unless Options say otherwise.
var DefaultCaps = []string{"PIPELINING", "SIZE 10240000", "8BITMIME", "ENHANCEDSTATUSCODES", "DSN", "VRFY", "CHUNKING"}

// A Script chooses behaviours.
type Script map[Step][]Behaviour

// Options say what the relay is.
type Options struct {
	Caps      []string      // lines of the EHLO reply; nil: DefaultCaps
	Script    Script        // of every connection
	Scripts   []Script      // of the first, second, ... connection, instead of Script
	TLS       *tls.Config   // with it STARTTLS works and is announced
	Implicit  bool          // TLS from the first octet
	EndOfData EndOfData     // the zero value is Strict
	Discard   bool          // message data is counted, not kept
	Listener  net.Listener  // nil: a port of 127.0.0.1
	Timeout   time.Duration // of waits; 0: 10 s
}

// A Relay is a running one. Its methods are safe for concurrent use.
type Relay struct {
	Addr string // "127.0.0.1:12345"
	Port int    // 0 unless TCP

	t    testing.TB
	o    Options
	l    net.Listener
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change; guarded by mu
	conns   []*Conn       // guarded by mu; their fields, too, until they are Done
	closed  bool          // guarded by mu
}

// Start runs a relay until the test ends.
func Start(t testing.TB, o Options) *Relay {
	t.Helper()
	if o.Caps == nil {
		o.Caps = DefaultCaps
	}
	if o.EndOfData.Marks == nil {
		o.EndOfData = Strict
	}
	if o.Timeout == 0 {
		o.Timeout = waitTimeout
	}
	l := o.Listener
	if l == nil {
		var err error
		var lc net.ListenConfig
		if l, err = lc.Listen(context.Background(), "tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	r := &Relay{Addr: l.Addr().String(), t: t, o: o, l: l, stop: make(chan struct{}), changed: make(chan struct{})}
	if tcp, ok := l.Addr().(*net.TCPAddr); ok {
		r.Port = tcp.Port
	}
	r.wg.Add(1)
	go r.accept() // ends when Stop closes the listener
	t.Cleanup(r.Stop)
	return r
}

// Stop ends the relay and its connections; nothing listens on its port then.
func (r *Relay) Stop() {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.closed = true
	close(r.stop)
	conns := slices.Clone(r.conns)
	r.mu.Unlock()
	r.l.Close()
	for _, c := range conns {
		c.raw.Close()
	}
	r.wg.Wait()
}

func (r *Relay) accept() {
	defer r.wg.Done()
	for n := 0; ; n++ {
		nc, err := r.l.Accept()
		if err != nil {
			return
		}
		script := r.o.Script
		if len(r.o.Scripts) > 0 {
			script = r.o.Scripts[min(n, len(r.o.Scripts)-1)]
		}
		c := &Conn{N: n, raw: nc, relay: r}
		r.change(func() {
			r.conns = append(r.conns, c)
			if r.closed { // while it was being accepted
				nc.Close()
			}
		})
		s := &session{Conn: c, script: script, count: map[Step]int{}, br: bufio.NewReaderSize(nc, 64<<10), nc: nc, stop: r.stop}
		r.wg.Add(1)
		go func() { // ends with the connection, which its deadlines and Stop end
			defer r.wg.Done()
			s.serve()
		}()
	}
}

// change runs f under the lock and wakes who waits.
func (r *Relay) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

// wait waits until ok, called under the lock, says so.
func (r *Relay) wait(what string, ok func() bool) {
	r.t.Helper()
	timer := time.NewTimer(r.o.Timeout)
	defer timer.Stop()
	for {
		r.mu.Lock()
		done, changed := ok(), r.changed
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			r.t.Fatalf("relay: waiting for %s\n%s", what, r.Transcript())
		}
	}
}

// Conns returns copies of the connections so far, in the order they came.
func (r *Relay) Conns() []Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Conn, len(r.conns))
	for i, c := range r.conns {
		out[i] = c.copyLocked()
	}
	return out
}

// Conn waits for the connection number n (from 0) and returns how it is now.
func (r *Relay) Conn(n int) Conn {
	r.t.Helper()
	r.wait(fmt.Sprintf("connection %d", n), func() bool { return len(r.conns) > n })
	return r.Conns()[n]
}

// Ended waits until the connection number n is over and returns it.
func (r *Relay) Ended(n int) Conn {
	r.t.Helper()
	r.wait(fmt.Sprintf("the end of connection %d", n), func() bool { return len(r.conns) > n && r.conns[n].End != "" })
	return r.Conns()[n]
}

// AllEnded waits until no connection is open, and returns them.
func (r *Relay) AllEnded() []Conn {
	r.t.Helper()
	r.wait("the end of all connections", func() bool {
		for _, c := range r.conns {
			if c.End == "" {
				return false
			}
		}
		return true
	})
	return r.Conns()
}

// Commands waits until connection number n sent at least count lines, and returns all.
func (r *Relay) Commands(n, count int) []string {
	r.t.Helper()
	r.wait(fmt.Sprintf("%d lines on connection %d", count, n), func() bool { return len(r.conns) > n && len(r.conns[n].Lines) >= count })
	return r.Conns()[n].Lines
}

// Messages returns the messages whose end was recognised so far.
func (r *Relay) Messages() []Message {
	var out []Message
	for _, c := range r.Conns() {
		out = append(out, c.Messages...)
	}
	return out
}

// WaitMessages waits until there are at least n messages and returns all.
func (r *Relay) WaitMessages(n int) []Message {
	r.t.Helper()
	r.wait(fmt.Sprintf("%d messages", n), func() bool {
		have := 0
		for _, c := range r.conns {
			have += len(c.Messages)
		}
		return have >= n
	})
	return r.Messages()
}

// Transcript shows what every connection sent.
func (r *Relay) Transcript() string {
	var s string
	for _, c := range r.Conns() {
		s += fmt.Sprintf("connection %d (%s):\n", c.N, c.End)
		for _, l := range c.Lines {
			s += "  R: " + strconv.QuoteToASCII(l) + "\n"
		}
		for _, v := range c.Violations {
			s += "  ! " + v + "\n"
		}
	}
	return s
}

// A Conn is what one connection did. Copies are independent of the relay.
type Conn struct {
	N          int
	Lines      []string // command lines without their line end, in clear
	Received   []byte   // every octet, in clear: commands and message data
	Messages   []Message
	Auth       []string // decoded answers of AUTH PLAIN and LOGIN: "authzid\x00user\x00password"
	Violations []string // of the protocol: a line without CR, a command before its turn
	TLS        *tls.ConnectionState
	End        string // how it ended: "QUIT", "eof", "closed" (by us), an error; "" while it lives

	raw   net.Conn
	relay *Relay
}

func (c *Conn) copyLocked() Conn {
	x := *c
	x.Lines, x.Received, x.Messages = slices.Clone(c.Lines), slices.Clone(c.Received), slices.Clone(c.Messages)
	x.Auth, x.Violations = slices.Clone(c.Auth), slices.Clone(c.Violations)
	return x
}

// A Message is one whose end was recognised, accepted or not.
type Message struct {
	From  string   // what stood behind "MAIL FROM:", parameters included
	Rcpts []string // what stood behind "RCPT TO:", of the accepted ones
	Data  []byte   // unstuffed, without the final dot
	Wire  []byte   // of DATA: as received behind the 354, with the end
	BDAT  []int64  // sizes of the chunks; nil for DATA
	Size  int64    // of Data, also with Options.Discard

	Accepted bool // whether the answer to the whole message was 2xx
}
