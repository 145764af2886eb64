// Package fail2ban asks the installed fail2ban which lines of a log its filter "dovecot"
// takes for failed logins. It starts no service and bans nobody.
package fail2ban

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dovetail/internal/testkit/need"
)

// A Match is a line that the filter took.
type Match struct{ IP, User string }

// Modes of the filter: aggressive also takes those who only look.
const (
	Normal     = "normal"
	Aggressive = "aggressive"
)

// Matches returns what the filter takes of a log whose lines begin with a time stamp, in
// the order of the log.
func Matches(t testing.TB, log, mode string) (found []Match) {
	t.Helper()
	program := need.Program(t, "fail2ban-regex")
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, "--no-check-all", "-o", "<ip>|<F-USER>", path, "dovecot[mode="+mode+"]").CombinedOutput()
	// It exits with 1 when no line matches, and with 255 on a mistake of ours.
	if exit, ok := err.(*exec.ExitError); err != nil && !(ok && exit.ExitCode() == 1) {
		t.Fatalf("fail2ban-regex: %v\n%s", err, out)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		ip, user, ok := strings.Cut(line, "|")
		if line == "" {
			continue
		}
		if !ok {
			t.Fatalf("fail2ban-regex says %q", line)
		}
		found = append(found, Match{ip, user})
	}
	return found
}

// Count returns how often each address was found.
func Count(matches []Match) map[string]int {
	n := map[string]int{}
	for _, m := range matches {
		n[m.IP]++
	}
	return n
}
