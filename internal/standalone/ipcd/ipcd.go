// Package ipcd is standalone's ipc service: it passes what doveadm, or dovetail, asks about
// proxied sessions on to all login processes, and their answers back (clause P8.3). The
// login process's end is package dovecot/ipc.
//
//	socket ipc-proxy                          socket ipc
//	login: VERSION ipc-server 1 0
//	login: HANDSHAKE proxy 4711
//	us:    VERSION ipc-proxy 1 0              asker: proxy * KICK alice
//	us:    1 KICK alice
//	login: 1 +2                               us:    +2
//
// Fields are separated by TAB. In place of * there may be the number of a login process's
// connection, which the first ones count from 1. An answer has any number of lines that
// begin with ":", then one that begins with "+", or with "-" for an error.
//
// Where several login processes answer, Dovecot's service passes all their lines on, and of
// the last lines any one. Here counts are added up, and a list has one head.
package ipcd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dovetail/internal/dovecot/ipc"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/event"
	"dovetail/internal/process/service"
)

const (
	answerTimeout = 10 * time.Second // for all of a login process's answer
	writeTimeout  = 10 * time.Second
	maxLine       = 8 << 10  // bytes, of a command or a line of an answer
	maxAnswer     = 16 << 20 // bytes of all lines of an answer
	group         = "proxy"  // the only one there is
)

// A Server passes questions on. Any goroutine may call its methods.
type Server struct {
	log *event.Log

	mu     sync.Mutex
	logins []*login // guarded by mu; by number
	last   uint64   // guarded by mu; number of the latest
}

// A login is the connection of a login process.
type login struct {
	number uint64
	conn   net.Conn

	asking sync.Mutex  // held for one command and its answer
	tag    uint32      // guarded by asking
	lines  chan string // from who reads the connection to who asks
	gone   chan struct{}
}

// New returns a Server that knows no login process.
func New(log *event.Log) *Server { return &Server{log: log} }

// Program is the ipc process.
func Program() service.Program {
	var s *Server
	return service.Program{
		Name: "ipc", About: "it passes questions of admins on to login processes",
		DropAtStart: os.Geteuid() == 0,
		Start: func(p *service.Process) error {
			s = New(p.Log)
			p.OnReload(s.Leave)
			return nil
		},
		Serve: func(ctx context.Context, c *service.Client) { s.Serve(ctx, c.Conn, c.Listener.Name) },
	}
}

// Serve serves one connection until its peer leaves, breaks the rules, or ctx ends. socket
// is the name of the listener by which it came. It takes conn.
func (s *Server) Serve(ctx context.Context, conn net.Conn, socket string) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var err error
	if socket == ipc.Path {
		err = s.serveLogin(conn)
	} else {
		err = s.serveAsker(conn)
	}
	if err != nil && ctx.Err() == nil && !hasLeft(err) {
		s.log.Error("%s: %v", socket, err)
	}
}

// hasLeft says whether the peer has closed its end before it had read all, as a login
// process does that serves one client and ends.
func hasLeft(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// Leave closes the connections of all login processes: they are to come to another process
// of this service.
func (s *Server) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.logins {
		l.conn.Close()
	}
}

// readLine returns a line without its end. io.EOF: there is none.
func readLine(br *bufio.Reader) (string, error) {
	b, err := br.ReadSlice('\n')
	switch {
	case errors.Is(err, net.ErrClosed), err == io.EOF && len(b) == 0:
		return "", io.EOF
	case err == bufio.ErrBufferFull:
		return "", fmt.Errorf("a line of more than %d bytes", maxLine)
	case err != nil:
		return "", err
	}
	return strings.TrimSuffix(string(b[:len(b)-1]), "\r"), nil
}

func write(conn net.Conn, text string) error {
	if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := io.WriteString(conn, text)
	return err
}

// serveLogin registers a login process and reads what it says.
func (s *Server) serveLogin(conn net.Conn) error {
	if err := write(conn, "VERSION\tipc-proxy\t1\t0\n"); err != nil {
		return err
	}
	br := bufio.NewReaderSize(conn, maxLine)
	for _, want := range [][]string{{"VERSION", "ipc-server", "1"}, {"HANDSHAKE", group}} {
		line, err := readLine(br)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if f := tabline.Split(line); len(f) < len(want) || !slices.Equal(f[:len(want)], want) {
			return fmt.Errorf("not a login process of version 1: %.100q", line)
		}
	}
	l := s.enter(conn)
	defer s.leave(l)
	for {
		line, err := readLine(br)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case l.lines <- line:
		case <-time.After(answerTimeout):
			return fmt.Errorf("a login process said what nobody has asked: %.100q", line)
		}
	}
}

func (s *Server) enter(conn net.Conn) *login {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	l := &login{number: s.last, conn: conn, lines: make(chan string), gone: make(chan struct{})}
	s.logins = append(s.logins, l)
	return l
}

func (s *Server) leave(l *login) {
	close(l.gone)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins = slices.DeleteFunc(s.logins, func(o *login) bool { return o == l })
}

