package submission

import (
	"io"
	"strings"
	"sync"

	"dovetail/internal/smtp"
	"dovetail/internal/smtp/client"
	"dovetail/internal/smtp/server"
)

const (
	// held is how much of a message is kept until it is known whether that is all: then it
	// goes to the relay whole, otherwise it is streamed (clause S6.8).
	held = 128 << 10

	inputSize = 64 << 10 // what one read of message data takes at most

	// skipLimit is how far a message may go beyond the limit until the session ends.
	skipLimit = 64 << 20

	maxHeader = 16 << 10 // of the Received header: names of up to a command line
)

// bodyBuffers hold what is to be sent: room for a BDAT line, the header, what is held, and
// one more piece of input, which can double.
var bodyBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, client.ChunkRoom+maxHeader+held+2*inputSize+2048)
	return &b
}}

// A message is one on its way to the relay. The owner feeds it; the relay's reader brings the
// answer, which may come before the end if it is a refusal.
type message struct {
	se     *session
	tx     *transaction
	chunks bool   // sent by BDAT, otherwise by DATA
	binary bool   // not a line changes
	size   uint64 // octets of the client
	header int    // octets that go before them

	buf     *[]byte // ChunkRoom octets, then what is not sent yet
	started bool    // the relay has a part of it
	norm    smtp.Normaliser
	stuff   smtp.DotStuffer

	// Guarded by se.mu.
	answer smtp.Reply      // the relay's, once it came
	cmd    *server.Command // that ends the message, once it came
	codes  bool
	out    uint64 // octets for the relay
}

// newMessage begins a message of the open transaction.
func (se *session) newMessage() *message {
	m := &message{
		se: se, tx: se.tx, codes: se.codes,
		chunks: se.conn.Caps().Has(smtp.CapChunking),
		binary: se.tx.params.Body == smtp.BodyBinaryMIME,
		buf:    bodyBuffers.Get().(*[]byte),
	}
	b := (*m.buf)[:client.ChunkRoom]
	se.mu.Lock()
	accepted, only, id := m.tx.accepted, m.tx.only, m.tx.id
	se.mu.Unlock()
	helo := se.helo
	if helo == "" && !se.introduced {
		helo = se.xhelo
	}
	r := smtp.Received{
		Helo: helo, IP: se.u.remote.Addr(), Host: se.u.hostname, Ext: se.esmtp, TLS: se.tls, ID: id,
		From: m.tx.from, Date: m.tx.received,
	}
	if accepted == 1 {
		r.For = &only
	}
	*m.buf = r.Append(b)
	m.header = len(*m.buf) - client.ChunkRoom
	return m
}

// dropMessage lets go of what chunks brought.
func (se *session) dropMessage() {
	se.burl.Release()
	if se.msg != nil {
		se.msg.release()
		se.msg = nil
	}
}

func (m *message) release() {
	if m.buf != nil {
		bodyBuffers.Put(m.buf)
		m.buf = nil
	}
}

// inData says whether the relay is in the middle of a DATA.
func (m *message) inData() bool { return m.started && !m.chunks }

// refused returns the relay's answer if it came already: nothing more need be sent.
func (m *message) refused() bool {
	m.se.mu.Lock()
	defer m.se.mu.Unlock()
	return !m.answer.IsZero()
}

// add takes a piece of the client's data, at most inputSize octets, and sends what is too
// much to be held. It is false at the session's end.
func (m *message) add(content []byte) bool {
	if m.buf == nil || len(content) == 0 {
		return true
	}
	if len(*m.buf) >= client.ChunkRoom+held && !m.send() {
		return false
	}
	if m.buf == nil {
		return true
	}
	switch {
	case m.binary && m.chunks:
		*m.buf = append(*m.buf, content...)
	case m.chunks:
		*m.buf = m.norm.Append(*m.buf, content)
	default:
		*m.buf = m.stuff.Append(*m.buf, content)
	}
	return true
}

