// Package handoff moves a client from one process to another: the login process sends one
// record, what the client has already said, and the client's descriptor to the worker's
// socket; the worker answers when it has taken the client (clause P5). Who the client is,
// the worker asks the auth service (package authmaster); what the client said is its
// caller's to read.
//
//	login:  connect, one sendmsg: record (96 bytes), data (at most 1218), the descriptor
//	worker: record and data read, user looked up, then 12 bytes: tag, status, pid; close
//
// Two smaller wires on which the descriptor travels too are here as well: the question
// whether a client may connect (AskAccess, clause P8.4) and the post-login script
// (RunScript, clause P5.16).
//
// Descriptors are lent with a Descriptor, which a syscall.RawConn is: the blocking mode of
// the open socket, shared by both processes, is never touched.
package handoff

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

const (
	recordSize = 96
	replySize  = 12
	addrSize   = 20

	// MaxData is how long session, NUL and payload can be together.
	MaxData = 1218

	familyNone = 0
	familyIPv4 = 2
	familyIPv6 = 10
)

// Flags say what the login process knows of the client's connection.
type Flags uint32

const (
	Compressed Flags = 1 << iota // TLS compresses; never set by us
	Secured                      // TLS, or a trusted or the same host
	TLS                          // the login process does TLS, and passed one end of a socketpair
	Implicit                     // logged in without AUTH: the worker greets with nothing
)

// A Cookie is the binary form of the auth service's COOKIE.
type Cookie [16]byte

// ParseCookie reads 32 hex digits.
func ParseCookie(s string) (c Cookie, err error) {
	if len(s) != 2*len(c) {
		return c, fmt.Errorf("auth cookie has %d hex digits, want %d", len(s), 2*len(c))
	}
	if _, err := hex.Decode(c[:], []byte(s)); err != nil {
		return c, errors.New("auth cookie is not hexadecimal")
	}
	return c, nil
}

// String returns the hex digits, as REQUEST wants them. It is a secret while the login is unclaimed.
func (c Cookie) String() string { return hex.EncodeToString(c[:]) }

// A Request describes a login that the auth service has accepted and nobody has claimed.
type Request struct {
	Tag       uint32 // comes back in the reply; Send makes a 1 of 0
	AuthPID   uint32 // SPID of the login process's auth connection
	AuthID    uint32 // id of the AUTH request
	ClientPID uint32 // CPID of that connection
	Cookie    Cookie
	Local     netip.AddrPort // invalid address: there is none
	Remote    netip.AddrPort
	Flags     Flags
	Session   string // session id; no NUL
	Payload   []byte // the protocol's part: see Submission
}

// Submission is the payload for the submission service (clause S2.16).
type Submission struct {
	Helo        string // last valid EHLO or HELO domain, or ""
	ProxiedHelo string // HELO of XCLIENT; without one the EHLO domain again
	Pending     []byte // client octets behind AUTH, not yet looked at
}

// Append adds the wire form to b: helo NUL, proxied helo NUL, pending octets. Domains hold
// no NUL: they passed the parser of EHLO or XCLIENT.
func (s Submission) Append(b []byte) []byte {
	b = append(append(b, s.Helo...), 0)
	b = append(append(b, s.ProxiedHelo...), 0)
	return append(b, s.Pending...)
}

// ParseSubmission reads a payload. As in Dovecot everything may be missing, and a field
// that no NUL ends goes to the end (clause P5.5). Pending is part of payload.
func ParseSubmission(payload []byte) Submission {
	var s Submission
	s.Helo, payload = cutNUL(payload)
	s.ProxiedHelo, payload = cutNUL(payload)
	s.Pending = payload
	return s
}

func cutNUL(b []byte) (string, []byte) {
	for i, c := range b {
		if c == 0 {
			return string(b[:i]), b[i+1:]
		}
	}
	return string(b), nil
}

// Room says how many octets of r.Payload fit behind the session id.
func (r Request) Room() int { return max(0, MaxData-len(r.Session)-1) }

// append adds record and data to b. An error: they cannot be said on this wire.
func (r Request) append(b []byte, inode uint64) ([]byte, error) {
	size := len(r.Session) + 1 + len(r.Payload)
	switch {
	case size > MaxData:
		return b, fmt.Errorf("hand-over of %d octets of client input, at most %d are possible", len(r.Payload), r.Room())
	case strings.IndexByte(r.Session, 0) >= 0:
		return b, errors.New("session id with a NUL")
	}
	b = r.record(uint32(size), inode).append(b)
	b = append(append(b, r.Session...), 0)
	return append(b, r.Payload...), nil
}

func (r Request) record(size uint32, inode uint64) record {
	return record{
		tag: r.Tag, authPID: r.AuthPID, authID: r.AuthID, clientPID: r.ClientPID, cookie: r.Cookie,
		local: r.Local, remote: r.Remote, flags: r.Flags, dataSize: size, inode: inode,
	}
}

