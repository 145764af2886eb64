package standalone

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/dovetail"
)

// A step is how far a client comes before it leaves: what it sends, and the code that it
// waits for; "tls" shakes hands. Without a code nothing is waited for.
type step struct {
	name string
	says [][2]string
}

func steps() []step {
	auth := [2]string{"AUTH PLAIN " + dovetail.Plain("alice"), "235"}
	greeted := [2]string{"", "220"}
	mail, rcpt, data := [2]string{"MAIL FROM:<a@example.org>", "250"}, [2]string{"RCPT TO:<b@example.net>", "250"}, [2]string{"DATA", "354"}
	return []step{
		{"connect", nil},
		{"greeting", [][2]string{greeted}},
		{"EHLO", [][2]string{greeted, {"EHLO x", "250"}}},
		{"half a handshake", [][2]string{greeted, {"STARTTLS", "220"}, {"\x16\x03\x01\x02\x00\x01\x00", ""}}},
		{"STARTTLS", [][2]string{greeted, {"STARTTLS", "220"}, {"tls", ""}, {"EHLO x", "250"}}},
		{"AUTH", [][2]string{greeted, {"AUTH PLAIN", "334"}}},
		{"login without an answer", [][2]string{greeted, {auth[0], ""}}},
		{"wrong password", [][2]string{greeted, {"AUTH PLAIN AGFsaWNlAHdyb25n", "535"}}},
		{"login", [][2]string{greeted, auth}},
		{"login behind TLS", [][2]string{greeted, {"STARTTLS", "220"}, {"tls", ""}, auth}},
		{"MAIL without an answer", [][2]string{greeted, auth, {mail[0], ""}}},
		{"RCPT", [][2]string{greeted, auth, mail, rcpt}},
		{"DATA", [][2]string{greeted, auth, mail, rcpt, data}},
		{"half a message", [][2]string{greeted, auth, mail, rcpt, data, {"Subject: half", ""}}},
		{"message without an answer", [][2]string{greeted, auth, mail, rcpt, data, {"Subject: x\r\n\r\ny\r\n.", ""}}},
		{"chunk", [][2]string{greeted, auth, mail, rcpt, {"BDAT 3\r\nabc", ""}}},
		{"QUIT without an answer", [][2]string{greeted, auth, {"QUIT", ""}}},
	}
}

// visit is one client: it goes as far as the step, and closes or resets.
func (st step) visit(s *dovetail.Server, reset bool) error {
	raw, err := net.DialTimeout("tcp", s.Addr, patience)
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	conn, br := net.Conn(raw), bufio.NewReader(raw)
	for _, x := range st.says {
		switch x[0] {
		case "":
		case "tls":
			c := tls.Client(conn, s.TLSConfig())
			if err := c.Handshake(); err != nil {
				return err
			}
			conn, br = c, bufio.NewReader(c)
		default:
			if _, err := io.WriteString(conn, x[0]+"\r\n"); err != nil {
				return err
			}
		}
		for last := false; x[1] != "" && !last; {
			line, err := br.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, x[1]) {
				return fmt.Errorf("%q is answered %q: %w", x[0], line, err)
			}
			last = len(line) > 3 && line[3] == ' '
		}
	}
	if reset {
		return raw.(*net.TCPConn).SetLinger(0)
	}
	return nil
}

// crowdSize is how many clients are at a step at the same time.
const crowdSize = 20

// At every step many connections are opened and closed, half of them by a reset: no
// process, descriptor or goroutine stays.
func TestNothingStays(t *testing.T) {
	setup := dovetail.Setup{Shared: true, Config: "auth_failure_delay = 0\n"}
	roles := []string{"auth", "anvil", "config"} // log cannot log its own
	fresh, _ := server(t, setup)
	fresh.Login(t, dovetail.TLS, "alice").Do("QUIT", "221")
	before := map[string]int{}
	for _, role := range roles {
		before[role] = goroutines(t, fresh, role)
	}

	s, _ := server(t, setup)
	idle := s.Idle(t, "alice")
	for _, st := range steps() {
		began := time.Now()
		var wg sync.WaitGroup
		errs := make(chan error, perStep)
		for n := range crowdSize {
			wg.Go(func() { // ends with its share
				for i := n; i < perStep; i += crowdSize {
					if err := st.visit(s, i%2 == 1); err != nil {
						errs <- err
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		if err, failed := <-errs; failed {
			t.Errorf("%s: %d clients did not come so far: %v", st.name, len(errs)+1, err)
		}
		s.Settled(t, idle)
		t.Logf("%s: %d connections, all gone after %v", st.name, perStep, time.Since(began).Round(time.Millisecond))
	}
	s.Login(t, dovetail.TLS, "alice").Do("QUIT", "221")
	s.Settled(t, idle)
	if out, _ := s.Ask(t, "who"); strings.Contains(out, "alice") {
		t.Errorf("who has somebody:\n%s", out)
	}
	for _, role := range roles {
		if after := goroutines(t, s, role); after > before[role] {
			t.Errorf("%s had %d goroutines and has %d", role, before[role], after)
		}
	}
	s.NoSessions(t, "submission")
	s.NoSessions(t, "submission-login")
}

// goroutines ends the only process of a role and returns how many goroutines it had, by the
// stacks in the log.
func goroutines(t *testing.T, s *dovetail.Server, role string) int {
	t.Helper()
	pid := running(t, s, role)
	before := len(s.Log())
	if err := syscall.Kill(pid, syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	s.WaitLine(t, "service("+role+")", fmt.Sprint("child ", pid))
	n := 0
	for line := range strings.Lines(s.Log()[before:]) {
		_, by, ok := strings.Cut(line, role+": Error: created by ")
		if ok && !strings.HasPrefix(by, "runtime.") { // which has some for itself, when it likes
			n++
		}
	}
	if n == 0 {
		t.Errorf("%s has told nothing of its goroutines", role)
	}
	return n
}
