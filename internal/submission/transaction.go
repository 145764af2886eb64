package submission

import (
	"strconv"
	"strings"
	"time"

	"dovetail/internal/smtp"
	"dovetail/internal/smtp/client"
	"dovetail/internal/smtp/server"
)

// A transaction is one MAIL and what belongs to it. Commands go to the relay before the
// answers to earlier ones are there, so its state is partly a guess: see settle.
type transaction struct {
	from     smtp.Path
	params   smtp.MailParams
	received time.Time
	conn     *client.Conn // that has it

	// Guarded by session.mu, as the relay's reader changes them.
	state     mailState
	resetting int       // RSETs sent and not answered
	pending   int       // RCPTs sent and not answered
	accepted  int       // recipients
	only      smtp.Path // the first of them
	answered  bool      // by the relay, or by us because it was too big
	id        string

	events *txEvents // set before MAIL is sent
}

type mailState uint8

const (
	mailSent mailState = iota
	mailAccepted
	mailRefused
)

// isOpen says whether something would be lost with the relay. session.mu is held; tx may be
// nil.
func (tx *transaction) isOpen() bool { return tx != nil && tx.state != mailRefused && !tx.answered }

func (se *session) isOpen(tx *transaction) bool {
	se.mu.Lock()
	defer se.mu.Unlock()
	return tx.isOpen()
}

// setTx makes tx the open transaction, nil for none.
func (se *session) setTx(tx *transaction) {
	se.mu.Lock()
	se.tx = tx
	se.mu.Unlock()
}

// A standing is what can be said about the open transaction now.
type standing uint8

const (
	noMail    standing = iota // there is none
	mailOpen                  // there is one, or its MAIL may still be accepted
	undecided                 // an RSET waits for its answer
)

func (se *session) standing() standing {
	se.mu.Lock()
	defer se.mu.Unlock()
	switch tx := se.tx; {
	case tx == nil || tx.state == mailRefused:
		return noMail
	case tx.resetting > 0:
		return undecided
	}
	return mailOpen
}

// settle is standing after waiting for what is undecided. ok is false at the session's end.
func (se *session) settle() (s standing, ok bool) {
	if s = se.standing(); s != undecided {
		return s, true
	}
	if !se.turn() {
		return noMail, false
	}
	return se.standing(), true
}

var (
	mailGiven    = smtp.NewReply(503, "5.5.0", "MAIL already given")
	mailNeeded   = smtp.NewReply(503, "5.5.0", "MAIL needed first")
	noRecipients = smtp.NewReply(554, "5.5.0", "No valid recipients")
	tooMany      = smtp.NewReply(451, "4.5.3", "Too many recipients")
	tooBig       = smtp.NewReply(552, "5.2.3", "Message size exceeds administrative limit")
	tooBigThere  = smtp.NewReply(552, "5.3.4", "Message size exceeds fixed maximum message size")
	chunkFailed  = smtp.NewReply(503, "5.5.0", "Previous data chunk failed, issue RSET first")
	badSequence  = smtp.NewReply(503, "5.5.0", "Bad sequence of commands")
	badArgument  = smtp.NewReply(501, "5.5.4", "Invalid parameters")
	done         = smtp.NewReply(250, "2.0.0", "OK")
)

// send sends a command to the relay. If the connection ended unnoticed between transactions
// it goes to a new one. It is false at the session's end.
func (se *session) send(line []byte, reply func(smtp.Reply)) bool {
	for n := se.connN; se.need(); {
		e := se.conn.Send(line, reply)
		if e == nil {
			return true
		}
		if !se.again(e, n) {
			return false
		}
	}
	return false
}

// again says whether a command that met the end of the connection, e, may be tried with a
// new one: not if this was made for it, after the nth, or the relay would be asked for ever.
// Then the session ends.
func (se *session) again(e *client.Error, n int) bool {
	se.broken(e)
	if se.connN > n && e.Kind != client.Cancelled && !se.over() {
		se.fatal(e, se.link.label, se.link.codes)
	}
	return !se.over()
}

// mail is MAIL (clauses S5.1 to S5.5).
func (se *session) mail(cmd *server.Command) bool {
	if !se.settleMail(cmd) {
		return true
	}
	from, params, refusal := smtp.ParseMail(cmd.Params, se.announced(), se.u.workarounds)
	if refusal.IsZero() && se.u.set.MaxMailSize > 0 && params.Size > se.u.set.MaxMailSize {
		refusal = tooBig
	}
	if !refusal.IsZero() {
		cmd.Reply(refusal)
		return true
	}
	se.setNoDelay()
	se.setState("MAIL FROM", from.String())
	for n := se.connN; se.need(); {
		refusal, e := se.sendMail(cmd, from, params)
		switch {
		case e != nil && se.again(e, n):
			continue
		case e != nil:
			return false
		case !refusal.IsZero():
			cmd.Reply(refusal)
		}
		return true
	}
	return false
}

