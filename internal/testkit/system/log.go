package system

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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

// logServes waits until a log process of Dovecot other than those of old has read what its
// master writes first into each pipe. A line that a program writes before that is read
// together with it, and handled only when another follows.
func (r *Running) logServes(old []int) {
	r.t.Helper()
	for end := time.Now().Add(startTimeout); ; time.Sleep(pollPause) {
		pids := slices.DeleteFunc(r.logProcesses(), func(pid int) bool { return slices.Contains(old, pid) })
		if len(pids) > 0 && pipesAreEmpty(pids[0]) {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("%v: the log process does not read\nlog:\n%s", r.System, r.WholeLog())
		}
	}
}

func (r *Running) logProcesses() []int { return r.Processes("/log\x00") }

// pipesAreEmpty says whether the process has read what was in its pipes.
func pipesAreEmpty(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	pipes := 0
	for _, e := range entries {
		path := dir + e.Name()
		target, _ := os.Readlink(path)
		link, err := os.Lstat(path)
		if err != nil || !strings.HasPrefix(target, "pipe:") || link.Mode()&0o200 != 0 {
			continue
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return false
		}
		waiting, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		unix.Close(fd)
		if err != nil || waiting > 0 {
			return false
		}
		pipes++
	}
	return pipes > 0
}