var (
	errGone  = errors.New("a login process ended meanwhile")
	errWrong = errors.New("a login process gave no proper answer")
)

// ask sends a command to a login process. It returns the lines of its answer without their
// ":", and the last one with its "+" or "-". After an error the connection is closed.
func (l *login) ask(command string) (lines []string, last string, err error) {
	l.asking.Lock()
	defer l.asking.Unlock()
	defer func() {
		if err != nil {
			l.conn.Close()
		}
	}()
	l.tag++
	tag := strconv.FormatUint(uint64(l.tag), 10)
	if err := write(l.conn, tag+"\t"+command+"\n"); err != nil {
		return nil, "", errGone
	}
	end := time.NewTimer(answerTimeout)
	defer end.Stop()
	for size := 0; size < maxAnswer; {
		var line string
		select {
		case line = <-l.lines:
		case <-l.gone:
			return nil, "", errGone
		case <-end.C:
			return nil, "", errWrong
		}
		text, ok := strings.CutPrefix(line, tag+"\t")
		if !ok || text == "" {
			return nil, "", errWrong
		}
		switch size += len(text); text[0] {
		case ':':
			lines = append(lines, text[1:])
		case '+', '-':
			return lines, text, nil
		default:
			return nil, "", errWrong
		}
	}
	return nil, "", errWrong
}

// serveAsker answers who asks.
func (s *Server) serveAsker(conn net.Conn) error {
	br := bufio.NewReaderSize(conn, maxLine)
	for {
		line, err := readLine(br)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var b strings.Builder
		lines, last := s.answer(line)
		for _, l := range lines {
			b.WriteString(":" + l + "\n")
		}
		b.WriteString(last + "\n")
		if err := write(conn, b.String()); err != nil {
			return err
		}
	}
}

// answer returns the answer to "<group> <number or *> <command>".
func (s *Server) answer(line string) (lines []string, last string) {
	name, rest, _ := strings.Cut(line, "\t")
	to, command, ok := strings.Cut(rest, "\t")
	if !ok || command == "" {
		return nil, "-Invalid input"
	}
	s.mu.Lock()
	asked := slices.Clone(s.logins)
	s.mu.Unlock()
	if name != group {
		asked = nil
	}
	if to != "*" {
		n, err := strconv.ParseUint(to, 10, 32)
		if err != nil {
			return nil, "-Invalid IPC connection id: " + to
		}
		if len(asked) == 0 {
			return nil, "-Unknown IPC group: " + name
		}
		asked = slices.DeleteFunc(asked, func(l *login) bool { return l.number != n })
		if len(asked) == 0 {
			return nil, "-Unknown IPC connection id: " + to
		}
	}
	answers := make([]answered, len(asked))
	var wg sync.WaitGroup
	for i, l := range asked {
		wg.Go(func() { // ends with answerTimeout, and those of others who ask the same
			a := &answers[i]
			var err error
			if a.lines, a.last, err = l.ask(command); err == errGone {
				a.last = "+" // and its sessions have
			} else if err != nil {
				a.last = "-" + err.Error()
			}
		})
	}
	wg.Wait()
	if word, _, _ := strings.Cut(command, "\t"); word == "LIST-FULL" {
		lines = merge(answers)
	} else {
		for _, a := range answers {
			lines = append(lines, a.lines...)
		}
	}
	return lines, sum(answers)
}

type answered struct {
	lines []string
	last  string
}

// sum is the last line for several answers: the first error, or what their counts add up to.
func sum(answers []answered) string {
	total, counted := uint64(0), false
	for _, a := range answers {
		if a.last[0] == '-' {
			return a.last
		}
		if n, err := strconv.ParseUint(a.last[1:], 10, 32); err == nil {
			total, counted = total+n, true
		}
	}
	if !counted {
		return "+"
	}
	return "+" + strconv.FormatUint(total, 10)
}

// merge makes one list of several, each with a head that names its columns: those of users'
// other names stand behind the first, and may differ.
func merge(answers []answered) (lines []string) {
	var columns []string
	for _, a := range answers {
		if len(a.lines) == 0 {
			continue
		}
		head := strings.Split(a.lines[0], "\t")
		if columns == nil {
			columns = head
			continue
		}
		for _, name := range head {
			if !slices.Contains(columns, name) {
				columns = slices.Insert(columns, max(1, len(columns)-behind), name)
			}
		}
	}
	if columns == nil {
		return nil
	}
	lines = append(lines, strings.Join(columns, "\t"))
	for _, a := range answers {
		if len(a.lines) == 0 {
			continue
		}
		var at []int // of each column, in this answer
		head := strings.Split(a.lines[0], "\t")
		for _, name := range columns {
			at = append(at, slices.Index(head, name))
		}
		for _, line := range a.lines[1:] {
			values := strings.Split(line, "\t")
			row := make([]string, len(columns))
			for i, from := range at {
				if from >= 0 && from < len(values) {
					row[i] = values[from]
				}
			}
			lines = append(lines, strings.Join(row, "\t"))
		}
	}
	return lines
}

// behind is how many columns stand behind those of other names: service, src-ip, dest-ip,
// dest-port.
const behind = 4