// send sends what is there, knowing that more follows.
func (m *message) send() bool {
	se := m.se
	if m.refused() {
		m.giveUp()
		return true
	}
	done := se.waiting()
	defer done()
	conn := se.conn
	m.goes()
	if m.chunks {
		if !m.started {
			m.started = true
			m.leave() // until it is accepted, as any chunk may be refused, and the rest of them then (RFC 3030 section 2)
		}
		if e := conn.Chunk(*m.buf, false, m.chunkAnswered); !m.sent(false, e) {
			return false
		}
		if m.buf == nil {
			return true
		}
	} else {
		if !m.started && !m.startData(conn) {
			return false
		}
		if m.buf == nil {
			return true
		}
		refused, e := conn.Write((*m.buf)[client.ChunkRoom:])
		if !m.sent(refused, e) {
			return false
		}
		if m.buf == nil {
			return true
		}
	}
	*m.buf = (*m.buf)[:client.ChunkRoom]
	return true
}

// goes counts what is going to be sent.
func (m *message) goes() {
	m.se.mu.Lock()
	if m.chunks {
		m.out += uint64(len(*m.buf) - client.ChunkRoom)
	} else {
		m.out = m.size + uint64(m.header) // without stuffing
	}
	out := m.out
	m.se.mu.Unlock()
	m.se.events.data(m.tx.events, m.size, out)
}

// sent looks at what Write, EndData and Chunk returned. An error does not matter if the
// relay has answered the message before; refused without an answer means that the
// connection has just ended, of which its reader may not yet have told. It is false at the
// session's end.
func (m *message) sent(refused bool, e *client.Error) bool {
	switch {
	case e != nil && !m.refused():
		return m.se.broken(e)
	case refused || e != nil:
		m.giveUp()
	}
	return true
}

// startData says DATA and waits for 354. Any other answer is the answer to the message.
func (m *message) startData(conn *client.Conn) bool {
	r, e := conn.Data(m.dataRefused, m.relayAnswered)
	switch {
	case e != nil:
		return m.sent(false, e)
	case r.Code == 354:
		m.started = true
		return true
	case r.Class() == 2:
		m.se.dropRelay()
	}
	m.release()
	return true
}

// dataRefused hears a reply to DATA that is no 354. By the relay's reader.
func (m *message) dataRefused(r smtp.Reply) {
	if r.Class() == 2 { // it has nothing, and yet takes it for delivered (clause S13.13)
		r = smtp.NewReply(451, "4.4.0", "Unexpected reply from relay server: "+r.Split().String())
	}
	m.leave()
	m.se.events.noData(m.tx.events, r)
	m.relayAnswered(r)
}

// leave notes that the relay may go on with the transaction: an RSET has to come before the
// next MAIL.
func (m *message) leave() {
	m.se.mu.Lock()
	m.se.leftover = m
	m.se.mu.Unlock()
}

// giveUp leaves a message that the relay has refused in the middle, or that we refuse, and
// brings the relay into a state where the next one can begin.
func (m *message) giveUp() {
	m.release()
	switch {
	case m.inData():
		m.se.dropRelay() // only the end of data would end it
	default:
		m.leave()
	}
	m.started = false
	m.se.mu.Lock()
	m.tx.answered = true
	m.se.mu.Unlock()
}

// end sends the rest. cmd, the DATA or the last BDAT, is answered when the relay has
// answered. The transaction is over. It is false at the session's end.
func (m *message) end(cmd *server.Command) bool {
	se := m.se
	se.mu.Lock()
	se.finals++
	m.cmd = cmd
	se.mu.Unlock()
	ok := m.sendLast()
	if ok {
		m.release()
		se.setTx(nil)
		se.chunks, se.failed = 0, false
		m.conclude()
	}
	return ok
}

func (m *message) sendLast() bool {
	se := m.se
	if m.refused() && m.buf != nil {
		m.giveUp()
	}
	if m.buf == nil {
		return true
	}
	conn := se.conn
	if m.chunks {
		m.goes()
		return m.sent(false, conn.Chunk(*m.buf, true, m.relayAnswered))
	}
	if !m.started {
		done := se.waiting()
		ok := m.startData(conn)
		done()
		if !ok {
			return false
		}
		if m.buf == nil {
			return true
		}
	}
	*m.buf = m.stuff.Finish(*m.buf)
	m.goes()
	refused, e := conn.EndData((*m.buf)[client.ChunkRoom:])
	return m.sent(refused, e)
}

// chunkAnswered hears of a chunk that is not the last one. By the relay's reader.
func (m *message) chunkAnswered(r smtp.Reply) {
	if r.Class() != 2 {
		m.relayAnswered(r)
	}
}

