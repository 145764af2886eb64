package settings

import (
	"net/netip"
	"strconv"
	"strings"
)

// Words splits a list setting at blanks and commas (clause C11.13).
func Words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' })
}

// ParseNetworks reads a list such as login_trusted_networks: addresses and networks
// ADDRESS/BITS, separated by blanks and commas (clause C11.13). There is one error for
// each bad entry; the others are returned all the same. Host bits are cut off.
func ParseNetworks(s string) ([]netip.Prefix, []error) {
	var nets []netip.Prefix
	var errs []error
	for _, w := range Words(s) {
		if p, ok := ParseNetwork(w); ok {
			nets = append(nets, p.Masked())
		} else {
			errs = append(errs, fault("Invalid network '", w, "'"))
		}
	}
	return nets, errs
}

// ParseNetwork reads ADDRESS or ADDRESS/BITS (clause C10.2), without host names. Host bits
// are kept.
func ParseNetwork(s string) (netip.Prefix, bool) {
	host, mask, masked := strings.Cut(s, "/")
	addr, ok := ParseAddr(host)
	if !ok {
		return netip.Prefix{}, false
	}
	bits := addr.BitLen()
	if masked {
		n, err := strconv.ParseUint(mask, 10, 8)
		if err != nil || int(n) > bits || mask[0] == '+' {
			return netip.Prefix{}, false
		}
		bits = int(n)
	}
	return netip.PrefixFrom(addr, bits), true
}

// ParseAddr takes IPv6 with or without brackets, and IPv4 in every form that inet_aton(3)
// takes: 10.1 is 10.0.0.1, 0x7f.1 is 127.0.0.1.
func ParseAddr(s string) (netip.Addr, bool) {
	if strings.IndexByte(s, ':') >= 0 {
		if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
			s = s[1 : len(s)-1]
		}
		a, err := netip.ParseAddr(s)
		return a, err == nil && a.Zone() == ""
	}
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var ip uint64
	for i, p := range parts {
		room := 8 // bits this part may fill
		if i == len(parts)-1 {
			room = 8 * (5 - len(parts))
		}
		n, ok := inetNumber(p)
		if !ok || n >= 1<<room {
			return netip.Addr{}, false
		}
		ip = ip<<room | n
	}
	return netip.AddrFrom4([4]byte{byte(ip >> 24), byte(ip >> 16), byte(ip >> 8), byte(ip)}), true
}

// inetNumber is a number in C's notation: decimal, 0 octal, 0x hexadecimal.
func inetNumber(s string) (uint64, bool) {
	base := 10
	if len(s) > 1 && s[0] == '0' {
		base, s = 8, s[1:]
		if s[0] == 'x' || s[0] == 'X' {
			base, s = 16, s[1:]
		}
	}
	n, err := strconv.ParseUint(s, base, 32)
	return n, err == nil && s[0] != '+'
}
