// Package usermask says whose sessions an admin means: those of users whose names match a
// mask, of clients in a network, or both. `dovetail who` and `kick` take it from the command
// line, processes by their control channel. What happens to the sessions is others' business.
package usermask

import (
	"errors"
	"net/netip"
	"strings"
)

// A Mask is a user mask and a network. The zero Mask is everybody.
type Mask struct {
	User string       // with * for any characters and ? for one; "" is any
	Net  netip.Prefix // of the client's address; the zero Prefix is any
}

// Parse takes a user mask and a network, each at most once, in any order. A word of digits
// is a user, as for doveadm.
func Parse(args []string) (Mask, error) {
	var m Mask
	for _, a := range args {
		if p, ok := network(a); ok {
			if m.Net.IsValid() {
				return m, errors.New("only one network can be given")
			}
			m.Net = p
			continue
		}
		if m.User != "" {
			return m, errors.New("only one user mask can be given")
		}
		m.User = a
	}
	return m, nil
}

// Network returns the network as text, ADDRESS/BITS; "" is any.
func (m Mask) Network() string {
	if !m.Net.IsValid() {
		return ""
	}
	return m.Net.String()
}

// FromWire reverses what a Mask is between processes: User and Network.
func FromWire(user, net string) (Mask, error) {
	m := Mask{User: user}
	if net == "" {
		return m, nil
	}
	p, ok := network(net)
	if !ok {
		return m, errors.New("not a network")
	}
	m.Net = p
	return m, nil
}

// network parses ADDRESS or ADDRESS/BITS.
func network(s string) (netip.Prefix, bool) {
	if addr, err := netip.ParseAddr(s); err == nil {
		addr = addr.WithZone("")
		return netip.PrefixFrom(addr, addr.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err == nil
}

// Matches says whether a session of this user from this address is meant. The zero Addr is
// an address that is not known, and in no network.
func (m Mask) Matches(user string, addr netip.Addr) bool {
	return (m.User == "" || wildcard(strings.ToLower(m.User), strings.ToLower(user))) &&
		(!m.Net.IsValid() || m.Net.Contains(addr))
}

// wildcard says whether s matches the pattern with * and ?. It takes no more than
// len(pattern) * len(s) steps.
func wildcard(pattern, s string) bool {
	star, mark := -1, 0
	p, i := 0, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0: // the last * takes one more
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
