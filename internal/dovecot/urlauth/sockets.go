package urlauth

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"dovetail/internal/dovecot/handoff"
)

// Names of the sockets below base_dir.
const (
	tokenSocket   = "token-login/tokenlogin"   // of the auth service, for logins with a token
	urlauthSocket = "token-login/imap-urlauth" // where imap-urlauth-login hands its logins over
	imapSocket    = "login/imap"               // where imap-login does
)

// ErrUnavailable: the service is not there, as the configuration has it.
var ErrUnavailable = errors.New("service is not available")

// Sockets are handles of sockets that nobody but root can reach by their names. They are
// opened, not connected, while the process is root; what they lead to is reached later
// through /proc/self/fd. After a reload of Dovecot they lead nowhere any more, as does a
// login from before.
//
// Any goroutine may use them.
type Sockets struct {
	token, urlauth, imap *handle

	busy chan struct{} // holds one element while a login is under way
	auth *tokenConn    // guarded by busy; nil before the first login
}

// Open takes hold of the sockets below base, as root. Those that are not there make what
// needs them ErrUnavailable: it is no error that imap is not in protocols.
func Open(base string) (*Sockets, error) {
	s := &Sockets{busy: make(chan struct{}, 1)}
	for _, f := range []struct {
		to   **handle
		name string
	}{{&s.token, tokenSocket}, {&s.urlauth, urlauthSocket}, {&s.imap, imapSocket}} {
		h, err := openHandle(base + "/" + f.name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			s.Close()
			return nil, err
		}
		*f.to = h
	}
	return s, nil
}

// Close lets go of the sockets. Nobody may be using them.
func (s *Sockets) Close() {
	for _, h := range []*handle{s.token, s.urlauth, s.imap} {
		if h != nil {
			_ = syscall.Close(h.fd)
		}
	}
	s.token, s.urlauth, s.imap = nil, nil, nil
	if s.auth != nil {
		s.auth.nc.Close()
		s.auth = nil
	}
}

// HasURLAuth says whether URLAuth may work, and HasIMAP whether IMAP may.
func (s *Sockets) HasURLAuth() bool { return s.token != nil && s.urlauth != nil }

// HasIMAP: see HasURLAuth.
func (s *Sockets) HasIMAP() bool { return s.token != nil && s.imap != nil }

// A handle is a descriptor that was opened with O_PATH.
type handle struct{ fd int }

const oPath = 0x200000 // O_PATH of linux

func openHandle(path string) (*handle, error) {
	fd, err := syscall.Open(path, oPath|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &handle{fd}, nil
}

func (h *handle) path() string { return "/proc/self/fd/" + strconv.Itoa(h.fd) }

// URLAuth opens a session with the imap-urlauth service in the way of clause P7.11. The
// process must have the user's uid, by which the service knows him.
func (s *Sockets) URLAuth(ctx context.Context, l Login) (*Conn, error) {
	if !s.HasURLAuth() {
		return nil, fmt.Errorf("imap-urlauth: %w", ErrUnavailable)
	}
	nc, err := s.login(ctx, l, "imap-urlauth", s.urlauth, nil)
	if err != nil {
		return nil, err
	}
	c := newConn(nc, Timeout)
	defer c.nc.Bind(ctx)()
	reply, err := c.readLine()
	return c.begun(reply, err)
}

// imapTag is the tag of the command that the imap service answers when it has taken over.
const imapTag = "login"

// IMAP opens an IMAP session as the user in the way of clause P7.12. What comes first on
// it is the answer to a command with tag, which names the capabilities if it went well:
// package imap's Resume.
func (s *Sockets) IMAP(ctx context.Context, l Login) (nc net.Conn, tag string, err error) {
	if !s.HasIMAP() {
		return nil, "", fmt.Errorf("imap: %w", ErrUnavailable)
	}
	// The payload is what imap-login sends: whether the client ignores the capabilities in
	// the answer, the tag of the answer, and what the client has said meanwhile.
	nc, err = s.login(ctx, l, "imap", s.imap, []byte("0"+imapTag+"\x00"))
	return nc, imapTag, err
}

// login logs in at a service with the token, and hands one end of a connection over to it.
// It returns the other.
func (s *Sockets) login(ctx context.Context, l Login, service string, to *handle, payload []byte) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	id, err := s.tokenLogin(ctx, l, service)
	if errors.Is(err, ErrDenied) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("auth service, for tokens: %w", err)
	}
	near, far, err := handoff.SocketPair()
	if err != nil {
		s.auth.cancel(id)
		return nil, err
	}
	_, err = handoff.Send(ctx, to.path(), handoff.Request{
		AuthPID: s.auth.spid, AuthID: id, ClientPID: uint32(s.auth.pid), Cookie: handoff.Cookie(s.auth.cookie),
		Flags: handoff.Secured, Session: l.Session, Payload: payload,
	}, far)
	far.Close()
	if err != nil {
		near.Close()
		if !errors.Is(err, handoff.ErrRefused) { // then it was claimed
			s.auth.cancel(id)
		}
		return nil, fmt.Errorf("%s service: %w", service, err)
	}
	return near, nil
}

// tokenLogin logs in over the connection that is there, or a new one if that is the first
// or the old one has ended. s.busy is held.
func (s *Sockets) tokenLogin(ctx context.Context, l Login, service string) (id uint32, err error) {
	used := s.auth != nil
	for {
		if s.auth == nil {
			if s.auth, err = dialToken(ctx, s.token.path(), l.PID); err != nil {
				return 0, err
			}
		}
		id, lost, err := s.auth.login(ctx, service, l)
		if !lost {
			return id, err
		}
		s.auth.nc.Close()
		s.auth = nil
		if !used || ctx.Err() != nil {
			return 0, err
		}
		used = false
	}
}
