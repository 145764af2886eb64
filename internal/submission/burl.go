package submission

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"dovetail/internal/conf/settings"
	"dovetail/internal/dovecot/authmaster"
	"dovetail/internal/dovecot/config"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/dovecot/urlauth"
	"dovetail/internal/imapurl"
	"dovetail/internal/process/event"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/server"
	"dovetail/internal/submission/burl"
)

// defaultLibexec is where Debian has Dovecot's programs.
const defaultLibexec = "/usr/lib/dovecot"

const userdbTimeout = 30 * time.Second // of what a BURL asks the auth service

// burlOptions are what the user's BURLs fetch with. It is called while the process may
// still be root: afterwards neither sockets nor the password file can be opened.
func (w *worker) burlOptions(ctx context.Context, u *user, log *event.Log) burl.Options {
	o := burl.Options{
		Reader:     imapurl.Reader{User: u.name, Host: u.set.ImapUrlauthHost, Port: u.set.ImapUrlauthPort},
		Login:      urlauth.Login{PID: os.Getpid(), User: u.name, Session: u.session, Token: u.token},
		Attributes: u.set.MailAttributeDict != "",
		Chroot:     u.identity.Chroot != "",
		Log:        log,
	}
	if o.Reader.Host == "" {
		return o
	}
	server, err := w.burlServer(ctx, u, log)
	if err != nil {
		log.Error("burl: %v", err)
		return burl.Options{Reader: o.Reader, Log: log} // not from somewhere else instead
	}
	o.Server = server
	if server != nil {
		return o
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.services == nil && !w.dropped {
		base, err := filepath.Abs(".") // base_dir, until the process is the user
		if err == nil {
			w.services, err = burl.Open(base)
		}
		if err != nil {
			log.Error("burl: %v", err)
		}
	}
	o.Services = w.services
	if w.services != nil && w.services.HasIMAP() {
		o.Program = func() (urlauth.Program, error) { return w.imapProgram(u, log) }
		o.Differs = func(ctx context.Context) (string, error) { return w.loginDiffers(ctx, u, o.Services.Base) }
	}
	return o
}

// burlServer is the server of dovetail_burl_imap_host, nil without that.
func (w *worker) burlServer(ctx context.Context, u *user, log *event.Log) (*burl.Server, error) {
	if err := errors.Join(u.burlErrs...); err != nil {
		return nil, err
	}
	set := u.burlSet
	if set.Host == "" {
		return nil, nil
	}
	password, err := w.burlPassword(set.PasswordFile)
	if err != nil {
		return nil, err
	}
	var resolver burl.Resolver
	if r := w.resolve(ctx, u, set.Host, log); r != nil {
		resolver = r
	}
	if set.SSL == "no" {
		return burl.NewServer(set, password, nil, resolver)
	}
	outgoing, err := w.trust(u, log)
	if err != nil {
		return nil, err
	}
	return burl.NewServer(set, password, outgoing, resolver)
}

// burlPassword reads a password file. What was read as root serves later sessions.
func (w *worker) burlPassword(path string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if password, ok := w.password[path]; ok && w.dropped {
		return password, nil
	}
	password, err := burl.ReadPassword(path)
	if err == nil {
		w.password = map[string]string{path: password}
	}
	return password, err
}

// imapProgram is Dovecot's imap for a user (clause P7.13). The connection to the config
// service is from before the process became the user.
func (w *worker) imapProgram(u *user, log *event.Log) (urlauth.Program, error) {
	request := config.Request{Modules: []string{"imap"}, Service: "imap", User: u.name, LocalIP: u.local.Addr(), RemoteIP: u.remote.Addr()}
	imap, err := w.config.Request(request)
	if err != nil {
		return urlauth.Program{}, err
	}
	master, err := w.config.Request(config.Request{Modules: []string{"master"}})
	if err != nil {
		return urlauth.Program{}, err
	}
	dir, ok := master.Get("libexec_dir")
	if !ok {
		dir = defaultLibexec
	}
	executable, ok := master.Get("service/imap/executable")
	if !ok {
		executable = "imap"
	}
	path, more, _ := strings.Cut(executable, " ")
	if more != "" { // a script that may say no to the user, or change who he is
		return urlauth.Program{}, errors.New("it is not run without what stands behind it in executable of service imap: " + more)
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return urlauth.Program{
		Path: path,
		Env:  urlauth.Environment(imap.Values, u.name, tabline.ParseFields(u.fields.raw), ipText(u.remote), ipText(u.local)),
		Dir:  u.set.MailHome,
		Log:  func(line string) { programLog(log, line) },
	}, nil
}

// loginDiffers says what an IMAP session by a handed-over login would not know of the user,
// or might not. base is the base_dir.
func (w *worker) loginDiffers(ctx context.Context, u *user, base string) (string, error) {
	if u.master != "" {
		return "a master user has logged in", nil
	}
	auth, err := w.config.Request(config.Request{Modules: []string{"auth"}, Service: "auth"})
	if err != nil {
		return "", err
	}
	numbers, _ := auth.Get("userdb")
	for _, n := range strings.Fields(numbers) {
		if driver, _ := auth.Get("userdb/" + n + "/driver"); driver == "prefetch" {
			return "a userdb is prefetch, which knows no handed-over logins", nil
		}
	}
	if !u.fields.hasUID { // then auth-userdb answers nobody but root
		if len(u.fields.overrides) > 0 || u.twoHomes {
			return "it is not known whether his settings are from the userdb", nil
		}
		return "", nil
	}
	return u.differsFromUserdb(ctx, base+"/auth-userdb")
}

// differsFromUserdb asks at path whether the userdb, without a login, says the same of the
// user as with his.
func (u *user) differsFromUserdb(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, userdbTimeout)
	defer cancel()
	conn, err := authmaster.Dial(ctx, path)
	if err == nil {
		defer conn.Close()
		var answer authmaster.User
		answer, err = conn.User(ctx, u.name, authmaster.Info{
			Service: "submission", Session: u.session, LocalIP: u.local.Addr(), RemoteIP: u.remote.Addr(), LocalPort: u.local.Port(), RemotePort: u.remote.Port(),
		})
		if err == nil {
			_, plain := newUser(answer)
			if answer.Name == u.name && slices.Equal(u.fields.ofUserdb(), plain.ofUserdb()) {
				return "", nil
			}
			return "the userdb alone does not say the same of him", nil
		}
	}
	if ctx.Err() != nil || errors.Is(err, authmaster.ErrLost) || errors.Is(err, authmaster.ErrTimeout) {
		return "", fmt.Errorf("auth-userdb: %w", err)
	}
	return "the userdb alone was not told: " + err.Error(), nil
}

// ofUserdb is what is not about the login, in order.
func (f *userFields) ofUserdb() []string {
	list := slices.DeleteFunc(slices.Clone(f.raw), func(field string) bool {
		key, _, _ := strings.Cut(field, "=")
		switch key {
		case "auth_token", "auth_mech", "auth_user", "master_user", "anonymous", "user":
			return true
		}
		return false
	})
	slices.Sort(list)
	return list
}

// programLog passes on a line of the imap program: "imap(alice)<1><x>: Error: text".
func programLog(log *event.Log, line string) {
	write := log.Info
	for _, l := range []struct {
		word string
		to   func(string, ...any)
	}{{": Debug: ", log.Debug}, {": Warning: ", log.Warning}, {": Error: ", log.Error}, {": Fatal: ", log.Error}, {": Panic: ", log.Error}} {
		if before, _, ok := strings.Cut(line, l.word); ok && !strings.Contains(before, " ") {
			write = l.to
		}
	}
	write("burl: imap program: %s", line)
}

// burlLine is what EHLO says of BURL (clause S3.5); "" if it cannot work.
func (se *session) burlLine() string {
	if !se.burl.Works() {
		return ""
	}
	host := se.u.set.ImapUrlauthHost
	if host == "*" {
		host = se.u.hostname
	}
	line := "BURL imap imap://" + host
	if port := se.u.set.ImapUrlauthPort; port != 143 {
		line += ":" + strconv.Itoa(int(port))
	}
	return line
}

// pieces hold what is read of an URL at a time.
var pieces = sync.Pool{New: func() any { return new([inputSize]byte) }}

// burlCmd is BURL (clause S7.1), a chunk like that of BDAT which comes from IMAP.
func (se *session) burlCmd(cmd *server.Command) bool {
	url, last, refusal := parseBurl(cmd.Params)
	if !se.turn() {
		return false
	}
	se.noticeReset()
	se.chunks++
	if refusal.IsZero() {
		refusal = se.mayHaveData(true)
	}
	if !refusal.IsZero() {
		se.failed = true
		cmd.Reply(refusal)
		return true
	}
	if !se.live() {
		return false
	}
	done := se.waiting()
	text, _, _ := strings.Cut(cmd.Params, " ")
	body, err := se.burl.Fetch(se.ctx, text, url)
	done()
	if err != nil {
		return se.burlFailed(cmd, err)
	}
	defer body.Close()
	if limit := se.u.set.MaxMailSize; limit > 0 && (body.Size > limit || se.msg != nil && se.msg.size+body.Size > limit) {
		return se.burlFailed(cmd, &burl.Refusal{Reply: tooBig})
	}
	se.setState("DATA", "")
	if se.msg == nil {
		se.msg = se.newMessage()
	}
	m := se.msg
	if ok, err := m.addAll(body); err != nil {
		return se.burlFailed(cmd, err)
	} else if !ok {
		return false
	}
	return se.chunkAdded(cmd, body.Size, last)
}

// burlFailed answers a BURL that brought nothing, or not all. No part of the message may be
// taken for the whole.
func (se *session) burlFailed(cmd *server.Command, err error) bool {
	if se.over() {
		return false
	}
	se.failed = true
	if se.msg != nil {
		se.msg.refuse()
	}
	var r *burl.Refusal
	if !errors.As(err, &r) {
		r = &burl.Refusal{Reply: smtp.NewReply(451, "4.3.0", internalError)}
	}
	cmd.Reply(r.Reply)
	return true
}

// addAll takes all that r has, to io.EOF. ok is false at the session's end; err is r's.
func (m *message) addAll(r io.Reader) (ok bool, err error) {
	piece := pieces.Get().(*[inputSize]byte)
	defer pieces.Put(piece)
	for {
		n, err := m.readPiece(r, piece[:])
		m.size += uint64(n)
		if !m.add(piece[:n]) {
			return false, nil
		}
		if err == io.EOF || m.buf == nil { // or the relay will not have it
			return true, nil
		}
		if err != nil {
			return true, err
		}
	}
}

// readPiece reads from the IMAP server, for which the client may have to wait.
func (m *message) readPiece(r io.Reader, p []byte) (int, error) {
	done := m.se.waiting()
	defer done()
	return r.Read(p)
}

// parseBurl reads the arguments of BURL (clause S7.2).
func parseBurl(args string) (url *imapurl.URL, last bool, refusal smtp.Reply) {
	if args == "" {
		return nil, false, smtp.NewReply(501, "5.5.4", "Missing chunk URL parameter")
	}
	words := strings.Split(args, " ")
	url, err := imapurl.Parse(words[0])
	switch {
	case err != nil:
		refusal = smtp.NewReply(501, "5.5.4", "Invalid chunk URL: "+err.Error())
	case len(words) > 1 && !strings.EqualFold(words[1], "LAST"):
		refusal = smtp.NewReply(501, "5.5.4", "Invalid end marker parameter")
	case len(words) > 2:
		refusal = badArgument
	default:
		last = len(words) == 2
	}
	return url, last, refusal
}

// decodeBURL reads the settings of the server, which stand in plugin { }.
func decodeBURL(get func(string) (string, bool)) (settings.BURLServer, []error) {
	return settings.DecodeOwn[settings.BURLServer](get)
}
