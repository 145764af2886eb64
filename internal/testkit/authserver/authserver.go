// Package authserver is a scripted auth service for tests: it listens on a "login" and an
// "auth-master" socket as Dovecot's does (clauses P3 and P4), knows the users it is told,
// keeps every line it got, and can be silent, gone, restarted, or answer anything at all.
//
// It has no code in common with the codecs it tests, but for package tabline.
package authserver

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/dovecot/tabline"
)

const (
	waitTimeout = 10 * time.Second
	maxLine     = 16384 // P3.17
)

// A User is what the service knows of one.
type User struct {
	Password string
	OK       []string // more fields of the OK: "nologin", "proxy", "reason=..."
	Fail     []string // fields of a FAIL, whatever the password: "code=temp_fail"
	Userdb   []string // fields of USER: "uid=1000"; nil: the userdb does not know the user
}

// Options say how the service behaves.
type Options struct {
	Mechanisms []string // "PLAIN\tplaintext"; nil: PLAIN and LOGIN. PLAIN, LOGIN, EXTERNAL are built in
	Users      map[string]User
	// OnAuth answers an AUTH, CONT or CANCEL instead of the service: whole lines without
	// LF. nil: the service answers as always; empty: no answer.
	OnAuth func(Request) []string
	// OnMaster does so for the auth-master socket.
	OnMaster func(Request) []string
}

// A Request is a line that came.
type Request struct {
	Conn   int // which connection of this service
	Master bool
	Verb   string   // "AUTH", "CONT", "CANCEL", "REQUEST", "VERSION", "CPID", ...
	ID     string   // its first argument
	Args   []string // what follows, unescaped: "PLAIN", "service=submission", "resp=..."
}

// Get returns the value of "key=value" in the arguments, and whether it is there, also
// as a bare word.
func (r Request) Get(key string) (string, bool) {
	for _, a := range r.Args {
		if a == key {
			return "", true
		}
		if v, ok := strings.CutPrefix(a, key+"="); ok {
			return v, true
		}
	}
	return "", false
}

// A Server is a running service.
type Server struct {
	Login, Master string // paths of the sockets

	t testing.TB
	o Options

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced at each change; guarded by mu
	spid      int           // guarded by mu, like all below
	held      bool          // no DONE
	mute      bool
	requests  []Request
	conns     map[net.Conn]bool
	listeners []net.Listener
	pending   map[string]*exchange // by CPID and id
	count     int
	wg        sync.WaitGroup
}

// An exchange is one AUTH that is not claimed, cancelled or failed.
type exchange struct {
	mech, user string
	got        []string // decoded answers
	ok         bool
	cookie     string
}

// Start runs the service in dir until the test ends.
func Start(t testing.TB, dir string, o Options) *Server {
	t.Helper()
	if o.Mechanisms == nil {
		o.Mechanisms = []string{"PLAIN\tplaintext", "LOGIN\tplaintext"}
	}
	s := &Server{Login: filepath.Join(dir, "login"), Master: filepath.Join(dir, "auth-master"), t: t, o: o, spid: 100, conns: map[net.Conn]bool{}, changed: make(chan struct{})}
	s.Restart()
	t.Cleanup(s.Stop)
	return s
}

// Stop closes the sockets and every connection.
func (s *Server) Stop() {
	s.mu.Lock()
	for _, l := range s.listeners {
		l.Close()
	}
	s.listeners = nil
	s.mu.Unlock()
	s.Drop()
	s.wg.Wait()
}

// Drop closes every connection; new ones are served.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Restart stops the service and starts it again, with another pid, and without the logins
// that nobody claimed.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spid++
	s.pending = map[string]*exchange{}
	for _, path := range []string{s.Login, s.Master} {
		l, err := net.Listen("unix", path)
		if err != nil {
			s.t.Fatal(err)
		}
		s.listeners = append(s.listeners, l)
		s.wg.Add(1)
		go s.accept(l, path == s.Master) // ends when Stop closes l
	}
}

// Hold makes new connections wait for the end of the handshake (DONE) until Release.
func (s *Server) Hold() { s.change(func() { s.held = true }) }

// Release ends Hold and Mute.
func (s *Server) Release() { s.change(func() { s.held, s.mute = false, false }) }

// Mute makes the service answer nothing any more; lines are read and kept.
func (s *Server) Mute() { s.change(func() { s.mute = true }) }

// SPID is the service's process id, as it says it.
func (s *Server) SPID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spid
}

// Requests returns what came with that verb so far; "" for everything.
func (s *Server) Requests(verb string) (out []Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.withLocked(verb)
}

func (s *Server) withLocked(verb string) (out []Request) {
	for _, r := range s.requests {
		if verb == "" || r.Verb == verb {
			out = append(out, r)
		}
	}
	return out
}

