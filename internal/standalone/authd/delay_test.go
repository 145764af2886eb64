package authd

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A failure takes as long as auth_failure_delay says; a success takes no time.
func TestFailureDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newServer(t, Options{}, onePassdb)
		defer s.Close()
		c := dial(t, s, "login", 7)
		defer c.close()
		began := time.Now()
		if got := c.ask(plainAuth(1, "alice", "right")); got != "OK\t1\tuser=alice" || time.Since(began) != 0 {
			t.Errorf("%s after %v", got, time.Since(began))
		}
		if got := c.ask(plainAuth(2, "alice", "wrong")); got != "FAIL\t2\tuser=alice" {
			t.Error(got)
		}
		if d := time.Since(began); d < 2*time.Second || d > 3*time.Second {
			t.Errorf("a failure after %v", d)
		}
		// The others' work goes on meanwhile.
		began = time.Now()
		c.write(plainAuth(3, "alice", "wrong"))
		if got := c.ask(plainAuth(4, "alice", "right")); got != "OK\t4\tuser=alice" || time.Since(began) != 0 {
			t.Errorf("%s after %v", got, time.Since(began))
		}
		synctest.Wait()
		if got := c.ask("CONT\t3\tAAAA"); got != "FAIL\t3\treason=Authentication request timed out" { // it is over already
			t.Error(got)
		}
		if got := c.read(); got != "FAIL\t3\tuser=alice" {
			t.Error(got)
		}
		// The end sends what waits.
		c.write(plainAuth(5, "alice", "wrong"))
		synctest.Wait()
		began = time.Now()
		s.Close()
		if got := c.read(); got != "FAIL\t5\tuser=alice" || time.Since(began) != 0 {
			t.Errorf("%s after %v", got, time.Since(began))
		}
	})
}

// Many failures come back in another order than they were asked for.
func TestFailuresAreShuffled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newServer(t, Options{}, onePassdb)
		defer s.Close()
		c := dial(t, s, "login", 7)
		defer c.close()
		const n = 40
		for i := range n {
			c.write(plainAuth(i+1, "alice", "wrong"))
		}
		inOrder := true
		for i := range n {
			inOrder = strings.HasPrefix(c.read(), fmt.Sprintf("FAIL\t%d\t", i+1)) && inOrder
		}
		if inOrder {
			t.Error("failures keep their order, which tells what took long")
		}
	})
}

// A request lives 150 s from its last activity (clause P3.16).
func TestRequestTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newServer(t, Options{}, "auth_mechanisms = login plain\n"+onePassdb)
		defer s.Close()
		c := dial(t, s, "login", 7)
		defer c.close()
		m := dial(t, s, "auth-master", 0)
		defer m.close()
		c.ask("AUTH\t1\tLOGIN\tservice=submission\trip=192.0.2.1")
		time.Sleep(149 * time.Second)
		if got := c.ask("CONT\t1\tYWxpY2U="); got != "CONT\t1\tUGFzc3dvcmQ6" {
			t.Error(got)
		}
		time.Sleep(151 * time.Second)
		if got := c.ask("CONT\t1\tcmlnaHQ="); got != "FAIL\t1\treason=Authentication request timed out" {
			t.Error(got)
		}
		claim := func(id int) string {
			return m.ask(fmt.Sprintf("REQUEST\t%d\t7\t%d\t%s", id, id, c.cookie))
		}
		c.ask(plainAuth(2, "alice", "right"))
		time.Sleep(149 * time.Second)
		if got := claim(2); !strings.HasPrefix(got, "USER\t2\talice\t") {
			t.Error(got)
		}
		c.ask(plainAuth(3, "alice", "right"))
		time.Sleep(151 * time.Second)
		if got := claim(3); got != "FAIL\t3" {
			t.Error(got)
		}
		want := []string{
			"Info: login(alice,192.0.2.1): Request timed out waiting for client to continue authentication (150 secs)",
			"Error: plain(alice,192.0.2.1): Request 7.3 timed out after 150 secs, state=3",
			"Error: auth-master client: Master request 7.3 not found (created 600000 msecs ago, handshake 600000 msecs ago)",
		}
		if text := diff(want, log.get()); text != "" {
			t.Error(text)
		}
	})
}

// penalties is a Penalty for tests.
type penalties struct {
	mu   sync.Mutex
	of   map[string]uint32    // guarded by mu
	last map[string]time.Time // guarded by mu
	sets []string             // guarded by mu
}

func (p *penalties) Get(_ context.Context, ident string) (uint32, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of[ident], p.last[ident]
}

func (p *penalties) Set(ident string, checksum, penalty uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of[ident], p.last[ident] = penalty, time.Now()
	p.sets = append(p.sets, fmt.Sprintf("%s %v %d", ident, checksum != 0, penalty))
}

// Who fails waits longer each time, by address, and no longer when he has been quiet, or
// was right (clause P3.14).
func TestPenalty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pen := &penalties{of: map[string]uint32{}, last: map[string]time.Time{}}
		s, _ := newServer(t, Options{Penalty: pen}, onePassdb)
		defer s.Close()
		c := dial(t, s, "login", 7)
		defer c.close()
		id := 0
		try := func(pass string, more ...string) int {
			id++
			began := time.Now()
			c.ask(plainAuth(id, "alice", pass, more...))
			return int(time.Since(began).Seconds())
		}
		var got []int
		for range 6 {
			got = append(got, try("wrong"))
		}
		// The failure itself takes 2 to 2.5 s. The penalty is looked up when the request
		// begins, and an older one counts less.
		if want := []int{2, 6, 10, 17, 17, 17}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("seconds %v, want %v", got, want)
		}
		if d := try("right", "\tno-penalty"); d != 0 {
			t.Errorf("no-penalty waited %d s", d)
		}
		if d := try("right", "\trip=2001:db8:1:2::3"); d != 0 {
			t.Errorf("another address waited %d s", d)
		}
		if d := try("right"); d != 15 {
			t.Errorf("the address waited %d s", d)
		}
		if d := try("right"); d != 0 {
			t.Errorf("after a success it waited %d s", d)
		}
		try("wrong", "\trip=2001:db8:1:2::3")
		pen.mu.Lock()
		defer pen.mu.Unlock()
		for _, want := range []string{"192.0.2.1 true 1", "192.0.2.1 true 4", "192.0.2.1 false 0", "2001:db8:1:: true 1"} {
			if !contains(pen.sets, want) {
				t.Errorf("no %q in %q", want, pen.sets)
			}
		}
	})
}

// CANCEL while a penalty is waited for, or a client leaving, ends the request at once.
func TestCancelEndsWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pen := &penalties{of: map[string]uint32{"192.0.2.1": 4}, last: map[string]time.Time{"192.0.2.1": time.Now()}}
		s, log := newServer(t, Options{Penalty: pen}, onePassdb)
		defer s.Close()
		c := dial(t, s, "login", 7)
		c.write(plainAuth(1, "alice", "right"))
		c.write("CANCEL\t1")
		c.write(plainAuth(2, "alice", "right"))
		synctest.Wait()
		began := time.Now()
		c.close()
		synctest.Wait()
		if time.Since(began) != 0 {
			t.Errorf("it took %v", time.Since(began))
		}
		if got := log.get(); len(got) != 1 || got[0] != "Error: auth client 7 disconnected with 1 pending requests: EOF" {
			t.Error(got)
		}
	})
}
