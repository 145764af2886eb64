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

const accessTimeout = 60 * time.Second

// AskAccess asks the service at path, one of login_access_sockets, whether client, which
// it lends, may connect at all (clauses P8.4, S1.21). It waits until ctx ends, at most 60
// seconds. false without an error is a refusal, and with an error means that nobody could
// be asked: both end the client without a greeting.
//
//	C: submission          with the client's descriptor
//	S: 1                   go on; 0, or closed: drop the client
func AskAccess(ctx context.Context, path, protocol string, client Descriptor) (bool, error) {
	conn, err := connect(ctx, path)
	if err != nil {
		return false, fmt.Errorf("access(%s): %w", path, err)
	}
	defer conn.Close()
	stop := guard(ctx, conn, accessTimeout)
	ok, err := askAccess(conn, protocol, client)
	if ended := stop(); errors.Is(err, os.ErrDeadlineExceeded) && ended != nil {
		err = ended
	}
	if err != nil {
		return false, fmt.Errorf("access(%s): %w", path, err)
	}
	return ok, nil
}

func askAccess(conn *net.UnixConn, protocol string, client Descriptor) (bool, error) {
	if err := lendWith(conn, append([]byte(protocol), '\n'), client); err != nil {
		if busy(err) == ErrBusy {
			return false, nil
		}
		return false, err
	}
	var b [2]byte
	switch n, err := io.ReadFull(conn, b[:]); {
	case err != nil && (n > 0 || busy(err) != ErrBusy):
		return false, err
	case err != nil || string(b[:]) == "0\n": // closed without a word is a no
		return false, nil
	case string(b[:]) == "1\n":
		return true, nil
	}
	return false, fmt.Errorf("neither 0 nor 1 but %q", b)
}
