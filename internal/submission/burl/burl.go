// Package burl gets from IMAP what the URL of a BURL command stands for (RFC 4468), or says
// in an SMTP reply why it does not. Which of the ways below it takes it decides by itself,
// and tells in one debug line.
//
//	URL                way                                              when
//	with URLAUTH       an IMAP server's URLFETCH, as its submit user    dovetail_burl_imap_host is set
//	                   imap-urlauth, by a handed-over login (P7.11)     Dovecot has the service, and mail_attribute_dict is set
//	                   imap-urlauth's own socket (P7.2)                 likewise, if the sockets for that are not there
//	without, his own   an IMAP session by a handed-over login (P7.12)   Dovecot has imap in protocols
//	                   Dovecot's imap, run as the user (P7.13)          where that does not work, or is another login
//
// A handed-over login tells the imap service the user's name, and nothing else. What was
// known of him besides, and the service would not find out again, is lost: that a master
// user logged in, whose rights may be fewer; and what the passdb, or a post-login script, has
// said of the user, such as another mailbox. Then the program is run, to which the worker
// tells all it knows.
// Its environment, with the settings of imap, is readable by the user; it is not run where a
// post-login script of imap would be left out.
//
// With dovetail_burl_imap_host nothing is read on this machine: the submit user cannot read
// an URL without URLAUTH, so such URLs are refused.
//
// What each way needs: the server a name resolved and its certificate trusted; those of
// Dovecot what package dovecot/urlauth says: sockets that Open takes hold of as root,
// /proc, the token of the login, and the user's uid. So in a user's chroot only a server
// can be used.
//
// Nothing is remembered of what an URL gave: token, expiry, user and mailbox are checked
// whenever it is used. A connection is kept for the URLs of one message.
package burl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"dovetail/internal/dovecot/urlauth"
	"dovetail/internal/imap"
	"dovetail/internal/imapurl"
	"dovetail/internal/process/event"
	"dovetail/internal/smtp"
)

// Services are those of the Dovecot whose master started this process. Any goroutine may
// use them.
type Services struct {
	sockets *urlauth.Sockets
	direct  string // path of imap-urlauth's own socket; "" if there is none

	Base string // base_dir
}

