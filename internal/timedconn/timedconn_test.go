package timedconn

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// A wait lasts as long as it may, and then another one may begin.
func TestEachWaitHasItsTime(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	c := New(a, 20*time.Millisecond)
	defer c.Close()
	for range 2 {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	}
	go func() { _, _ = b.Write([]byte("x")) }() // ends with the read
	if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Error(n, err)
	}
}

// The end of a context ends the wait that is on, and every later one; but not if it is no
// longer bound.
func TestContextEndsWaits(t *testing.T) {
	why := errors.New("client is gone")
	a, b := net.Pipe()
	defer b.Close()
	c := New(a, time.Minute)
	defer c.Close()

	ctx, cancel := context.WithCancelCause(context.Background())
	c.Bind(ctx)()
	cancel(why)
	go func() { _, _ = b.Write([]byte("x")) }() // ends with the read
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Errorf("unbound: %v", err)
	}

	ctx, cancel = context.WithCancelCause(context.Background())
	defer c.Bind(ctx)()
	started := make(chan struct{})
	go func() { // ends at once
		<-started
		cancel(why)
	}()
	close(started)
	_, err := c.Read(make([]byte, 1))
	if err == nil || !errors.Is(c.Why(err), why) {
		t.Errorf("bound: %v", err)
	}
	for _, f := range []func([]byte) (int, error){c.Read, c.Write} {
		if _, err := f([]byte("x")); !errors.Is(err, why) {
			t.Errorf("afterwards: %v", err)
		}
	}
	if c.Why(nil) != nil {
		t.Error("no error has no reason")
	}
}
