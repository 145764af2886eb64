package submission

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dovetail/internal/conf/settings"
	"dovetail/internal/dovecot/anvil"
	"dovetail/internal/dovecot/authmaster"
	"dovetail/internal/dovecot/config"
	"dovetail/internal/dovecot/dns"
	"dovetail/internal/dovecot/handoff"
	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/dovecot/stats"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/dial"
	"dovetail/internal/process/event"
	"dovetail/internal/process/service"
	"dovetail/internal/smtp/client"
	"dovetail/internal/submission/burl"
	"dovetail/internal/submission/relay"
	"dovetail/internal/tlsconf"
	"dovetail/internal/varexpand"
)

const (
	defaultAuth = "auth-master" // relative to base_dir
	dnsSocket   = "dns-client"

	errorWait = 5 * time.Second // to tell a client why there is no session
)

// A worker is what the sessions of a process share. Fields are set before the first session,
// but those that mu guards.
type worker struct {
	proc   *service.Process
	log    *event.Log // under "submission(<pid>): ", for what concerns no session
	config *config.Client
	anvil  *anvil.Pipe
	stats  *stats.Client // nil: nobody to tell
	told   masterEvents
	dns    string // path of the dns-client service's socket; "" if there is none

	// Options of the command line.
	authPath      string
	postlogin     string // socket of a post-login script for everybody
	scriptTimeout uint
	override      map[string]string // -o

	mu       sync.Mutex
	auth     *authmaster.Conn  // guarded by mu; replaced while the process is root
	authFrom time.Time         // guarded by mu: since when
	answer   *config.Answer    // guarded by mu: settings of all clients; nil if they differ
	plain    *userSettings     // guarded by mu: what they make of a user without settings of his own; nil like answer
	tls      *tlsconf.Outgoing // guarded by mu: for tlsFor
	tlsFor   settings.SSL      // guarded by mu
	tlsErr   error             // guarded by mu
	resolver client.Resolver   // guarded by mu: one that was made before a chroot
	services *burl.Services    // guarded by mu: what BURL may fetch from; nil before the first user with BURL
	password map[string]string // guarded by mu: of the IMAP server for BURL, by the path of its file
	dropped  bool              // guarded by mu: the process may have become a user
	sessions []*session        // guarded by mu
	titled   bool              // guarded by mu: ps shows what the process does
}

// Program returns the program that package service runs.
func Program() service.Program {
	w := &worker{}
	return service.Program{
		Name:      "submission",
		PIDPrefix: true,
		About:     "the per-user half of the submission service",
		Flags:     w.flags,
		Setup:     w.setup,
		Serve:     w.serve,
	}
}

// flags are the options of Dovecot's program (clause P1.1.4).
func (w *worker) flags(f *flag.FlagSet) {
	f.StringVar(&w.authPath, "a", defaultAuth, "`socket` of the auth service, for masters")
	f.UintVar(&w.scriptTimeout, "t", uint(handoff.ScriptTimeout/time.Second), "`seconds` that a post-login script may take")
}

// setup runs as root, in base_dir: it connects what only root may (clause P9.2).
func (w *worker) setup(p *service.Process) error {
	w.proc = p
	w.log = p.Log.WithPrefix("submission(" + strconv.Itoa(os.Getpid()) + "): ")
	if w.scriptTimeout == 0 {
		return errors.New("Invalid -t parameter: 0") //lint:ignore ST1005 Dovecot's words
	}
	if len(p.Args) > 0 {
		var err error
		if w.postlogin, err = filepath.Abs(p.Args[0]); err != nil {
			return err
		}
	}
	w.override = map[string]string{}
	for _, o := range p.Options.Override {
		name, value, _ := strings.Cut(o, "=")
		w.override[name] = value
	}
	var err error
	if w.config, err = config.Dial(p.Env.ConfigFile); err != nil {
		return err
	}
	if w.stats = stats.Open(p.Context(), p.Env.StatsWriter, p.Name(), p.Log); w.stats != nil {
		p.AtExit(w.stats.Close)
	}
	w.told.begin(w.stats)
	ctx, cancel := context.WithTimeout(p.Context(), 30*time.Second)
	defer cancel()
	if w.auth, err = w.dialAuth(ctx); err != nil {
		return err
	}
	p.AtExit(w.closeAuth)
	w.authFrom = time.Now()
	if w.anvil, err = anvil.NewPipe(masterproto.AnvilFD); err != nil {
		w.log.Warning("%v; sessions are not counted", err)
		w.anvil = nil
	}
	if _, err := os.Stat(dnsSocket); err == nil {
		if w.dns, err = filepath.Abs(dnsSocket); err != nil {
			return err
		}
	}
	return nil
}

