package transcripts

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/transcript"
)

// mistakes are changes to case 10 that make it wrong, and what a replay must say of each.
var mistakes = []struct{ old, by, says string }{
	{"S: 250 2.1.5 Ok", "S: 250 2.1.5 OK", "10-basic-session.txt:52: got  250 2.1.5 Ok"},
	{"S: 250-DSN\n", "", "got  250-DSN"},
	{"S: 354 OK\n", "S: 354 OK\nS: 250 2.0.0 OK\n", "10-basic-session.txt:"},
	{"R: .dot", "R: ..dot", "got  .dot"},
	{"R: BDAT 221 LAST", "R: BDAT 222 LAST", "got  BDAT 221 LAST"},
	{"R: QUIT", "R: RSET", "got  QUIT"},
	{"R! connect\nM: 220 relay.test ESMTP ready\n", "", "no connection to the relay"},
	{"S! eof\n", "C: NOOP\nS: 250 2.0.0 OK\n", "the connection ended"},
	{"S: 250 2.1.0 Ok\n", "", ": got  250 2.1.0 Ok"},
	{"size=20", "size=21", "the log has"},
	{" in=207 ", " in=208 ", "the log has"},
	{"L: submission-login: Info: Login: user=<alice>", "L: submission-login: Info: Login: user=<bob>", "the log has"},
	{"mpid={pid}", "mpid=1", "the log has"},
	{"\nL: submission(alice)<{pid}><{session}>: Info: Successfully", "\nL: submission(alice)<{pid}><{session}>: Info: Successfully relayed nothing\nL: submission(alice)<{pid}><{session}>: Info: Successfully", "the log has"},
}

// A replay notices what is wrong. Each mistake is made in a child of this test.
func TestReplayerNotices(t *testing.T) {
	system.Dovecot.Need(t)
	data, err := os.ReadFile("10-basic-session.txt")
	if err != nil {
		t.Fatal(err)
	}
	if n := os.Getenv("TRANSCRIPT_MISTAKE"); n != "" {
		var i int
		if _, err := fmt.Sscan(n, &i); err != nil {
			t.Fatal(err)
		}
		c, err := transcript.Parse("10-basic-session.txt", strings.Replace(string(data), mistakes[i].old, mistakes[i].by, 1))
		if err != nil {
			t.Fatal(err)
		}
		transcript.Hurry()
		transcript.Replay(t, system.Dovecot, c)
		return
	}
	for i, m := range mistakes {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(string(data), m.old) {
				t.Fatalf("nothing to change: %q", m.old)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestReplayerNotices$")
			cmd.Env = append(os.Environ(), fmt.Sprint("TRANSCRIPT_MISTAKE=", i))
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), m.says) {
				t.Errorf("%q for %q: want a failure that says %q, got err %v and\n%s", m.by, m.old, m.says, err, out)
			}
		})
	}
}
