package conf

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"dovetail/internal/conf/settings"
)

// A Match is what the filters around a setting ask of a client: protocol, local, remote,
// local_name. A part that is not asked for is unset; a Match asks for all its set parts.
type Match struct {
	Local, Remote Net
	LocalName     *string // names separated by single spaces
	Protocol      *string // "!x" is every protocol but x
}

// A Net is the argument of local or remote. Host bits beyond the mask are kept (clause
// C10.2). The zero Net, and one with no bits, asks for nothing.
type Net struct {
	Addr netip.Addr
	Bits int
	Text string // as written
}

// String is the form doveconf prints: ADDR or ADDR/BITS.
func (n Net) String() string {
	text := n.Addr.String()
	if b := n.Addr.As16(); n.Addr.Is6() && [12]byte(b[:12]) == [12]byte{} && (b[12] != 0 || b[13] != 0) {
		// The C library writes IPv4-compatible addresses with dots.
		text = "::" + netip.AddrFrom4([4]byte(b[12:])).String()
	}
	if n.Bits == n.Addr.BitLen() {
		return text
	}
	return text + "/" + strconv.Itoa(n.Bits)
}

// contains says whether a lies inside n. Both families are never inside each other.
func (n Net) contains(a netip.Addr) bool {
	return n.Addr.Is4() == a.Is4() && a.IsValid() && n.Addr.IsValid() &&
		netip.PrefixFrom(n.Addr, n.Bits).Masked().Contains(a)
}

// A Filter is a client whose settings are asked for. Parts left empty are unknown, and
// match no filter that asks for them (clause C10.8).
type Filter struct {
	Service   string // protocol name, such as "submission"
	LocalIP   netip.Addr
	RemoteIP  netip.Addr
	LocalName string // TLS server name
	// EmptyService and EmptyName: it is known, and empty.
	EmptyService, EmptyName bool
}

// request is a Filter as filters are compared with it. Load-time checks make one from a
// Match (clause C10.10).
type request struct {
	service, localName *string
	local, remote      netip.Addr
}

func (f Filter) request() request {
	r := request{local: f.LocalIP.Unmap(), remote: f.RemoteIP.Unmap()}
	if f.Service != "" || f.EmptyService {
		r.service = &f.Service
	}
	if f.LocalName != "" || f.EmptyName {
		r.localName = &f.LocalName
	}
	return r
}

func (m Match) request() request {
	r := request{service: m.Protocol, localName: m.LocalName}
	if m.Local.Bits > 0 {
		r.local = m.Local.Addr
	}
	if m.Remote.Bits > 0 {
		r.remote = m.Remote.Addr
	}
	return r
}

func (m Match) matchesService(r request) bool {
	switch {
	case m.Protocol == nil:
		return true
	case r.service == nil:
		return false
	case strings.HasPrefix(*m.Protocol, "!"):
		return *r.service != (*m.Protocol)[1:]
	}
	return *r.service == *m.Protocol
}

func (m Match) matchesRest(r request) bool {
	if m.LocalName != nil {
		if r.localName == nil || !matchNames(*r.localName, *m.LocalName) {
			return false
		}
	}
	if m.Remote.Bits > 0 && !m.Remote.contains(r.remote) {
		return false
	}
	return m.Local.Bits == 0 || m.Local.contains(r.local)
}

// matchNames says whether name is one of the names in list (clause C10.3).
func matchNames(name, list string) bool {
	for more := true; more; {
		var mask string
		mask, list, more = strings.Cut(list, " ")
		if matchName(name, mask) {
			return true
		}
	}
	return false
}

// matchName compares label by label without case; a label of the mask that is just * is
// any one label.
func matchName(name, mask string) bool {
	for {
		n, nrest, nmore := strings.Cut(name, ".")
		m, mrest, mmore := strings.Cut(mask, ".")
		if m != "*" && !strings.EqualFold(n, m) || nmore != mmore {
			return false
		}
		if !nmore {
			return true
		}
		name, mask = nrest, mrest
	}
}

// same says whether blocks of m and o are one filter (clause C10.5).
func (m Match) same(o Match) bool {
	return m.Local.Addr == o.Local.Addr && m.Local.Bits == o.Local.Bits &&
		m.Remote.Addr == o.Remote.Addr && m.Remote.Bits == o.Remote.Bits &&
		samePart(m.Protocol, o.Protocol, func(a, b string) bool { return a == b }) &&
		samePart(m.LocalName, o.LocalName, strings.EqualFold)
}

