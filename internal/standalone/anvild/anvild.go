// Package anvild is standalone's anvil process: it counts who is logged in from where, so
// that limits can be kept and admins can see and kick sessions, and remembers addresses
// whose logins fail. It speaks Dovecot's protocol (package anvil), so doveadm who, kick
// and penalty work with it. It decides nothing: limits are the login process's, delays
// the auth process's.
//
// Who connects where:
//
//	pipe 7    the master alone: KILL <pid> for processes that died
//	pipe 8    everybody's descriptor 3: CONNECT and DISCONNECT
//	sockets   anvil, anvil-auth-penalty: login processes, auth, admins
//
// Unlike Dovecot's, a line that is wrong does not end the shared pipe: it is logged and
// skipped.
package anvild

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"dovetail/internal/dovecot/anvil"
	"dovetail/internal/process/event"
)

const (
	writeTimeout = 10 * time.Second // of an answer, to a peer that does not read
	outputBuffer = 4 << 10
)

// A Server counts. Any goroutine may call its methods.
type Server struct {
	log       *event.Log
	sessions  sessions
	penalties penalties
}

// New returns a Server that has counted nothing.
func New(log *event.Log) *Server {
	s := &Server{log: log}
	s.sessions.init()
	s.penalties.init()
	return s
}

// Serve answers on one connection to the socket until the peer closes it, says something
// wrong, or ctx ends. It takes conn.
func (s *Server) Serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	br := bufio.NewReaderSize(conn, anvil.MaxLine)
	out := &answers{conn: conn}
	first := true
	for {
		line, err := readLine(br)
		if err != nil {
			if err == bufio.ErrBufferFull {
				s.log.Error("BUG: Anvil client connection sent too much data")
			}
			return
		}
		if first {
			if err := anvil.ParseVersion(line); err != nil {
				s.log.Error("%v", err)
				return
			}
			first = false
			continue
		}
		r, err := anvil.ParseRequest(line)
		if err == nil && r.Verb == anvil.Kill {
			err = errors.New("KILL sent by a non-master connection")
		}
		if err != nil {
			_ = out.flush()
			s.log.Error("Anvil client input error: %v", err)
			return
		}
		s.do(r, out)
		if !anotherLine(br) && out.flush() != nil {
			return
		}
	}
}

// A Source says whose pipe it is.
type Source int

const (
	Everybody  Source = iota // descriptor 3 of all processes
	FromMaster               // KILL is allowed
)

// ServePipe takes the lines of a pipe until it ends: then the master is gone. Lines before
// the first version were for a process before this one, and are skipped, and so is what is
// wrong.
func (s *Server) ServePipe(pipe io.Reader, from Source) error {
	br := bufio.NewReaderSize(pipe, anvil.MaxLine)
	for started := false; ; {
		line, err := readLine(br)
		if err == bufio.ErrBufferFull {
			if started {
				s.log.Error("Anvil client input error: line of more than %d bytes", anvil.MaxLine)
			}
			err = skipLine(br)
			if err == nil {
				continue
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("anvil pipe: %w", err)
		}
		if anvil.ParseVersion(line) == nil {
			started = true
			continue
		}
		if !started {
			continue
		}
		r, err := anvil.ParseRequest(line)
		switch {
		case err != nil:
		case r.Verb == anvil.Connect, r.Verb == anvil.Disconnect, r.Verb == anvil.Nothing,
			r.Verb == anvil.Kill && from == FromMaster:
			s.do(r, nil)
		case r.Verb == anvil.Kill:
			err = errors.New("KILL sent by a non-master connection")
		default:
			err = fmt.Errorf("%.100q on a FIFO, can't send reply", line)
		}
		if err != nil {
			s.log.Error("Anvil client input error: %v", err)
		}
	}
}

// do does what r asks; answers go to out.
func (s *Server) do(r anvil.Request, out *answers) {
	switch r.Verb {
	case anvil.Connect:
		if err := s.sessions.connect(r.PID, r.Ident); err != nil {
			s.log.Error("connect limit: %v", err)
		}
	case anvil.Disconnect:
		if !s.sessions.disconnect(r.PID, r.Ident) {
			s.log.Error("connect limit: disconnection for unknown pid %d + ident %s", r.PID, r.Ident)
		}
	case anvil.Kill:
		s.sessions.kill(r.PID)
	case anvil.Lookup:
		out.add(func(b []byte) []byte { return anvil.AppendCount(b, s.sessions.count(r.Ident)) })
	case anvil.ConnectDump:
		s.sessions.dump(out)
	case anvil.PenaltyGet:
		p := s.penalties.get(r.Ident)
		out.add(func(b []byte) []byte { return anvil.AppendPenalty(b, p) })
	case anvil.PenaltyInc:
		s.penalties.set(r.Ident, r.Checksum, r.Value)
	case anvil.PenaltySetExpire:
		s.penalties.setExpire(time.Duration(r.Value) * time.Second)
	case anvil.PenaltyDump:
		s.penalties.dump(out)
	}
}

// answers collects what goes to a peer. It belongs to one goroutine.
type answers struct {
	conn net.Conn
	b    []byte
	err  error // of a write; everything further is dropped
}

// add has one line appended.
func (a *answers) add(line func([]byte) []byte) {
	if a.err != nil {
		return
	}
	a.b = line(a.b)
	if len(a.b) >= outputBuffer {
		_ = a.flush()
	}
}

func (a *answers) flush() error {
	if len(a.b) > 0 && a.err == nil {
		if a.err = a.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); a.err == nil {
			_, a.err = a.conn.Write(a.b)
		}
	}
	if a.b = a.b[:0]; cap(a.b) > 4*outputBuffer {
		a.b = nil // a dump was large
	}
	return a.err
}

// anotherLine says whether a whole line has already been read from the peer.
func anotherLine(br *bufio.Reader) bool {
	b, _ := br.Peek(br.Buffered())
	return bytes.IndexByte(b, '\n') >= 0
}

// readLine returns a line without its end.
func readLine(br *bufio.Reader) (string, error) {
	b, err := br.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	b = b[:len(b)-1]
	if n := len(b); n > 0 && b[n-1] == '\r' {
		b = b[:n-1]
	}
	return string(b), nil
}

// skipLine reads on to the end of a line that did not fit.
func skipLine(br *bufio.Reader) error {
	for {
		if _, err := br.ReadSlice('\n'); err != bufio.ErrBufferFull {
			return err
		}
	}
}