// serve takes one login and serves its client until it leaves.
func (w *worker) serve(ctx context.Context, cl *service.Client) {
	conn, ok := cl.Conn.(*net.UnixConn)
	if !ok {
		w.log.Error("a client that no login process sent was refused")
		return
	}
	login, err := handoff.Receive(ctx, conn)
	if err == io.EOF {
		cl.NotServed() // nobody said who the client is (clause P5.13)
		return
	}
	if err != nil {
		w.log.Error("%v", err)
		return
	}
	client := login.Client
	defer func() { client.Close() }() // twice does no harm
	u, err := w.claim(ctx, login)
	conn.Close()
	if err != nil {
		return // the client was told
	}
	if client, err = w.script(ctx, u, client); err != nil {
		w.log.WithPrefix("submission("+u.name+"): ").Error("%s", scriptFailure(err, u, login, cl.Accepted))
		return
	}
	if u.anonymous {
		w.refuse(client, "534 5.7.9 Anonymous login is not allowed for submission", u.hostname)
		return
	}
	target, log, err := w.become(ctx, u)
	if err != nil {
		log.Error("%v", err)
		code := "451 4.7.0 "
		if errors.Is(err, errNoRelay) {
			code = "451 4.3.5 "
		}
		w.refuse(client, code+internalError, u.hostname)
		return
	}
	defer w.userGone(u, time.Now())
	cl.Identify(u.name, u.remote.Addr()) // for `dovetail kick`
	se := newSession(w, cl, u, login, client, target, log)
	se.beCounted(true)
	defer se.beCounted(false)
	w.enter(se)
	defer w.leave(se)
	se.serve(ctx)
}

const internalError = "Internal error occurred. Refer to server log for more information."

// refuse tells a client for whom there is no session why (clause S3.2).
func (w *worker) refuse(nc net.Conn, reply, hostname string) {
	if hostname == "" {
		hostname = w.proc.Env.Hostname
	}
	nc.SetWriteDeadline(time.Now().Add(errorWait))
	io.WriteString(nc, reply+"\r\n421 4.3.2 "+hostname+" Shutting down due to fatal error\r\n")
}

// say421 tells a client whose login was lost to a reload or restart what one would hear who
// came a moment earlier.
func (w *worker) say421(nc net.Conn) {
	nc.SetWriteDeadline(time.Now().Add(errorWait))
	io.WriteString(nc, "421 4.3.2 "+w.proc.Env.Hostname+" Shutting down\r\n")
}

// claim asks the auth service who the login is, and tells the login process whether the
// client is ours now. On an error everybody has been told.
func (w *worker) claim(ctx context.Context, login *handoff.Login) (*user, error) {
	pid, began := os.Getpid(), time.Now()
	answer, err := w.request(ctx, login, pid)
	if err == nil {
		u, f := newUser(answer)
		u.session, u.local, u.remote = login.Session, login.Local, login.Remote
		if u.session == "" {
			u.session = newGUID()
		}
		if w.proc.Env.ServiceCount == 1 {
			w.closeAuth() // there will be no other login, and the auth service has room for so many
		}
		err = login.Reply(handoff.OK, pid)
		if err != nil {
			w.log.Error("%v", err) // the client is ours all the same (clause P5.10)
		}
		u.fields = f
		return u, nil
	}
	reason := internalError
	var fail *authmaster.FailError
	if errors.As(err, &fail) && fail.Reason() != "" {
		reason = fail.Reason()
	}
	w.mu.Lock()
	connected := w.authFrom
	w.mu.Unlock()
	w.log.Error("auth-master: login: request [%d]: Login auth request failed: %v (auth connected %d msecs ago, request took %d msecs, client-pid=%d client-id=%d)",
		login.AuthID, err, time.Since(connected).Milliseconds(), time.Since(began).Milliseconds(), login.ClientPID, login.AuthID)
	// First the client: as soon as the login process knows, it closes the connection.
	if errors.As(err, new(authRestarted)) {
		w.say421(login.Client)
	} else {
		w.refuse(login.Client, "451 4.7.0 "+reason, "")
	}
	if err := login.Reply(handoff.InternalError, pid); err != nil {
		w.log.Error("%v", err)
	}
	return nil, err
}

