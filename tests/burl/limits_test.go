package burl

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

const (
	mostMemory = 8 << 20  // octets of the worker's, whatever the message
	raceMemory = 48 << 20 // likewise, with the race detector, which has several octets for each
	largeMail  = 60 << 20 // octets
)

// A message of 60 MiB goes through the worker without staying there, by each way and to
// each kind of relay.
func TestLarge(t *testing.T) {
	for name, caps := range relays {
		t.Run(name, func(t *testing.T) {
			w := start(t, system.OursBoth, system.Setup{Config: []string{"submission_max_mail_size = 100M"}}, relay.Options{Caps: caps, Timeout: time.Minute, Discard: true})
			mail := large(largeMail)
			w.alice.Append(t, "INBOX", mail)
			n := 0
			for what, url := range map[string]string{"own": plain("INBOX", 1, ""), "by token": w.alice.Mint(t, rump("alice", "INBOX", 1, "", "alice"))} {
				n++
				c := w.login(w.alice) // by another worker
				c.Do("NOOP", "250")
				logins := w.WaitFor(func(lines []string) bool { return len(mpids(lines)) == n })
				worker := mpids(logins)[n-1]
				begin(c)
				c.Send("BURL "+url, "BDAT 0 LAST")
				most, samples := int64(0), 0
				for done := false; !done; samples++ {
					most = max(most, memory(t, worker))
					time.Sleep(5 * time.Millisecond) // between two looks
					done = len(w.relay.Messages()) >= n
				}
				c.Expect(fmt.Sprintf("250 2.0.0 Added %d octets", len(mail)))
				c.ExpectCode("250 2.0.0")
				size := w.relay.Messages()[n-1].Size
				header := size - int64(len(mail))
				if header < 150 || header > 300 {
					t.Errorf("%s: the relay has %d octets, the message %d", what, size, len(mail))
				}
				t.Logf("%s: at most %d KiB in %d looks", what, most>>10, samples)
				bound := int64(mostMemory)
				if system.Race {
					bound = raceMemory
				}
				if most > bound || samples < 5 {
					t.Errorf("%s: %d octets of memory in %d looks", what, most, samples)
				}
			}
		})
	}
}

// mpids are the workers of the logins that are logged.
func mpids(lines []string) (pids []int) {
	for _, l := range lines {
		if _, rest, ok := strings.Cut(l, "submission-login: Info: Login: user=<alice>, method=PLAIN, rip=127.0.0.1, lip=127.0.0.1, mpid="); ok {
			pid, _ := strconv.Atoi(rest[:strings.IndexByte(rest, ',')])
			pids = append(pids, pid)
		}
	}
	return pids
}

// memory is the share of a process in the machine's memory (PSS), in octets.
func memory(t testing.TB, pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nPss:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// submission_max_mail_size counts what BURL brings: nothing more is taken, and what the
// relay may have of the message comes to nothing.
func TestSizeLimit(t *testing.T) {
	for name, caps := range relays {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, system.OursBoth, system.Setup{Config: []string{"submission_max_mail_size = 300k"}}, relay.Options{Caps: caps})
			w.alice.Append(t, "INBOX", simple, large(200<<10), large(400<<10))
			auth := w.alice.Mint(t, rump("alice", "INBOX", 3, "", "alice"))
			c := w.login(w.alice)
			const tooBig = "552 5.2.3 Message size exceeds administrative limit"
			for _, chunks := range [][]string{
				{plain("INBOX", 3, "") + " LAST"}, {auth + " LAST"}, {plain("INBOX", 2, ""), plain("INBOX", 2, "")}, {plain("INBOX", 1, ""), auth}, {plain("INBOX", 2, ""), plain("INBOX", 2, "") + " LAST"},
			} {
				begin(c)
				for i, chunk := range chunks {
					want := "250 2.0.0 Added"
					if i == len(chunks)-1 {
						want = tooBig
					}
					c.Do("BURL "+chunk, want)
				}
				c.Do("BURL "+plain("INBOX", 1, "")+" LAST", "503 5.5.0 Previous data chunk failed, issue RSET first")
				c.Do("MAIL FROM:<a@b>", "503 5.5.0 MAIL already given")
			}
			if got := burl(c, plain("INBOX", 2, "/;PARTIAL=0.300000")); !strings.HasPrefix(got, "250 2.0.0 Ok") {
				t.Error(got)
			}
			if got := w.relay.WaitMessages(1); len(got) != 1 {
				t.Errorf("%d messages", len(got))
			}
		})
	}
}
