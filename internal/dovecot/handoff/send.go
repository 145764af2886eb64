package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"dovetail/internal/process/fdpass"
)

// Timeout is how long Send waits at most, as in Dovecot's login process (clause P5.10).
const Timeout = 90 * time.Second

// Why a worker did not take a client. After ErrRefused the auth service needs no CANCEL, for
// the worker has claimed or refused the login there; after any other error it does.
var (
	ErrBusy    = errors.New("Remote closed connection (destination service { process_limit } reached?)") //lint:ignore ST1005 Dovecot's words
	ErrTag     = errors.New("received reply with unknown tag")
	ErrRefused = errors.New("the worker refused the login")

	// ErrUnseen is an ErrBusy of which it is known that no worker has read all of the request:
	// it waited at a listener that was closed, as at a reload. It may be sent again.
	ErrUnseen error = unseen{}
)

type unseen struct{}

func (unseen) Error() string { return ErrBusy.Error() }
func (unseen) Unwrap() error { return ErrBusy }

// Send offers the client behind fd, which it only lends, to the worker at path, and waits
// for the answer until ctx ends, at most Timeout. Errors are ErrUnseen, ErrBusy, ErrTag, ErrRefused
// (the Reply is then set), context.DeadlineExceeded after Timeout, the cause of ctx's end, or
// what the system said to connect and send.
//
// Nobody may read from or write to the client while Send runs, and, but after ErrUnseen,
// nobody may after it but to say that all is over, and to close: the worker uses the same
// socket from the moment it is sent.
func Send(ctx context.Context, path string, r Request, client Descriptor) (Reply, error) {
	reply, err := send(ctx, path, r, client)
	if err != nil {
		return reply, fmt.Errorf("hand-over to %s: %w", path, err)
	}
	return reply, nil
}

func send(ctx context.Context, path string, r Request, client Descriptor) (Reply, error) {
	if r.Tag == 0 {
		r.Tag = 1
	}
	conn, err := connect(ctx, path)
	if err != nil {
		return Reply{}, err
	}
	defer conn.Close()
	stop := guard(ctx, conn, Timeout)
	reply, err := exchange(conn, r, client)
	if ended := stop(); err != nil && errors.Is(err, os.ErrDeadlineExceeded) && ended != nil {
		err = ended
	}
	return reply, err
}

func exchange(conn *net.UnixConn, r Request, client Descriptor) (Reply, error) {
	var sendErr error
	err := client.Control(func(fd uintptr) {
		var ino uint64
		if ino, sendErr = inode(int(fd)); sendErr != nil {
			return
		}
		var b []byte
		if b, sendErr = r.append(make([]byte, 0, recordSize+MaxData), ino); sendErr == nil {
			sendErr = fdpass.Send(conn, b, int(fd))
		}
	})
	switch err = errors.Join(err, sendErr); {
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return Reply{}, ErrUnseen
	case err != nil:
		return Reply{}, err
	}
	var b [replySize]byte
	if n, err := io.ReadFull(conn, b[:]); err != nil {
		if errors.Is(err, syscall.ECONNRESET) { // octets were not read (unix(7))
			return Reply{}, ErrUnseen
		}
		if err = busy(err); n > 0 {
			err = fmt.Errorf("%w, %d of %d bytes of the reply came", err, n, replySize)
		}
		return Reply{}, err
	}
	reply, err := parseReply(b[:])
	switch {
	case err != nil:
		return Reply{}, err
	case reply.Tag != r.Tag:
		return Reply{}, fmt.Errorf("%w %d", ErrTag, reply.Tag)
	case reply.Status != OK:
		return reply, fmt.Errorf("%w with status %d", ErrRefused, reply.Status)
	}
	return reply, nil
}

// busy makes ErrBusy of all the ways in which a peer can have closed.
func busy(err error) error {
	for _, closed := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, closed) {
			return ErrBusy
		}
	}
	return err
}