// A record is the fixed part. The peer writes its C struct as it lies in memory: host byte
// order, offsets as on linux/amd64 whatever we are built for (clause P5.2).
//
//	 0  4 tag         not 0
//	 4  4 auth pid
//	 8  4 auth id
//	12  4 client pid
//	16 16 cookie
//	32 20 local address: u16 family (0, 2 or 10), u16 0, 4 or 16 octets in network order
//	52 20 remote address
//	72  2 local port
//	74  2 remote port
//	76  4 flags
//	80  4 data size   of what follows
//	84  4 0
//	88  8 inode       fstat's st_ino of the descriptor
type record struct {
	tag, authPID, authID, clientPID uint32
	cookie                          Cookie
	local, remote                   netip.AddrPort
	flags                           Flags
	dataSize                        uint32
	inode                           uint64
}

// append adds the wire form of r to b. parseRecord reverses it.
func (r record) append(b []byte) []byte {
	u32 := binary.NativeEndian.AppendUint32
	b = u32(b, r.tag)
	b = u32(b, r.authPID)
	b = u32(b, r.authID)
	b = u32(b, r.clientPID)
	b = append(b, r.cookie[:]...)
	b = appendAddr(b, r.local.Addr())
	b = appendAddr(b, r.remote.Addr())
	b = binary.NativeEndian.AppendUint16(b, r.local.Port())
	b = binary.NativeEndian.AppendUint16(b, r.remote.Port())
	b = u32(b, uint32(r.flags))
	b = u32(b, r.dataSize)
	b = u32(b, 0)
	return binary.NativeEndian.AppendUint64(b, r.inode)
}

func appendAddr(b []byte, a netip.Addr) []byte {
	var f [addrSize]byte
	switch a = a.Unmap(); {
	case a.Is4():
		binary.NativeEndian.PutUint16(f[:], familyIPv4)
		ip := a.As4()
		copy(f[4:], ip[:])
	case a.Is6():
		binary.NativeEndian.PutUint16(f[:], familyIPv6)
		ip := a.As16()
		copy(f[4:], ip[:])
	}
	return append(b, f[:]...)
}

// parseRecord reads exactly one record and checks its bounds.
func parseRecord(b []byte) (record, error) {
	if len(b) != recordSize {
		return record{}, fmt.Errorf("hand-over record: %d bytes, want %d", len(b), recordSize)
	}
	u16, u32 := binary.NativeEndian.Uint16, binary.NativeEndian.Uint32
	r := record{
		tag: u32(b), authPID: u32(b[4:]), authID: u32(b[8:]), clientPID: u32(b[12:]), cookie: Cookie(b[16:32]),
		flags: Flags(u32(b[76:])), dataSize: u32(b[80:]), inode: binary.NativeEndian.Uint64(b[88:]),
	}
	local, err := parseAddr(b[32:52])
	if err != nil {
		return record{}, fmt.Errorf("hand-over record: local address: %w", err)
	}
	remote, err := parseAddr(b[52:72])
	if err != nil {
		return record{}, fmt.Errorf("hand-over record: remote address: %w", err)
	}
	r.local = netip.AddrPortFrom(local, u16(b[72:]))
	r.remote = netip.AddrPortFrom(remote, u16(b[74:]))
	if r.dataSize > MaxData {
		return record{}, fmt.Errorf("hand-over record: data size %d, at most %d", r.dataSize, MaxData)
	}
	return r, nil
}

func parseAddr(b []byte) (netip.Addr, error) {
	switch family := binary.NativeEndian.Uint16(b); family {
	case familyNone:
		return netip.Addr{}, nil
	case familyIPv4:
		return netip.AddrFrom4([4]byte(b[4:8])), nil
	case familyIPv6:
		return netip.AddrFrom16([16]byte(b[4:20])), nil
	default:
		return netip.Addr{}, fmt.Errorf("unknown family %d", family)
	}
}

// parseRequest reads a record and its data, of the record's length.
func parseRequest(rec record, data []byte) Request {
	r := Request{
		Tag: rec.tag, AuthPID: rec.authPID, AuthID: rec.authID, ClientPID: rec.clientPID, Cookie: rec.cookie,
		Local: rec.local, Remote: rec.remote, Flags: rec.flags,
	}
	r.Session, r.Payload = cutNUL(data)
	return r
}

// A Status is the worker's word on a login.
type Status uint32

const (
	OK            Status = 0 // the worker took the client
	InternalError Status = 1 // it did not
)

// A Reply answers a Request with the same tag.
//
//	0 4 tag
//	4 4 status
//	8 4 pid     of the worker
type Reply struct {
	Tag    uint32
	Status Status
	PID    uint32
}

func (r Reply) append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, r.Tag)
	b = binary.NativeEndian.AppendUint32(b, uint32(r.Status))
	return binary.NativeEndian.AppendUint32(b, r.PID)
}

func parseReply(b []byte) (Reply, error) {
	if len(b) != replySize {
		return Reply{}, fmt.Errorf("hand-over reply: %d bytes, want %d", len(b), replySize)
	}
	u32 := binary.NativeEndian.Uint32
	return Reply{Tag: u32(b), Status: Status(u32(b[4:])), PID: u32(b[8:])}, nil
}
