package master_test

import (
	"syscall"
	"testing"
	"time"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/testkit/echoclient"
	"dovetail/internal/testkit/fakemaster"
)

// What a process costs from its start to the first status record and its end: the price of
// one process a client.
func BenchmarkStart(b *testing.B) {
	s := fakemaster.New(b, build(b))
	s.Env.ServiceCount = 1
	s.TCP(masterproto.Listener{Name: "submission"})
	var cpu time.Duration
	for b.Loop() {
		c := s.Start()
		c.AwaitCount(1)
		c.Signal(syscall.SIGQUIT)
		c.AwaitExit()
		cpu += c.CPU()
	}
	b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
}

// What a client costs that a process accepts, greets and lets go.
func BenchmarkClient(b *testing.B) {
	s := fakemaster.New(b, build(b))
	s.Env.ClientLimit = 100
	addr := s.TCP(masterproto.Listener{Name: "submission"})
	c := s.Start()
	c.AwaitCount(100)
	n := 0
	for b.Loop() {
		x := echoclient.Connect(b, addr)
		x.Want("QUIT", "221 Bye")
		x.Close()
		n++
	}
	c.Signal(syscall.SIGQUIT)
	c.AwaitExit()
	b.ReportMetric(float64(c.CPU().Microseconds())/float64(n), "cpu-µs/op")
}
