package clients

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
)

// A sink is an MTA that others wrote, and that takes everything.
type sink struct {
	port int
	got  chan mail // what arrived
}

// A mail is one that arrived.
type mail struct {
	from string
	to   []string
	data []byte
}

// maxMail bounds a message at the sink, in octets.
const maxMail = 64 << 20

// startSink runs one until the test ends.
func startSink(t *testing.T) *sink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{port: l.Addr().(*net.TCPAddr).Port, got: make(chan mail, 1000)}
	server := smtp.NewServer(s)
	server.Domain = "mta.example.test"
	server.ReadTimeout, server.WriteTimeout = patience, patience
	server.MaxMessageBytes = maxMail
	server.EnableSMTPUTF8 = true
	done := make(chan struct{})
	go func() { // ends with the listener
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		l.Close() // which server does not know if it has hardly begun
		<-done
	})
	return s
}

// next waits for the next message.
func (s *sink) next(t *testing.T) mail {
	t.Helper()
	select {
	case m := <-s.got:
		return m
	case <-time.After(patience):
		t.Fatal("no message arrives")
		return mail{}
	}
}

// NewSession is go-smtp's.
func (s *sink) NewSession(*smtp.Conn) (smtp.Session, error) { return &sinkSession{sink: s}, nil }

type sinkSession struct {
	sink *sink
	mail mail
}

func (s *sinkSession) Reset()        { s.mail = mail{} }
func (s *sinkSession) Logout() error { return nil }

func (s *sinkSession) Mail(from string, _ *smtp.MailOptions) error {
	s.mail = mail{from: from}
	return nil
}

func (s *sinkSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.mail.to = append(s.mail.to, to)
	return nil
}

func (s *sinkSession) Data(body io.Reader) (err error) {
	if s.mail.data, err = io.ReadAll(body); err == nil {
		s.sink.got <- s.mail
	}
	return err
}
