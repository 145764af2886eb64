package submission

import (
	"math"
	"strconv"
	"strings"
	"time"

	"dovetail/internal/smtp"
	"dovetail/internal/smtp/client"
	"dovetail/internal/smtp/server"
)

// commands are what the worker knows; any other verb gets 500 5.5.1. A function is called by
// the owner, answers its command now or later, and is false at the session's end.
var commands = map[string]func(*session, *server.Command) bool{
	"EHLO":     func(se *session, cmd *server.Command) bool { return se.ehlo(cmd, true) },
	"HELO":     func(se *session, cmd *server.Command) bool { return se.ehlo(cmd, false) },
	"MAIL":     (*session).mail,
	"RCPT":     (*session).rcpt,
	"RSET":     (*session).rset,
	"DATA":     (*session).data,
	"BDAT":     (*session).bdat,
	"NOOP":     (*session).noop,
	"VRFY":     (*session).vrfy,
	"QUIT":     (*session).quit,
	"AUTH":     (*session).auth,
	"STARTTLS": (*session).startTLS,
	"XCLIENT":  unsupported,
	"BURL":     (*session).burlCmd,
}

func (se *session) command(cmd *server.Command) bool {
	f := commands[cmd.Name]
	if f == nil {
		cmd.Reply(smtp.NewReply(500, "5.5.1", "Unknown command"))
		return true
	}
	return f(se, cmd)
}

func unsupported(se *session, cmd *server.Command) bool {
	cmd.Reply(smtp.NewReply(502, "5.5.1", "Unsupported command"))
	return true
}

// auth is AUTH, which comes too late (clause S3.8).
func (se *session) auth(cmd *server.Command) bool {
	switch words := strings.Split(cmd.Params, " "); {
	case cmd.Params == "":
		cmd.Reply(smtp.NewReply(501, "5.5.4", "Missing SASL mechanism parameter"))
	case len(words) > 2:
		cmd.Reply(badArgument)
	default:
		cmd.Reply(smtp.NewReply(503, "5.5.0", "Already authenticated"))
	}
	return true
}

// startTLS is STARTTLS, which comes too late (clause S3.8).
func (se *session) startTLS(cmd *server.Command) bool {
	text := "TLS support is not enabled."
	if se.tls {
		text = "TLS is already active."
	}
	cmd.Reply(smtp.NewReply(502, "5.5.1", text))
	return true
}

// ehlo is EHLO and HELO. But for the first one it is an RSET for the relay (clause S3.6).
func (se *session) ehlo(cmd *server.Command, extended bool) bool {
	if cmd.Params == "" {
		cmd.Reply(smtp.NewReply(501, "", "Missing hostname"))
		return true
	}
	if !se.turn() {
		return false
	}
	se.noticeReset()
	se.mu.Lock()
	first := !se.introduced && se.state == "GREETING"
	se.mu.Unlock()
	if !first && !se.resetRelay(cmd) {
		return !se.over()
	}
	se.helo, _ = smtp.HeloDomain(cmd.Params, extended)
	se.introduced, se.esmtp = true, extended
	se.forget()
	cmd.Reply(se.ehloReply(extended))
	return true
}

// resetRelay says RSET to a connected relay and waits for the answer, which is the client's
// if it is a refusal.
func (se *session) resetRelay(cmd *server.Command) bool {
	if se.msg != nil && se.msg.inData() {
		se.dropRelay()
	}
	if !se.live() {
		return true
	}
	done := se.waiting()
	defer done()
	r, e := se.conn.DoThen("RSET", func(r smtp.Reply) {
		if r.Class() == 2 { // the relay may leave now
			se.mu.Lock()
			se.leftover = nil
			if se.tx != nil {
				se.tx.state = mailRefused
			}
			se.mu.Unlock()
		}
	})
	switch {
	case e != nil:
		se.broken(e)
		return !se.over() // it had just been idle for too long
	case r.Class() != 2:
		if se.codes {
			r = r.Split()
		}
		r.Enhanced = ""
		cmd.Reply(r)
		return false
	}
	return true
}

