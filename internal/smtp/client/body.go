package client

import (
	"strconv"
	"time"

	"dovetail/internal/smtp"
)

// Data says DATA and waits for the reply. After a 354 the data of a message can be written,
// and final hears the answer to it; an answer that comes before the end of data is a
// refusal. Any other reply is the answer, and all there is: refused hears it.
func (c *Conn) Data(refused, final func(smtp.Reply)) (smtp.Reply, *Error) {
	return c.exchange([]byte("DATA"), pending{kind: command, final: final, done: func(r smtp.Reply) {
		if r.Code != 354 {
			refused(r)
		}
	}})
}

// Write sends a piece of a message's data, stuffed. It waits while the relay is slow, at
// most CommandTimeout for each piece. refused says that the relay has answered already; then
// nothing can be sent but by a new connection (see Abort).
func (c *Conn) Write(b []byte) (refused bool, e *Error) {
	c.mu.Lock()
	refused = len(c.queue) == c.head
	c.mu.Unlock()
	if refused {
		return true, c.Err()
	}
	return false, c.write(b)
}

// EndData sends the last piece, which ends with the end of data.
func (c *Conn) EndData(b []byte) (refused bool, e *Error) {
	c.mu.Lock()
	if refused = len(c.queue) == c.head; !refused {
		// The answer may come as soon as the last octet has left.
		c.queue[len(c.queue)-1].kind = command
		c.armLocked(time.Now())
	}
	c.mu.Unlock()
	if refused {
		return true, c.Err()
	}
	e = c.write(b)
	if e == nil {
		c.mu.Lock()
		c.partial = false
		c.mu.Unlock()
	}
	return false, e
}

// ChunkRoom is how many octets before its data a chunk needs for "BDAT n LAST" and CRLF.
const ChunkRoom = 32

// maxChunks is how many chunks may wait for their answers (clause S6.8).
const maxChunks = 4

// Chunk sends a chunk of a message: the octets b[ChunkRoom:], before which it writes the
// command. done hears the answer. It waits while four chunks are unanswered, or, if the
// relay has no PIPELINING, one. What Send gathered leaves with it.
func (c *Conn) Chunk(b []byte, last bool, done func(smtp.Reply)) *Error {
	limit := maxChunks
	if !c.has(smtp.CapPipelining) {
		limit = 1
	}
	if e := c.waitUntil(func() bool { return len(c.queue)-c.head < limit }); e != nil {
		return e
	}
	var line [ChunkRoom]byte
	head := append(line[:0], "BDAT "...)
	head = strconv.AppendInt(head, int64(len(b)-ChunkRoom), 10)
	kind := chunk
	if last {
		head = append(head, " LAST"...)
		kind = command
	}
	head = append(head, '\r', '\n')
	copy(b[ChunkRoom-len(head):], head)
	if e := c.push(pending{kind: kind, done: done, verb: "BDAT"}); e != nil {
		return e
	}
	return c.write(b[ChunkRoom-len(head):])
}