func samePart(a, b *string, eq func(a, b string) bool) bool {
	if a == nil || b == nil {
		return a == b
	}
	return eq(*a, *b)
}

// compare orders filters from the most to the least specific (clause C10.9).
func (m Match) compare(o Match) int {
	switch {
	case (m.LocalName == nil) != (o.LocalName == nil):
		return sign(o.LocalName == nil)
	case m.Local.Bits != o.Local.Bits:
		return o.Local.Bits - m.Local.Bits
	case m.Remote.Bits != o.Remote.Bits:
		return o.Remote.Bits - m.Remote.Bits
	case (m.Protocol == nil) != (o.Protocol == nil):
		return sign(o.Protocol == nil)
	}
	return 0
}

func sign(first bool) int {
	if first {
		return -1
	}
	return 1
}

// weaker says whether m asks for no more than o in every part (clause C10.10), given that
// both match the same client.
func (m Match) weaker(o Match) bool {
	return m.Local.Bits <= o.Local.Bits && m.Remote.Bits <= o.Remote.Bits &&
		(m.Protocol == nil || o.Protocol != nil)
}

// filterWords are the types of blocks that filter, with the error of clause C10.4 for
// each filter that may not stand around them.
var filterWords = map[string]func(m *Match, arg string, r resolver) string{
	"protocol":   (*Match).narrowProtocol,
	"local":      (*Match).narrowLocal,
	"local_name": (*Match).narrowLocalName,
	"remote":     (*Match).narrowRemote,
}

func notInside(inner, outer string) string {
	return fmt.Sprintf("%s { %s { .. } } not allowed (use %s { %s { .. } } instead)", outer, inner, inner, outer)
}

func (m *Match) narrowProtocol(arg string, _ resolver) string {
	if m.Protocol != nil {
		return "Nested protocol { protocol { .. } } block not allowed"
	}
	m.Protocol = &arg
	return ""
}

func (m *Match) narrowLocal(arg string, r resolver) string {
	switch {
	case m.Remote.Bits > 0:
		return notInside("local", "remote")
	case m.Protocol != nil:
		return notInside("local", "protocol")
	case m.LocalName != nil:
		return notInside("local", "local_name")
	}
	return m.Local.narrow("local", arg, r)
}

func (m *Match) narrowLocalName(arg string, _ resolver) string {
	switch {
	case m.Remote.Bits > 0:
		return notInside("local_name", "remote")
	case m.Protocol != nil:
		return notInside("local_name", "protocol")
	}
	m.LocalName = &arg
	return ""
}

func (m *Match) narrowRemote(arg string, r resolver) string {
	if m.Protocol != nil {
		return notInside("remote", "protocol")
	}
	return m.Remote.narrow("remote", arg, r)
}

func (n *Net) narrow(word, arg string, r resolver) string {
	inner, bad := parseNet(arg, r)
	if bad != "" {
		return bad
	}
	if n.Bits > inner.Bits || n.Bits > 0 && !n.contains(inner.Addr) {
		return fmt.Sprintf("%s net1 { %s net2 { .. } } requires net2 to be inside net1", word, word)
	}
	*n = inner
	return ""
}

// A resolver finds the first address of a host name.
type resolver func(ctx context.Context, host string) (netip.Addr, error)

// ParseNet reads the argument of local and remote (clause C10.2). A host name is looked
// up, which may take 30 seconds. The error's text is Dovecot's.
func ParseNet(arg string) (Net, error) {
	n, bad := parseNet(arg, lookupHost)
	if bad != "" {
		return n, fmt.Errorf("%s", bad)
	}
	return n, nil
}

func parseNet(arg string, lookup resolver) (Net, string) {
	host, mask, masked := strings.Cut(arg, "/")
	addr, ok := settings.ParseAddr(host)
	if !ok {
		ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
		defer cancel()
		var err error
		if addr, err = lookup(ctx, host); err != nil {
			return Net{}, fmt.Sprintf("gethostbyname(%s) failed: %v", host, err)
		}
	}
	n := Net{Addr: addr, Bits: addr.BitLen(), Text: arg}
	if masked {
		bits, err := strconv.ParseUint(mask, 10, 8)
		if err != nil || int(bits) > n.Bits || mask[0] == '+' {
			return Net{}, "Invalid network mask: " + mask
		}
		n.Bits = int(bits)
	}
	return n, ""
}