// sendMail begins a transaction at the relay, which answers cmd unless there is a refusal of
// ours. An error says that the connection ended before.
func (se *session) sendMail(cmd *server.Command, from smtp.Path, params smtp.MailParams) (refusal smtp.Reply, e *client.Error) {
	if refusal, e = se.introduce(); e != nil || !refusal.IsZero() {
		return refusal, e
	}
	caps := se.conn.Caps().Set
	if caps&smtp.CapSize != 0 && params.Size > se.maxSize() {
		return tooBigThere, nil
	}
	if refusal = params.Missing(caps); !refusal.IsZero() {
		return refusal, nil
	}
	if se.takeLeftover() {
		if e = se.conn.Send([]byte("RSET"), func(smtp.Reply) {}); e != nil {
			return refusal, e
		}
	}
	params.Auth, params.HasAuth = se.authParam(caps)
	tx := &transaction{from: from, params: params, received: time.Now(), conn: se.conn}
	codes := se.codes
	se.events.mail(tx)
	line := smtp.AppendMail(make([]byte, 0, 128), from, &params, caps)
	if e = se.conn.Send(line, func(r smtp.Reply) { se.mailAnswered(cmd, tx, r, codes) }); e != nil {
		se.events.end(tx.events, ending{server: aborted, relay: aborted})
		return refusal, e
	}
	se.mu.Lock()
	old := se.tx
	se.tx = tx
	refused := old != nil && old.state == mailRefused
	se.mu.Unlock()
	if refused {
		se.events.end(old.events, ending{server: aborted, relay: aborted})
	}
	return refusal, nil
}

// takeLeftover says whether an RSET has to be sent before MAIL, which the caller does then.
func (se *session) takeLeftover() bool {
	se.mu.Lock()
	defer se.mu.Unlock()
	was := se.leftover != nil
	se.leftover = nil
	return was
}

// settleMail says whether MAIL may go on: there is no transaction. Otherwise cmd is answered.
func (se *session) settleMail(cmd *server.Command) bool {
	for {
		se.mu.Lock()
		tx := se.tx
		free := tx == nil || tx.state == mailRefused || tx.resetting > 0
		waits := tx != nil && tx.state == mailSent
		se.mu.Unlock()
		switch {
		case free:
			return true
		case !waits:
			cmd.Reply(mailGiven)
			return false
		case !se.turn():
			return false
		}
	}
}

// mailAnswered is called by the relay's reader.
func (se *session) mailAnswered(cmd *server.Command, tx *transaction, r smtp.Reply, codes bool) {
	fallback, id := "", ""
	se.mu.Lock()
	if r.Class() == 2 {
		fallback = "2.1.0"
		tx.state = mailAccepted
		se.count++
		id = se.transactionIDLocked()
		tx.id = id
	} else {
		tx.state = mailRefused
	}
	se.mu.Unlock()
	if id != "" {
		se.events.accepted(tx.events, id)
	}
	cmd.Reply(smtp.Forward(r, codes, fallback))
}

// authParam is the AUTH= that a relay with AUTH gets: the user, whatever the client said
// (clause S5.5).
func (se *session) authParam(caps smtp.Cap) (string, bool) {
	if caps&smtp.CapAuth == 0 {
		return "", false
	}
	p, err := smtp.ParseUsername(se.u.name)
	if err != nil {
		se.log.Warning("Username `%s' is not a valid SMTP address: %v", strings.ToValidUTF8(se.u.name, "?"), err)
		return "", false
	}
	return p.String(), true
}

// rcpt is RCPT (clauses S5.6 to S5.9).
func (se *session) rcpt(cmd *server.Command) bool {
	s, ok := se.settle()
	if !ok {
		return false
	}
	if s == noMail {
		cmd.Reply(mailNeeded)
		return true
	}
	tx := se.tx
	if full, ok := se.full(tx); !ok {
		return false
	} else if full {
		cmd.Reply(tooMany)
		return true
	}
	to, params, refusal := smtp.ParseRcpt(cmd.Params, se.announced(), se.u.workarounds)
	switch {
	case !refusal.IsZero():
	case !se.live() || se.conn != tx.conn:
		if se.isOpen(tx) {
			return false // the end of its connection is the session's
		}
		refusal = chunkFailed
	case se.msg != nil && se.msg.inData():
		refusal = badSequence // the relay is in the middle of the message
	default:
		refusal = params.Missing(se.conn.Caps().Set)
	}
	if !refusal.IsZero() {
		cmd.Reply(refusal)
		return true
	}
	se.setState("RCPT TO", to.String())
	se.mu.Lock()
	tx.pending++
	se.mu.Unlock()
	codes := se.codes
	line := smtp.AppendRcpt(make([]byte, 0, 128), to, &params, se.conn.Caps().Set)
	se.events.rcpt(tx.events, rcptEvent{to, params, cmd.Began})
	return se.send(line, func(r smtp.Reply) { se.rcptAnswered(cmd, tx, to, r, codes) })
}

