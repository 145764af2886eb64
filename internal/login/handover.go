package login

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dovetail/internal/dovecot/authclient"
	"dovetail/internal/dovecot/handoff"
	"dovetail/internal/smtp"
	"dovetail/internal/splice"
)

// errHandedOver says that the worker talks with the client from now on.
var errHandedOver = errors.New("handed over")

// handOver gives the client to a worker. Behind TLS, or if there is more to tell than the
// hand-over can hold, the worker gets one end of a socket pair, and this process goes on
// between the two.
func (se *session) handOver(ex *authclient.Exchange, pending string) error {
	se.setPhase(finishing)
	se.auth.finishing = true
	if err := se.c.Flush(); err != nil {
		return err
	}
	path := se.s.worker
	if p, ok := se.auth.fields.Get("postlogin_socket"); ok && p != "" {
		path = p
	}
	conn := ex.Conn()
	req := handoff.Request{
		Tag: ex.ID(), AuthPID: conn.SPID(), AuthID: ex.ID(), ClientPID: uint32(os.Getpid()), Cookie: handoff.Cookie(conn.Cookie()),
		Local: se.local, Remote: se.remote, Session: se.id,
	}
	if se.secured() != authclient.NotSecured {
		req.Flags |= handoff.Secured
	}
	if se.tls != nil || se.proxiedTLS {
		req.Flags |= handoff.TLS
	}
	if pending != "" {
		req.Flags |= handoff.Implicit
	}
	sub := handoff.Submission{Helo: short(se.helo), ProxiedHelo: short(se.xclient.Helo)}
	if sub.ProxiedHelo == "" {
		sub.ProxiedHelo = sub.Helo
	}
	names := len(sub.Append(nil))
	early := append([]byte(pending), se.c.Buffered()...)
	var rest []byte
	if room := max(0, req.Room()-names); len(early) > room {
		early, rest = early[:room], early[room:]
	}
	sub.Pending = early
	req.Payload = sub.Append(nil)

	client := handoff.Descriptor(se.sock.Raw)
	if se.tls != nil || len(rest) > 0 {
		near, far, err := handoff.SocketPair()
		if err != nil {
			return se.notTaken(ex, err)
		}
		defer far.Close()
		client = far
		se.forward = &splice.Stream{
			Client: se.clientEnd(), Server: splice.Plain(splice.NewSocket(near)), ToServer: rest, Go: se.client.Go,
		}
	}
	stop := se.c.Watch(func() { se.end("Connection closed", smtp.Reply{}) })
	reply, err := se.send(path, req, client)
	stop()
	se.workerPID = reply.PID
	if err == nil || errors.Is(err, handoff.ErrRefused) {
		// A worker that refuses says why to the client.
		se.auth.untaken = err != nil
		ex.HandedOver()
		return errHandedOver
	}
	if se.forward != nil {
		se.forward.Server.Sock.Close()
		se.forward = nil
	}
	return se.notTaken(ex, err)
}

// At a reload the workers' socket is made anew: for a moment nobody listens there, and who
// waits at the old one is cut off before a worker has seen him. What does not pass within
// about a second has another reason: process_limit shows after 10 s.
const (
	handOvers    = 8
	handOverTime = 2 * time.Second
	firstPause   = 10 * time.Millisecond // doubled each time
)

// send sends a hand-over, again if it did not get to a worker.
func (se *session) send(path string, req handoff.Request, client handoff.Descriptor) (reply handoff.Reply, err error) {
	began, pause := time.Now(), firstPause
	for range handOvers {
		reply, err = handoff.Send(se.ctx, path, req, client)
		lost := errors.Is(err, handoff.ErrUnseen) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
		if !lost || time.Since(began) > handOverTime {
			break
		}
		select {
		case <-se.ctx.Done():
			return reply, err
		case <-time.After(pause):
			pause *= 2
		}
	}
	return reply, err
}

// notTaken ends a login that no worker looked at.
func (se *session) notTaken(ex *authclient.Exchange, err error) error {
	if se.ctx.Err() != nil {
		return errClosed
	}
	se.auth.untaken = true
	se.s.log.Error("%v (user=<%s>, session=<%s>)", err, sanitise(se.auth.user), se.id)
	se.end(internalFailure, se.reply421("4.3.0", internalFailure))
	return errClosed
}

const internalFailure = "Internal login failure. Refer to server log for more information."

// cutAfter is how long a worker has, at a shutdown, to say its 421.
const cutAfter = 4 * time.Second

// afterLogin goes on between the client and whoever has it now, where that is needed: by
// the stream that it returns, behind which over is called.
func (se *session) afterLogin(ctx context.Context) (stream *splice.Stream, over func()) {
	switch {
	case se.passing != nil:
		return se.runProxy(ctx)
	case se.auth.untaken:
		se.setReason(internalFailure)
		se.log.disconnected()
	default:
		se.log.loggedIn()
	}
	if se.forward == nil {
		se.sock.Close() // the worker has a descriptor of its own
		return nil, nil
	}
	se.s.titles.at(se, tlsProxy)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(cutAfter, se.forward.Close) })
	return se.forward, func() { stop() }
}

// short leaves out a name that no host has: it would take room from the client's input.
func short(name string) string {
	if len(name) > 255 {
		return ""
	}
	return name
}

func decodeBase64(s string) ([]byte, error) { return base64.StdEncoding.DecodeString(s) }

func itoa(n int) string { return strconv.Itoa(n) }

// replyText makes one line that a reply may have of what a passdb says.
func replyText(s string) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	if len(clean) > 400 {
		clean = clean[:400]
	}
	return clean
}
