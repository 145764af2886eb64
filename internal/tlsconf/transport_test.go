package tlsconf

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"testing/iotest"

	"dovetail/internal/testkit/tlsfiles"
)

// A readerConn is a connection from which r comes.
type readerConn struct {
	net.Conn
	r io.Reader
}

func (c readerConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// No read goes beyond the end of a large record, whatever pieces the octets come in.
func TestReadsEndWithRecords(t *testing.T) {
	record := func(n int) []byte {
		return append([]byte{23, 3, 3, byte(n >> 8), byte(n)}, bytes.Repeat([]byte{'x'}, n)...)
	}
	sizes := []int{100, 16000, 16000, 0, 400, 1, 0, 16384, 5}
	var stream []byte
	ends := map[int]bool{}
	for _, n := range sizes {
		stream = append(stream, record(n)...)
		if n > smallRead {
			ends[len(stream)] = true
		}
	}
	for what, r := range map[string]io.Reader{
		"whole": bytes.NewReader(stream), "octets": iotest.OneByteReader(bytes.NewReader(stream)), "halves": iotest.HalfReader(bytes.NewReader(stream)),
	} {
		tr := NewTransport(readerConn{r: r})
		var got []byte
		buf := make([]byte, 40000)
		for {
			n, err := tr.Read(buf)
			for end := range ends {
				if len(got) < end && len(got)+n > end {
					t.Errorf("%s: a read from %d to %d goes beyond the end of a record at %d", what, len(got), len(got)+n, end)
				}
			}
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.Equal(got, stream) {
			t.Errorf("%s: %d octets came out, want %d", what, len(got), len(stream))
		}
	}
}

func FuzzTransport(f *testing.F) {
	f.Add([]byte("\x16\x03\x01\x00\x02ab\x15\x03\x03\x00\x02\x02\x30"), 7)
	f.Fuzz(func(t *testing.T, stream []byte, size int) {
		tr := NewTransport(readerConn{r: bytes.NewReader(stream)})
		var got []byte
		buf := make([]byte, 1+size&0xffff)
		for {
			n, err := tr.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.Equal(got, stream) {
			t.Error("not what went in")
		}
	})
}

// BenchmarkIdle shows the memory on the heap of an idle server connection, after a client
// has sent large records.
func BenchmarkIdle(b *testing.B) {
	config := server(b, defaults(tlsfiles.SelfSigned(b, tlsfiles.Request{CN: "x"})))
	for name, under := range map[string]func(net.Conn) net.Conn{
		"transport": func(c net.Conn) net.Conn { return NewTransport(c) },
		"bare":      func(c net.Conn) net.Conn { return c },
	} {
		b.Run(name, func(b *testing.B) {
			const conns = 100
			for b.Loop() {
				var held []*tls.Conn
				before := heap()
				for range conns {
					held = append(held, idle(b, config, under))
				}
				b.ReportMetric(float64(heap()-before)/conns, "B/conn")
				for _, c := range held {
					c.Close()
				}
			}
		})
	}
}
