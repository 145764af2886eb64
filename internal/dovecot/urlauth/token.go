package urlauth

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/timedconn"
)

// A tokenConn is a connection to the auth service's socket for logins with a token. It
// knows as much of the protocol (clause P3) as that takes, and no other mechanism: a
// worker has no business with passwords.
//
//	C: VERSION 1 2, CPID <pid>
//	S: VERSION 1 2, MECH DOVECOT-TOKEN, SPID <pid>, CUID <n>, COOKIE <hex>, DONE
//	C: AUTH 1 DOVECOT-TOKEN service=imap ... resp=<base64>
//	S: OK 1 user=alice     or   FAIL 1 [code=temp_fail]
//	C: CANCEL 1            if the login is not handed over
type tokenConn struct {
	nc     *timedconn.Conn
	br     *bufio.Reader
	pid    int // ours, CPID
	spid   uint32
	cookie [16]byte
	lastID uint32
}

const (
	tokenMechanism = "DOVECOT-TOKEN"
	authTimeout    = 30 * time.Second // of each wait for the auth service
	maxGreeting    = 64               // lines
)

// dialToken connects to the socket at path. A process may have one such connection
// (clause P3.2).
func dialToken(ctx context.Context, path string, pid int) (*tokenConn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	t := &tokenConn{nc: timedconn.New(nc, authTimeout), pid: pid}
	t.br = bufio.NewReaderSize(t.nc, maxReply)
	defer t.nc.Bind(ctx)()
	if err := t.greet(); err != nil {
		nc.Close()
		return nil, t.nc.Why(err)
	}
	return t, nil
}

func (t *tokenConn) greet() error {
	if _, err := fmt.Fprintf(t.nc, "VERSION\t1\t2\nCPID\t%d\n", t.pid); err != nil {
		return err
	}
	version, mechanism := false, false
	for range maxGreeting {
		f, err := t.readLine()
		if err != nil {
			return err
		}
		arg := ""
		if len(f) > 1 {
			arg = f[1]
		}
		switch f[0] {
		case "VERSION":
			if arg != "1" {
				return fmt.Errorf("protocol version %.20q", arg)
			}
			version = true
		case "MECH":
			mechanism = mechanism || arg == tokenMechanism
		case "SPID":
			n, err := strconv.ParseUint(arg, 10, 32)
			if err != nil {
				return fmt.Errorf("SPID %.20q", arg)
			}
			t.spid = uint32(n)
		case "COOKIE":
			cookie, err := hex.DecodeString(arg)
			if err != nil || copy(t.cookie[:], cookie) != len(cookie) || len(cookie) != len(t.cookie) {
				return errors.New("a bad COOKIE")
			}
		case "DONE":
			if !version || !mechanism || t.spid == 0 {
				return errors.New("no logins with a token there")
			}
			return nil
		}
	}
	return errors.New("a greeting without end")
}

func (t *tokenConn) readLine() ([]string, error) {
	line, err := t.br.ReadSlice('\n')
	switch {
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	return tabline.Split(string(line[:len(line)-1])), nil
}

// login logs l in at a service, and returns the login's id, which must be handed over or
// cancelled. ErrDenied: the token is not good. lost: the connection is of no use any more.
func (t *tokenConn) login(ctx context.Context, service string, l Login) (id uint32, lost bool, err error) {
	defer t.nc.Bind(ctx)()
	t.lastID++
	id = t.lastID
	response := fmt.Appendf(nil, "submission\x00%d\x00%s\x00%s\x00%s", l.PID, l.User, l.Session, l.Token)
	line := tabline.Append(nil, "AUTH", strconv.FormatUint(uint64(id), 10), tokenMechanism, "service="+service, "no-penalty", "secured", "valid-client-cert",
		"session="+l.Session, "resp="+base64.StdEncoding.EncodeToString(response))
	if _, err := t.nc.Write(line); err != nil {
		return 0, true, t.nc.Why(err)
	}
	f, err := t.readLine()
	if err != nil {
		return 0, true, t.nc.Why(err)
	}
	if len(f) < 2 || f[1] != strconv.FormatUint(uint64(id), 10) {
		return 0, true, fmt.Errorf("unexpected answer %.50q", strings.Join(f, " "))
	}
	fields := tabline.ParseFields(f[2:])
	user, _ := fields.Get("user")
	code, _ := fields.Get("code")
	switch {
	case f[0] == "FAIL" && code == "temp_fail":
		return 0, false, errTempFail
	case f[0] == "FAIL":
		return 0, false, ErrDenied
	case f[0] != "OK":
		return 0, true, fmt.Errorf("unexpected answer %.50q", f[0])
	case user != l.User:
		t.cancel(id)
		return 0, false, fmt.Errorf("it knows user %q as %q", l.User, user)
	}
	return id, false, nil
}

var errTempFail = errors.New("temporary failure")

// cancel gives a login up.
func (t *tokenConn) cancel(id uint32) {
	_, _ = fmt.Fprintf(t.nc, "CANCEL\t%d\n", id) // if it fails, the connection's end does the same
}