// relayAnswered hears the answer to the message; the first one counts. By the relay's
// reader, or the owner.
func (m *message) relayAnswered(r smtp.Reply) {
	m.se.mu.Lock()
	if m.answer.IsZero() {
		m.answer = r
	}
	m.tx.answered = true
	if r.Class() == 2 && m.se.leftover == m {
		m.se.leftover = nil
	}
	m.se.mu.Unlock()
	m.conclude()
}

// conclude answers the client when both the end of the message and the relay's answer are
// there, and logs what became of it (clause S10.7).
func (m *message) conclude() {
	se := m.se
	se.mu.Lock()
	cmd, r, out := m.cmd, m.answer, m.out
	if cmd == nil || r.IsZero() {
		se.mu.Unlock()
		return
	}
	m.cmd = nil // once
	if se.state == "DATA" {
		se.state = "READY"
	}
	se.mu.Unlock()
	defer func() { // who waits for this may end the session, and with it what is not answered
		se.mu.Lock()
		se.finals--
		se.cond.Broadcast()
		se.mu.Unlock()
	}()
	answer := smtp.Forward(r, m.codes, "")
	m.log(answer)
	se.events.data(m.tx.events, m.size, out)
	se.events.end(m.tx.events, ending{reply: r, answer: answer})
	cmd.Reply(answer)
}

const maxLogged = 128 // octets of the relay's reply in a line

func (m *message) log(r smtp.Reply) {
	m.se.mu.Lock()
	nrcpt := m.tx.accepted
	m.se.mu.Unlock()
	if r.Class() == 2 {
		m.se.log.Info("Successfully relayed message: from=<%s>, size=%d, id=%s, nrcpt=%d, reply=`%s'",
			m.tx.from, m.size, m.tx.id, nrcpt, r.OneLine(maxLogged))
	} else {
		m.se.log.Info("Failed to relay message: from=<%s>, size=%d, nrcpt=%d, reply=`%s'",
			m.tx.from, m.size, nrcpt, r.OneLine(maxLogged))
	}
}

// over says whether the message has become too big.
func (m *message) over() bool {
	limit := m.se.u.set.MaxMailSize
	return limit > 0 && m.size > limit
}

// refuse answers cmd instead of the relay, because the message is too big.
func (m *message) refuse() {
	if m.started || m.buf != nil {
		m.giveUp()
	}
}

// mayHaveData says whether a message may begin or go on, as all earlier commands left it.
// Otherwise it returns the refusal.
func (se *session) mayHaveData(chunk bool) smtp.Reply {
	if se.chunks > 0 && se.failed {
		return chunkFailed
	}
	if se.standing() != mailOpen {
		return mailNeeded
	}
	se.mu.Lock()
	accepted := se.tx.accepted
	se.mu.Unlock()
	switch {
	case !chunk && se.tx.params.Body == smtp.BodyBinaryMIME:
		return smtp.NewReply(503, "5.5.0", "DATA cannot be used with BINARYMIME")
	case accepted == 0:
		return noRecipients
	case !chunk && se.chunks > 0:
		return badSequence
	}
	return smtp.Reply{}
}

// data is DATA (clauses S6.1, S6.2).
func (se *session) data(cmd *server.Command) bool {
	if cmd.Params != "" {
		cmd.Reply(badArgument)
		return true
	}
	if !se.quietTurn() {
		return false
	}
	se.noticeReset()
	if refusal := se.mayHaveData(false); !refusal.IsZero() {
		cmd.Reply(refusal)
		return true
	}
	if !se.live() {
		return false
	}
	se.setState("DATA", "")
	cmd.Interim(smtp.NewReply(354, "", "OK"))
	m := se.newMessage()
	defer m.release()
	var d smtp.DataDecoder
	for !d.Done() {
		in, err := se.c.Input(inputSize)
		if err != nil {
			se.lostInside(m, err)
			return false
		}
		in = in[:min(len(in), inputSize)]
		n := len(in)
		for rest := in; len(rest) > 0; {
			var content []byte
			var done bool
			content, rest, done = d.Next(rest)
			m.size += uint64(len(content))
			if m.over() {
				m.refuse()
			} else if !m.add(content) {
				return false
			}
			if done {
				n -= len(rest)
				break
			}
		}
		se.c.Discard(n)
		if m.over() && m.size > se.u.set.MaxMailSize+skipLimit {
			se.tooLong()
			return false
		}
	}
	if m.over() {
		se.events.end(m.tx.events, ending{relay: aborted, answer: tooBig})
		se.setTx(nil)
		se.setState("READY", "")
		cmd.Reply(tooBig)
		return true
	}
	return m.end(cmd)
}