// Wait waits for n lines with that verb and returns them.
func (s *Server) Wait(verb string, n int) []Request {
	s.t.Helper()
	timer := time.NewTimer(waitTimeout)
	defer timer.Stop()
	for {
		s.mu.Lock()
		got, changed := s.withLocked(verb), s.changed
		s.mu.Unlock()
		if len(got) >= n {
			return got
		}
		select {
		case <-changed:
		case <-timer.C:
			s.t.Fatalf("auth service: %d %s came, want %d; all: %+v", len(got), verb, n, s.Requests(""))
		}
	}
}

// Unclaimed returns how many logins succeeded and were neither claimed nor cancelled.
func (s *Server) Unclaimed() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.pending {
		if x.ok {
			n++
		}
	}
	return n
}

func (s *Server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) accept(l net.Listener, master bool) {
	defer s.wg.Done()
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[nc] = true
		s.count++
		n := s.count
		s.mu.Unlock()
		s.wg.Add(1)
		go func() { // ends with the connection, which Stop and Drop end
			defer s.wg.Done()
			defer func() {
				nc.Close()
				s.mu.Lock()
				delete(s.conns, nc)
				s.mu.Unlock()
			}()
			c := &conn{s: s, nc: nc, n: n, master: master}
			c.serve()
		}()
	}
}

// A conn is one connection; it belongs to its goroutine.
type conn struct {
	s      *Server
	nc     net.Conn
	n      int
	master bool
	cpid   string
	cookie string
}

func (c *conn) write(lines ...string) {
	c.s.mu.Lock()
	mute := c.s.mute
	c.s.mu.Unlock()
	if mute {
		return
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(waitTimeout))
	_, _ = c.nc.Write([]byte(strings.Join(lines, "\n") + "\n"))
}

// line writes one line of fields, escaped.
func (c *conn) line(fields ...string) {
	c.write(strings.TrimSuffix(string(tabline.Append(nil, fields...)), "\n"))
}

func (c *conn) serve() {
	c.cookie = fmt.Sprintf("%032x", c.s.SPID()*1000+c.n)
	if c.master {
		c.write("VERSION\t1\t1", fmt.Sprintf("SPID\t%d", c.s.SPID()))
	} else {
		c.greet()
	}
	sc := bufio.NewScanner(c.nc)
	sc.Buffer(make([]byte, 0, 4096), maxLine)
	for sc.Scan() {
		f := tabline.Split(sc.Text())
		r := Request{Conn: c.n, Master: c.master, Verb: f[0]}
		if len(f) > 1 {
			r.ID, r.Args = f[1], f[2:]
		}
		c.s.change(func() { c.s.requests = append(c.s.requests, r) })
		on := c.s.o.OnAuth
		if c.master {
			on = c.s.o.OnMaster
		}
		if on != nil && r.Verb != "VERSION" && r.Verb != "CPID" {
			if lines := on(r); lines != nil {
				if len(lines) > 0 {
					c.write(lines...)
				}
				continue
			}
		}
		if !c.handle(r) {
			return
		}
	}
}

// greet sends the handshake; DONE waits while the service is held.
func (c *conn) greet() {
	lines := []string{"VERSION\t1\t2"}
	for _, m := range c.s.o.Mechanisms {
		lines = append(lines, "MECH\t"+m)
	}
	lines = append(lines, fmt.Sprintf("SPID\t%d", c.s.SPID()), fmt.Sprintf("CUID\t%d", c.n), "COOKIE\t"+c.cookie)
	c.s.mu.Lock()
	held := c.s.held
	c.s.mu.Unlock()
	if !held {
		c.write(append(lines, "DONE")...)
		return
	}
	c.write(lines...)
	c.s.wg.Add(1)
	go func() { // ends with Release, or with the connection
		defer c.s.wg.Done()
		for {
			c.s.mu.Lock()
			held, changed, alive := c.s.held, c.s.changed, c.s.conns[c.nc]
			c.s.mu.Unlock()
			if !held || !alive {
				break
			}
			select {
			case <-changed:
			case <-time.After(10 * time.Millisecond):
			}
		}
		c.write("DONE")
	}()
}

// handle answers as the service does. It returns false to close the connection.
func (c *conn) handle(r Request) bool {
	s := c.s
	switch {
	case r.Verb == "VERSION":
		return r.ID == "1"
	case c.master:
		return c.handleMaster(r)
	case r.Verb == "CPID":
		c.cpid = r.ID
		return r.ID != "0"
	}
	key := c.cpid + " " + r.ID
	s.mu.Lock()
	x := s.pending[key]
	s.mu.Unlock()
	switch r.Verb {
	case "AUTH":
		if id, err := strconv.ParseUint(r.ID, 10, 32); err != nil || id == 0 || x != nil || len(r.Args) == 0 || !c.has(r.Args[0]) || c.cpid == "" {
			return false
		}
		x = &exchange{mech: strings.ToUpper(r.Args[0]), cookie: c.cookie}
		s.mu.Lock()
		s.pending[key] = x
		s.mu.Unlock()
		resp, has := r.Get("resp")
		return c.step(key, r.ID, x, resp, has)
	case "CONT":
		if x == nil || x.ok {
			c.write("FAIL\t" + r.ID + "\treason=Unexpected continuation")
			return true
		}
		resp := ""
		if len(r.Args) > 0 {
			resp = r.Args[0]
		}
		return c.step(key, r.ID, x, resp, true)
	case "CANCEL":
		s.forget(key)
		return true
	}
	return false
}

