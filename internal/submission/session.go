package submission

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dovetail/internal/dovecot/anvil"
	"dovetail/internal/dovecot/handoff"
	"dovetail/internal/process/event"
	"dovetail/internal/process/pace"
	"dovetail/internal/process/service"
	"dovetail/internal/rawlog"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/client"
	"dovetail/internal/smtp/server"
	"dovetail/internal/submission/burl"
	"dovetail/internal/submission/relay"
	"dovetail/internal/varexpand"
)

const (
	maxParams   = 4096                          // octets behind a command's name (clause S1.12)
	idleTimeout = 10 * time.Minute / pace.Haste // without input (clause S1.7)

	lastAnswer = 30 * time.Second / pace.Haste // for the relay's answers when the client has gone
	quitAnswer = 2 * time.Second               // for the relay's answer to QUIT (clause S8.3)
	watchAfter = time.Second                   // of a wait for the relay, until the client is watched

	// stopAnswer is for the answer to a message that the relay may have when the process is
	// stopped, or the user kicked. The process closes the connection five seconds after the
	// stop, and the client may take one of them to read the last reply.
	stopAnswer = 3500 * time.Millisecond
)

// A session is one client. Its goroutine, the owner, owns all fields that mu does not guard.
type session struct {
	w      *worker
	client *service.Client
	u      *user
	log    *event.Log
	c      *server.Conn
	target *relay.Target
	burl   *burl.Fetcher

	implicit bool // the client was not greeted, and is not to be
	tls      bool // TLS ends in the login process
	id       string

	capsSet   bool     // submission_backend_capabilities is set
	base      smtp.Cap // what the relay, or that setting, has
	relaySize uint64   // SIZE of the relay; 0: not known, or none

	helo       string // last valid EHLO or HELO domain; "" if the last one was invalid or none came
	xhelo      string // HELO of XCLIENT
	introduced bool   // some EHLO or HELO came
	esmtp      bool   // the last one was EHLO, or none came

	conn    *client.Conn // relay's; the owner sets it, with mu held
	connN   int          // connections made
	link    *link        // of conn, and after it of the last one
	xclient bool         // conn was told who the client is
	codes   bool         // conn announced ENHANCEDSTATUSCODES

	tx     *transaction // the open one, as far as is known; the owner sets it, with mu held
	chunks int          // BDATs since the last message or RSET
	failed bool         // one of them was refused
	msg    *message     // what they bring; nil before the first
	count  int          // MAILs that were accepted; guarded by mu

	rawClient, rawRelay *rawlog.Log
	events              events

	ctx    context.Context
	cancel context.CancelFunc

	counted bool        // by anvil; the owner's
	quiet   atomic.Bool // the owner is about to write to the client
	noDelay int         // how often TCP_NODELAY was set

	mu          sync.Mutex
	cond        sync.Cond // of mu: a final answer came, or the session ended
	state       string    // guarded by mu: for the log (clause S10.8)
	args        string    // guarded by mu: of the state
	chunksReset bool      // guarded by mu: an RSET was accepted after the last chunk
	failing     bool      // guarded by mu: the relay failed, and end is about to be called
	stopping    bool      // guarded by mu: no more commands; end is called when finals is 0
	finals      int       // guarded by mu: messages whose answer is awaited
	leftover    *message  // guarded by mu: conn may still have its transaction, which is over for us
	quitting    bool      // guarded by mu: the relay may leave
	ended       bool      // guarded by mu
	told        bool      // guarded by mu: ... and the client was told
	reason      string    // guarded by mu: why the session ended; the first one counts
}

