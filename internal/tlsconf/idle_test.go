package tlsconf

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"testing"
)

// heap returns how much of it is in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// idle returns the server's end of a connection over which a client sent 64 KiB and left.
func idle(t testing.TB, config *tls.Config, under func(net.Conn) net.Conn) *tls.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const size = 64 << 10
	go func() { // ends when all is sent, or with the listener
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, DynamicRecordSizingDisabled: true})
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = c.Write(make([]byte, size))
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Server(under(conn), config)
	if _, err := io.CopyN(io.Discard, c, size); err != nil {
		t.Fatal(err)
	}
	return c
}

// The read buffer of a connection stays below twice the size of a record.
func TestTransportKeepsBufferSmall(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{selfSignedTLS(t)}}
	const conns = 20
	var held []*tls.Conn
	before := heap()
	for range conns {
		held = append(held, idle(t, config, func(c net.Conn) net.Conn { return NewTransport(c) }))
	}
	each := (heap() - before) / conns
	for _, c := range held {
		c.Close()
	}
	if each > 30<<10 {
		t.Errorf("%d octets a connection, want 30 KiB at most", each)
	}
	t.Logf("%d octets a connection", each)
}
