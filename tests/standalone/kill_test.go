package standalone

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
)

// busyClients is how many clients send without a pause.
const busyClients = 20

// A crowd of clients sends messages as fast as it can, and remembers what was answered 250.
type crowd struct {
	s    *dovetail.Server
	stop chan struct{}
	wg   sync.WaitGroup
	sent atomic.Int64 // messages answered 250

	mu  sync.Mutex
	ids []string // of the messages answered 250; guarded by mu
}

func newCrowd(s *dovetail.Server) *crowd {
	c := &crowd{s: s, stop: make(chan struct{})}
	for n := range busyClients {
		c.wg.Go(func() { c.send(n) }) // ends with leave
	}
	return c
}

// leave ends the clients and returns what they were told has been taken.
func (c *crowd) leave() []string {
	close(c.stop)
	c.wg.Wait()
	return c.ids
}

// send is one client: a session after the other, whatever happens to them.
func (c *crowd) send(n int) {
	for i := 0; ; i++ {
		select {
		case <-c.stop:
			return
		default:
		}
		err := c.session(n%2 == 1, func(round int) string { return fmt.Sprintf("id-%d-%d-%d-end", n, i, round) })
		if err != nil { // it is tried again, a little later
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// perSession is how many messages a session has.
const perSession = 5

// session sends some messages in one session.
func (c *crowd) session(withTLS bool, id func(round int) string) error {
	addr := c.s.Addr
	if withTLS {
		addr = c.s.TLSAddr
	}
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if withTLS {
		conn = tls.Client(conn, c.s.TLSConfig())
	}
	client, err := smtp.NewClient(conn, "127.0.0.1")
	if err == nil {
		err = client.Auth(smtp.PlainAuth("", "alice", dovetail.Password, "127.0.0.1"))
	}
	for round := 0; err == nil && round < perSession; round++ {
		err = c.message(client, id(round))
	}
	if err != nil {
		return err
	}
	return client.Quit()
}

func (c *crowd) message(client *smtp.Client, id string) error {
	if err := errors.Join(client.Mail("a@example.org"), client.Rcpt("b@example.net")); err != nil {
		return err
	}
	w, err := client.Data()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "Subject: %s\r\n\r\nhello\r\n", id)
	if err := w.Close(); err != nil { // the answer to the message
		return err
	}
	c.mu.Lock()
	c.ids = append(c.ids, id)
	c.mu.Unlock()
	c.sent.Add(1)
	return nil
}

// Each process is killed in turn, the master last, while clients are busy: no message that
// was answered 250 is missing at the relay, and the server serves again at once. (The time
// is held to serveAgain by `make soak`; here the machine may be busy with other tests.)
func TestKillOfEachUnderLoad(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			s, r := server(t, dovetail.Setup{Shared: shared})
			c := newCrowd(s)
			// A new client that logs in, sends a message, and leaves.
			serves := func() bool {
				return c.session(false, func(round int) string { return fmt.Sprintf("probe-%d", round) }) == nil
			}
			s.Until(t, "the server serves", serves)
			for _, service := range []string{"log", "anvil", "auth", "config", "submission-login", "submission", "master"} {
				before := c.sent.Load()
				s.Until(t, "messages pass before the death of "+service, func() bool { return c.sent.Load() >= before+3*busyClients })
				var died time.Time
				if service == "master" {
					died = time.Now()
					if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
					s.Restart()
				} else {
					s.Until(t, "a process of "+service+" is killed", func() bool {
						pid := running(t, s, service)
						died = time.Now()
						if syscall.Kill(pid, syscall.SIGKILL) != nil {
							return false
						}
						// One that was ending by itself leaves no line: the next one, then.
						for end := died.Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
							if len(s.Lines(fmt.Sprintf("service(%s): child %d killed with signal 9", service, pid))) > 0 {
								return true
							}
						}
						return false
					})
				}
				s.Until(t, "the server serves after the death of "+service, serves)
				took := time.Since(died)
				t.Logf("%s: serves after %v, %d messages so far", service, took.Round(time.Millisecond), c.sent.Load())
				if took > serveAgain {
					t.Errorf("after the death of %s it serves only after %v", service, took)
				}
			}
			there := map[string]bool{}
			ids := c.leave()
			for _, m := range r.Messages() {
				if m.Accepted {
					there[subject(m)] = true
				}
			}
			for _, id := range ids {
				if !there[id] {
					t.Errorf("%s was answered 250 and is not at the relay", id)
				}
			}
			t.Logf("%d messages answered 250, all at the relay", len(ids))
		})
	}
}

func subject(m relay.Message) string {
	_, rest, _ := strings.Cut(string(m.Data), "Subject: ")
	id, _, _ := strings.Cut(rest, "\r\n")
	return id
}

// running returns a process of a service.
func running(t *testing.T, s *dovetail.Server, service string) (pid int) {
	t.Helper()
	s.Until(t, "there is a process of "+service, func() bool {
		out, _ := s.Ask(t, "status")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) >= 2 && f[1] == service {
				var err error
				if pid, err = strconv.Atoi(f[0]); err == nil {
					return true
				}
			}
		}
		return false
	})
	return pid
}
