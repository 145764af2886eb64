// Package authclient speaks Dovecot's auth protocol, major version 1, as it runs on the
// auth service's "login" socket (clause P3): a login process learns the SASL mechanisms
// and runs SASL exchanges, many at a time over one connection. The other half of the
// file set (server.go) is the codec of the service's side, which package authd uses. User
// lookups are package authmaster's; SMTP replies and SASL itself are their callers'.
//
//	C: VERSION 1 2, CPID <pid>
//	S: VERSION 1 2, MECH PLAIN plaintext, SPID <pid>, CUID <n>, COOKIE <hex>, DONE
//	C: AUTH 1 PLAIN service=submission secured=tls rip=192.0.2.1 resp=<base64>
//	S: CONT 1 <base64>              and the client answers  CONT 1 <base64>
//	S: OK 1 user=alice              or  FAIL 1 user=alice code=temp_fail
//	C: CANCEL 1                     no reply
//
// Fields are separated by TAB and escaped as in package tabline. Lines to the server have
// at most 16384 bytes. The server closes the connection, and with it fails the exchanges
// of all clients of the process, for any mistake in a line (clause P3.9); so everything
// that a stranger can influence is checked here before it is sent.
package authclient

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"dovetail/internal/dovecot/tabline"
)

const (
	major = 1
	minor = 2

	// MaxLine is the length of a line to the server, with its LF (clause P3.17).
	MaxLine = 16384

	// CookieSize is the length of a cookie in octets; on the wire it is in hex.
	CookieSize = 16
)

// A Cookie tells the auth service, in a worker's request, which connection a login came by.
type Cookie [CookieSize]byte

// String returns the hex form of the wire.
func (c Cookie) String() string { return hex.EncodeToString(c[:]) }

// ParseCookie reads the hex form of the wire.
func ParseCookie(s string) (Cookie, error) {
	var c Cookie
	if len(s) != 2*CookieSize {
		return c, fmt.Errorf("cookie of %d digits, want %d", len(s), 2*CookieSize)
	}
	_, err := hex.Decode(c[:], []byte(s))
	return c, err
}

// Flags say what a mechanism is (clause P3.4).
type Flags uint8

const (
	Private        Flags = 1 << iota // among Dovecot's processes only; never offer it
	Anonymous                        // never offer it
	Plaintext                        // the password is readable on the way
	Dictionary                       // open to dictionary attacks by who listens
	Active                           // open to active attacks
	ForwardSecrecy                   // between sessions
	MutualAuth                       // the server proves itself, too
)

// flagWords are the words of a MECH line, in their order there.
var flagWords = [...]struct {
	flag Flags
	word string
}{
	{Private, "private"}, {Anonymous, "anonymous"}, {Plaintext, "plaintext"}, {Dictionary, "dictionary"},
	{Active, "active"}, {ForwardSecrecy, "forward-secrecy"}, {MutualAuth, "mutual-auth"},
}

// A Mechanism is a MECH line. Name is in upper case.
type Mechanism struct {
	Name  string
	Flags Flags
}

// parseMechanism reads the fields behind the word MECH. Unknown flags are ignored.
func parseMechanism(fields []string) (Mechanism, error) {
	if len(fields) == 0 || fields[0] == "" {
		return Mechanism{}, errors.New("MECH without a name")
	}
	m := Mechanism{Name: fields[0]}
	for _, f := range fields[1:] {
		for _, w := range flagWords {
			if w.word == f {
				m.Flags |= w.flag
			}
		}
	}
	return m, nil
}

// Secured says how well the connection of an SMTP client is protected.
type Secured uint8

const (
	NotSecured     Secured = iota
	SecuredTrusted         // by being local, or by who vouches for it
	SecuredTLS             // by TLS, here or at a trusted proxy
)

// A Request is an AUTH command. Zero fields are not sent, but Service must be set.
type Request struct {
	Mechanism       string // in any case; it must be one of the server's
	Service         string // "submission"
	FinalRespOK     bool   // the OK may carry the last message of the mechanism (clause P3.10a)
	Secured         Secured
	NoPenalty       bool // the failure is not held against RemoteIP
	ValidClientCert bool
	Debug           bool
	Session         string
	CertUsername    string
	LocalIP         netip.Addr
	RemoteIP        netip.Addr // without it a failure is held against everyone who has none (clause P3.14)
	LocalPort       uint16
	RemotePort      uint16
	RealLocalIP     netip.Addr // the socket's, sent only if it differs
	RealRemoteIP    netip.Addr
	RealLocalPort   uint16
	RealRemotePort  uint16
	LocalName       string // TLS server name
	ClientID        string
	ForwardFields   string // key=value fields, each escaped, joined by TAB
	HasInitial      bool   // there is an initial response, which may be empty
	Initial         []byte // in base64; "=" or nothing is an empty one
}

// Errors of Begin and Continue. None of them costs the connection: nothing was sent.
var (
	ErrMechanism = errors.New("auth service does not have the mechanism")
	ErrBase64    = errors.New("invalid base64 data")
	ErrTooLong   = errors.New("line to the auth service is too long")
)

// ErrLost ends an exchange whose connection to the auth service is gone or was never
// there, and ErrTimeout one that the service did not answer in time. To the SMTP client
// both are a temporary failure.
var (
	ErrLost    = errors.New("no connection to the auth service")
	ErrTimeout = errors.New("auth service did not answer in time")
)