func newSession(w *worker, cl *service.Client, u *user, login *handoff.Login, nc net.Conn, target *relay.Target, log *event.Log) *session {
	s := handoff.ParseSubmission(login.Payload)
	se := &session{
		w: w, client: cl, u: u, log: log, target: target, burl: burl.New(u.burl),
		implicit: login.Flags&handoff.Implicit != 0,
		tls:      login.Flags&handoff.TLS != 0,
		id:       newGUID(),
		helo:     s.Helo, xhelo: s.ProxiedHelo, introduced: s.Helo != "", esmtp: true,
		state: "GREETING",
	}
	se.cond.L = &se.mu
	if list := u.set.BackendCapabilities; list != nil {
		var unknown []string
		se.capsSet = true
		se.base, unknown = smtp.ParseCapList(*list)
		for _, name := range unknown {
			log.Warning("Unknown SMTP capability in submission_backend_capabilities: %s", name)
		}
	}
	se.rawClient = openRawlog(u, u.set.RawlogDir, log)
	se.rawRelay = openRawlog(u, u.set.RelayRawlogDir, log)
	var watcher server.Watcher
	if w.stats != nil {
		se.events.begin(w.stats, se.id, u.remote)
		watcher = &se.events
	}
	se.c = server.New(nc, server.Options{
		Hostname: u.hostname, MaxParams: maxParams, IdleTimeout: idleTimeout, Tap: se.rawClient.Tap(se.rawlogFailed), Watcher: watcher,
		Pause: se.flushRelay,
	})
	se.c.Preload(s.Pending)
	return se
}

func (se *session) rawlogFailed(err error) { se.log.Error("%v", err) }

// parseWorkarounds reads submission_client_workarounds; those of the login process are
// accepted.
func parseWorkarounds(list string) (w smtp.Workarounds, err error) {
	for word := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ' ' || r == ',' }) {
		switch strings.ToLower(word) {
		case "whitespace-before-path":
			w |= smtp.WhitespaceBeforePath
		case "mailbox-for-path":
			w |= smtp.MailboxForPath
		case "implicit-auth-external", "exotic-backend":
		default:
			err = errors.Join(err, errors.New("submission_client_workarounds: Unknown workaround: "+word))
		}
	}
	return w, err
}

// serve runs the session to its end, which it logs.
func (se *session) serve(ctx context.Context) {
	se.ctx, se.cancel = context.WithCancel(ctx)
	defer se.cancel()
	stop := context.AfterFunc(ctx, se.shutdown)
	defer stop()
	defer se.burl.Release() // after a panic, too
	// A panic of the relay's reader ends the owner's reads and waits, too.
	se.client.OnPanic(func() { se.end("Internal error", se.c.Reply421("4.3.0", internalError)) })
	panics := true
	defer func() {
		if panics {
			se.panicked()
		}
	}()
	se.run()
	se.awaitEnd()
	panics = false
	se.closeRelay()
	se.dropMessage()
	se.c.Settle() // the count of octets is complete
	se.logout()
	se.c.Close()
	se.events.over(se.c.Stats())
	se.rawClient.Close()
	se.rawRelay.Close()
}

// awaitEnd waits until somebody who is about to end the session has told the client.
func (se *session) awaitEnd() {
	se.mu.Lock()
	defer se.mu.Unlock()
	for (se.failing || se.stopping) && !se.told {
		se.cond.Wait()
	}
	if !se.ended {
		// A mistake of ours, but the client has to hear something.
		se.mu.Unlock()
		se.fatal(&client.Error{Kind: client.Lost}, "", false)
		se.mu.Lock()
	}
}

// panicked tells the client of a session that a bug ended (architecture: nothing in one
// session can hurt another).
func (se *session) panicked() {
	se.end("Internal error", se.c.Reply421("4.3.0", internalError))
	se.closeRelay()
	se.logout()
	se.c.Close()
}

func (se *session) run() {
	se.setNoDelay()
	if !se.implicit {
		se.c.Send(smtp.NewReply(235, "2.7.0", "Logged in."))
		se.c.Flush()
	}
	if !se.capsSet && !se.connect() {
		return
	}
	for {
		se.noticeReset()
		cmd, err := se.c.Next()
		if err != nil {
			se.lost(err)
			return
		}
		if se.isStopping() || !se.command(cmd) {
			return
		}
	}
}