// dialAuth connects to the auth service.
func (w *worker) dialAuth(ctx context.Context) (*authmaster.Conn, error) {
	conn, err := dial.Unix(ctx, w.authPath, dial.Patience, true)
	if err != nil {
		return nil, err
	}
	path, err := filepath.Abs(w.authPath)
	if err != nil {
		path = w.authPath
	}
	return authmaster.NewConn(ctx, w.stats.Watch(conn, path))
}

func (w *worker) closeAuth() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.auth.Close()
}

func (w *worker) request(ctx context.Context, login *handoff.Login, pid int) (answer authmaster.User, err error) {
	auth, err := w.authConn(ctx, login.AuthPID)
	if err != nil {
		return authmaster.User{}, err
	}
	began := time.Now()
	w.told.tell(stats.MasterLoginStarted, began, login, nil, nil)
	defer func() { w.told.tell(stats.MasterLoginFinished, began, login, &answer, err) }()
	if now := auth.SPID(); now != login.AuthPID {
		// To ask would take the answers of others away: the service closes the connection.
		return authmaster.User{}, authRestarted{login.AuthPID, now}
	}
	r := authmaster.Request{ClientPID: login.ClientPID, AuthID: login.AuthID, SessionPID: uint32(pid), WantToken: true}
	copy(r.Cookie[:], login.Cookie[:])
	answer, err = auth.Request(ctx, r)
	if errors.Is(err, authmaster.ErrNotFound) {
		err = fmt.Errorf("Authenticated user not found from userdb, auth lookup id=%d", login.AuthID) //lint:ignore ST1005 Dovecot's words
	}
	return answer, err
}

// authRestarted says that the auth service that let a client in has gone, and all that it
// knew (clause P5.14).
type authRestarted struct{ before, now uint32 } // process IDs

func (e authRestarted) Error() string {
	return fmt.Sprintf("Auth server restarted (pid %d -> %d), aborting auth", e.before, e.now)
}

// authConn returns the connection to the auth service. If that has been started anew, a
// process that is still root connects again; another one retires, since nobody can log in
// through it any more.
func (w *worker) authConn(ctx context.Context, spid uint32) (*authmaster.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.auth.Err() == nil && w.auth.SPID() == spid {
		return w.auth, nil
	}
	fresh, err := w.dialAuth(ctx)
	if err == nil && w.auth.Err() == nil && w.auth.SPID() == fresh.SPID() {
		fresh.Close() // the login is of a service before this one; others wait for answers
		return w.auth, nil
	}
	if err == nil {
		w.auth.Close()
		w.auth, w.authFrom = fresh, time.Now()
		return fresh, nil
	}
	if lost := w.auth.Err(); lost != nil {
		w.proc.Retire()
		return nil, fmt.Errorf("%w; and anew: %v", lost, err)
	}
	return w.auth, nil
}

// script lets a post-login script, if there is one, look at the client and change the user.
// It returns the client's connection, which may be another one. An error is a *scriptError.
func (w *worker) script(ctx context.Context, u *user, nc net.Conn) (net.Conn, error) {
	path := w.postlogin
	if u.fields.postlogin != "" {
		path = u.fields.postlogin
	}
	if path == "" {
		return nc, nil
	}
	began := time.Now()
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return nc, &scriptError{path, began, err}
	}
	answer, err := handoff.RunScript(ctx, path, handoff.ScriptRequest{
		Local: u.local.Addr(), Remote: u.remote.Addr(), User: u.name, Fields: u.fields.raw,
	}, raw, time.Duration(w.scriptTimeout)*time.Second)
	if err != nil {
		return nc, &scriptError{path, began, err}
	}
	changed, f := newUser(authmaster.User{Name: answer.User, Fields: tabline.ParseFields(answer.Fields)})
	u.name, u.anonymous, u.nice, u.admin, u.fields = changed.name, changed.anonymous, changed.nice, changed.admin, f
	if answer.Client != nil {
		nc.Close()
		nc = answer.Client
	}
	return nc, nil
}