// full says whether the transaction has as many recipients as submission_max_recipients
// allows. Those that are not answered yet count as long as it may come out so; at the
// limit their answers are awaited, so that the relay never gets one too many.
func (se *session) full(tx *transaction) (full, ok bool) {
	limit := int(se.u.set.MaxRecipients)
	if limit == 0 {
		return false, true
	}
	for {
		se.mu.Lock()
		accepted, pending := tx.accepted, tx.pending
		se.mu.Unlock()
		switch {
		case accepted >= limit:
			return true, true
		case accepted+pending < limit:
			return false, true
		case !se.turn():
			return false, false
		}
	}
}

// rcptAnswered is called by the relay's reader.
func (se *session) rcptAnswered(cmd *server.Command, tx *transaction, to smtp.Path, r smtp.Reply, codes bool) {
	se.mu.Lock()
	tx.pending--
	refused := tx.state == mailRefused
	if r.Class() == 2 && !refused {
		if tx.accepted == 0 {
			tx.only = to
		}
		tx.accepted++
	}
	se.mu.Unlock()
	answer := r
	switch {
	case refused:
		answer = mailNeeded
	case r.Class() == 2:
		answer = smtp.Forward(r, codes, "")
	default:
		answer = smtp.Forward(r, codes, "").WithPath(to)
	}
	if r.Class() != 2 {
		se.events.refused(tx.events, cmd.Began, r, answer)
	}
	cmd.Reply(answer)
}

// rset is RSET (clause S5.11).
func (se *session) rset(cmd *server.Command) bool {
	if cmd.Params != "" {
		cmd.Reply(badArgument)
		return true
	}
	if se.msg != nil && se.msg.inData() {
		// The relay would take an RSET for data.
		se.dropRelay()
		se.forget()
		cmd.Reply(done)
		return true
	}
	if !se.need() {
		return false
	}
	se.mu.Lock()
	tx := se.tx
	if tx != nil {
		tx.resetting++
	}
	se.leftover = nil
	se.mu.Unlock()
	codes := se.codes
	sent := se.send([]byte("RSET"), func(r smtp.Reply) {
		se.mu.Lock()
		ok := r.Class() == 2
		if tx != nil {
			tx.resetting--
			if ok {
				tx.state = mailRefused
			}
		}
		if ok {
			se.state, se.args = "READY", ""
			se.chunksReset = true // the owner forgets them
		}
		se.mu.Unlock()
		if ok && tx != nil {
			se.events.end(tx.events, ending{server: reset, relay: reset, reply: r})
		}
		cmd.Reply(smtp.Forward(r, codes, ""))
	})
	return sent
}

// forget drops the transaction and what chunks brought.
func (se *session) forget() {
	if se.tx != nil {
		se.events.end(se.tx.events, ending{server: aborted, relay: aborted})
	}
	se.setTx(nil)
	se.dropMessage()
	se.chunks, se.failed = 0, false
	se.setState("READY", "")
}

// over says whether the session has ended.
func (se *session) over() bool {
	se.mu.Lock()
	defer se.mu.Unlock()
	return se.ended || se.failing
}

// announced are the extensions whose parameters the client may use (clause S3.4).
func (se *session) announced() smtp.Cap {
	caps := se.base
	if both := smtp.CapBinaryMIME | smtp.CapChunking; caps&both != both {
		caps &^= smtp.CapBinaryMIME
	}
	return caps | smtp.CapAuth | smtp.CapPipelining | smtp.CapSize | smtp.CapEnhancedStatusCodes | smtp.CapChunking
}

// maxSize is the SIZE that is announced (clause S3.7).
func (se *session) maxSize() uint64 {
	limit := ^uint64(0)
	if n := se.u.set.MaxMailSize; n > 0 {
		limit = n
	}
	if se.relaySize > extraSize {
		limit = min(limit, se.relaySize-extraSize)
	}
	return limit
}

// extraSize is what a message may grow by on its way to the relay.
const extraSize = 1024

func portText(port uint16) string { return strconv.Itoa(int(port)) }
