// Package dnsd is the dns-client service of standalone: the resolver of processes that are
// in a chroot, where there is no /etc/resolv.conf (clause P8.2). The other end is package
// dovecot/dns. The login process asks for the names of clients whom it sends on to an MTA.
//
//	S: VERSION dns 1 0
//	C: VERSION dns-client 1 0
//	C: IP mx.example.net      S: 0 192.0.2.25 2001:db8::25
//	C: NAME 192.0.2.25        S: 0 mx.example.net
//	C: NAME 192.0.2.99        S: -2 Name or service not known
//	C: QUIT                   the server closes
//
// Fields are separated by TAB. Answers come in order, one at a time on a connection.
package dnsd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/event"
	"dovetail/internal/process/service"
)

const (
	lookupTimeout = 10 * time.Second // of a question
	writeTimeout  = 10 * time.Second // of an answer
	maxLine       = 1024             // bytes of a question
	maxAddrs      = 100              // addresses of an answer
)

// Codes of getaddrinfo, which answers have.
const (
	noName = -2
	again  = -3
)

// A Resolver finds addresses and names, as net.Resolver does.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupAddr(ctx context.Context, addr string) ([]string, error)
}

// A Server answers with what a Resolver knows.
type Server struct {
	resolver Resolver
	log      *event.Log
}

// New returns a Server; for the nil Resolver, with the system's.
func New(r Resolver, log *event.Log) *Server {
	if r == nil {
		r = net.DefaultResolver
	}
	return &Server{r, log}
}

// Program returns the role that package service runs.
func Program() service.Program {
	var s *Server
	return service.Program{
		Name: "dns-client", About: "it finds addresses and names for processes in a chroot",
		DropAtStart: os.Geteuid() == 0,
		Start: func(p *service.Process) error {
			s = New(nil, p.Log)
			return nil
		},
		Serve: func(ctx context.Context, c *service.Client) { s.Serve(ctx, c.Conn) },
	}
}

// Serve answers on conn, which it lends, until the client leaves, breaks the rules, or ctx
// ends.
func (s *Server) Serve(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if !write(conn, "VERSION\tdns\t1\t0\n") {
		return
	}
	br := bufio.NewReaderSize(conn, maxLine)
	for first := true; ; first = false {
		b, err := br.ReadSlice('\n')
		if err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				s.log.Error("dns-client: a question of more than %d bytes", maxLine)
			}
			return // a process that ends with an answer unread resets the connection
		}
		line := strings.TrimSuffix(string(b[:len(b)-1]), "\r")
		if first {
			if f := strings.Split(line, "\t"); len(f) != 4 || f[0] != "VERSION" || f[1] != "dns-client" || f[2] != "1" {
				s.log.Error("dns-client: not a client of version 1: %.100q", line)
				return
			}
			continue
		}
		answer, ok := s.answer(ctx, tabline.Split(line))
		if !ok || !write(conn, answer) {
			return
		}
	}
}

func write(conn net.Conn, text string) bool {
	if conn.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
		return false
	}
	_, err := io.WriteString(conn, text)
	return err == nil
}

// answer returns the line for a question, with its LF. ok is false at the end.
func (s *Server) answer(ctx context.Context, q []string) (line string, ok bool) {
	if q[0] == "QUIT" {
		return "", false
	}
	if len(q) < 2 {
		s.log.Error("dns-client: Got empty request")
		return "", false
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	switch q[0] {
	case "IP":
		return s.addresses(ctx, q[1]), true
	case "NAME":
		return s.name(ctx, q[1]), true
	}
	s.log.Error("dns-client: Unknown command '%s'", q[0])
	return "-1\tUnknown command\n", true
}

func (s *Server) addresses(ctx context.Context, name string) string {
	if a, err := netip.ParseAddr(name); err == nil {
		return "0\t" + a.Unmap().WithZone("").String() + "\n"
	}
	var addrs []netip.Addr
	err := errNoName
	if name != "" {
		addrs, err = s.resolver.LookupNetIP(ctx, "ip", name)
	}
	if err != nil || len(addrs) == 0 {
		return refusal(err)
	}
	line := "0"
	for _, a := range addrs[:min(len(addrs), maxAddrs)] {
		line += "\t" + a.Unmap().WithZone("").String()
	}
	return line + "\n"
}

func (s *Server) name(ctx context.Context, text string) string {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return "-1\tNot an IP\n"
	}
	names, err := s.resolver.LookupAddr(ctx, a.Unmap().WithZone("").String())
	if err != nil || len(names) == 0 {
		return refusal(err)
	}
	b := tabline.AppendEscaped([]byte("0\t"), strings.TrimSuffix(names[0], "."))
	return string(b) + "\n"
}

var errNoName error = &net.DNSError{IsNotFound: true}

// refusal is the line for what could not be found, in the resolver's words.
func refusal(err error) string {
	var dns *net.DNSError
	if err == nil || errors.As(err, &dns) && dns.IsNotFound {
		return fmt.Sprintf("%d\tName or service not known\n", noName)
	}
	return fmt.Sprintf("%d\tTemporary failure in name resolution\n", again)
}