// Open takes hold of the services' sockets below base, the base_dir, as root. It is no
// error that services are not there.
func Open(base string) (*Services, error) {
	sockets, err := urlauth.Open(base)
	if err != nil {
		return nil, err
	}
	s := &Services{sockets: sockets, Base: base}
	if path := base + "/imap-urlauth"; exists(path) {
		s.direct = path
	}
	return s, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// HasIMAP says whether there is an imap service: Dovecot's, with imap in its protocols.
func (s *Services) HasIMAP() bool { return s.sockets.HasIMAP() }

// Options say who a user is and what may be used for him.
type Options struct {
	Reader imapurl.Reader

	Login      urlauth.Login                   // at the submission service; without a token the ways that need one are closed
	Services   *Services                       // nil: there are none
	Attributes bool                            // mail_attribute_dict is set: Dovecot knows keys for URLAUTH
	Program    func() (urlauth.Program, error) // Dovecot's imap for this user; nil: it cannot be run

	// Differs says why a handed-over login would be another one than the user's; "": it would
	// not. It is called once. nil: never.
	Differs func(context.Context) (string, error)

	Server *Server // nil: there is none
	Chroot bool    // the process will be in a chroot

	Log *event.Log
}

// A Fetcher gets what URLs stand for, for one session. It belongs to one goroutine.
type Fetcher struct {
	o Options

	// Connections that the present message used; nil if none is open.
	remote  *imap.Conn // to the server
	service *urlauth.Conn
	own     *imap.Conn // the user's session

	noToken string          // why a handed-over login is not used for a session; "": it is
	asked   bool            // whether it would be another login
	told    map[string]bool // debug lines that were written
	timeout time.Duration
}

// New returns a fetcher. Nothing is connected before it is needed.
func New(o Options) *Fetcher { return &Fetcher{o: o, told: map[string]bool{}, timeout: imap.Timeout} }

// Works says whether some URL can be fetched, so that BURL may be announced.
func (f *Fetcher) Works() bool {
	if f.o.Reader.Host == "" {
		return false
	}
	auth, _ := f.authWay()
	own, _ := f.ownWay()
	return auth != noWay || own != noWay
}

// A way is one of the table above.
type way uint8

const (
	noWay way = iota
	byServer
	byHandover // of a login with the token
	bySocket
	byProgram
)

func (w way) String() string {
	return [...]string{byServer: "by an IMAP server", byHandover: "by a handed-over login", bySocket: "by the socket of imap-urlauth", byProgram: "by running imap"}[w]
}

func (f *Fetcher) token() bool { return f.o.Login.Token != "" }

// authWay is how URLs with URLAUTH are fetched, and why.
func (f *Fetcher) authWay() (w way, why string) {
	s := f.o.Services
	switch {
	case f.o.Reader.Host == "":
		return noWay, "imap_urlauth_host is not set"
	case f.o.Server != nil:
		return byServer, "dovetail_burl_imap_host is set"
	case f.o.Chroot:
		return noWay, inChroot
	case !f.o.Attributes:
		return noWay, "mail_attribute_dict is not set"
	case !f.token():
		return noWay, "the auth service gave no token"
	case s != nil && s.sockets.HasURLAuth():
		return byHandover, "imap-urlauth-login of Dovecot 2.3 aborts"
	case s != nil && s.direct != "":
		return bySocket, "token-login/imap-urlauth is not there"
	}
	return noWay, "there is no imap-urlauth service (is imap in protocols?)"
}

// ownWay is how URLs without URLAUTH are read, and why.
func (f *Fetcher) ownWay() (w way, why string) {
	s := f.o.Services
	switch {
	case f.o.Reader.Host == "":
		return noWay, "imap_urlauth_host is not set"
	case f.o.Server != nil:
		return noWay, "dovetail_burl_imap_host is set, and its submit user cannot read them"
	case f.o.Chroot:
		return noWay, inChroot
	case s != nil && s.sockets.HasIMAP() && f.token() && f.noToken == "":
		return byHandover, "login/imap is there"
	case f.o.Program != nil && f.noToken != "":
		return byProgram, f.noToken
	case f.o.Program != nil:
		return byProgram, "the auth service gave no token"
	}
	return noWay, "there is no imap service (is imap in protocols?)"
}

// decided writes a debug line about a way, once. Of the chroot everybody hears: nothing
// else shows that it is the reason.
func (f *Fetcher) decided(what string, w way, why string) {
	line := fmt.Sprintf("burl: %s are fetched %s: %s", what, w, why)
	if w == noWay {
		line = fmt.Sprintf("burl: %s are not fetched: %s", what, why)
	}
	switch {
	case f.told[line]:
	case why == inChroot:
		f.o.Log.Warning("%s", line)
	default:
		f.o.Log.Debug("%s", line)
	}
	f.told[line] = true
}

const inChroot = "the services of Dovecot cannot be reached in the user's chroot"

// What the log calls those who were asked; a server has its name.
const (
	urlauthService = "imap-urlauth service"
	ownSession     = "IMAP session of the user"
)

const (
	authURLs = "URLs with URLAUTH"
	ownURLs  = "URLs without URLAUTH"
)

// A Body is what an URL stands for. It is read to io.EOF, before which nothing has been
// fetched, and then closed; an error of Read is a *Refusal.
type Body struct {
	Size uint64 // octets

	data io.ReadCloser
	from string // for the log
	f    *Fetcher
}

// Read implements io.Reader.
func (b *Body) Read(p []byte) (int, error) {
	n, err := b.data.Read(p)
	if err != nil && err != io.EOF {
		err = b.f.unavailable(b.from, err)
	}
	return n, err
}

// Close leaves what was not read.
func (b *Body) Close() error { return b.data.Close() }

// Fetch returns what u stands for, which the client wrote as text. The error is a *Refusal.
// There may be one Body at a time.
func (f *Fetcher) Fetch(ctx context.Context, text string, u *imapurl.URL) (*Body, error) {
	if u.Rump == "" {
		return f.fetchOwn(ctx, u)
	}
	w, why := f.authWay()
	f.decided(authURLs, w, why)
	if w == noWay {
		return nil, refuse("5.7.14", "No IMAP URLAUTH access available")
	}
	if err := f.o.Reader.CheckAuth(u, time.Now()); err != nil {
		return nil, authRefusal(text, err.Error())
	}
	if !utf8.ValidString(u.Mailbox) {
		return nil, authRefusal(text, "Invalid URLAUTH: Mailbox name is not UTF-8")
	}
	if _, err := imapurl.ParseSection(u.Section); err != nil {
		return nil, bareRefusal
	}
	if w == byServer {
		return f.fromServer(ctx, text)
	}
	return f.fromService(ctx, w, text, u)
}

// fromService asks imap-urlauth.
func (f *Fetcher) fromService(ctx context.Context, w way, text string, u *imapurl.URL) (*Body, error) {
	for {
		reused := f.service != nil
		if !reused {
			var err error
			if w == byHandover {
				f.service, err = f.o.Services.sockets.URLAuth(ctx, f.o.Login)
			} else {
				f.service, err = urlauth.Dial(ctx, f.o.Services.direct, f.o.Login)
			}
			if err != nil {
				f.service = nil
				return nil, f.unavailable(urlauthService, err)
			}
		}
		body, err := f.service.Fetch(ctx, u.User, text)
		if err == nil {
			return &Body{Size: body.Size, data: body, from: urlauthService, f: f}, nil
		}
		own := u.User == f.o.Reader.User
		var refused *urlauth.RefusedError
		switch {
		case errors.As(err, &refused) && !own, errors.Is(err, urlauth.ErrNoUser):
			return nil, bareRefusal
		case errors.As(err, &refused) && refused.Text == "":
			return nil, authRefusal(text, "URLAUTH verification failed")
		case errors.As(err, &refused):
			return nil, authRefusal(text, refused.Text)
		case errors.Is(err, urlauth.ErrTooLong):
			return nil, authRefusal(text, "Invalid URL: It is too long")
		}
		f.service.Close()
		f.service = nil
		if !reused || ctx.Err() != nil {
			return nil, f.unavailable(urlauthService, err)
		}
		// It was idle for too long, or is from before a reload.
	}
}

// fromServer asks the IMAP server.
func (f *Fetcher) fromServer(ctx context.Context, text string) (*Body, error) {
	name := f.o.Server.name()
	for {
		reused := f.remote != nil
		if !reused {
			var err error
			if f.remote, err = f.o.Server.connect(ctx, f.timeout); err != nil {
				f.remote = nil
				return nil, f.unavailable(name, err)
			}
		}
		body, err := f.remote.URLFetch(ctx, text)
		var st *imap.StatusError
		switch {
		case err == nil:
			return &Body{Size: body.Size, data: body, from: name, f: f}, nil
		case errors.Is(err, imap.ErrRefused):
			return nil, bareRefusal
		case errors.As(err, &st) && st.Status != "BYE":
			if isTemporary(st) {
				return nil, f.unavailable(name, err)
			}
			return nil, bareRefusal
		}
		f.remote.Close()
		f.remote = nil
		if !reused || ctx.Err() != nil {
			return nil, f.unavailable(name, err)
		}
	}
}

// fetchOwn reads an URL without URLAUTH in an IMAP session of the user.
func (f *Fetcher) fetchOwn(ctx context.Context, u *imapurl.URL) (*Body, error) {
	if err := f.o.Reader.CheckPlain(u); err != nil {
		return nil, plainRefusal(err.Error())
	}
	section, err := imapurl.ParseSection(u.Section)
	if err != nil {
		return nil, plainRefusal(err.Error())
	}
	if !utf8.ValidString(u.Mailbox) {
		return nil, plainRefusal("Mailbox name is not UTF-8")
	}
	if w, why := f.ownWay(); w == noWay {
		f.decided(ownURLs, w, why)
		return nil, refuse("5.7.14", "No IMAP access available")
	}
	for {
		reused := f.own != nil
		if !reused {
			if f.own, err = f.session(ctx); err != nil {
				f.own = nil
				return nil, f.unavailable(ownSession, err)
			}
		}
		body, err := f.read(ctx, u, section)
		var refused *Refusal
		if err == nil || errors.As(err, &refused) {
			return body, err
		}
		f.own.Close()
		f.own = nil
		if !reused || ctx.Err() != nil {
			return nil, f.unavailable(ownSession, err)
		}
	}
}

// session opens an IMAP session as the user.
func (f *Fetcher) session(ctx context.Context) (*imap.Conn, error) {
	o := imap.Options{Timeout: f.timeout}
	w, why := f.ownWay()
	if w == byHandover && !f.asked && f.o.Differs != nil {
		var err error
		if f.noToken, err = f.o.Differs(ctx); err != nil {
			return nil, err
		}
		f.asked = true
		w, why = f.ownWay()
	}
	if w == byHandover {
		f.decided(ownURLs, w, why)
		nc, tag, err := f.o.Services.sockets.IMAP(ctx, f.o.Login)
		if err == nil {
			var c *imap.Conn
			if c, err = imap.Resume(ctx, nc, tag, o); err == nil {
				return c, nil
			}
		}
		if f.o.Program == nil || ctx.Err() != nil {
			return nil, err
		}
		f.noToken = "a handed-over login gave no session"
		w, why = f.ownWay()
		why += " (" + err.Error() + ")"
	}
	f.decided(ownURLs, w, why)
	if w == noWay {
		return nil, errors.New(why)
	}
	p, err := f.o.Program()
	if err != nil {
		return nil, fmt.Errorf("imap program: %w", err)
	}
	nc, err := urlauth.Exec(p)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, programStart)
	defer cancel()
	c, err := imap.New(ctx, nc, o)
	if err != nil {
		return nil, fmt.Errorf("imap program: %w", err)
	}
	if !c.Preauth {
		c.Close()
		return nil, errors.New("imap program: it wants a login")
	}
	return c, nil
}