// A scriptError is why a post-login script keeps a user out.
type scriptError struct {
	path  string
	began time.Time
	err   error
}

func (e *scriptError) Error() string { return e.err.Error() }
func (e *scriptError) Unwrap() error { return e.err }

// scriptFailure is the log line about err, in Dovecot's words.
func scriptFailure(err error, u *user, login *handoff.Login, accepted time.Time) string {
	var script *scriptError
	errors.As(err, &script)
	var op *net.OpError
	text, started := err.Error(), true
	switch {
	case errors.Is(err, handoff.ErrDenied):
		text = "Post-login script denied access to user " + u.name
	case errors.Is(err, context.DeadlineExceeded):
		text = "Timeout waiting for post-login script to finish, aborting"
	case errors.As(err, &op) && op.Op == "dial":
		text, started = fmt.Sprintf("net_connect_unix(%s) failed: %s", script.path, client.Reason(op.Err)), false
	}
	since := time.Since(accepted).Milliseconds()
	text += fmt.Sprintf(" (connection created %d msecs ago, client created %d msecs ago: session=%s, rip=%s, auth_pid=%d, client-pid=%d, client-id=%d",
		since, since, u.session, ipText(u.remote), login.AuthPID, login.ClientPID, login.AuthID)
	if started {
		text += fmt.Sprintf(", post-login script %s started %d msecs ago", script.path, time.Since(script.began).Milliseconds())
	}
	return text + ")"
}

var errNoRelay = errors.New("No relay host configured for submission proxy (submission_relay_host is unset)") //lint:ignore ST1005 Dovecot's words

// become reads the user's settings and makes the process the user. The log is the session's,
// or, with an error, the one for the error.
func (w *worker) become(ctx context.Context, u *user) (*relay.Target, *event.Log, error) {
	u.hostname = w.proc.Env.Hostname
	answer, plain, err := w.settings(u)
	if err != nil {
		return nil, w.log, fmt.Errorf("Error reading configuration: %w", err)
	}
	host := w.proc.Env.HostDomain
	if host == "" {
		host = w.proc.Env.Hostname
	}
	if err := u.apply(u.fields, answer.Get, w.override, host, plain); err != nil {
		u.hostname = w.proc.Env.Hostname // its own is only known when all is right
		if errors.Is(err, errDrop) {
			return nil, w.log, err
		}
		return nil, w.log.WithPrefix("submission(" + u.name + "): "), err
	}
	w.proc.SetShutdownClients(u.set.ShutdownClients)
	prefix, err := varexpand.Expand(u.set.MailLogPrefix, u.variable)
	log := w.log.WithPrefix(prefix).WithDebug(u.set.MailDebug || w.log.Debugging())
	if err != nil {
		log.Error("Failed to expand mail_log_prefix=%s: %v", u.set.MailLogPrefix, err)
	}
	if u.set.RelayHost == "" {
		return nil, w.log, errNoRelay
	}
	if bad := u.fields.badNice; bad != "" {
		log.Error("userdb returned invalid nice value %s", bad)
	}
	setNice(u.nice, log)
	outgoing, tlsErr := w.outgoing(u, log)
	resolver := w.resolve(ctx, u, u.set.RelayHost, log)
	u.burl = w.burlOptions(ctx, u, log)
	w.mu.Lock()
	w.dropped = true
	w.mu.Unlock()
	if err := w.proc.Drop(u.identity); err != nil {
		return nil, log, fmt.Errorf("%w: %w", errDrop, err)
	}
	if w.proc.Env.ClientLimit == 1 {
		w.proc.SetLogPrefix(prefix)
	}
	return relay.New(&u.set, u.hostname, resolver, outgoing, tlsErr), log, nil
}

