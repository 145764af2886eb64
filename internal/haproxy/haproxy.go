// Package haproxy reads the PROXY header, versions 1 and 2, with which a load balancer says
// whose connection it passes on (HAProxy's proxy-protocol.txt; clause S1.17). Who may send
// one, and what follows from it, is its caller's to say.
//
//	PROXY TCP4 192.0.2.1 198.51.100.1 56324 587\r\n      version 1: at most 107 octets
//	PROXY UNKNOWN\r\n
//	\r\n\r\n\0\r\nQUIT\n 0x21 0x11 len16 addresses TLVs  version 2
//
// Of the TLVs of version 2 it takes AUTHORITY, CRC32C and SSL with its parts.
package haproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	maxV1     = 107
	maxV2     = 4096 // octets of addresses and TLVs
	maxName   = 255  // octets of a name that is taken over
)

// A Header is what the load balancer said.
type Header struct {
	Local       bool           // it speaks for itself, as for a health check
	Source      netip.AddrPort // the client; invalid if it is not told
	Destination netip.AddrPort // where the client connected to
	TLS         bool           // the client uses TLS, which the load balancer ends
	CertOK      bool           // with a certificate that was verified
	CommonName  string         // of that certificate
	ServerName  string         // that the client asked for
}

// Errors. All but a timeout of the reader mean that it is no header.
var (
	errNoHeader = errors.New("no PROXY header")
	errTooLong  = errors.New("PROXY header is too long")
	errCRC      = errors.New("PROXY header has a wrong checksum")
)

// IsTimeout says whether err of Read is that of a reader whose deadline passed.
func IsTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// Read reads one header from r, and nothing of what follows. r should have a deadline.
func Read(r io.Reader) (Header, error) {
	const v1 = "PROXY "
	b := make([]byte, 0, maxV1)
	for { // octet by octet, since what follows is not ours
		if len(b) == maxV1 {
			return Header{}, errTooLong
		}
		b = b[:len(b)+1]
		if _, err := io.ReadFull(r, b[len(b)-1:]); err != nil {
			return Header{}, err
		}
		switch text := string(b); {
		case text == signature:
			return readV2(r)
		case strings.HasPrefix(signature, text), strings.HasPrefix(v1, text):
		case !strings.HasPrefix(text, v1):
			return Header{}, errNoHeader
		case b[len(b)-1] == '\n':
			return parseV1(text)
		}
	}
}

func parseV1(line string) (Header, error) {
	line, ok := strings.CutSuffix(line, "\r\n")
	if !ok {
		return Header{}, errNoHeader
	}
	f := strings.Split(line, " ")
	switch {
	case len(f) >= 2 && f[1] == "UNKNOWN":
		return Header{}, nil
	case len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6":
		return Header{}, errNoHeader
	}
	var ends [2]netip.AddrPort
	for i := range ends {
		ip, err := netip.ParseAddr(f[2+i])
		if err != nil || ip.Zone() != "" || ip.Is4() != (f[1] == "TCP4") {
			return Header{}, fmt.Errorf("%w: bad address", errNoHeader)
		}
		port, err := strconv.ParseUint(f[4+i], 10, 16)
		if err != nil {
			return Header{}, fmt.Errorf("%w: bad port", errNoHeader)
		}
		ends[i] = netip.AddrPortFrom(ip.Unmap(), uint16(port))
	}
	return Header{Source: ends[0], Destination: ends[1]}, nil
}

func readV2(r io.Reader) (Header, error) {
	head := make([]byte, 16)
	copy(head, signature)
	if _, err := io.ReadFull(r, head[12:]); err != nil {
		return Header{}, err
	}
	size := int(binary.BigEndian.Uint16(head[14:]))
	if size > maxV2 {
		return Header{}, errTooLong
	}
	b := append(head, make([]byte, size)...)
	if _, err := io.ReadFull(r, b[16:]); err != nil {
		return Header{}, err
	}
	return parseV2(b)
}