// maxOffset is beyond every message, and still a number for the server.
const maxOffset = 1 << 62

// read opens the mailbox and fetches. Any error but a *Refusal ends the session.
func (f *Fetcher) read(ctx context.Context, u *imapurl.URL, section string) (*Body, error) {
	var st *imap.StatusError
	validity, err := f.own.Examine(ctx, u.Mailbox)
	switch {
	case errors.As(err, &st) && st.Status != "BYE":
		return nil, f.statusRefusal(st, u.Mailbox)
	case err != nil:
		return nil, err
	case u.UIDValidity != 0 && u.UIDValidity != validity:
		return nil, plainRefusal("Invalid UIDVALIDITY")
	}
	part := imap.Part{Section: section}
	if r := u.Partial; r != nil {
		part.Partial, part.Offset, part.Size = true, min(r.Offset, maxOffset), min(r.Size, maxOffset)
	}
	body, err := f.own.Fetch(ctx, u.UID, part)
	switch {
	case errors.Is(err, imap.ErrNotFound):
		return nil, plainRefusal("Message not found")
	case errors.As(err, &st) && st.Status == "BAD":
		return nil, plainRefusal("Invalid section")
	case errors.As(err, &st) && st.Status != "BYE":
		return nil, f.statusRefusal(st, u.Mailbox)
	case err != nil:
		return nil, err
	}
	return &Body{Size: body.Size, data: body, from: ownSession, f: f}, nil
}