func (se *session) isStopping() bool {
	se.mu.Lock()
	defer se.mu.Unlock()
	return se.stopping
}

// noticeReset forgets the chunks that an RSET has dropped.
func (se *session) noticeReset() {
	se.mu.Lock()
	reset := se.chunksReset
	se.chunksReset = false
	se.mu.Unlock()
	if reset {
		se.dropMessage()
		se.chunks, se.failed = 0, false
	}
}

// setNoDelay makes small replies leave at once. Dovecot's login process, which has the same
// socket until it hears that the client was taken, switches that off whenever it has written
// something, maybe later than we begin: so it is said again with the first transactions.
func (se *session) setNoDelay() {
	if tcp, ok := se.c.Conn().(*net.TCPConn); ok && se.noDelay < 4 {
		se.noDelay++
		tcp.SetNoDelay(true)
	}
}

// flushRelay sends what is meant for the relay. While more commands of the client can be
// read without waiting, that is put off.
func (se *session) flushRelay() {
	if se.conn != nil {
		se.conn.Flush() // of a failure relayFailed hears
	}
}

// shutdown ends the session because the process has to. If the relay has a message, or will
// have it in a moment, its answer comes first: the client would send the message again. It
// has a goroutine of its own, which ends within stopAnswer.
func (se *session) shutdown() {
	if errors.Is(context.Cause(se.ctx), service.ErrPanic) {
		return // OnPanic says something else
	}
	se.mu.Lock()
	se.stopping = true
	se.awaitFinalsLocked(stopAnswer)
	se.mu.Unlock()
	se.end("Shutting down", se.c.Reply421("4.3.2", "Shutting down"))
}

// end ends the session: its client hears reply (none if it is zero) as the answer to its
// oldest command. The first reason counts. Any goroutine may call it.
func (se *session) end(reason string, reply smtp.Reply) {
	se.mu.Lock()
	if se.ended {
		se.mu.Unlock()
		return
	}
	se.ended = true
	if name := se.c.Unfinished(); name != "" {
		reason += " (unfinished " + name + " command)"
	}
	se.reason = reason
	conn := se.conn
	se.cond.Broadcast()
	se.mu.Unlock()
	se.c.Terminate(reply)
	se.cancel()
	if conn != nil {
		conn.Close() // wakes the owner, who may wait for an answer
	}
	se.mu.Lock()
	se.told = true
	se.cond.Broadcast()
	se.mu.Unlock()
}

// lost ends the session because of what a read from the client returned.
func (se *session) lost(err error) {
	switch {
	case errors.Is(err, server.ErrTerminated):
		if se.c.TooManyBad() {
			se.end("Too many invalid commands.", smtp.Reply{})
		}
	case errors.Is(err, server.ErrIdle):
		se.end("Disconnected for inactivity", se.c.Reply421("4.4.2", "Disconnected for inactivity"))
	default:
		reason := "Connection closed"
		if err != io.EOF {
			reason += ": " + client.Reason(err)
		}
		se.flushRelay()
		// The client may still read the answers, and the log has to say what became of its
		// messages.
		se.mu.Lock()
		se.awaitFinalsLocked(lastAnswer)
		se.mu.Unlock()
		se.c.Flush()
		se.end(reason, smtp.Reply{})
	}
}

// awaitFinalsLocked waits for the answers to messages that the client has sent to their
// ends, at most for d.
func (se *session) awaitFinalsLocked(d time.Duration) {
	if se.finals == 0 {
		return
	}
	deadline := time.Now().Add(d) // before the timer's: when that goes off it has passed
	timer := time.AfterFunc(d, func() {
		se.mu.Lock()
		defer se.mu.Unlock()
		se.cond.Broadcast()
	})
	defer timer.Stop()
	for se.finals > 0 && !se.ended && time.Now().Before(deadline) {
		se.cond.Wait()
	}
}

