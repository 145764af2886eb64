// Package leak finds what a test leaves behind: goroutines, descriptors, child processes.
package leak

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// settle is how long things may take to go away when the test has ended.
const settle = 2 * time.Second

// Check notes the goroutines, descriptors and children that are there now and fails the
// test, when it and its other cleanups have ended, for each new one that stays. Call it
// first. Not for parallel tests: they share all of these.
func Check(t testing.TB) {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	files, children := Files(), Children(os.Getpid())
	t.Cleanup(func() {
		if t.Failed() {
			return // what failed has not cleaned up
		}
		if err := goleak.Find(ignore); err != nil {
			t.Errorf("goroutines: %v", err)
		}
		report(t, "descriptor", func() []string { return missing(Files(), files) })
		report(t, "child process", func() []string { return missing(describe(Children(os.Getpid())), describe(children)) })
	})
}

// report waits until look returns nothing, and reports what it still returns after settle.
func report(t testing.TB, what string, look func() []string) {
	t.Helper()
	var left []string
	for end := time.Now().Add(settle); ; time.Sleep(10 * time.Millisecond) {
		if left = look(); len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	for _, l := range left {
		t.Errorf("%s left: %s", what, l)
	}
}

func missing(now, before []string) (left []string) {
	for _, x := range now {
		if !slices.Contains(before, x) {
			left = append(left, x)
		}
	}
	return left
}

// Files returns the open descriptors of this process: "7 socket:[1234]". Those of Go's
// own poller are left out.
func Files() []string { return FilesOf(os.Getpid()) }

// FilesOf returns the open descriptors of a process.
func FilesOf(pid int) (files []string) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || target == dir || strings.HasPrefix(target, "anon_inode:[event") || strings.HasPrefix(target, "/proc/") {
			continue // the descriptor of ReadDir itself, or the poller
		}
		files = append(files, e.Name()+" "+target)
	}
	return files
}

// Children returns the processes whose parent is pid.
func Children(pid int) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		data, _ := os.ReadFile(task)
		for _, f := range strings.Fields(string(data)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// Tree returns pid's children, theirs, and so on.
func Tree(pid int) (pids []int) {
	for _, c := range Children(pid) {
		pids = append(append(pids, c), Tree(c)...)
	}
	return pids
}

// describe says what runs: "1234 dovecot/anvil".
func describe(pids []int) (out []string) {
	for _, pid := range pids {
		cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // gone
		}
		out = append(out, fmt.Sprintf("%d %s", pid, strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))))
	}
	return out
}