// ehloReply is the list of what works (clause S3.5).
func (se *session) ehloReply(extended bool) smtp.Reply {
	lines := []string{se.u.hostname}
	if extended {
		caps := se.announced()
		add := func(c smtp.Cap, line string) {
			if caps&c == c {
				lines = append(lines, line)
			}
		}
		add(smtp.Cap8BitMIME, "8BITMIME")
		add(0, "AUTH")
		add(smtp.CapBinaryMIME, "BINARYMIME")
		if line := se.burlLine(); line != "" {
			add(0, line)
		}
		add(0, "CHUNKING")
		add(smtp.CapDSN, "DSN")
		add(0, "ENHANCEDSTATUSCODES")
		add(0, "PIPELINING")
		add(0, "SIZE "+utoa(se.maxSize()))
		add(smtp.CapVRFY, "VRFY")
	}
	return smtp.NewReply(250, "", lines...)
}

// noop is NOOP (clause S8.2).
func (se *session) noop(cmd *server.Command) bool {
	if _, _, refusal := smtp.ParseString(cmd.Params); !refusal.IsZero() {
		cmd.Reply(refusal)
		return true
	}
	if !se.turn() {
		return false
	}
	if se.msg != nil && se.msg.inData() {
		cmd.Reply(done)
		return true
	}
	if !se.need() {
		return false
	}
	codes := se.codes
	return se.send([]byte("NOOP"), func(r smtp.Reply) {
		if r.Class() == 2 {
			cmd.Reply(done)
		} else {
			cmd.Reply(smtp.Forward(r, codes, ""))
		}
	})
}

var tryRcpt = smtp.NewReply(252, "2.3.3", "Try RCPT instead")

// vrfy is VRFY (clause S8.1).
func (se *session) vrfy(cmd *server.Command) bool {
	name, given, refusal := smtp.ParseString(cmd.Params)
	if !given {
		refusal = badArgument
	}
	if !refusal.IsZero() {
		cmd.Reply(refusal)
		return true
	}
	if !se.turn() {
		return false
	}
	if se.msg != nil && se.msg.inData() {
		cmd.Reply(tryRcpt)
		return true
	}
	if !se.need() {
		return false
	}
	codes := se.codes
	return se.send(smtp.AppendString([]byte("VRFY "), name), func(r smtp.Reply) {
		if r.Code == 500 || r.Code == 502 {
			cmd.Reply(tryRcpt)
		} else {
			cmd.Reply(smtp.Forward(r, codes, ""))
		}
	})
}

// quit is QUIT (clause S8.3): the relay hears it first, if there is one.
func (se *session) quit(cmd *server.Command) bool {
	if cmd.Params != "" {
		cmd.Reply(badArgument)
		return true
	}
	if !se.turn() {
		return false
	}
	switch {
	case se.msg != nil && se.msg.inData():
		se.dropRelay()
	case se.live():
		se.quitRelay()
		se.events.endAll(ending{server: aborted, relay: quit})
	}
	cmd.Reply(smtp.NewReply(221, "2.0.0", "Bye"))
	se.end("Logged out", smtp.Reply{})
	return false
}

// quitRelay says QUIT and waits a little for the answer.
func (se *session) quitRelay() {
	se.mu.Lock()
	se.quitting = true
	conn := se.conn
	se.mu.Unlock()
	timer := time.AfterFunc(quitAnswer, conn.Abort) // wakes Do
	_, e := conn.Do("QUIT")                         // whatever it says
	timer.Stop()
	if e != nil && (e.Kind == client.BadReply || e.Kind == client.Lost) && e.Log != "" {
		se.log.Error("%s%s", se.link.label, e.Log)
	}
	se.dropRelay()
}

func utoa(n uint64) string { return strconv.FormatUint(n, 10) }

// maxSize is the largest number of octets: such numbers can be added to.
const maxSize = math.MaxInt64

// parseSize reads a number of octets, of at most maxSize.
func parseSize(s string) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil && n <= maxSize && s[0] != '+'
}

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
