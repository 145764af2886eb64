//go:build !race

package splice

import (
	"io"
	"testing"
)

// Passing octets allocates nothing.
func TestNoAllocation(t *testing.T) {
	client, server, done := run(t, &Stream{})
	b := make([]byte, 100)
	n := testing.AllocsPerRun(1000, func() {
		client.Write(b)
		io.ReadFull(server, b)
		server.Write(b)
		io.ReadFull(client, b)
	})
	if n > 0.1 { // the pool may be emptied meanwhile
		t.Errorf("%.2f allocations for each round trip", n)
	}
	server.Close()
	client.Close()
	<-done
}
