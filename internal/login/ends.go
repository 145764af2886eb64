package login

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"dovetail/internal/splice"
)

// clientEnd is the client's side of what is passed on.
func (se *session) clientEnd() splice.End { return splice.End{Conn: se.c.Conn(), Sock: se.sock} }

// plainError is what the system says, without Go's words around it.
func plainError(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		text := errno.Error()
		return upperFirst(text)
	}
	return err.Error()
}

func upperFirst(s string) string {
	if s != "" && 'a' <= s[0] && s[0] <= 'z' {
		return string(s[0]-'a'+'A') + s[1:]
	}
	return s
}

// canBind says whether ip is one of this machine's addresses.
func canBind(ip netip.Addr) bool {
	l, err := net.ListenPacket("udp", net.JoinHostPort(ip.String(), strconv.Itoa(0)))
	if err != nil {
		return false
	}
	l.Close()
	return true
}
