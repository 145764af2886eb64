package submission

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"dovetail/internal/dovecot/stats"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/client"
	"dovetail/internal/smtp/server"
)

// events tell the stats service of one session, with Dovecot's words. Any goroutine may use
// them; the zero value tells nobody. They hear of the client's commands as a server.Watcher,
// of the relay's as the client.Watcher relayEvents, and of transactions from the session.
type events struct {
	stats *stats.Client
	began time.Time

	mu     sync.Mutex
	server stats.Scope  // guarded by mu: the dialogue with the client
	octets server.Stats // guarded by mu: at the end
	relay  *relayEvents // guarded by mu: of the last connection
	open   []*txEvents  // guarded by mu

	// Set by begin.
	remote netip.AddrPort
	id     string
}

// begin is called before anything happens.
func (e *events) begin(c *stats.Client, id string, remote netip.AddrPort) {
	if c == nil {
		return
	}
	e.stats, e.began, e.id, e.remote = c, time.Now(), id, remote
	e.server.Begin(c, nil, stats.SMTPServer, e.serverFields)
	e.server.Event(stats.ClientConnected).Send(e.began)
}

// serverFields is called with mu held.
func (e *events) serverFields(f *stats.Fields) {
	f.Str("protocol", "smtp")
	f.Addr("remote_ip", e.remote.Addr())
	f.Int("remote_port", int64(e.remote.Port()))
	f.Str("connection_id", e.id)
	f.Str("session", e.id)
	if e.octets.In > 0 {
		f.Int("bytes_in", int64(e.octets.In))
	}
	if e.octets.Out > 0 {
		f.Int("bytes_out", int64(e.octets.Out))
	}
}

// Started implements server.Watcher.
func (e *events) Started(cmd *server.Command) {
	if !e.stats.Wants(stats.ServerCommandStarted) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.server.Event(stats.ServerCommandStarted).Command(cmd.Verb, cmd.Params, commands[cmd.Name] != nil).Send(cmd.Began)
}

// Finished implements server.Watcher.
func (e *events) Finished(cmd *server.Command, r smtp.Reply) {
	if !e.stats.Wants(stats.ServerCommandFinished) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.server.Event(stats.ServerCommandFinished).Reply(r).Command(cmd.Verb, cmd.Params, commands[cmd.Name] != nil).Send(cmd.Began)
}

// over tells of the end of the session.
func (e *events) over(octets server.Stats) {
	if e.stats == nil {
		return
	}
	e.endAll(ending{server: aborted, relay: aborted})
	e.mu.Lock()
	defer e.mu.Unlock()
	e.octets = octets
	e.server.Changed()
	e.server.Event(stats.ClientDisconnected).Str("reason", "Connection closed").Send(e.began)
	e.server.End()
}

// relayEvents tell of one connection to a relay; they implement client.Watcher.
type relayEvents struct {
	e     *events
	host  string
	began time.Time

	// Guarded by e.mu.
	scope  stats.Scope
	remote netip.AddrPort
	codes  bool // it has enhanced status codes
	over   bool
	octets [2]uint64 // read and written, at the end
}

// towards returns who hears of the next connection, to host.
func (e *events) towards(host string) client.Watcher {
	if e.stats == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.relay = &relayEvents{e: e, host: host}
	return e.relay
}

// fields is called with mu held.
func (r *relayEvents) fields(f *stats.Fields) {
	f.Str("protocol", "smtp")
	f.Str("host", r.host)
	f.Addr("dest_ip", r.remote.Addr())
	f.Int("dest_port", int64(r.remote.Port()))
	if r.octets[0] > 0 {
		f.Int("bytes_in", int64(r.octets[0]))
	}
	if r.octets[1] > 0 {
		f.Int("bytes_out", int64(r.octets[1]))
	}
}