// Release closes the connections that a message needed, when it has been sent or given up.
func (f *Fetcher) Release() {
	if f.remote != nil {
		f.remote.Close()
	}
	if f.service != nil {
		f.service.Close()
	}
	if f.own != nil {
		f.own.Close()
	}
	f.remote, f.service, f.own = nil, nil, nil
}

// statusRefusal is what a NO of the user's IMAP session means (clause S7.5).
func (f *Fetcher) statusRefusal(st *imap.StatusError, mailbox string) error {
	if isTemporary(st) {
		return f.unavailable(ownSession, st)
	}
	const none = "Mailbox doesn't exist: " // and the name, of which only ASCII came through
	if strings.HasPrefix(st.Text, none) {
		return plainRefusal(none + strings.Map(printable, mailbox))
	}
	return plainRefusal(withoutTiming(st.Text))
}

// unavailable logs why IMAP cannot be used now.
func (f *Fetcher) unavailable(from string, err error) error {
	if !errors.Is(err, context.Canceled) {
		f.o.Log.Error("burl: %s: %v", from, err)
	}
	return &Refusal{smtp.NewReply(451, "4.4.1", "IMAP server unavailable")}
}

// isTemporary says whether a command may work another time (RFC 5530).
func isTemporary(st *imap.StatusError) bool {
	code, _, _ := strings.Cut(strings.ToUpper(st.Code), " ")
	switch code {
	case "SERVERBUG", "UNAVAILABLE", "INUSE", "LIMIT", "CONTACTADMIN", "AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED", "PRIVACYREQUIRED":
		return true
	}
	return false
}