func (c *conn) has(mech string) bool {
	for _, m := range c.s.o.Mechanisms {
		name, _, _ := strings.Cut(m, "\t")
		if strings.EqualFold(name, mech) {
			return true
		}
	}
	return false
}

func (s *Server) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, key)
}

// step takes one more answer of the client, if there is one, and goes on.
func (c *conn) step(key, id string, x *exchange, resp string, has bool) bool {
	if has {
		if resp == "=" { // an empty initial response
			resp = ""
		}
		raw, err := base64.StdEncoding.DecodeString(resp)
		if err != nil {
			c.s.forget(key)
			c.write("FAIL\t" + id + "\tcode=invalid_base64\treason=Invalid base64 data in continued response")
			return true
		}
		x.got = append(x.got, string(raw))
	}
	user, password := "", ""
	switch {
	case x.mech == "PLAIN" && len(x.got) == 0:
		c.write("CONT\t" + id + "\t")
		return true
	case x.mech == "PLAIN":
		if f := strings.Split(x.got[0], "\x00"); len(f) == 3 {
			user, password = f[1], f[2]
		}
	case x.mech == "LOGIN" && len(x.got) < 2:
		c.write("CONT\t" + id + "\t" + []string{"VXNlcm5hbWU6", "UGFzc3dvcmQ6"}[len(x.got)])
		return true
	case x.mech == "LOGIN":
		user, password = x.got[0], x.got[1]
	case x.mech == "EXTERNAL" && len(x.got) == 0:
		c.write("CONT\t" + id + "\t")
		return true
	case x.mech == "EXTERNAL":
		user = x.got[0]
		if name, ok := c.certName(id); user == "" && ok {
			user = name
		}
		password = c.s.o.Users[user].Password // the certificate is enough
	}
	return c.verdict(key, id, x, user, password)
}

// certName is the name that the AUTH gave as the certificate's.
func (c *conn) certName(id string) (string, bool) {
	for _, r := range c.s.Requests("AUTH") {
		if r.Conn == c.n && r.ID == id {
			return r.Get("cert_username")
		}
	}
	return "", false
}

func (c *conn) verdict(key, id string, x *exchange, user, password string) bool {
	u, known := c.s.o.Users[user]
	if !known || u.Password != password || u.Fail != nil {
		c.s.forget(key)
		c.line(append([]string{"FAIL", id, "user=" + user}, u.Fail...)...)
		return true
	}
	final := false // finished at once: nothing to claim
	for _, f := range u.OK {
		final = final || f == "nologin" || f == "proxy"
	}
	c.s.mu.Lock()
	x.ok, x.user = true, user
	if final {
		delete(c.s.pending, key)
	}
	c.s.mu.Unlock()
	c.line(append([]string{"OK", id, "user=" + user}, u.OK...)...)
	return true
}

// handleMaster answers REQUEST and USER.
func (c *conn) handleMaster(r Request) bool {
	switch r.Verb {
	case "REQUEST":
		if len(r.Args) < 3 {
			return false
		}
		key := r.Args[0] + " " + r.Args[1]
		c.s.mu.Lock()
		x := c.s.pending[key]
		if x != nil && (!x.ok || x.cookie != r.Args[2]) {
			x = nil
		}
		if x != nil {
			delete(c.s.pending, key)
		}
		c.s.mu.Unlock()
		if x == nil {
			c.line("FAIL", r.ID)
			return true
		}
		u := c.s.o.Users[x.user]
		if u.Userdb == nil {
			c.line("NOTFOUND", r.ID)
			return true
		}
		fields := append([]string{"USER", r.ID, x.user}, u.Userdb...)
		fields = append(fields, "auth_mech="+x.mech)
		if _, ok := r.Get("request_auth_token"); ok {
			fields = append(fields, "auth_token="+strings.Repeat("0123456789", 4))
		}
		c.line(fields...)
	case "USER":
		if len(r.Args) == 0 {
			return false
		}
		u, ok := c.s.o.Users[r.Args[0]]
		if !ok || u.Userdb == nil {
			c.line("NOTFOUND", r.ID)
			return true
		}
		c.line(append([]string{"USER", r.ID, r.Args[0]}, u.Userdb...)...)
	default:
		return false
	}
	return true
}
