package proxy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	maxHosts = 1024 // backends that are remembered

	// Clients whose backend has gone are closed together, every step.
	leaveStep = 100 * time.Millisecond
)

// Hosts remembers how backends have done, for all clients of the process. The zero value
// is ready; any goroutine may use it.
type Hosts struct {
	mu      sync.Mutex
	hosts   map[netip.AddrPort]*host // guarded by mu
	turn    int                      // guarded by mu: of the source addresses
	started bool                     // guarded by mu: turn is somewhere
}

type host struct {
	success, failure time.Time
	waiting          int // logins that go on
	passing          int // sessions that are passed on

	left    int       // sessions that ended since ...
	since   time.Time // ... about this time, without a new one meanwhile
	staying int       // of these, clients that are still connected
}

// A Login is an attempt to log in at a backend.
type Login struct {
	h *Hosts
	r *host

	// Down: it need not be tried, since the backend has failed for longer than the field
	// proxy_host_immediate_failure_after says, and others already wait for it (S9.9).
	Down bool
}

// Begin says that a login at addr begins. One of Login's methods must be called when it is
// over.
func (h *Hosts) Begin(addr netip.AddrPort, after time.Duration) Login {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.getLocked(addr)
	r.waiting++
	return Login{h, r, after > 0 && r.waiting > 1 && r.failure.Sub(r.success) > after}
}

func (h *Hosts) getLocked(addr netip.AddrPort) *host {
	if h.hosts == nil {
		h.hosts = map[netip.AddrPort]*host{}
	}
	r := h.hosts[addr]
	if r == nil {
		h.forgetLocked()
		// The first failure is not one of a backend that has been down for long.
		r = &host{success: time.Now().Add(-time.Second)}
		h.hosts[addr] = r
	}
	return r
}

// forgetLocked makes room for one more.
func (h *Hosts) forgetLocked() {
	if len(h.hosts) < maxHosts {
		return
	}
	for a, r := range h.hosts {
		if r.waiting+r.passing+r.staying == 0 {
			delete(h.hosts, a)
			return
		}
	}
}

// Failed says that the backend could not be asked.
func (l Login) Failed() {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	l.r.waiting--
	if !l.Down {
		l.r.failure = time.Now()
	}
}

// GaveUp says that nobody wanted to know any more.
func (l Login) GaveUp() {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	l.r.waiting--
}

// Answered says that the backend was asked, and said no.
func (l Login) Answered() {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	l.r.waiting--
	l.r.success = time.Now()
}

// A Session is one that is passed on.
type Session struct {
	h *Hosts
	r *host
}

// Passed says that the session is passed on from now on. Leave or Close must be called
// when it is over.
func (l Login) Passed() Session {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	l.r.waiting--
	l.r.passing++
	l.r.success, l.r.left = time.Now(), 0
	return Session{l.h, l.r}
}

// Close says that the session is over because its client wanted it.
func (s Session) Close() {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.r.passing--
}

// Leave says that the backend, or an admin, ended the session. It returns how long the
// client stays connected, so that not all clients of a backend that has died come back at
// once: the first ones, a second's worth of them, go at once, the others spread over max.
// If it is not 0, Left must be called when the client is gone.
func (s Session) Leave(max time.Duration) time.Duration {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	r := s.r
	r.passing--
	now := time.Now()
	if r.left == 0 {
		// Other processes should not do it at the very same moment.
		r.since = now.Add(rand.N(leaveStep))
	}
	r.left++
	if max < time.Second {
		return 0
	}
	all := r.passing + r.left
	if perSecond := (time.Duration(all)*time.Second + max - 1) / max; r.left <= int(perSecond) && r.staying == 0 {
		return 0
	}
	wait := max * time.Duration(r.left) / time.Duration(all)
	stay := min(r.since.Add(wait.Truncate(leaveStep)).Sub(now), max)
	if stay <= 0 {
		return 0
	}
	r.staying++
	return stay
}

// Left says that the client of a session that was left is gone.
func (s Session) Left() {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if s.r.staying--; s.r.staying == 0 {
		s.r.left = 0
	}
}

// Order puts the addresses of a host whose last login failed behind the others. It keeps
// addrs as it is.
func (h *Hosts) Order(addrs []netip.AddrPort) []netip.AddrPort {
	if len(addrs) < 2 {
		return addrs
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	failed := func(a netip.AddrPort) int {
		if r := h.hosts[a]; r != nil && r.failure.After(r.success) {
			return 1
		}
		return 0
	}
	addrs = slices.Clone(addrs)
	slices.SortStableFunc(addrs, func(a, b netip.AddrPort) int { return failed(a) - failed(b) })
	return addrs
}

// Source returns the next of addrs, in turn; invalid if there is none. Where it begins is
// random: a process may live for one login only.
func (h *Hosts) Source(addrs []netip.Addr) netip.Addr {
	if len(addrs) == 0 {
		return netip.Addr{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.started {
		h.started, h.turn = true, rand.IntN(len(addrs))
	}
	h.turn = (h.turn + 1) % len(addrs)
	return addrs[h.turn]
}
