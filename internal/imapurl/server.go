package imapurl

import (
	"net/netip"
	"strconv"
	"strings"
)

// server reads [userinfo@]host[:port] and returns what follows.
func (u *URL) server(s string) (rest string, err error) {
	i := 0
	for i < len(s) && isUserChar(s[i]) {
		i++
	}
	info, hasInfo := "", i < len(s) && s[i] == '@'
	if hasInfo {
		info, s = s[:i], s[i+1:]
	}
	if rest, err = u.host(s); err != nil {
		return "", err
	}
	if rest, err = u.port(rest); err != nil {
		return "", err
	}
	if u.Host == "" {
		return "", fault("IMAP URL does not allow empty host identifier")
	}
	if hasInfo {
		return rest, u.userinfo(info)
	}
	return rest, nil
}

// userinfo reads user[;AUTH=type].
func (u *URL) userinfo(s string) (err error) {
	stray := func(c byte) error { return faultf("Stray '%c' in userinfo `%s'", c, s) }
	i := strings.IndexAny(s, ";:")
	if i < 0 {
		u.User, err = decode(s)
		return err
	}
	user, auth := s[:i], s[i:]
	if auth[0] == ':' || !hasPrefixFold(auth, ";AUTH=") {
		return stray(auth[0])
	}
	auth = auth[len(";AUTH="):]
	if i := strings.IndexAny(auth, ";:"); i >= 0 {
		return stray(auth[i])
	}
	if u.User, err = decode(user); err != nil {
		return err
	}
	if auth == "" {
		return fault("Empty auth-type value after ';AUTH='")
	}
	u.AuthType, err = decode(auth)
	return err
}

// host reads the name or address of a host, which ends with the authority or at a colon.
func (u *URL) host(s string) (rest string, err error) {
	if strings.HasPrefix(s, "[") {
		literal, rest, ok := strings.Cut(s[1:], "]")
		addr, err := netip.ParseAddr(literal)
		switch {
		case !ok:
			return "", fault("Expecting ']' at end of IP-literal")
		case literal == "":
			return "", fault("Empty IPv6 host address")
		case literal[0] == 'v':
			return "", faultf("Future IP host address '%s' not supported", literal)
		case err != nil || !addr.Is6() || addr.Zone() != "":
			return "", faultf("Invalid IPv6 host address '%s'", literal)
		}
		u.Host = "[" + literal + "]"
		return rest, atHostEnd(rest)
	}
	if rest, ok := cutIPv4(s); ok {
		u.Host = s[:len(s)-len(rest)]
		return rest, atHostEnd(rest)
	}
	i, err := scan(s, func(byte) bool { return true }, ":/?#", "")
	if err != nil {
		return "", err
	}
	u.Host, err = hostName(s[:i])
	return s[i:], err
}

func atHostEnd(rest string) error {
	if rest != "" && strings.IndexByte(":/?#", rest[0]) < 0 {
		return fault("Invalid host identifier")
	}
	return nil
}

// cutIPv4 takes an address off s, whatever follows it.
func cutIPv4(s string) (rest string, ok bool) {
	for part := range 4 {
		i := 0
		for i < len(s) && isDigit(s[i]) {
			i++
		}
		if n, err := strconv.Atoi(s[:i]); err != nil || n > 255 {
			return "", false
		}
		if s = s[i:]; part < 3 {
			if !strings.HasPrefix(s, ".") {
				return "", false
			}
			s = s[1:]
		}
	}
	return s, true
}

// hostName decodes a name: labels of letters, digits and hyphens, none at the ends.
func hostName(s string) (string, error) {
	name, err := decode(s)
	if err != nil {
		return "", err
	}
	label := 0 // length of the present one
	for i := 0; i <= len(name); i++ {
		switch {
		case i < len(name) && (isAlpha(name[i]) || isDigit(name[i]) || name[i] == '-' && label > 0):
			label++
			continue
		case label > 0 && name[i-1] == '-':
			return "", fault("Invalid domain label in hostname")
		case i == len(name):
		case name[i] == '.' && label > 0:
		default:
			return "", fault("Invalid host identifier")
		}
		label = 0
	}
	return strings.TrimSuffix(name, "."), nil
}

// port reads [:port].
func (u *URL) port(s string) (rest string, err error) {
	if !strings.HasPrefix(s, ":") {
		return s, nil
	}
	i := 1
	for i < len(s) && isDigit(s[i]) {
		i++
	}
	if i > 1 {
		n, err := strconv.ParseUint(s[1:i], 10, 16)
		if err != nil || n == 0 {
			return "", fault("Invalid port number")
		}
		u.Port = uint16(n)
	}
	if i < len(s) && strings.IndexByte("/?#", s[i]) < 0 {
		return "", fault("Invalid host port")
	}
	return s[i:], nil
}

// hasPrefixFold is strings.HasPrefix without regard to the case of ASCII letters. prefix
// is ASCII.
func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}