// tooLong ends the session of a client that goes on and on.
func (se *session) tooLong() {
	se.end("Command data size exceeds absolute limit", tooBig)
}

// lostInside ends the session of a client that left in the middle of a message, of which the
// relay must not take a part for the whole.
func (se *session) lostInside(m *message, err error) {
	if m.inData() {
		se.dropRelay()
	}
	m.release()
	se.setTx(nil)
	se.lost(err)
}

// bdat is BDAT (clauses S6.3, S6.4).
func (se *session) bdat(cmd *server.Command) bool {
	size, known, last, refusal := parseBdat(cmd.Params)
	if !se.quietTurn() {
		return false
	}
	se.noticeReset()
	se.chunks++
	if refusal.IsZero() {
		refusal = se.mayHaveData(true)
	}
	limit := se.u.set.MaxMailSize
	if refusal.IsZero() && limit > 0 && (size > limit || se.msg != nil && se.msg.size+size > limit) {
		refusal = tooBig
		if se.msg != nil {
			se.msg.refuse()
		}
	}
	if !refusal.IsZero() {
		se.failed = true
		if known && (size > maxSize || limit > 0 && size > limit+skipLimit) {
			se.tooLong()
			return false
		}
		if known && !se.eachInput(size, func([]byte) bool { return true }) {
			return false
		}
		cmd.Reply(refusal)
		return true
	}
	if !se.live() {
		return false
	}
	if se.msg == nil {
		se.msg = se.newMessage()
	}
	se.setState("DATA", "")
	m := se.msg
	if !se.eachInput(size, func(b []byte) bool {
		m.size += uint64(len(b))
		return m.add(b)
	}) {
		return false
	}
	return se.chunkAdded(cmd, size, last)
}

// chunkAdded answers a chunk, of which the message has all size octets, or lets the relay
// answer if it is the last one. It is false at the session's end.
func (se *session) chunkAdded(cmd *server.Command, size uint64, last bool) bool {
	m := se.msg
	if last {
		se.msg = nil
		defer se.burl.Release()
		return m.end(cmd)
	}
	if m.refused() {
		// The relay will not have it, so the client need not send the rest.
		m.giveUp()
		se.failed = true
		se.mu.Lock()
		r := smtp.Forward(m.answer, m.codes, "")
		se.mu.Unlock()
		m.log(r)
		cmd.Reply(r)
		return true
	}
	cmd.Reply(smtp.NewReply(250, "2.0.0", "Added "+utoa(size)+" octets"))
	return true
}

// parseBdat reads the arguments of BDAT. known says whether the size is, so that the octets
// can be skipped; one of more than maxSize is no less known for its number of digits.
func parseBdat(args string) (size uint64, known, last bool, refusal smtp.Reply) {
	words := strings.Split(args, " ")
	size, known = parseSize(words[0])
	switch {
	case !known && isDigits(words[0]):
		size, known, refusal = maxSize+1, true, tooBig
	case !known:
		refusal = smtp.NewReply(501, "5.5.4", "Invalid chunk size parameter")
	case len(words) > 2:
		refusal = badArgument
	case len(words) == 2 && !strings.EqualFold(words[1], "LAST"):
		refusal = smtp.NewReply(501, "5.5.4", "Invalid end marker parameter")
	default:
		last = len(words) == 2
	}
	return size, known, last, refusal
}

// eachInput gives f the next n octets of the client. It is false at the session's end.
func (se *session) eachInput(n uint64, f func([]byte) bool) bool {
	for n > 0 {
		in, err := se.c.Input(int(min(n, inputSize)))
		if err != nil {
			if err == io.EOF && se.msg != nil {
				se.lostInside(se.msg, err)
				se.msg = nil
			} else {
				se.lost(err)
			}
			return false
		}
		in = in[:min(uint64(len(in)), n, inputSize)]
		ok := f(in)
		se.c.Discard(len(in))
		if !ok {
			return false
		}
		n -= uint64(len(in))
	}
	return true
}