// Connected implements client.Watcher.
func (r *relayEvents) Connected(_, remote net.Addr) {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	r.began = time.Now()
	if a, ok := remote.(*net.TCPAddr); ok {
		r.remote = a.AddrPort()
	}
	r.scope.Begin(r.e.stats, nil, stats.SMTPClient, r.fields)
	r.scope.Event(stats.RelayConnected).Send(r.began)
}

// Disconnected implements client.Watcher.
func (r *relayEvents) Disconnected(in, out uint64) {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	r.octets = [2]uint64{in, out}
	r.scope.Changed()
	r.scope.Event(stats.RelayDisconnected).Str("reason", "Connection closed").Send(r.began)
	r.over = true
	r.endLocked()
}

// endLocked ends the scope when there is nothing more to tell.
func (r *relayEvents) endLocked() {
	if r.over && !slices.ContainsFunc(r.e.open, func(t *txEvents) bool { return t.conn == r }) {
		r.scope.End()
	}
}

// Sent implements client.Watcher.
func (r *relayEvents) Sent(verb string) {
	if !r.e.stats.Wants(stats.ClientCommandStarted) && !r.e.stats.Wants(stats.ClientCommandSent) {
		return
	}
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	now := time.Now()
	named(r.scope.Event(stats.ClientCommandStarted), verb).Send(now)
	named(r.scope.Event(stats.ClientCommandSent), verb).Send(now)
}

// Finished implements client.Watcher.
func (r *relayEvents) Finished(verb string, began time.Time, reply smtp.Reply, e *client.Error) {
	if !r.e.stats.Wants(stats.ClientCommandFinished) {
		return
	}
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	ev := r.scope.Event(stats.ClientCommandFinished)
	if e != nil {
		r.failed(ev, e)
	} else {
		r.status(ev, reply)
	}
	named(ev, verb).Send(began)
}

// named adds the command's name; what a DATA is followed by has none.
func named(ev *stats.Event, verb string) *stats.Event {
	if verb == "" {
		return ev
	}
	return ev.Str("cmd_name", verb)
}

// hasCodes says whether the relay announced enhanced status codes.
func (e *events) hasCodes(codes bool) {
	if e.stats == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.relay.codes = codes
}

// status adds a reply of the relay.
func (r *relayEvents) status(ev *stats.Event, reply smtp.Reply) {
	if r.codes {
		reply = reply.Split()
	}
	ev.Status(reply.Code, reply.Enhanced, "")
	if reply.Class() != 2 {
		ev.Str("error", strings.Join(reply.Text, " "))
	}
}

// failed adds what Dovecot has instead of a reply, with the numbers of its smtp-client.h.
func (r *relayEvents) failed(ev *stats.Event, e *client.Error) {
	switch {
	case !e.Reply.IsZero():
		r.status(ev, e.Reply)
	case e.Kind == client.BadReply:
		ev.Status(9005, "", e.Log)
	case e.Kind == client.TimedOut:
		ev.Status(9007, "", "Command timed out")
	case e.Kind == client.Cancelled:
		ev.Status(stats.Aborted, "", "Aborted")
	default:
		ev.Status(9004, "", lostText+" unexpectedly")
	}
}

const lostText = "Lost connection to remote server: Remote closed connection"

// txEvents tell of one transaction, on both sides. They are nil if nobody wants that. All
// fields are guarded by events.mu.
type txEvents struct {
	tx     *transaction
	conn   *relayEvents
	began  time.Time
	server stats.Scope // begun when the relay has accepted MAIL
	relay  stats.Scope
	id     string
	rcpts  []rcptEvent // not refused
	denied int

	hasData bool   // there is a message ...
	size    uint64 // ... of so many octets of the client
	sent    uint64 // ... and so many for the relay
}

type rcptEvent struct {
	to     smtp.Path
	params smtp.RcptParams
	began  time.Time
}

var ofTransactions = []stats.Name{
	stats.ServerTransactionStarted, stats.ServerRcptFinished, stats.ServerTransactionFinished,
	stats.ClientTransactionStarted, stats.ClientRcptFinished, stats.ClientTransactionFinished,
	stats.ClientCommandStarted, stats.ClientCommandFinished,
}

