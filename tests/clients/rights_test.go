package clients

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"dovetail/internal/testkit/client"
)

// login logs a user in.
func (s *server) login(name string) *client.Client {
	s.t.Helper()
	c := client.Dial(s.t, fmt.Sprint("127.0.0.1:", s.port), client.Options{Timeout: patience})
	c.ExpectCode("220")
	c.Plain(name, password)
	c.Do("NOOP", "250") // the worker has the client
	return c
}

// Two users are served at the same time, each by a process that is that user on every
// thread. who lists both, and kick ends one with 421 4.3.2.
func TestRightsOfTwoUsers(t *testing.T) {
	s := installed(t)
	alice, bob := s.login("alice"), s.login("bob")
	early := client.Dial(t, fmt.Sprint("127.0.0.1:", s.port), client.Options{Timeout: patience}) // keeps a login process there
	early.ExpectCode("220")

	dovenull, dovecot := uidOf(t, "dovenull"), uidOf(t, "dovecot")
	run, processes := filepath.Join(s.dir, "run"), s.processes()
	for service, want := range map[string]struct {
		uids []string // one of each process
		root string
	}{
		"submission-login": {[]string{dovenull}, run + "/login"},
		"submission":       {[]string{strconv.Itoa(uids["alice"]), strconv.Itoa(uids["bob"])}, "/"},
		"auth":             {[]string{dovecot}, "/"},
		"anvil":            {[]string{dovecot}, run + "/empty"},
		"log":              {[]string{dovecot}, "/"},
		"config":           {[]string{"0"}, "/"},
	} {
		var have []string
		for _, pid := range processes[service] {
			have = append(have, threads(t, pid))
			if root, _ := os.Readlink(fmt.Sprintf("/proc/%d/root", pid)); root != want.root {
				t.Errorf("%s: its root directory is %s, not %s", service, root, want.root)
			}
		}
		slices.Sort(have)
		have = slices.Compact(have)
		if !slices.Equal(have, want.uids) {
			t.Errorf("%s: processes are of the users %q, want %q", service, have, want.uids)
		}
	}
	if got := threads(t, s.cmd.Process.Pid); got != "0" {
		t.Errorf("the master is of user %s", got)
	}

	var out string
	s.until("who lists both", func() bool {
		out, _ = s.ask("who")
		return strings.Contains(out, "alice") && strings.Contains(out, "bob")
	})
	if out, status := s.ask("kick", "alice"); status != 0 || !strings.Contains(out, "alice") || strings.Contains(out, "bob") {
		t.Errorf("kick: %d %s", status, out)
	}
	alice.ExpectCode("421 4.3.2")
	alice.ExpectEOF()
	bob.Do("NOOP", "250")
	s.until("who has forgotten alice", func() bool {
		out, _ = s.ask("who")
		return !strings.Contains(out, "alice") && strings.Contains(out, "bob")
	})
	bob.Do("QUIT", "221")
}

func uidOf(t *testing.T, name string) string {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return u.Uid
}

// threads returns the user of a process, having seen to it that all its threads are that
// user's in every id, and, unless that is root, have neither root's group nor capabilities.
func threads(t *testing.T, pid int) string {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		t.Errorf("process %d has no threads", pid)
	}
	owner := ""
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		status := map[string][]string{}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			status[key] = strings.Fields(value)
		}
		if len(status["Uid"]) != 4 || len(status["Gid"]) != 4 {
			t.Fatalf("%s: %s", task, b)
		}
		if owner == "" {
			owner = status["Uid"][0]
		}
		bad := slices.ContainsFunc(status["Uid"], func(id string) bool { return id != owner })
		if owner != "0" {
			bad = bad || slices.Contains(status["Gid"], "0") || slices.Contains(status["Groups"], "0")
			for _, set := range []string{"CapPrm", "CapEff", "CapInh", "CapAmb"} {
				bad = bad || len(status[set]) != 1 || strings.Trim(status[set][0], "0") != ""
			}
		}
		if bad {
			t.Errorf("%s: of %s; Uid %v, Gid %v, Groups %v, CapPrm %v, CapEff %v, CapInh %v, CapAmb %v", task, owner,
				status["Uid"], status["Gid"], status["Groups"], status["CapPrm"], status["CapEff"], status["CapInh"], status["CapAmb"])
		}
	}
	return owner
}
