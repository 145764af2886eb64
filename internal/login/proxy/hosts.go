package proxy

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

const maxHosts = 1024 // backends that are remembered

// Hosts remembers how backends have done, for all clients of the process. The zero value
// is ready; any goroutine may use it.
type Hosts struct {
	mu    sync.Mutex
	hosts map[netip.AddrPort]*host // guarded by mu
	turn  int                      // guarded by mu: of the source addresses
}

type host struct {
	success, failure time.Time
	waiting          int // logins that go on
}

// Begin says that a login at addr begins; done must be called with its outcome. down: it
// need not be tried, since the backend has failed for longer than after, and others
// already wait for it (clause S9.9).
func (h *Hosts) Begin(addr netip.AddrPort, after time.Duration) (down bool, done func(ok bool)) {
	h.mu.Lock()
	defer h.mu.Unlock()
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
	r.waiting++
	down = after > 0 && r.waiting > 1 && r.failure.Sub(r.success) > after
	return down, func(ok bool) {
		h.mu.Lock()
		defer h.mu.Unlock()
		r.waiting--
		if ok {
			r.success = time.Now()
		} else if !down {
			r.failure = time.Now()
		}
	}
}

// forgetLocked makes room for one more.
func (h *Hosts) forgetLocked() {
	if len(h.hosts) < maxHosts {
		return
	}
	for a, r := range h.hosts {
		if r.waiting == 0 {
			delete(h.hosts, a)
			return
		}
	}
}

// Source returns the next of addrs, in turn; invalid if there is none.
func (h *Hosts) Source(addrs []netip.Addr) netip.Addr {
	if len(addrs) == 0 {
		return netip.Addr{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.turn++
	return addrs[h.turn%len(addrs)]
}

// Delay is how long a client whose backend has gone stays connected, so that not all
// clients of a backend come back at once: up to max.
func Delay(max time.Duration) time.Duration {
	if max <= 0 {
		return 0
	}
	return rand.N(max)
}