// mail begins a transaction that the relay has not answered yet. Dovecot then has a command
// that is never sent, which keeps the place of the first RCPT.
func (e *events) mail(tx *transaction) {
	if e.stats == nil || !e.stats.WantsAny(ofTransactions) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t := &txEvents{tx: tx, conn: e.relay, began: time.Now()}
	tx.events = t
	e.open = append(e.open, t)
	t.relay.Begin(e.stats, &e.relay.scope, stats.ClientTransaction, func(f *stats.Fields) {
		mailFields(f, tx)
		if t.hasData {
			f.Int("data_sent", int64(t.sent))
		}
	})
	t.relay.Event(stats.ClientTransactionStarted).Send(t.began)
	e.relay.scope.Event(stats.ClientCommandStarted).Send(t.began)
	e.relay.scope.Event(stats.ClientCommandFinished).Status(stats.Aborted, "", "Aborted").Send(t.began)
}

// accepted goes on with a transaction that the relay has accepted.
func (e *events) accepted(t *txEvents, id string) {
	if t == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t.id = id
	t.server.Begin(e.stats, &e.server, stats.ServerTransaction, func(f *stats.Fields) {
		f.Str("transaction_id", t.id)
		f.Str("session", t.id)
		mailFields(f, t.tx)
		if t.hasData {
			f.Int("data_size", int64(t.size))
		}
	})
	t.server.Event(stats.ServerTransactionStarted).Send(t.began)
}

func mailFields(f *stats.Fields, tx *transaction) {
	from, p := tx.from.String(), &tx.params
	f.Str("mail_from", from)
	f.Str("mail_from_raw", from)
	if p.HasAuth {
		f.Str("mail_param_auth", p.Auth)
	}
	if p.Body != 0 {
		f.Str("mail_param_body", p.Body.String())
	}
	if p.HasEnvid {
		f.Str("mail_param_envid", p.Envid)
	}
	if p.Ret != "" {
		f.Str("mail_param_ret", p.Ret)
	}
	if p.HasSize {
		f.Int("mail_param_size", int64(p.Size))
	}
}

func (r *rcptEvent) fields(f *stats.Fields) {
	f.Str("rcpt_to", r.to.String())
	if n := r.params.Notify; n != 0 {
		var words []string
		for i, word := range []string{"NEVER", "SUCCESS", "FAILURE", "DELAY"} {
			if n&(1<<i) != 0 {
				words = append(words, word)
			}
		}
		f.Str("rcpt_param_notify", strings.Join(words, ","))
	}
	if r.params.OrcptType != "" {
		f.Str("rcpt_param_orcpt", r.params.Orcpt)
		f.Str("rcpt_param_orcpt_type", r.params.OrcptType)
	}
}

// rcpt begins a recipient that the relay has not answered yet.
func (e *events) rcpt(t *txEvents, r rcptEvent) {
	if t == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t.rcpts = append(t.rcpts, r)
}

// refused ends a recipient that the relay refused (with reply). answer is what the client
// hears.
func (e *events) refused(t *txEvents, began time.Time, reply, answer smtp.Reply) {
	if t == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range t.rcpts {
		r := t.rcpts[i]
		if r.began != began {
			continue
		}
		t.rcpts = append(t.rcpts[:i], t.rcpts[i+1:]...)
		t.denied++
		ev := t.relay.Event(stats.ClientRcptFinished)
		t.conn.status(ev, reply)
		ev.With(r.fields).Send(r.began)
		t.server.Event(stats.ServerRcptFinished).Reply(answer).With(r.fields).Send(r.began)
		return
	}
}

// data says how many octets a message has: those of the client, and those for the relay.
func (e *events) data(t *txEvents, size, sent uint64) {
	if t == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t.size, t.sent, t.hasData = size, sent, true
	t.server.Changed()
	t.relay.Changed()
}

