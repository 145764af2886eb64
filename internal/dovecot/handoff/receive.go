package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

const (
	receiveTimeout = 30 * time.Second // a login process sends everything at once
	replyTimeout   = 5 * time.Second  // 12 bytes always fit a socket's buffer
)

// ErrLoginGone: the login process has closed before the reply, because its client left. The
// client's descriptor is open all the same (clause P5.10).
var ErrLoginGone = errors.New("login client disconnected too early")

// A Login is a request with its client, as a worker receives it.
type Login struct {
	Request
	Client net.Conn // the receiver's own: a *net.TCPConn, or a *net.UnixConn behind which TLS is done

	conn *net.UnixConn // from the login process; Receive's caller closes it
}

// Receive reads one login from conn, a connection accepted on the worker's socket, until ctx
// ends, at most 30 seconds. It lends conn and gives the client. io.EOF: conn was closed
// before its first byte, which is nothing to log (clause P5.13). Any other error means that
// the connection is to be closed without a reply; descriptors that came are closed.
func Receive(ctx context.Context, conn *net.UnixConn) (*Login, error) {
	stop := guard(ctx, conn, receiveTimeout)
	login, err := receive(conn)
	ended := stop()
	switch {
	case err == nil || err == io.EOF:
		return login, err
	case errors.Is(err, os.ErrDeadlineExceeded) && ended != nil:
		err = ended
	}
	return nil, fmt.Errorf("hand-over: %w", err)
}

func receive(conn *net.UnixConn) (*Login, error) {
	fd := passed(-1)
	defer fd.close()
	b := make([]byte, recordSize+MaxData+1) // one more, to see that there is too much
	n := 0
	fill := func(want int) error {
		for n < want {
			m, err := fd.readMsg(conn, b[n:])
			if n += m; err == io.EOF && n > 0 {
				err = fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, n, want)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := fill(recordSize); err != nil {
		return nil, err
	}
	rec, err := parseRecord(b[:recordSize])
	if err != nil {
		return nil, err
	}
	size := recordSize + int(rec.dataSize)
	if err := fill(size); err != nil {
		return nil, err
	}
	if n > size {
		return nil, fmt.Errorf("more than the %d bytes that the record announces", size)
	}
	if fd < 0 {
		return nil, errors.New("no descriptor came with it")
	}
	switch ino, err := inode(int(fd)); {
	case err != nil:
		return nil, err
	case ino != rec.inode:
		return nil, fmt.Errorf("descriptor has inode %d, the record says %d", ino, rec.inode)
	}
	client, err := fd.conn()
	if err != nil {
		return nil, err
	}
	return &Login{Request: parseRequest(rec, b[recordSize:size]), Client: client, conn: conn}, nil
}

// Reply tells the login process what became of the login; pid is the worker's. After it
// the connection is to be closed. ErrLoginGone: nobody listens any more.
func (l *Login) Reply(status Status, pid int) error {
	if err := l.conn.SetWriteDeadline(time.Now().Add(replyTimeout)); err != nil {
		return fmt.Errorf("hand-over: %w", err)
	}
	b := Reply{Tag: l.Tag, Status: status, PID: uint32(pid)}.append(make([]byte, 0, replySize))
	if _, err := l.conn.Write(b); err != nil {
		if busy(err) == ErrBusy {
			return ErrLoginGone
		}
		return fmt.Errorf("hand-over: %w", err)
	}
	return nil
}
