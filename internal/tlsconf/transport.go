package tlsconf

import (
	"io"
	"net"
	"sync/atomic"
)

// A Transport stands between a connection and crypto/tls, for two reasons.
//
// Memory: crypto/tls keeps its read buffer for the life of a connection, and lets it grow to
// twice the largest record (40 KiB) where the connection yields more than the record it asks
// for. A Transport ends a read where a large record ends, which keeps it at 18 KiB. (A
// session that never receives large records has 1 to 4 KiB.)
//
// Alerts: OpenSSL's TLSv1.3 clients send the alert with which they refuse a certificate in
// clear, which crypto/tls takes for a bad record. HandshakeError asks the Transport.
type Transport struct {
	net.Conn
	header [5]byte      // Read's alone, as are the next two
	have   int          // octets of header that have been read
	rest   int          // octets of the record's content to come
	alert  atomic.Int32 // last plain alert's description; 0 if there was none
	ended  atomic.Bool
}

// NewTransport returns a Transport over conn, to be given to tls.Server or tls.Client.
func NewTransport(conn net.Conn) *Transport { return &Transport{Conn: conn} }

// smallRead is how much is read where the length of the next record is not known.
const smallRead = 512

// Read implements net.Conn.
func (t *Transport) Read(p []byte) (int, error) {
	limit := smallRead
	if t.rest > 0 {
		limit = t.rest
	}
	if len(p) > limit {
		p = p[:limit]
	}
	n, err := t.Conn.Read(p)
	for b := p[:n]; len(b) > 0; {
		if t.rest == 0 {
			m := copy(t.header[t.have:], b)
			b = b[m:]
			if t.have += m; t.have == len(t.header) {
				t.have, t.rest = 0, int(t.header[3])<<8|int(t.header[4])
			}
			continue
		}
		m := min(len(b), t.rest)
		if t.rest -= m; t.rest == 0 && t.header[0] == 21 && t.header[3] == 0 && t.header[4] == 2 {
			t.alert.Store(int32(b[m-1])) // an encrypted one is longer
		}
		b = b[m:]
	}
	if err == io.EOF {
		t.ended.Store(true)
	}
	return n, err
}

// Ended says whether a read found the end of the connection. A peer who closes TLS first is
// not read from any more; package tls says io.EOF in both cases.
func (t *Transport) Ended() bool { return t.ended.Load() }
