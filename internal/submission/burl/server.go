package burl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dovetail/internal/conf/settings"
	"dovetail/internal/imap"
	"dovetail/internal/tlsconf"
)

const (
	connectTimeout = 30 * time.Second // to one address of the server, and for TLS
	programStart   = 30 * time.Second // of the imap program, up to its greeting

	maxPassword = 1024 // octets of a password file
)

// A Resolver finds the addresses of a name.
type Resolver interface {
	Lookup(ctx context.Context, name string) ([]netip.Addr, error)
}

// A Server is an IMAP server with URLAUTH (RFC 4467), for the submit user that it trusts to
// check what the access of an URL demands (RFC 4468 section 3). It is immutable.
type Server struct {
	set      settings.BURLServer
	password string
	tls      *tls.Config // nil: in clear
	resolver Resolver    // nil: the host is an address
}

// NewServer returns the server of set. outgoing is not needed with dovetail_burl_imap_ssl
// = no, resolver not if the host is an address.
func NewServer(set settings.BURLServer, password string, outgoing *tlsconf.Outgoing, resolver Resolver) (*Server, error) {
	if set.User == "" {
		return nil, errors.New("dovetail_burl_imap_user is not set")
	}
	if set.Port == 0 {
		set.Port = 143
		if set.SSL == "imaps" {
			set.Port = 993
		}
	}
	s := &Server{set: set, password: password, resolver: resolver}
	if set.SSL != "no" {
		s.tls = outgoing.To(strings.Trim(set.Host, "[]"), true)
	}
	return s, nil
}

// ReadPassword reads a password file, as root: one line. It must be a file of root's, or of
// who runs this program, that nobody else can read or write.
func ReadPassword(path string) (string, error) {
	if path == "" {
		return "", errors.New("dovetail_burl_imap_password_file is not set")
	}
	fail := func(text string) (string, error) {
		return "", fmt.Errorf("dovetail_burl_imap_password_file: %s %s", path, text)
	}
	// O_NONBLOCK: a FIFO in its place must not hold the process up.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("dovetail_burl_imap_password_file: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", fmt.Errorf("dovetail_burl_imap_password_file: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case !info.Mode().IsRegular():
		return fail("is no file")
	case owner != 0 && owner != uint32(os.Geteuid()):
		return fail(fmt.Sprintf("belongs to uid %d (want root)", owner))
	case info.Mode().Perm()&0o077 != 0:
		return fail(fmt.Sprintf("has mode %#o (want 0600 or 0400: for its owner alone)", info.Mode().Perm()))
	}
	data, err := io.ReadAll(io.LimitReader(file, maxPassword+1))
	if err != nil {
		return "", fmt.Errorf("dovetail_burl_imap_password_file: %w", err)
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	switch {
	case len(data) > maxPassword:
		return fail(fmt.Sprintf("has more than %d octets", maxPassword))
	case password == "":
		return fail("is empty")
	case strings.ContainsAny(password, "\r\n\x00"):
		return fail("has more than one line")
	}
	return password, nil
}

// connect opens a session of the submit user.
func (s *Server) connect(ctx context.Context, timeout time.Duration) (*imap.Conn, error) {
	nc, err := s.dial(ctx, min(timeout, connectTimeout))
	if err != nil {
		return nil, err
	}
	c, err := imap.New(ctx, nc, imap.Options{Timeout: timeout})
	if err != nil {
		return nil, err
	}
	if err := s.login(ctx, c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// name is for the log.
func (s *Server) name() string {
	return "IMAP server " + net.JoinHostPort(strings.Trim(s.set.Host, "[]"), strconv.Itoa(int(s.set.Port)))
}

func (s *Server) login(ctx context.Context, c *imap.Conn) error {
	if s.set.SSL == "starttls" {
		if c.Preauth { // anybody can say so in clear
			return errors.New("it takes us for logged in before STARTTLS")
		}
		if err := c.StartTLS(ctx, s.tls); err != nil {
			return fmt.Errorf("STARTTLS: %w", err)
		}
	}
	if !c.Preauth {
		if err := c.Login(ctx, s.set.User, s.password); err != nil {
			return fmt.Errorf("login of %s: %w", s.set.User, err)
		}
	}
	ok, err := c.Has(ctx, "URLAUTH")
	if err == nil && !ok {
		err = errors.New("it has no URLAUTH")
	}
	return err
}

// dial connects to the first address that answers, with TLS if that comes first.
func (s *Server) dial(ctx context.Context, timeout time.Duration) (net.Conn, error) {
	addrs, err := s.lookup(ctx)
	for _, a := range addrs {
		var nc net.Conn
		d := net.Dialer{Timeout: timeout}
		if nc, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(a, s.set.Port).String()); err != nil {
			continue
		}
		if s.set.SSL != "imaps" {
			return nc, nil
		}
		conn := tls.Client(tlsconf.NewTransport(nc), s.tls)
		hello, cancel := context.WithTimeout(ctx, timeout)
		err = conn.HandshakeContext(hello)
		cancel()
		if err == nil {
			return conn, nil
		}
		nc.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return nil, err
}

func (s *Server) lookup(ctx context.Context) ([]netip.Addr, error) {
	host := strings.Trim(s.set.Host, "[]")
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	addrs, err := s.resolver.Lookup(ctx, host)
	if err == nil && len(addrs) == 0 {
		err = errors.New("no addresses")
	}
	return addrs, err
}
