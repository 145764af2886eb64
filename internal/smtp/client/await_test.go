package client

import (
	"testing"
	"time"
)

// A wait with a deadline ends by itself, however short it is.
func TestAwaitEnds(t *testing.T) {
	c := &Conn{}
	c.cond.L = &c.mu
	for d := range 3000 {
		c.mu.Lock()
		c.awaitLocked(time.Duration(d)*10, func() bool { return false })
		c.mu.Unlock()
	}
}
