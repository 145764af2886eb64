package proxy

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var addr1, addr2 = netip.MustParseAddrPort("192.0.2.1:587"), netip.MustParseAddrPort("192.0.2.2:587")

// A host is down when it has failed for long and somebody else waits for it; one success
// is enough for it to be up again.
func TestDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Hosts
		const after = 30 * time.Second
		h.Begin(addr1, after).Failed()
		for range 4 { // of the first failures one a second ago is the oldest success
			time.Sleep(7 * time.Second)
			l := h.Begin(addr1, after)
			if l.Down {
				t.Fatal("down after a moment")
			}
			l.Failed()
		}
		time.Sleep(10 * time.Second)
		h.Begin(addr1, after).Failed()
		first := h.Begin(addr1, after)
		if first.Down {
			t.Error("nobody else waits, and yet it is not tried")
		}
		second := h.Begin(addr1, after)
		if !second.Down {
			t.Error("others wait, and yet it is tried")
		}
		if h.Begin(addr2, after).Down || h.Begin(addr1, 0).Down {
			t.Error("another host, or one that never is down")
		}
		second.Failed()
		first.Answered()
		if h.Begin(addr1, after).Down {
			t.Error("still down")
		}
	})
}

// Clients of a backend that has died leave in turn: a second's worth at once, the last one
// after the whole time.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Hosts
		const n, most = 100, 10 * time.Second
		var all []Session
		for range n {
			all = append(all, h.Begin(addr1, 0).Passed())
		}
		atOnce, last, before := 0, time.Duration(0), time.Duration(0)
		for _, s := range all {
			d := s.Leave(most)
			if d == 0 {
				atOnce++
			} else if d < before {
				t.Errorf("%v after %v", d, before)
			}
			last, before = max(last, d), d
		}
		if atOnce != n/10 || last > most || last < most-time.Second {
			t.Errorf("%d at once, the last one after %v", atOnce, last)
		}
		for _, s := range all[atOnce:] {
			s.Left()
		}
		// Another time it begins anew; without a limit everybody leaves at once.
		s := h.Begin(addr1, 0).Passed()
		if d := s.Leave(0); d != 0 {
			t.Error(d)
		}
		s = h.Begin(addr1, 0).Passed()
		if d := s.Leave(most); d != 0 {
			t.Errorf("the only one leaves after %v", d)
		}
		h.Begin(addr1, 0).Passed().Close()
		h.mu.Lock()
		defer h.mu.Unlock()
		if r := h.hosts[addr1]; r.passing != 0 || r.waiting != 0 || r.staying != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// Addresses that failed last come last.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Hosts
		both := []netip.AddrPort{addr1, addr2}
		order := func(want ...netip.AddrPort) {
			t.Helper()
			if got := h.Order(both); !slices.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		}
		order(addr1, addr2)
		h.Begin(addr1, 0).Failed()
		order(addr2, addr1)
		time.Sleep(time.Second)
		h.Begin(addr2, 0).Failed()
		order(addr1, addr2)
		h.Begin(addr2, 0).Answered()
		order(addr2, addr1)
		h.Begin(addr1, 0).GaveUp()
		order(addr2, addr1)
		if both[0] != addr1 {
			t.Error("the caller's list was changed")
		}
	})
}

func TestSource(t *testing.T) {
	var h Hosts
	if a := h.Source(nil); a.IsValid() {
		t.Error(a)
	}
	three := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}
	seen := map[netip.Addr]int{}
	for range 9 {
		seen[h.Source(three)]++
	}
	for _, a := range three {
		if seen[a] != 3 {
			t.Errorf("%v: %d times", a, seen[a])
		}
	}
	if a := h.Source(three[:1]); a != three[0] { // fewer than before
		t.Error(a)
	}
}

// What is remembered is bounded; hosts in use are not forgotten.
func TestForget(t *testing.T) {
	var h Hosts
	used := h.Begin(addr1, 0)
	for i := range 3 * maxHosts {
		h.Begin(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1), 0).Answered()
	}
	if len(h.hosts) > maxHosts+1 || h.hosts[addr1] == nil {
		t.Errorf("%d hosts", len(h.hosts))
	}
	used.Failed()
}
