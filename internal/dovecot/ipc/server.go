package ipc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"dovetail/internal/process/event"
)

const (
	// Path is the socket's, in the login process's directory.
	Path = "ipc-proxy"

	reconnect    = 10 * time.Second // as Dovecot
	writeTimeout = 10 * time.Second // of an answer

	maxCommand = 8 << 10 // bytes of a line from the service
	maxAlt     = 64      // names of alternative user fields that are listed
)

// A Server answers for one login process. Run and Serve are called by one goroutine.
type Server struct {
	answering sync.Mutex // held from a command to the end of its answer

	sessions Sessions
	log      *event.Log
	tag      uint32   // of the command that is being answered
	alt      []string // names of fields, in the order in which they were seen
}

// NewServer returns a Server that answers from sessions.
func NewServer(sessions Sessions, log *event.Log) *Server {
	return &Server{sessions: sessions, log: log}
}

// Settle returns when no command is being answered: the last session may end by one, and
// the process with it.
func (s *Server) Settle() {
	s.answering.Lock()
	defer s.answering.Unlock()
}

// Run connects to the service's socket at path and serves, until ctx ends. When there is
// no connection, it tries again every 10 seconds, or at once if the service has closed one
// that lasted longer, as after a reload; only the first of several failures is logged. pid
// is the process's.
func (s *Server) Run(ctx context.Context, path string, pid int) {
	for told := false; ; {
		var d net.Dialer
		began := time.Now()
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			told = false
			if err = s.Serve(ctx, conn, pid); err == nil && time.Since(began) > reconnect {
				continue
			}
		} else if told {
			err = nil
		} else {
			told = true
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.Error("ipc: %v", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(reconnect):
		}
	}
}

// Serve answers on conn, which it takes, until the service closes it (nil), says something
// wrong, or ctx ends.
func (s *Server) Serve(ctx context.Context, conn net.Conn, pid int) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	b := fmt.Appendf(nil, "VERSION\tipc-server\t1\t0\nHANDSHAKE\tproxy\t%d\n", pid)
	if err := write(conn, b); err != nil {
		return err
	}
	br := bufio.NewReaderSize(conn, maxCommand)
	for first := true; ; first = false {
		line, err := br.ReadSlice('\n')
		switch {
		case err == io.EOF && len(line) == 0, errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		text := strings.TrimSuffix(string(line[:len(line)-1]), "\r")
		if first {
			if err := parseVersion(text); err != nil {
				return err
			}
			continue
		}
		if b, err = s.reply(conn, b, text); err != nil {
			return err
		}
	}
}

// reply answers a command; b is a buffer.
func (s *Server) reply(conn net.Conn, b []byte, line string) ([]byte, error) {
	tag, command, err := parseCommand(line)
	if err != nil {
		return b, err
	}
	s.answering.Lock()
	defer s.answering.Unlock()
	s.tag = tag
	b = s.answer(b[:0], command)
	return b, write(conn, b)
}

func write(conn net.Conn, b []byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := conn.Write(b)
	return err
}

func parseVersion(line string) error {
	f := strings.Split(line, "\t")
	if len(f) != 4 || f[0] != "VERSION" || f[1] != "ipc-proxy" || f[2] != "1" {
		return fmt.Errorf("IPC proxy not compatible with this server (mixed old and new binaries?) %.100s", line)
	}
	return nil
}

// parseCommand splits <tag> TAB <command>.
func parseCommand(line string) (tag uint32, command string, err error) {
	t, command, ok := strings.Cut(line, "\t")
	n, err := strconv.ParseUint(t, 10, 32)
	if err != nil || !ok || command == "" {
		return 0, "", fmt.Errorf("IPC proxy sent invalid input: %.100s", line)
	}
	return uint32(n), command, nil
}
