package dovetail

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/leak"
)

// A Census is what the server's processes hold: a line for each process, with how many
// descriptors of which kind it has open.
type Census []string

// Census counts now.
func (s *Server) Census() Census {
	var lines Census
	for name, pids := range s.Processes() {
		for _, pid := range pids {
			kinds := map[string]int{}
			for _, f := range leak.FilesOf(pid) {
				_, to, _ := strings.Cut(f, " ")
				kind, _, _ := strings.Cut(to, ":")
				if strings.HasPrefix(to, "/") {
					kind = "file"
				}
				kinds[kind]++
			}
			line := name + ":"
			for _, k := range slices.Sorted(maps.Keys(kinds)) {
				line += fmt.Sprintf(" %d %s", kinds[k], k)
			}
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines
}

// Idle lets a user log in and leave, and returns what the server holds when nothing changes
// any more.
func (s *Server) Idle(t testing.TB, user string) Census {
	t.Helper()
	first := s.Login(t, TLS, user)
	first.Do("QUIT", "221")
	first.Close() // or the worker waits a second for us to do so
	return s.steady()
}

// steady is the census when it has stayed the same for a while.
func (s *Server) steady() (c Census) {
	for same := time.Now(); time.Since(same) < steadyFor; time.Sleep(20 * time.Millisecond) {
		if now := s.Census(); !slices.Equal(now, c) {
			c, same = now, time.Now()
		}
	}
	return c
}

const steadyFor = 500 * time.Millisecond

// Settled waits until the server holds no more than it did at want: the same processes
// with the same descriptors.
func (s *Server) Settled(t testing.TB, want Census) {
	t.Helper()
	var got Census
	if !s.wait(func() bool { got = s.Census(); return slices.Equal(got, want) }) {
		t.Errorf("the server has\n  %s\nand had\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

var goroutineLine = regexp.MustCompile(`goroutine \d+[^\[]*\[[^\]]*\]:$`)

// Goroutines ends a process of a service by SIGABRT, and returns the stacks of its
// goroutines, as the log has them: one string each.
func (s *Server) Goroutines(t testing.TB, service string) []string {
	t.Helper()
	pids := s.Processes()[service]
	if len(pids) != 1 {
		t.Fatalf("service %s has the processes %v", service, pids)
	}
	before := len(s.Log())
	if err := syscall.Kill(pids[0], syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	s.WaitLine(t, "service("+service+")", fmt.Sprint("child ", pids[0]), "returned error 2")
	prefix := service + ": Error: "
	var stacks []string
	for line := range strings.Lines(s.Log()[before:]) {
		_, text, ok := strings.Cut(strings.TrimSuffix(line, "\n"), prefix)
		switch {
		case !ok:
		case goroutineLine.MatchString(text):
			stacks = append(stacks, text)
		case len(stacks) > 0:
			stacks[len(stacks)-1] += "\n" + text
		}
	}
	if len(stacks) == 0 {
		t.Fatalf("process %d has told nothing of its goroutines", pids[0])
	}
	return stacks
}

// NoSessions fails the test if a process of a service has goroutines that belong to a
// client. It ends the process.
func (s *Server) NoSessions(t testing.TB, service string) {
	t.Helper()
	for _, stack := range s.Goroutines(t, service) {
		if isSession(stack) {
			t.Errorf("a goroutine of %s that stays:\n%s", service, stack)
		}
	}
}

// isSession says whether a stack is that of a goroutine that serves a client.
func isSession(stack string) bool {
	for _, of := range []string{".(*session)", ".(*Client).Go", "smtp/client.(*Conn)", "smtp/server.(*Conn)", "splice.(*Stream)", "time.goFunc", ".(*Process).serve("} {
		if strings.Contains(stack, of) {
			return true
		}
	}
	return false
}

// AnonMemory returns the anonymous memory (RssAnon: resident, without pages of files) of a
// process in octets, 0 if it has gone.
func AnonMemory(pid int) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	return 0
}