// settings asks the config service, once if all clients have the same (clause P2.4). What it
// decodes of that is nil if there are errors, which the user's own decoding finds again.
func (w *worker) settings(u *user) (config.Answer, *userSettings, error) {
	w.mu.Lock()
	if w.answer != nil {
		defer w.mu.Unlock()
		return *w.answer, w.plain, nil
	}
	w.mu.Unlock()
	a, err := w.config.Request(config.Request{
		Modules: []string{"submission", "ssl"}, Service: "submission", User: u.name, LocalIP: u.local.Addr(), RemoteIP: u.remote.Addr(),
	})
	if err != nil || a.ServiceUsesLocal || a.ServiceUsesRemote || w.proc.Env.ServiceCount == 1 {
		return a, nil, err
	}
	var plain *userSettings
	if s, err := decodeSettings(w.overridden(a.Get)); err == nil {
		plain = &s
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer, w.plain = &a, plain
	return a, plain, nil
}

// overridden is base with the settings of the command line.
func (w *worker) overridden(base func(string) (string, bool)) func(string) (string, bool) {
	return func(name string) (string, bool) {
		if v, ok := w.override[name]; ok {
			return v, true
		}
		return base(name)
	}
}

// outgoing returns what TLS to the relay needs; it reads files that the user may not.
func (w *worker) outgoing(u *user, log *event.Log) (*tlsconf.Outgoing, error) {
	if u.set.RelaySSL == "no" {
		return nil, nil
	}
	return w.trust(u, log)
}

// trust is what connections to servers elsewhere need for TLS.
func (w *worker) trust(u *user, log *event.Log) (*tlsconf.Outgoing, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tls == nil && w.tlsErr == nil || w.tlsFor != u.set.SSL {
		var warnings []string
		w.tlsFor = u.set.SSL
		w.tls, warnings, w.tlsErr = tlsconf.NewOutgoing(u.set.SSL)
		for _, text := range warnings {
			log.Warning("%s", text)
		}
	}
	return w.tls, w.tlsErr
}

// resolve returns who finds the addresses of host, nil if that is one. Before a chroot it
// has to connect.
func (w *worker) resolve(ctx context.Context, u *user, host string, log *event.Log) client.Resolver {
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return nil
	}
	if w.dns == "" {
		return relay.System{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.resolver == nil {
		w.resolver = dns.NewClient(w.dns)
		if u.identity.Chroot != "" {
			c, err := dns.Dial(ctx, w.dns)
			if err != nil {
				log.Error("%v", err)
				return w.resolver
			}
			w.resolver = c
		}
	}
	return w.resolver
}

// setNice sets the priority of all threads, as the userdb wants it; new ones inherit it.
func setNice(n int, log *event.Log) {
	if n == 0 {
		return
	}
	tasks, err := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		tid, _ := strconv.Atoi(t.Name())
		if err == nil {
			err = syscall.Setpriority(syscall.PRIO_PROCESS, tid, n)
		}
	}
	if err != nil {
		log.Error("setpriority(%d) failed: %v", n, err)
	}
}

// newGUID returns 16 random octets as Dovecot writes them in IDs: 22 characters of base64.
func newGUID() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.RawStdEncoding.EncodeToString(b[:])
}

func (w *worker) enter(se *session) {
	w.mu.Lock()
	w.sessions = append(w.sessions, se)
	w.mu.Unlock()
	w.title()
}

func (w *worker) leave(se *session) {
	w.mu.Lock()
	for i, s := range w.sessions {
		if s == se {
			w.sessions = append(w.sessions[:i], w.sessions[i+1:]...)
			break
		}
	}
	w.mu.Unlock()
	w.title()
}

// title shows in ps what the process does, with verbose_proctitle (clause S10.11).
func (w *worker) title() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch n := len(w.sessions); {
	case n == 0:
		if w.titled {
			w.proc.SetTitle("idling")
		}
	case !w.sessions[0].u.set.VerboseProctitle && !w.titled:
	case n == 1:
		w.titled = true
		w.proc.SetTitle(w.sessions[0].title())
	default:
		w.titled = true
		w.proc.SetTitle(strconv.Itoa(n) + " connections")
	}
}
