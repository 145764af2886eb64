// Package dns asks Dovecot's dns-client service for the addresses of a name, and the name
// of an address (clause P8.2). It is the only resolver of a process that is chrooted. What
// to do with several addresses is its caller's business.
//
//	S: VERSION dns 1 0
//	C: VERSION dns-client 1 0                  the names are crossed
//	C: IP mx.example.net                       S: 0 192.0.2.25 2001:db8::25
//	C: IP no.example.net                       S: -2 Name or service not known
//	C: NAME 192.0.2.25                         S: 0 mx.example.net
//
// Fields are separated by TAB. Answers come in order, each when the one before is there:
// the service resolves one name at a time on a connection, and keeps a process for each
// connection. So there are few, and they do not stay.
package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"dovetail/internal/dovecot/tabline"
)

const (
	clientVersion = "VERSION\tdns-client\t1\t0\n"

	maxName   = 255     // octets of a name (RFC 1035 section 2.3.4)
	maxAnswer = 8 << 10 // bytes of a line from the service: some hundred addresses
	maxAddrs  = 100     // addresses that are used of an answer
)

// An Error is the service's answer that there is none. Its text is the resolver's: "Name
// or service not known".
type Error struct {
	Code int // getaddrinfo's, negative; -2 and -5: there is no such name or no address
	Text string
}

func (e *Error) Error() string { return e.Text }

func parseVersion(line string) error {
	f := strings.Split(line, "\t")
	if len(f) != 4 || f[0] != "VERSION" || f[1] != "dns" || f[2] != "1" {
		return fmt.Errorf("not a dns service of version 1: %.100q", line)
	}
	return nil
}

// parseAnswer returns the fields behind a 0, of which there is at least one.
func parseAnswer(line string) ([]string, error) {
	f := tabline.Split(line)
	code, err := strconv.Atoi(f[0])
	switch {
	case err != nil || len(f) < 2:
		return nil, fmt.Errorf("dns service answered %.100q", line)
	case code != 0:
		return nil, &Error{Code: code, Text: f[1]}
	}
	return f[1:], nil
}

// parseAddrs reads addresses. None, or one that is not an address, is an error.
func parseAddrs(f []string) ([]netip.Addr, error) {
	addrs := make([]netip.Addr, 0, len(f))
	for _, s := range f[:min(len(f), maxAddrs)] {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("dns service answered with the address %.100q", s)
		}
		addrs = append(addrs, a.Unmap())
	}
	return addrs, nil
}

var errName = errors.New("not a host name")

// checkName says whether name can be asked for.
func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return errName
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 0x7f {
			return errName
		}
	}
	return nil
}
