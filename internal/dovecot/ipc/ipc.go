// Package ipc lets Dovecot's ipc service, and through it doveadm proxy list and kick, see
// and end the sessions that a login process proxies (clause P8.3). The login process
// connects and then answers, so it is called the server. How a session is ended is its
// caller's business.
//
//	login: VERSION ipc-server 1 0
//	login: HANDSHAKE proxy <pid>
//	ipc:   VERSION ipc-proxy 1 0
//	ipc:   1 LIST-FULL
//	login: 1 :username service src-ip dest-ip dest-port     names of what follows
//	login: 1 :alice submission 192.0.2.7 198.51.100.9 587   any number
//	login: 1 +
//	ipc:   2 KICK alice                                     or KICK-HOST, KICK-ALT, KICK-DIRECTOR-HASH
//	login: 2 +1                                             how many ended, or -<error text>
//
// Fields are separated by TAB; those of commands and of sessions are escaped as in package
// tabline. The real service forwards the next command only when one is answered.
package ipc

import (
	"crypto/md5" // spreads users over hosts, as Dovecot does
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"dovetail/internal/dovecot/tabline"
)

// A Field is one of the names that a user has besides: a field user_* of the passdb.
type Field struct{ Name, Value string }

// A Session is one that is proxied.
type Session struct {
	User    string
	Alt     []Field
	Service string         // the protocol's name: "submission"
	Source  netip.Addr     // of the client
	Dest    netip.AddrPort // of the backend
}

func (s Session) alt(name string) string {
	for _, f := range s.Alt {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// directorHash is how Dovecot's director numbers users, with its default %Lu.
func (s Session) directorHash() uint32 {
	sum := md5.Sum([]byte(strings.ToLower(s.User)))
	if h := binary.BigEndian.Uint32(sum[:]); h != 0 {
		return h
	}
	return 1
}

// Sessions are what a login process proxies. Methods are called by one goroutine.
type Sessions interface {
	List() []Session                       // all, newest first as in Dovecot
	Kick(match func(Session) bool) (n int) // ends those that match, and says how many
}

// commands are all that a login process knows. Each gets the fields behind its name, and
// adds what is between the tag and the LF of the last line to b.
var commands = map[string]func(s *Server, b []byte, args []string) []byte{
	"LIST-FULL":          (*Server).list,
	"KICK":               (*Server).kick,
	"KICK-HOST":          (*Server).kickHost,
	"KICK-ALT":           (*Server).kickAlt,
	"KICK-DIRECTOR-HASH": (*Server).kickHash,
}

// answer adds all lines of the answer to a command to b.
func (s *Server) answer(b []byte, command string) []byte {
	args := tabline.Split(command)
	do, ok := commands[args[0]]
	if !ok {
		return s.last(b, "-Unknown command")
	}
	return do(s, b, args[1:])
}

// last adds the line that ends an answer.
func (s *Server) last(b []byte, text string) []byte {
	b = append(strconv.AppendUint(b, uint64(s.tag), 10), '\t')
	return append(append(b, text...), '\n')
}

func (s *Server) list(b []byte, _ []string) []byte {
	all := s.sessions.List()
	for _, x := range all {
		for _, f := range x.Alt {
			if !slices.Contains(s.alt, f.Name) && len(s.alt) < maxAlt {
				s.alt = append(s.alt, f.Name)
			}
		}
	}
	line := func(user string, alt func(string) string, rest ...string) {
		b = append(strconv.AppendUint(b, uint64(s.tag), 10), "\t:"...)
		b = tabline.AppendEscaped(b, user)
		for _, name := range s.alt {
			b = tabline.AppendEscaped(append(b, '\t'), alt(name))
		}
		for _, r := range rest {
			b = tabline.AppendEscaped(append(b, '\t'), r)
		}
		b = append(b, '\n')
	}
	line("username", func(name string) string { return name }, "service", "src-ip", "dest-ip", "dest-port")
	for _, x := range all {
		line(x.User, x.alt, x.Service, ipString(x.Source), ipString(x.Dest.Addr()), strconv.Itoa(int(x.Dest.Port())))
	}
	return s.last(b, "+")
}

func ipString(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().String()
}

func (s *Server) kicked(b []byte, match func(Session) bool) []byte {
	return s.last(b, "+"+strconv.Itoa(s.sessions.Kick(match)))
}

// KICK <user>...
func (s *Server) kick(b []byte, args []string) []byte {
	if len(args) == 0 {
		return s.last(b, "-Missing parameter")
	}
	return s.kicked(b, func(x Session) bool { return slices.Contains(args, x.User) })
}

// KICK-HOST <backend's address>...
func (s *Server) kickHost(b []byte, args []string) []byte {
	if len(args) == 0 {
		return s.last(b, "-Missing parameter")
	}
	var hosts []netip.Addr
	for _, a := range args {
		if ip, err := netip.ParseAddr(a); err == nil {
			hosts = append(hosts, ip.Unmap())
		}
	}
	return s.kicked(b, func(x Session) bool { return slices.Contains(hosts, x.Dest.Addr().Unmap()) })
}

// KICK-ALT <field> <value>...
func (s *Server) kickAlt(b []byte, args []string) []byte {
	if len(args) == 0 {
		return s.last(b, "-Missing parameter")
	}
	return s.kicked(b, func(x Session) bool {
		return slices.ContainsFunc(x.Alt, func(f Field) bool { return f.Name == args[0] && slices.Contains(args[1:], f.Value) })
	})
}

// KICK-DIRECTOR-HASH <hash> [<backend's address that is spared>]
func (s *Server) kickHash(b []byte, args []string) []byte {
	if len(args) == 0 {
		return s.last(b, "-Invalid parameters")
	}
	hash, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil {
		return s.last(b, "-Invalid parameters")
	}
	var except netip.Addr
	if len(args) > 1 {
		if except, err = netip.ParseAddr(args[1]); err != nil {
			return s.last(b, "-Invalid except_ip parameter")
		}
	}
	return s.kicked(b, func(x Session) bool {
		return x.directorHash() == uint32(hash) && (!except.IsValid() || x.Dest.Addr().Unmap() != except.Unmap())
	})
}