// append adds the AUTH line to b. name is the mechanism as the server spells it.
func (r *Request) append(b []byte, id uint32, name string) []byte {
	b = append(b, "AUTH\t"...)
	b = strconv.AppendUint(b, uint64(id), 10)
	b = append(b, '\t')
	b = tabline.AppendEscaped(b, name)
	word := func(on bool, w string) {
		if on {
			b = append(b, '\t')
			b = append(b, w...)
		}
	}
	value := func(key, v string) {
		if v != "" {
			b = append(b, key...)
			b = tabline.AppendEscaped(b, v)
		}
	}
	ip := func(key string, a netip.Addr) {
		if a.IsValid() {
			b = append(b, key...)
			b = a.Unmap().WithZone("").AppendTo(b)
		}
	}
	port := func(key string, p uint16) {
		if p != 0 {
			b = append(b, key...)
			b = strconv.AppendUint(b, uint64(p), 10)
		}
	}
	value("\tservice=", r.Service)
	word(r.FinalRespOK, "final-resp-ok")
	word(r.Secured == SecuredTrusted, "secured")
	word(r.Secured == SecuredTLS, "secured=tls")
	word(r.NoPenalty, "no-penalty")
	word(r.ValidClientCert, "valid-client-cert")
	word(r.Debug, "debug")
	value("\tsession=", r.Session)
	value("\tcert_username=", r.CertUsername)
	ip("\tlip=", r.LocalIP)
	ip("\trip=", r.RemoteIP)
	port("\tlport=", r.LocalPort)
	port("\trport=", r.RemotePort)
	if r.RealLocalIP.Unmap() != r.LocalIP.Unmap() {
		ip("\treal_lip=", r.RealLocalIP)
	}
	if r.RealRemoteIP.Unmap() != r.RemoteIP.Unmap() {
		ip("\treal_rip=", r.RealRemoteIP)
	}
	if r.RealLocalPort != r.LocalPort {
		port("\treal_lport=", r.RealLocalPort)
	}
	if r.RealRemotePort != r.RemotePort {
		port("\treal_rport=", r.RealRemotePort)
	}
	value("\tlocal_name=", r.LocalName)
	value("\tclient_id=", r.ClientID)
	value("\tforward_fields=", r.ForwardFields)
	if r.HasInitial { // must be the last one
		b = append(b, "\tresp="...)
		if string(r.Initial) != "=" {
			b = append(b, r.Initial...)
		}
	}
	return append(b, '\n')
}

// checkBase64 refuses what is not whole, padded base64 (RFC 4648 section 4). The server
// would refuse it, too, but a TAB or LF in it would cost the connection.
func checkBase64(s []byte) error {
	if len(s)%4 != 0 {
		return ErrBase64
	}
	n := len(s)
	for n > len(s)-2 && n > 0 && s[n-1] == '=' {
		n--
	}
	for _, c := range s[:n] {
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '+', c == '/':
		default:
			return ErrBase64
		}
	}
	return nil
}

// A Kind is what a Reply is.
type Kind uint8

const (
	Continue Kind = iota + 1 // a challenge, to be answered by Exchange.Continue
	OK                       // the end: authenticated
	Fail                     // the end: not
)

// A Reply is what the server said in an exchange.
type Reply struct {
	Kind      Kind
	Challenge string // of Continue: base64 as the server sent it, maybe empty
	rest      string // of OK and Fail: fields, not yet split
}

// Fields returns the fields of OK and Fail, in the server's order (clauses P3.12, P3.13).
func (r Reply) Fields() tabline.Fields {
	if r.rest == "" {
		return nil
	}
	return tabline.ParseFields(tabline.Split(r.rest))
}

// Codes of a Fail (clause P3.13). No code: wrong password, or unknown user.
const (
	CodeTempFail      = "temp_fail"
	CodeAuthzFail     = "authz_fail"
	CodeUserDisabled  = "user_disabled"
	CodePassExpired   = "pass_expired"
	CodeInvalidBase64 = "invalid_base64"
)

// tempFail is the reply that we make up when the server's cannot be used.
var tempFail = Reply{Kind: Fail, rest: "code=" + CodeTempFail}

// parseReply reads a line of the server behind the handshake, without its LF. An error
// ends the connection.
func parseReply(line string) (id uint32, r Reply, err error) {
	word, rest, _ := strings.Cut(line, "\t")
	switch word {
	case "OK":
		r.Kind = OK
	case "FAIL":
		r.Kind = Fail
	case "CONT":
		r.Kind = Continue
	default:
		return 0, r, fmt.Errorf("auth service sent an unknown reply: %.40q", word)
	}
	number, rest, more := strings.Cut(rest, "\t")
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return 0, r, fmt.Errorf("auth service sent %s without an ID", word)
	}
	if r.Kind != Continue {
		r.rest = rest
		return uint32(n), r, nil
	}
	if !more {
		return 0, r, errors.New("auth service sent a broken CONT")
	}
	r.Challenge, _, _ = strings.Cut(rest, "\t")
	if checkBase64([]byte(r.Challenge)) != nil {
		// The challenge would go to the SMTP client as it is. Only this exchange suffers.
		return uint32(n), tempFail, nil
	}
	return uint32(n), r, nil
}