// parseV2 parses a whole header.
//
//	 0 12 signature
//	12  1 version 2 in the upper half; 0 LOCAL or 1 PROXY in the lower
//	13  1 family in the upper half: 0 none, 1 IPv4, 2 IPv6, 3 Unix; 1 stream, 2 datagram in the lower
//	14  2 length of what follows, big endian
//	16    source address, destination address, their ports; then TLVs
func parseV2(b []byte) (Header, error) {
	if b[12]>>4 != 2 || b[12]&0xf > 1 {
		return Header{}, fmt.Errorf("%w: version or command", errNoHeader)
	}
	h := Header{Local: b[12]&0xf == 0}
	size := 0 // of an address
	switch b[13] {
	case 0x11:
		size = 4
	case 0x21:
		size = 16
	case 0x31: // Unix sockets: nothing to take over
		if len(b) < 16+216 {
			return Header{}, errNoHeader
		}
		return h, nil
	default:
		if b[13]>>4 > 3 || b[13]&0xf > 2 {
			return Header{}, fmt.Errorf("%w: family", errNoHeader)
		}
		return h, nil // not a TCP connection: the real addresses stay
	}
	rest := b[16:]
	if len(rest) < 2*size+4 {
		return Header{}, errNoHeader
	}
	if !h.Local {
		src, _ := netip.AddrFromSlice(rest[:size])
		dst, _ := netip.AddrFromSlice(rest[size : 2*size])
		ports := rest[2*size:]
		h.Source = netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(ports))
		h.Destination = netip.AddrPortFrom(dst.Unmap(), binary.BigEndian.Uint16(ports[2:]))
	}
	return h, h.tlvs(b, 16+2*size+4)
}

// Types of TLVs.
const (
	tlvAuthority = 0x02
	tlvCRC32C    = 0x03
	tlvSSL       = 0x20
	tlvSSLCN     = 0x22 // within tlvSSL

	sslUsed     = 1 << 0 // bits of tlvSSL's first octet
	sslCertConn = 1 << 1
	sslCertSess = 1 << 2
)

// tlvs takes over the TLVs in b[at:]; b is the whole header, for the checksum.
func (h *Header) tlvs(b []byte, at int) error {
	return eachTLV(b[at:], func(typ byte, off int, v []byte) error {
		switch typ {
		case tlvAuthority:
			h.ServerName = name(v)
		case tlvCRC32C:
			if len(v) != 4 {
				return errCRC
			}
			want := binary.BigEndian.Uint32(v)
			whole := append([]byte(nil), b...)
			clear(whole[at+off : at+off+4])
			if crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli)) != want {
				return errCRC
			}
		case tlvSSL:
			return h.ssl(v)
		}
		return nil
	})
}

// ssl reads the SSL TLV: an octet of bits, 4 octets verify result (0 is good), TLVs.
func (h *Header) ssl(v []byte) error {
	if len(v) < 5 {
		return errNoHeader
	}
	h.TLS = v[0]&sslUsed != 0
	h.CertOK = v[0]&(sslCertConn|sslCertSess) != 0 && binary.BigEndian.Uint32(v[1:]) == 0
	return eachTLV(v[5:], func(typ byte, _ int, v []byte) error {
		if typ == tlvSSLCN {
			h.CommonName = name(v)
		}
		return nil
	})
}

// eachTLV calls f with the type, the offset of the value in b, and the value of each TLV.
func eachTLV(b []byte, f func(typ byte, off int, v []byte) error) error {
	for at := 0; at < len(b); {
		if len(b)-at < 3 {
			return errNoHeader
		}
		size := int(binary.BigEndian.Uint16(b[at+1:]))
		if len(b)-at-3 < size {
			return errNoHeader
		}
		if err := f(b[at], at+3, b[at+3:at+3+size]); err != nil {
			return err
		}
		at += 3 + size
	}
	return nil
}

// name is a name that can be passed on; anything else is none.
func name(v []byte) string {
	if len(v) > maxName || !utf8.Valid(v) {
		return ""
	}
	for _, c := range v {
		if c < ' ' || c == 0x7f {
			return ""
		}
	}
	return string(v)
}
