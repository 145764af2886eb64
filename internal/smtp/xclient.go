package smtp

import (
	"net/netip"
	"strconv"
	"strings"
)

// Xclient is what a trusted client says about the connection it passes on (clauses S2.13
// and S2.14). The zero value says nothing.
type Xclient struct {
	Addr       netip.Addr
	Port       uint16
	Helo       string // a valid domain or address literal
	Proto      string // "SMTP", "ESMTP" or "LMTP"
	Login      string
	Session    string
	TTL        uint32
	HasTTL     bool
	Timeout    uint32 // seconds
	Forward    string // base64, as received
	HasForward bool
}

// unavailable stands for a value that is not known.
const unavailable = "[UNAVAILABLE]"

// ParseXclient reads what follows "XCLIENT ". Unknown attributes are ignored. If refusal
// is not zero it is the answer, and the whole command counts for nothing.
func ParseXclient(args string) (x Xclient, refusal Reply) {
	if args == "" {
		return x, Reply{}
	}
	for text := range strings.SplitSeq(args, " ") {
		p, err := parseParam(text)
		if err != nil {
			return Xclient{}, syntax("Invalid parameter: " + err.Error())
		}
		name := strings.ToUpper(p.keyword)
		value, err := ParseXtext(p.value)
		if err != nil {
			return Xclient{}, syntax("Invalid " + name + " parameter: " + err.Error())
		}
		if !x.set(name, value) {
			return Xclient{}, syntax("Invalid " + name + " parameter")
		}
	}
	return x, Reply{}
}

// set stores an attribute. It is false if the value will not do.
func (x *Xclient) set(name, value string) bool {
	skip := strings.EqualFold(value, unavailable)
	switch name {
	case "ADDR":
		return skip || x.setAddr(value)
	case "PORT":
		n, err := strconv.ParseUint(value, 10, 16)
		if !skip && err == nil {
			x.Port = uint16(n)
		}
		return skip || err == nil
	case "HELO":
		if domain, ok := HeloDomain(value, true); ok && !skip {
			x.Helo = domain
		}
	case "PROTO":
		switch value = strings.ToUpper(value); value {
		case "SMTP", "ESMTP", "LMTP":
			x.Proto = value
		default:
			return false
		}
	case "LOGIN":
		if !skip {
			x.Login = value
		}
	case "SESSION":
		if !skip {
			x.Session = value
		}
	case "TTL":
		n, err := strconv.ParseUint(value, 10, 32)
		x.TTL, x.HasTTL = uint32(n), err == nil
		return err == nil
	case "TIMEOUT":
		n, err := strconv.ParseUint(value, 10, 32)
		x.Timeout = uint32(n)
		return err == nil
	case "FORWARD":
		x.Forward, x.HasForward = value, true
	}
	return true
}

func (x *Xclient) setAddr(value string) bool {
	const prefix = "IPV6:"
	v6 := len(value) >= len(prefix) && strings.EqualFold(value[:len(prefix)], prefix)
	if v6 {
		value = value[len(prefix):]
	}
	ip, err := netip.ParseAddr(value)
	if err != nil || ip.Zone() != "" || v6 && !ip.Is6() {
		return false
	}
	x.Addr = ip
	return true
}

// Merge puts what later says in the place of what x said. A port counts only with an
// address.
func (x *Xclient) Merge(later Xclient) {
	if later.Addr.IsValid() {
		x.Addr = later.Addr
		if later.Port != 0 {
			x.Port = later.Port
		}
	}
	for _, f := range []struct{ to, from *string }{
		{&x.Helo, &later.Helo}, {&x.Proto, &later.Proto}, {&x.Login, &later.Login}, {&x.Session, &later.Session},
	} {
		if *f.from != "" {
			*f.to = *f.from
		}
	}
	if later.HasTTL {
		x.TTL, x.HasTTL = later.TTL, true
	}
	if later.Timeout != 0 {
		x.Timeout = later.Timeout
	}
	if later.HasForward {
		x.Forward, x.HasForward = later.Forward, true
	}
}

// An XclientAttr is an attribute to be sent; Value is not encoded yet.
type XclientAttr struct{ Name, Value string }

// XclientCommands returns the commands, without CRLF, that tell a peer those of attrs that
// it knows, in their order (clauses S4.3, S9.2). A command that would have more than limit
// octets goes on in another one; each has at least one attribute.
func XclientCommands(known []string, limit int, attrs []XclientAttr) []string {
	const begin = "XCLIENT"
	var commands []string
	line := []byte(begin)
	for _, a := range attrs {
		if !containsFold(known, a.Name) {
			continue
		}
		before := len(line)
		line = append(append(append(line, ' '), a.Name...), '=')
		line = AppendXtext(line, a.Value)
		if before > len(begin) && len(line) > limit {
			commands = append(commands, string(line[:before]))
			line = append(line[:len(begin)], line[before:]...)
		}
	}
	if len(line) > len(begin) {
		commands = append(commands, string(line))
	}
	return commands
}

// XclientAddr returns the value of ADDR: IPv6 addresses have a prefix.
func XclientAddr(ip netip.Addr) string {
	if ip = ip.Unmap(); ip.Is6() {
		return "IPV6:" + ip.String()
	}
	return ip.String()
}

func containsFold(list []string, s string) bool {
	for _, e := range list {
		if strings.EqualFold(e, s) {
			return true
		}
	}
	return false
}
