package system

import (
	"os"
	"strings"
	"time"
)

// WholeLog returns the log file.
func (r *Running) WholeLog() string {
	data, _ := os.ReadFile(r.Dir + "/log")
	return string(data)
}

// Log returns the lines since the start that the two halves, auth and the master wrote
// about them: those of IMAP, which only helps, of the master's own life, what the
// configuration is warned of, and backtraces are left out.
func (r *Running) Log() (lines []string) {
	all := r.WholeLog()
	all = all[:strings.LastIndexByte(all, '\n')+1] // a line may be half written
	for _, line := range strings.Split(all[min(r.skip, len(all)):], "\n") {
		if line != "" && !aside(line) {
			lines = append(lines, line)
		}
	}
	return lines
}

func aside(line string) bool {
	for _, p := range []string{"imap-login: ", "imap(", "imap-urlauth(", "master: Info: Dovecot v", "master: Info: Dovetail v", "master: Warning: Killed with signal 15 ", "master: Warning: SIGHUP received", "master: Warning: Time moved ", "config: Warning: "} {
		if strings.HasPrefix(line, p) {
			return true
		}
	}
	return strings.Contains(line, ": Error: Raw backtrace: ") // of this machine's libraries
}

// WaitFor waits until ok says so of the lines of Log, and returns them; when the time is
// over, as they are.
func (r *Running) WaitFor(ok func(lines []string) bool) []string {
	for end := time.Now().Add(logTimeout); ; time.Sleep(pollPause) {
		lines := r.Log()
		if ok(lines) || time.Now().After(end) {
			return lines
		}
	}
}

// WaitLog waits until the log has n lines (of Log) and returns all.
func (r *Running) WaitLog(n int) []string {
	return r.WaitFor(func(lines []string) bool { return len(lines) >= n })
}

// WaitLine waits for a log line that contains text and returns it.
func (r *Running) WaitLine(text string) string {
	r.t.Helper()
	for end := time.Now().Add(logTimeout); ; time.Sleep(pollPause) {
		for _, line := range r.Log() {
			if strings.Contains(line, text) {
				return line
			}
		}
		if time.Now().After(end) {
			r.t.Fatalf("no log line contains %q:\n%s", text, strings.Join(r.Log(), "\n"))
		}
	}
}
