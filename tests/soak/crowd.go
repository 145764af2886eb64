package soak

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/dovetail"
)

// A crowd is many clients that log in, send a few small messages, and leave, again and
// again. What they see is kept.
type crowd struct {
	t     testing.TB
	s     *server
	users []string
	pass  string
	o     *office

	stopped atomic.Bool
	ends    sync.WaitGroup
	turns   []atomic.Int32 // of each client: sessions that ended as they should

	mu  sync.Mutex
	saw map[string]int // guarded by mu: how sessions ended, and how often
}

const (
	asWished = "as wished" // QUIT, 221, and the end
	refused  = "nobody listens"

	// The kernel resets who waits for a listener that is closed.
	unaccepted = "reset at the start"
)

// gather starts n clients.
func gather(t testing.TB, s *server, n int, pass string, users ...string) *crowd {
	c := &crowd{t: t, s: s, users: users, pass: pass, o: &office{}, turns: make([]atomic.Int32, n), saw: map[string]int{}}
	for i := range n {
		c.ends.Go(func() { c.client(i) }) // ends with stopped
	}
	t.Cleanup(c.stop)
	return c
}

// stop lets every client end its session.
func (c *crowd) stop() {
	c.stopped.Store(true)
	c.ends.Wait()
}

func (c *crowd) client(n int) {
	w := &writer{o: c.o, rnd: rand.New(rand.NewPCG(uint64(n), 11)), name: fmt.Sprint("c", n)}
	for !c.stopped.Load() {
		end := c.session(w)
		c.mu.Lock()
		c.saw[end]++
		c.mu.Unlock()
		if end == asWished {
			c.turns[n].Add(1)
		} else {
			time.Sleep(10 * time.Millisecond) // it would come again at once, in vain
		}
	}
}

// session is one session; it returns how it ended.
func (c *crowd) session(w *writer) string {
	way := dovetail.Way(w.rnd.IntN(3))
	p, err := c.s.connect(way)
	if err != nil {
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return refused
		case errors.Is(err, syscall.ECONNRESET):
			return unaccepted
		}
		return "connect: " + err.Error()
	}
	defer p.drop(false)
	at := func(place string) string {
		how := p.ended()
		if how == "421" || how == "closed" {
			return how
		}
		if p.last == "" && how == "reset" {
			return unaccepted
		}
		return fmt.Sprintf("%s at %s by %v, behind %.80q", how, place, way, p.last)
	}
	if p.err != nil || !strings.HasPrefix(p.last, "220") {
		return at("the start")
	}
	switch code := p.say("AUTH PLAIN " + plain(c.users[w.rnd.IntN(len(c.users))], c.pass) + "\r\n"); {
	case gone(code):
		return at("AUTH")
	case code != "235":
		said := fmt.Sprintf("AUTH: %.40q", p.last)
		p.say("QUIT\r\n")
		return said
	}
	for range 1 + w.rnd.IntN(5) {
		time.Sleep(time.Duration(w.rnd.IntN(100)) * time.Millisecond) // they are people
		if stay, said := w.small(p); said != "" {
			return said
		} else if !stay {
			return at("a message")
		}
	}
	if code := p.say("QUIT\r\n"); code == "421" || code == "" {
		return at("QUIT")
	} else if code != "221" {
		return fmt.Sprintf("QUIT: %.40q", p.last)
	}
	if end := p.ended(); end != "closed" {
		return end + " behind 221"
	}
	return asWished
}

// small sends one small letter. said is a reply that nobody expects.
func (w *writer) small(p *peer) (stay bool, said string) {
	w.n++
	l := &letter{id: fmt.Sprintf("%s-%d", w.name, w.n), text: forDATA(random(w.rnd, w.rnd.IntN(4000))), rcpts: 1}
	w.o.keep(l)
	p.write("MAIL FROM:<" + l.id + "@soak.test>\r\nRCPT TO:<bob@dest.test>\r\n")
	mail, stay := p.envelope(l)
	if !stay {
		return false, ""
	}
	if mail != "250" || l.taken != 1 {
		return false, fmt.Sprintf("envelope: %.40q", p.last)
	}
	if w.rnd.IntN(2) == 0 {
		l.how = "BDAT"
		p.write(fmt.Sprintf("BDAT %d LAST\r\n%s", len(l.text), l.text))
	} else {
		l.how = "DATA"
		switch code := p.say("DATA\r\n"); {
		case gone(code):
			return false, ""
		case code != "354":
			return false, fmt.Sprintf("DATA: %.40q", p.last)
		}
		p.write(stuffed(l.text))
	}
	if !p.answered(l) {
		return false, ""
	}
	if l.code != "250" {
		return false, fmt.Sprintf("message: %.60q", p.last)
	}
	return true, ""
}

// round waits until every client has had a whole session from now on, as it should be.
func (c *crowd) round() {
	c.t.Helper()
	var now []int32
	for i := range c.turns {
		now = append(now, c.turns[i].Load())
	}
	for end := time.Now().Add(2 * patience); ; time.Sleep(5 * time.Millisecond) {
		missing := 0
		for i := range c.turns {
			if c.turns[i].Load() < now[i]+2 {
				missing++
			}
		}
		if missing == 0 {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("%d clients have no session that works; what they saw:\n%s", missing, c.sights())
		}
	}
}

// allow fails the test for what the clients saw since the last time and that is not in
// list, which has beginnings; asWished always is.
func (c *crowd) allow(while string, list ...string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	list = append(list, asWished)
	for _, what := range slices.Sorted(maps.Keys(c.saw)) {
		if !slices.ContainsFunc(list, func(a string) bool { return strings.HasPrefix(what, a) }) {
			c.t.Errorf("%s: %d times a client saw: %s", while, c.saw[what], what)
		}
	}
	c.saw = map[string]int{}
}

func (c *crowd) sights() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lines []string
	for _, what := range slices.Sorted(maps.Keys(c.saw)) {
		lines = append(lines, fmt.Sprintf("  %d times: %s", c.saw[what], what))
	}
	return strings.Join(lines, "\n")
}
