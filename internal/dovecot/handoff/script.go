package handoff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"dovetail/internal/dovecot/tabline"
)

// ScriptTimeout is how long a post-login script may take, unless the worker is told
// otherwise by -t (clause P5.16.2).
const ScriptTimeout = 60 * time.Second

const maxScriptAnswer = 64 << 10 // octets of the answer's line

// ErrDenied: the script ended without a word, so the user may not come in. The client is
// closed without any SMTP text; nothing went wrong.
var ErrDenied = errors.New("post-login script denied access")

// A ScriptRequest tells a post-login script who came (clause P5.16).
//
//	VERSION script-login 1 0
//	<local ip> <remote ip> <user> <field>...
type ScriptRequest struct {
	Local, Remote netip.Addr // invalid: empty
	User          string
	Fields        []string // of the auth service's USER reply: "uid=5000", not escaped
}

func (r ScriptRequest) append(b []byte) []byte {
	b = append(b, "VERSION\tscript-login\t1\t0\n"...)
	b = append(appendIP(b, r.Local), '\t')
	b = append(appendIP(b, r.Remote), '\t')
	b = tabline.AppendEscaped(b, r.User)
	for _, f := range r.Fields {
		b = tabline.AppendEscaped(append(b, '\t'), f)
	}
	return append(b, '\n')
}

func appendIP(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return b
	}
	return a.Unmap().AppendTo(b)
}

// A ScriptAnswer is what a script made of the login: it replaces user and fields.
type ScriptAnswer struct {
	User   string
	Fields []string
	Client net.Conn // replaces the client, and is the caller's; Dovecot's script-login sends the old one back. nil: none came
}

// RunScript asks the post-login service at path, lending it the client, until ctx ends, at
// most timeout. ErrDenied: access is refused. Dovecot's script-login does not escape the
// user name in its answer, so one with a TAB comes back cut.
func RunScript(ctx context.Context, path string, r ScriptRequest, client Descriptor, timeout time.Duration) (ScriptAnswer, error) {
	conn, err := connect(ctx, path)
	if err != nil {
		return ScriptAnswer{}, fmt.Errorf("post-login script %s: %w", path, err)
	}
	defer conn.Close()
	stop := guard(ctx, conn, timeout)
	answer, err := runScript(conn, r, client)
	if ended := stop(); errors.Is(err, os.ErrDeadlineExceeded) && ended != nil {
		err = ended
	}
	if err != nil && err != ErrDenied {
		err = fmt.Errorf("post-login script %s: %w", path, err)
	}
	return answer, err
}

func runScript(conn *net.UnixConn, r ScriptRequest, client Descriptor) (ScriptAnswer, error) {
	if err := lendWith(conn, r.append(nil), client); err != nil {
		return ScriptAnswer{}, err
	}
	fd := passed(-1)
	defer fd.close()
	var line []byte
	for b := make([]byte, 1024); ; {
		n, err := fd.readMsg(conn, b)
		line = append(line, b[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			return ScriptAnswer{}, err
		}
		if len(line) > maxScriptAnswer {
			return ScriptAnswer{}, fmt.Errorf("answer of more than %d bytes", maxScriptAnswer)
		}
	}
	answer, err := parseScriptAnswer(line)
	if err != nil || fd < 0 {
		return answer, err
	}
	answer.Client, err = fd.conn()
	return answer, err
}

// parseScriptAnswer reads all that a script said before it closed.
func parseScriptAnswer(b []byte) (ScriptAnswer, error) {
	if len(b) == 0 {
		return ScriptAnswer{}, ErrDenied
	}
	line, rest, ok := bytes.Cut(b, []byte("\n"))
	switch {
	case !ok:
		return ScriptAnswer{}, errors.New("disconnected in the middle of the answer")
	case len(rest) > 0:
		return ScriptAnswer{}, errors.New("answer of more than one line")
	}
	fields := tabline.Split(strings.TrimSuffix(string(line), "\r"))
	if fields[0] == "" {
		return ScriptAnswer{}, errors.New("answer without a user name")
	}
	return ScriptAnswer{User: fields[0], Fields: fields[1:]}, nil
}
