package client

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"dovetail/internal/smtp"
)

// A Kind is a way in which a connection fails (clauses S4.6 and S4.9).
type Kind uint8

const (
	LookupFailed  Kind = iota // the name has no address
	ConnectFailed             // no connection, no TLS, no way to log in
	Refused                   // a reply before the connection was ready
	NeedsAuth                 // 530, to any command
	Closing                   // 421, to any command or to none
	BadReply                  // what came is no reply, or answers nothing
	Lost                      // closed by the relay
	TimedOut
	Cancelled // by the context of Dial, or by Close
)

// An Error is why a connection failed.
type Error struct {
	Kind  Kind
	Reply smtp.Reply // of the relay, for Refused, NeedsAuth and Closing
	// Log is the line about it, without what names the connection; "" where the reply, or
	// the relay's leaving, says everything.
	Log     string
	Waiting int  // commands that had no reply yet
	Codes   bool // of Dial's errors: the relay had announced enhanced status codes
	cause   error
}

func (e *Error) Error() string {
	switch {
	case e.Log != "":
		return e.Log
	case !e.Reply.IsZero():
		return e.Reply.String()
	}
	return [...]string{
		LookupFailed: "name lookup failed", ConnectFailed: "no connection", Refused: "refused", NeedsAuth: "authentication required",
		Closing: "relay is closing", BadReply: "bad reply", Lost: "connection lost", TimedOut: "timed out", Cancelled: "cancelled",
	}[e.Kind]
}

// Unwrap returns the system's error, if there was one.
func (e *Error) Unwrap() error { return e.cause }

// refusal makes an Error of a reply that ends the connection.
func refusal(r smtp.Reply, kind Kind) *Error {
	switch r.Code {
	case 421:
		kind = Closing
	case 530:
		kind = NeedsAuth
	}
	return &Error{Kind: kind, Reply: r}
}

// ioError makes an Error of what a read or write returned. Only a connection that broke,
// not one that was closed, is worth a line.
func ioError(verb, name string, err error) *Error {
	e := &Error{Kind: Lost, cause: err}
	switch {
	case err == io.EOF, errors.Is(err, net.ErrClosed), errors.Is(err, syscall.EPIPE):
	case errors.Is(err, os.ErrDeadlineExceeded):
		e.Kind = TimedOut
		e.Log = "Command timed out, disconnecting"
	default:
		e.Log = "Connection lost: " + verb + "(" + name + ") failed: " + Reason(err)
	}
	return e
}

// Reason returns the system's own words for what a connection's read or write returned, such
// as "Connection reset by peer".
func Reason(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return strerror(errno)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err.Error()
	}
	return err.Error()
}

// strerror is the C library's, which logs are searched for: it begins with a capital.
func strerror(errno syscall.Errno) string {
	s := []byte(errno.Error())
	if len(s) > 0 && 'a' <= s[0] && s[0] <= 'z' {
		s[0] -= 'a' - 'A'
	}
	return string(s)
}
