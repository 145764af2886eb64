// Package anvil speaks with Dovecot's anvil service, which counts the sessions of each
// user and address and keeps the penalties of addresses whose logins fail (clause P6). It
// has both ends of the wire; what is counted, and what a count means, is the business of
// package anvild and of the roles.
//
// Lines on descriptor 3, a pipe that all processes share and nobody answers on. The master
// has sent the version:
//
//	CONNECT <pid> submission/192.0.2.7/alice
//	DISCONNECT <pid> submission/192.0.2.7/alice
//	KILL <pid>                                     the master alone, on a pipe of its own
//
// On the socket, where these lines are allowed, too, but for KILL:
//
//	C: VERSION anvil 1 0                           no greeting comes back
//	C: LOOKUP submission/192.0.2.7/alice           S: <sessions>
//	C: CONNECT-DUMP                                S: <ident> <pid> <sessions>, ..., an empty line
//	C: PENALTY-GET <ident>                         S: <penalty> SPACE <time of the last failure>
//	C: PENALTY-INC <ident> <checksum> <penalty>    no answer
//	C: PENALTY-SET-EXPIRE-SECS <seconds>           no answer
//	C: PENALTY-DUMP                                S: <ident> <penalty> <failure> <update>, ..., an empty line
//
// Fields are separated by TAB and escaped as in package tabline. Dovecot's anvil closes on
// a line that it does not take, without an answer: also the pipe, for everyone. So nothing
// is sent that is longer than MaxLine.
package anvil

import (
	"strings"
)

const (
	major   = "1"
	version = "VERSION\tanvil\t1\t0\n"

	// MaxLine is the length of a line to the service with its LF.
	MaxLine = 1024

	// MaxPenalty is the largest penalty that can be kept.
	MaxPenalty = 65535
)

// An Ident is what sessions are counted by.
type Ident struct {
	Service string // the protocol's name: "submission"; no slash
	IP      string // of the client
	User    string
}

// String returns service/ip/user.
func (i Ident) String() string { return i.Service + "/" + i.IP + "/" + i.User }

// ParseIdent reads what String returns. What has fewer parts leaves the last ones empty.
func ParseIdent(s string) Ident {
	var i Ident
	i.Service, s, _ = strings.Cut(s, "/")
	i.IP, i.User, _ = strings.Cut(s, "/")
	return i
}