// noData tells of a DATA that the relay refused: Dovecot has a command for the data then,
// too.
func (e *events) noData(t *txEvents, reply smtp.Reply) {
	if t == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	ev := t.conn.scope.Event(stats.ClientCommandFinished)
	t.conn.status(ev, reply)
	ev.Send(t.began)
}

// A fate is how a transaction ends for one side.
type fate uint8

const (
	answered fate = iota // with a reply to the message
	reset
	aborted
	quit // with the QUIT that the relay got
	lost // with the relay's connection
)

// An ending is how a transaction ends for both. reply is the relay's, to the message or the
// RSET; answer is what the client hears; failure is why the connection was lost.
type ending struct {
	server, relay fate
	reply, answer smtp.Reply
	failure       *client.Error
}

// end ends a transaction, once.
func (e *events) end(t *txEvents, how ending) {
	if t == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.endLocked(t, &how)
}

// endAll ends all transactions.
func (e *events) endAll(how ending) {
	if e.stats == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.open) > 0 {
		e.endLocked(e.open[0], &how)
	}
}

func (e *events) endLocked(t *txEvents, how *ending) {
	at := slices.Index(e.open, t)
	if at < 0 {
		return // it has ended
	}
	e.open = slices.Delete(e.open, at, at+1)
	t.relayEndedLocked(how)
	t.serverEndedLocked(how)
	t.relay.End()
	t.server.End()
	t.conn.endLocked()
}

func (t *txEvents) relayEndedLocked(how *ending) {
	status := func(ev *stats.Event) {
		switch how.relay {
		case answered:
			t.conn.status(ev, how.reply)
		case lost:
			t.conn.failed(ev, how.failure)
		default:
			ev.Status(stats.Aborted, "", "Aborted")
		}
	}
	for i := range t.rcpts {
		ev := t.relay.Event(stats.ClientRcptFinished)
		status(ev)
		ev.With(t.rcpts[i].fields).Send(t.rcpts[i].began)
	}
	if how.relay == lost && !t.hasData {
		return
	}
	n := stats.Recipients{All: len(t.rcpts) + t.denied, Denied: t.denied, Failed: t.denied}
	switch {
	case how.relay == answered && how.reply.Class() == 2:
		n.Succeeded = len(t.rcpts)
	case how.relay == answered, how.relay == lost:
		n.Failed = n.All
	}
	ev := t.relay.Event(stats.ClientTransactionFinished).Recipients(n)
	switch how.relay {
	case reset:
		t.conn.status(ev, how.reply)
		ev.Str("is_reset", "yes")
	case lost:
		ev.Status(stats.Aborted, "", "Aborted")
	case quit:
		ev.Status(9004, "", lostText)
	default:
		status(ev)
	}
	ev.Send(t.began)
}

func (t *txEvents) serverEndedLocked(how *ending) {
	n := stats.Recipients{All: len(t.rcpts) + t.denied, Denied: t.denied, Failed: t.denied}
	text := "Aborted"
	switch {
	case how.server == answered && how.answer.Class() == 2:
		n.Succeeded = len(t.rcpts)
	case how.server == answered:
		n.Failed = n.All
	case how.server == reset:
		text = "Reset"
		fallthrough
	default:
		n.Aborted = len(t.rcpts)
	}
	status := func(ev *stats.Event) *stats.Event {
		if how.server == answered {
			return ev.Reply(how.answer)
		}
		return ev.Status(stats.Aborted, "9.0.0", text)
	}
	for i := range t.rcpts {
		status(t.server.Event(stats.ServerRcptFinished)).With(t.rcpts[i].fields).Send(t.rcpts[i].began)
	}
	ev := t.server.Event(stats.ServerTransactionFinished).Recipients(n)
	if how.server == reset {
		ev.Str("is_reset", "yes").Send(t.began)
	} else {
		status(ev).Send(t.began)
	}
}
