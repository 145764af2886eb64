package authd

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dovetail/internal/process/event"
	"dovetail/internal/standalone/anvild"
	"dovetail/internal/testkit/leak"
)

// Penalties are anvil's. Without anvil there are none, which is said once.
func TestAnvilPenalty(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(shortTemp(t), "anvil-auth-penalty")
	var log memory
	l := event.New(&log, "", false)
	if p := dialPenalty(t.Context(), path, l); p != nil || len(log.get()) != 0 {
		t.Errorf("without a socket: %v, %q", p, log.get())
	}
	serve := func() (stop func()) {
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		srv := anvild.New(nil)
		done := make(chan struct{})
		go func() { // ends with the listener, or the connection
			defer close(done)
			if nc, err := listener.Accept(); err == nil {
				srv.Serve(ctx, nc)
			}
		}()
		return func() { cancel(); listener.Close(); <-done }
	}
	stop := serve()
	p := dialPenalty(t.Context(), path, l)
	if v, _ := p.Get(t.Context(), "192.0.2.1"); v != 0 {
		t.Errorf("at first %d", v)
	}
	p.Set("192.0.2.1", 17, 2)
	v, changed := p.Get(t.Context(), "192.0.2.1")
	if v != 2 || time.Since(changed) > time.Minute {
		t.Errorf("penalty %d since %v", v, changed)
	}
	p.Set("192.0.2.1", 0, 0)
	if v, _ := p.Get(t.Context(), "192.0.2.1"); v != 0 {
		t.Errorf("after a success %d", v)
	}
	p.Set("", 17, 1) // who has no address shares one
	if v, _ := p.Get(t.Context(), ""); v != 1 {
		t.Errorf("without an address %d", v)
	}
	stop()
	a := p.(*anvilPenalty)
	<-a.client.Done()
	for range 3 {
		a.mu.Lock()
		a.tried = time.Time{} // long ago
		a.mu.Unlock()
		if v, _ := p.Get(t.Context(), "192.0.2.1"); v != 0 {
			t.Errorf("without anvil %d", v)
		}
	}
	stop = serve()
	a.mu.Lock()
	a.tried = time.Time{}
	a.mu.Unlock()
	p.Set("192.0.2.1", 17, 3)
	if v, _ := p.Get(t.Context(), "192.0.2.1"); v != 3 {
		t.Errorf("anvil is back, and has %d", v)
	}
	stop()
	if c := a.connection(t.Context()); c != nil {
		c.Close()
	}
	if got := log.get(); len(got) != 1 || !strings.Contains(got[0], "not held against addresses") {
		t.Errorf("%q", got)
	}
}