// waiting is called before the owner waits for the relay, which may take minutes, and what
// it returns afterwards. If the client leaves meanwhile, the session ends 30 seconds later.
func (se *session) waiting() (done func()) {
	var mu sync.Mutex
	var stopWatch func()
	var gone *time.Timer
	over := false
	late := time.AfterFunc(watchAfter, func() {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		stopWatch = se.c.Watch(func() {
			mu.Lock()
			defer mu.Unlock()
			if !over {
				gone = time.AfterFunc(lastAnswer, func() { se.end("Connection closed", smtp.Reply{}) })
			}
		})
	})
	return func() {
		late.Stop()
		mu.Lock()
		over = true
		stop, timer := stopWatch, gone
		mu.Unlock()
		if stop != nil {
			stop()
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// turn waits until all commands before the present one are answered. It is false at the
// session's end.
func (se *session) turn() bool {
	if se.conn != nil {
		se.flushRelay()
		if se.conn.Waiting() > 0 {
			done := se.waiting()
			defer done()
		}
		if e := se.conn.Settle(); e != nil {
			se.broken(e)
		}
	}
	return !se.over()
}

// quietTurn is turn for a command that is answered, or reads the client's data, right after
// it: its answer and the earlier ones leave together.
func (se *session) quietTurn() bool {
	se.quiet.Store(true)
	defer se.quiet.Store(false)
	return se.turn()
}

// beCounted lets anvil count the session, or not any more.
func (se *session) beCounted(on bool) {
	ident := anvil.Ident{Service: "submission", IP: ipText(se.u.remote), User: se.u.name}
	switch {
	case on && !se.counted:
		se.w.anvil.Connect(os.Getpid(), ident)
	case !on && se.counted:
		se.w.anvil.Disconnect(os.Getpid(), ident)
	}
	se.counted = on
}

// logout writes the line about the session's end (clause S10.8). It does not count any more,
// although the connection may stay until the client has read the last reply.
func (se *session) logout() {
	se.beCounted(false)
	stats := se.c.Stats()
	se.mu.Lock()
	defer se.mu.Unlock()
	counts := map[string]string{
		"input": strconv.FormatUint(stats.In, 10), "output": strconv.FormatUint(stats.Out, 10),
		"command_count": strconv.FormatUint(stats.Commands, 10), "reply_count": strconv.FormatUint(stats.Replies, 10),
		"transaction_id": se.transactionIDLocked(),
	}
	text, err := varexpand.Expand(se.u.set.LogoutFormat, func(key byte, long string) (string, bool) {
		switch key {
		case 'i':
			long = "input"
		case 'o':
			long = "output"
		}
		if v, ok := counts[long]; ok {
			return v, true
		}
		return se.u.variable(key, long)
	})
	if err != nil {
		se.log.Error("Failed to expand submission_logout_format=%s: %v", se.u.set.LogoutFormat, err)
	}
	se.log.Info("Disconnected: %s (state=%s) %s", se.reason, se.state, text)
}

// transactionIDLocked is the ID of the latest accepted MAIL (clause S6.7).
func (se *session) transactionIDLocked() string {
	if se.count > 1 {
		return se.id + ":T" + strconv.Itoa(se.count)
	}
	return se.id
}

// setState says what the session is at, for logs.
func (se *session) setState(state, args string) {
	se.mu.Lock()
	se.state, se.args = state, args
	se.mu.Unlock()
	if se.u.set.VerboseProctitle {
		se.w.title()
	}
}

// title is what ps shows of the session.
func (se *session) title() string {
	parts := []string{se.u.name}
	if ip := ipText(se.u.remote); ip != "" {
		parts = append(parts, ip)
	}
	se.mu.Lock()
	defer se.mu.Unlock()
	parts = append(parts, se.state)
	if se.args != "" {
		parts = append(parts, se.args)
	}
	return strings.Join(parts, " ")
}
