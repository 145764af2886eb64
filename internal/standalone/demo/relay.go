package demo

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

const (
	relayTimeout = 5 * time.Minute
	maxMessage   = 100 << 20
	maxWaiting   = 1000 // messages that nobody has been told of
)

// A relay takes every message and writes it to a file.
type relay struct {
	dir      string
	port     int
	messages chan message // what arrived; dropped when nobody looks
	server   *smtp.Server
	ln       net.Listener
	done     sync.WaitGroup

	mu    sync.Mutex
	count int // guarded by mu
}

// A message is one that arrived.
type message struct {
	from string
	to   []string
	path string // of its file
}

// startRelay starts a relay that writes to files in dir, on a port of its own.
func startRelay(dir string) (*relay, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	r := &relay{dir: dir, port: ln.Addr().(*net.TCPAddr).Port, messages: make(chan message, maxWaiting), ln: ln}
	r.server = smtp.NewServer(r)
	r.server.Domain = "relay.localhost"
	r.server.ReadTimeout, r.server.WriteTimeout = relayTimeout, relayTimeout
	r.server.MaxMessageBytes = maxMessage
	r.server.EnableSMTPUTF8 = true
	r.done.Go(func() { _ = r.server.Serve(ln) }) // ends with close
	return r, nil
}

func (r *relay) close() {
	r.server.Close()
	r.ln.Close() // which server does not know if it has hardly begun
	r.done.Wait()
}

// NewSession is go-smtp's.
func (r *relay) NewSession(*smtp.Conn) (smtp.Session, error) { return &relaySession{relay: r}, nil }

type relaySession struct {
	relay *relay
	from  string
	to    []string
}

func (s *relaySession) Reset()        { s.from, s.to = "", nil }
func (s *relaySession) Logout() error { return nil }

func (s *relaySession) Mail(from string, _ *smtp.MailOptions) error {
	s.from = from
	return nil
}

func (s *relaySession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.to = append(s.to, to)
	return nil
}

// Data writes the message under a name that says its place in the row.
func (s *relaySession) Data(body io.Reader) error {
	r := s.relay
	r.mu.Lock()
	r.count++
	path := filepath.Join(r.dir, fmt.Sprintf("%03d.eml", r.count))
	r.mu.Unlock()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path)
		return err
	}
	select {
	case r.messages <- message{s.from, s.to, path}:
	default:
	}
	return nil
}
