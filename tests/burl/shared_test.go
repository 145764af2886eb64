package burl

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// One worker for all users of one uid, several of whom fetch at the same time: everybody
// gets his own, and afterwards the process holds no more descriptors than before.
func TestSharedWorker(t *testing.T) {
	w := start(t, system.OursBoth, system.Setup{Config: []string{"service submission {", "  client_limit = 100", "  process_limit = 1", "  service_count = 0", "}"}}, relay.Options{})
	const each = 6
	w.alice.Append(t, "INBOX", []byte("Subject: of alice\r\n\r\nx\r\n"), large(300<<10))
	w.bob.Append(t, "INBOX", []byte("Subject: of bob\r\n\r\nx\r\n"), large(300<<10))
	forAlice := w.bob.Mint(t, rump("bob@example.test", "INBOX", 1, "", "alice"))
	forBob := w.alice.Mint(t, rump("alice", "INBOX", 1, "", "bob@example.test"))
	// The first session of the process, which stays.
	first := w.login(w.alice)
	if got := burl(first, plain("INBOX", 1, "")); !strings.HasPrefix(got, "250 ") {
		t.Fatal(got)
	}
	worker := mpids(w.WaitLog(1))[0]
	before := len(leak.FilesOf(worker))
	var wg sync.WaitGroup
	for i := range 2 * each {
		a, other := w.alice, forAlice
		user := "bob%40example.test" // whose name in an URL without URLAUTH does not matter
		if i%2 == 1 {
			a, other, user = w.bob, forBob, "alice"
		}
		c := w.login(a)
		c.Do("NOOP", "250")
		c.Write(fmt.Sprintf("MAIL FROM:<%d@a>\r\nRCPT TO:<x@b>\r\nBURL %s\r\nBURL %s\r\nBURL %s\r\nBURL %s LAST\r\nQUIT\r\n",
			i, plain("INBOX", 1, ""), other, plain("INBOX", 2, ""), strings.Replace(plain("INBOX", 1, ""), "imap://", "imap://"+user+"@", 1)))
		wg.Go(func() {
			for range 6 {
				if line, err := c.TryLine(); err != nil || !strings.HasPrefix(line, "250") {
					t.Errorf("%d: %s %v", i, line, err)
				}
			}
			_, _ = c.TryLine()
		})
	}
	wg.Wait()
	big := string(large(300 << 10))
	for _, m := range w.relay.WaitMessages(1 + 2*each)[1:] {
		var i int
		if _, err := fmt.Sscanf(m.From, "<%d@a>", &i); err != nil {
			t.Fatal(err)
		}
		mine, others := "Subject: of alice\r\n\r\nx\r\n", "Subject: of bob\r\n\r\nx\r\n"
		if i%2 == 1 {
			mine, others = others, mine
		}
		if _, got, _ := bytes.Cut(m.Data, []byte("+0000\r\n")); string(got) != mine+others+big+mine {
			t.Errorf("%d: %d octets", i, len(got))
		}
	}
	first.Do("NOOP", "250")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if now := len(leak.FilesOf(worker)); now <= before {
			break
		} else if time.Now().After(end) {
			t.Fatalf("%d descriptors, %d before: %v", now, before, leak.FilesOf(worker))
		}
	}
	if pids := mpids(w.Log()); len(pids) == 0 || pids[len(pids)-1] != worker {
		t.Errorf("not one worker: %v", pids)
	}
}

// Dovecot's processes that a BURL reads from are killed in the middle, and the client
// leaves in the middle: nothing is delivered.
func TestKilledInside(t *testing.T) {
	var scripts []relay.Script // the relay of each session answers no BDAT until it is told to
	var goOn []chan struct{}
	for range 4 {
		ch := make(chan struct{})
		goOn = append(goOn, ch)
		scripts = append(scripts, relay.Script{relay.BDAT: {relay.When(ch, relay.Reply("250 2.0.0 Ok")).Always()}})
	}
	w := start(t, system.OursBoth, system.Setup{Config: []string{"submission_max_mail_size = 100M"}}, relay.Options{Scripts: scripts, Timeout: time.Minute})
	w.alice.Append(t, "INBOX", large(20<<20))
	auth := w.alice.Mint(t, rump("alice", "INBOX", 1, "", "alice"))
	for program, url := range map[string]string{"imap": plain("INBOX", 1, ""), "imap-urlauth-worker": auth} {
		c := w.login(w.alice)
		begin(c)
		n := len(w.relay.Conns()) - 1
		c.Send("BURL " + url + " LAST")
		w.relay.Commands(n, 5) // EHLO RSET MAIL RCPT BDAT: the message is on its way
		killed := 0
		for _, pid := range leak.Tree(w.PID()) {
			exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			if err == nil && filepath.Base(exe) == program && syscall.Kill(pid, syscall.SIGKILL) == nil {
				killed++
			}
		}
		if killed == 0 {
			t.Errorf("%s does not run", program)
		}
		close(goOn[n])
		c.Expect("451 4.4.1 IMAP server unavailable")
		c.Do("RSET", "250")
		c.Close()

		leaver := w.login(w.alice)
		begin(leaver)
		n++
		leaver.Send("BURL " + url)
		w.relay.Commands(n, 5)
		leaver.Reset()
		close(goOn[n])
	}
	w.WaitFor(func(lines []string) bool {
		return strings.Count(strings.Join(lines, "\n"), "Disconnected: Connection closed") >= 3
	})
	if n := len(w.relay.Messages()); n > 0 {
		t.Errorf("%d messages", n)
	}
}
