package haproxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	proxyproto "github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
)

var (
	src4 = netip.MustParseAddrPort("192.0.2.1:56324")
	dst4 = netip.MustParseAddrPort("198.51.100.1:587")
	src6 = netip.MustParseAddrPort("[2001:db8::1]:56324")
	dst6 = netip.MustParseAddrPort("[2001:db8::2]:465")
)

func TestVersion1(t *testing.T) {
	for in, want := range map[string]Header{
		"PROXY TCP4 192.0.2.1 198.51.100.1 56324 587\r\n":  {Source: src4, Destination: dst4},
		"PROXY TCP6 2001:db8::1 2001:db8::2 56324 465\r\n": {Source: src6, Destination: dst6},
		"PROXY UNKNOWN\r\n":                 {},
		"PROXY UNKNOWN ::1 what ever 1\r\n": {},
	} {
		r := strings.NewReader(in + "EHLO x\r\n")
		h, err := Read(r)
		if err != nil || h != want {
			t.Errorf("%q: %+v, %v, want %+v", in, h, err, want)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "EHLO x\r\n" {
			t.Errorf("%q: %q was left", in, rest)
		}
	}
	for _, in := range []string{
		"", "PROXY", "EHLO example.org\r\n", "PROXY TCP4 192.0.2.1 198.51.100.1 56324 587\n",
		"PROXY TCP4 ::1 198.51.100.1 56324 587\r\n", "PROXY TCP4 192.0.2.1 198.51.100.1 56324 65536\r\n",
		"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n", "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
		"PROXY TCP4  192.0.2.1 198.51.100.1 56324 587\r\n", "PROXY UNKNOWN " + strings.Repeat("x", 100) + "\r\n",
	} {
		if h, err := Read(strings.NewReader(in)); err == nil {
			t.Errorf("%q: %+v, want an error", in, h)
		}
	}
}

// peer makes headers of version 2 with the library that others use.
func peer(t testing.TB, src, dst netip.AddrPort, tlvs ...proxyproto.TLV) []byte {
	h := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(src), net.TCPAddrFromAddrPort(dst))
	if err := h.SetTLVs(tlvs); err != nil {
		t.Fatal(err)
	}
	b, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ssl(t testing.TB, client byte, verify uint32, cn string) proxyproto.TLV {
	s := tlvparse.PP2SSL{Client: client, Verify: verify}
	if cn != "" {
		s.TLV = []proxyproto.TLV{{Type: proxyproto.PP2_SUBTYPE_SSL_CN, Value: []byte(cn)}, {Type: proxyproto.PP2_SUBTYPE_SSL_VERSION, Value: []byte("TLSv1.3")}}
	}
	tlv, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return tlv
}

// What cannot become a header is refused as soon as that shows.
func TestWaitsForNothing(t *testing.T) {
	for _, in := range []string{"E", "PE", "PROXY\r", "\r\n\r\n\x01"} {
		r, w := io.Pipe()
		go w.Write([]byte(in)) // ends when all is read, or with the pipe
		if _, err := Read(r); !errors.Is(err, errNoHeader) {
			t.Errorf("%q: %v", in, err)
		}
		r.Close()
	}
}

func TestVersion2(t *testing.T) {
	local := append([]byte(signature), 0x20, 0, 0, 0)
	unix := append(append([]byte(signature), 0x21, 0x31, 0, 216), make([]byte, 216)...)
	for name, c := range map[string]struct {
		in   []byte
		want Header
	}{
		"IPv4":  {peer(t, src4, dst4), Header{Source: src4, Destination: dst4}},
		"IPv6":  {peer(t, src6, dst6), Header{Source: src6, Destination: dst6}},
		"local": {local, Header{Local: true}},
		"unix":  {unix, Header{}},
		"TLS":   {peer(t, src4, dst4, ssl(t, 1, 1, "")), Header{Source: src4, Destination: dst4, TLS: true}},
		"certificate": {
			peer(t, src4, dst4, ssl(t, 7, 0, "alice"), proxyproto.TLV{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: []byte("mx.test")}),
			Header{Source: src4, Destination: dst4, TLS: true, CertOK: true, CommonName: "alice", ServerName: "mx.test"},
		},
		"bad certificate": {peer(t, src4, dst4, ssl(t, 7, 1, "alice")), Header{Source: src4, Destination: dst4, TLS: true, CommonName: "alice"}},
		"bad name": {
			peer(t, src4, dst4, proxyproto.TLV{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: []byte("a\nb")}),
			Header{Source: src4, Destination: dst4},
		},
		"unknown TLV": {peer(t, src4, dst4, proxyproto.TLV{Type: 0xe7, Value: []byte("x")}), Header{Source: src4, Destination: dst4}},
	} {
		r := bytes.NewReader(append(bytes.Clone(c.in), "NOOP"...))
		h, err := Read(r)
		if err != nil || !reflect.DeepEqual(h, c.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, h, err, c.want)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "NOOP" {
			t.Errorf("%s: %q was left", name, rest)
		}
	}
}

func TestChecksum(t *testing.T) {
	good := withCRC(peer(t, src4, dst4, proxyproto.TLV{Type: proxyproto.PP2_TYPE_CRC32C, Value: make([]byte, 4)}))
	if h, err := Read(bytes.NewReader(good)); err != nil || h.Source != src4 {
		t.Fatalf("%+v, %v", h, err)
	}
	for i := 16; i < len(good); i++ {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if h, err := Read(bytes.NewReader(bad)); err == nil && h.Source == src4 && h.Destination == dst4 && i < 28 {
			t.Errorf("octet %d was changed without an error", i)
		} else if i >= 31 && err == nil {
			t.Errorf("octet %d of the checksum was changed without an error", i)
		}
	}
}

// No prefix of a header is one, and whatever comes is an error or a header.
func FuzzRead(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 198.51.100.1 56324 587\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add(peer(f, src4, dst4, ssl(f, 7, 0, "alice")))
	f.Add(peer(f, src6, dst6))
	f.Add(withCRC(peer(f, src4, dst4, proxyproto.TLV{Type: proxyproto.PP2_TYPE_CRC32C, Value: make([]byte, 4)})))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if _, err := Read(r); err != nil {
			return
		}
		used := len(b) - r.Len()
		if _, err := Read(bytes.NewReader(b[:used-1])); err == nil {
			t.Errorf("%q is a header without its last octet, too", b[:used])
		}
	})
}
