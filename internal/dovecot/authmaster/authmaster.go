// Package authmaster speaks Dovecot's auth master protocol, major version 1 (clause P4):
// over "auth-master" a worker claims a login that a login process handed over, and learns
// who the user is; over that and "auth-userdb" others look users up. The file server.go
// holds the codec of the service's side, which package authd uses. SASL is package
// authclient's business, which is another process's; what user fields mean is the caller's.
//
//	S: VERSION 1 1, SPID <pid>
//	C: VERSION 1 1
//	C: REQUEST 1 <client_pid> <auth_id> <cookie> session_pid=<pid> request_auth_token
//	S: USER 1 alice uid=1000 gid=1000 home=/home/alice auth_mech=PLAIN auth_token=<hex>
//	   NOTFOUND 1                       no such user
//	   FAIL 1 reason=<text>             temporary failure, or nothing to claim
//	C: USER 2 bob service=submission    and PASS, LIST, CACHE-FLUSH
//
// Fields are separated by TAB and escaped as in package tabline. Lines to the server have
// at most 1024 bytes. The server closes the connection for any mistake in a line.
package authmaster

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"dovetail/internal/dovecot/tabline"
)

const (
	major = 1
	minor = 1

	// MaxLine is the length of a line to the server, with its LF (clause P4.1).
	MaxLine = 1024
)

// A Cookie is the binary form of the auth service's COOKIE, 32 hex digits on the wire.
type Cookie [16]byte

// A Request claims a login. ClientPID, AuthID and Cookie come from the hand-over record.
type Request struct {
	ClientPID  uint32
	AuthID     uint32
	Cookie     Cookie
	SessionPID uint32 // our own process ID, which the server compares with the socket's peer; 0 is not sent
	WantToken  bool   // ask for auth_token; needs SessionPID
}

func (r Request) append(b []byte, id uint32) []byte {
	b = append(b, "REQUEST\t"...)
	for i, n := range []uint32{id, r.ClientPID, r.AuthID} {
		if i > 0 {
			b = append(b, '\t')
		}
		b = strconv.AppendUint(b, uint64(n), 10)
	}
	b = append(b, '\t')
	b = hex.AppendEncode(b, r.Cookie[:])
	if r.SessionPID != 0 {
		b = append(b, "\tsession_pid="...)
		b = strconv.AppendUint(b, uint64(r.SessionPID), 10)
	}
	if r.WantToken {
		b = append(b, "\trequest_auth_token"...)
	}
	return append(b, '\n')
}

// Info is about the client a lookup is made for. Service must be set; zero fields are not
// sent.
type Info struct {
	Service        string
	Session        string
	LocalIP        netip.Addr
	RemoteIP       netip.Addr
	LocalPort      uint16
	RemotePort     uint16
	RealLocalIP    netip.Addr
	RealRemoteIP   netip.Addr
	RealLocalPort  uint16
	RealRemotePort uint16
	LocalName      string
	ForwardFields  string // as in authclient.Request
	Debug          bool
}

func (i Info) append(b []byte) []byte {
	value := func(key, v string) {
		if v != "" {
			b = append(b, '\t')
			b = append(b, key...)
			b = append(b, '=')
			b = tabline.AppendEscaped(b, v)
		}
	}
	ip := func(key string, a netip.Addr) {
		if a.IsValid() {
			value(key, a.Unmap().WithZone("").String())
		}
	}
	port := func(key string, p uint16) {
		if p != 0 {
			value(key, strconv.Itoa(int(p)))
		}
	}
	value("service", i.Service)
	value("session", i.Session)
	value("local_name", i.LocalName)
	ip("lip", i.LocalIP)
	ip("rip", i.RemoteIP)
	port("lport", i.LocalPort)
	port("rport", i.RemotePort)
	ip("real_lip", i.RealLocalIP)
	ip("real_rip", i.RealRemoteIP)
	port("real_lport", i.RealLocalPort)
	port("real_rport", i.RealRemotePort)
	if i.Debug {
		b = append(b, "\tdebug"...)
	}
	value("forward_fields", i.ForwardFields)
	return b
}

// A User is a USER reply. Fields are in the server's order (clauses P4.4, P4.6).
type User struct {
	Name   string
	Fields tabline.Fields
}

// ErrNotFound: the user is in no userdb.
var ErrNotFound = errors.New("user not found")

// ErrLost: the connection is gone. The process cannot make another one after it dropped
// root. ErrTimeout: no answer within 155 seconds. Both are temporary failures.
var (
	ErrLost    = errors.New("no connection to the auth service")
	ErrTimeout = errors.New("auth service did not answer in time")
)

// A FailError is a FAIL reply: a temporary failure, or a login that cannot be claimed
// (clause P4.5). Fields usually has a reason, which is for the log.
type FailError struct{ Fields tabline.Fields }

// Reason is the server's text, or nothing.
func (e *FailError) Reason() string {
	r, _ := e.Fields.Get("reason")
	return r
}

func (e *FailError) Error() string {
	if r := e.Reason(); r != "" {
		return fmt.Sprintf("auth service failed: %.200q", r)
	}
	return "auth service failed; its log says why"
}
