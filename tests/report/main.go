// Command report reads what `go test -json` says, and says it in short: a line for each
// package, all that a failed test said, and in the end what was skipped and why.
//
// Started by:   make test, behind a pipe.
// Exit status:  0 if every package passed and there was one; 1 otherwise.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if !report(os.Stdin, os.Stdout) {
		os.Exit(1)
	}
}

// An event is a line of `go doc test2json`.
type event struct {
	Action, Package, ImportPath, Test, Output string
}

// A suite is what has begun of a package.
type suite struct {
	tests  []*test // in that order
	byName map[string]*test
}

// A test is one, or with the name "" the package.
type test struct {
	output []string // nil when it is of no more use
	done   bool     // and has not failed
}

// maxLine bounds a line of the input, in octets: package testing cuts at 4 KiB, programs
// under test need not.
const maxLine = 16 << 20

// report returns whether all is well.
func report(in io.Reader, out io.Writer) bool {
	passed, failed := 0, 0
	running := map[string]*suite{} // by package
	skips := map[string]map[string]int{}
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			fmt.Fprintln(out, sc.Text()) // of the go command itself
			continue
		}
		s := running[e.Package]
		if s == nil {
			s = &suite{byName: map[string]*test{}}
			running[e.Package] = s
		}
		t := s.find(e.Test)
		switch e.Action {
		case "output":
			t.output = append(t.output, e.Output)
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "build-fail":
			failed++
		case "skip":
			t.done = true
			if e.Test != "" {
				note(skips, e.Package, t.output)
				t.output = nil
			}
		case "pass":
			t.done = true
			if e.Test != "" {
				t.output = nil
			}
		}
		if e.Test != "" || e.Action != "pass" && e.Action != "fail" && e.Action != "skip" {
			continue
		}
		if e.Action == "fail" {
			failed++
			for _, t := range s.tests {
				t.tell(out)
			}
		} else {
			passed++
			for _, line := range t.output {
				if strings.HasPrefix(line, "ok ") {
					fmt.Fprint(out, line)
				}
			}
		}
		delete(running, e.Package)
	}
	if err := sc.Err(); err != nil {
		fmt.Fprintln(out, err)
		return false
	}
	tell(out, skips)
	for name, left := range running { // the go command ended before its end
		if name != "" {
			failed++
			for _, t := range left.tests {
				t.tell(out)
			}
		}
	}
	return failed == 0 && passed > 0
}

// find returns the test of a name, a new one if it has just begun.
func (s *suite) find(name string) *test {
	t := s.byName[name]
	if t == nil {
		t = &test{}
		s.byName[name] = t
		s.tests = append(s.tests, t)
	}
	return t
}

// tell says what the test said, unless all was well with it.
func (t *test) tell(out io.Writer) {
	if t.done {
		return
	}
	for _, line := range t.output {
		if !strings.HasPrefix(line, "=== ") {
			fmt.Fprint(out, line)
		}
	}
}

var place = regexp.MustCompile(`^ *[\w.-]+\.go:\d+: `)

// note keeps why a test was skipped.
func note(skips map[string]map[string]int, pkg string, output []string) {
	why := "no reason given"
	for _, line := range output {
		if at := place.FindString(line); at != "" {
			why = strings.TrimSpace(line[len(at):])
		}
	}
	if skips[why] == nil {
		skips[why] = map[string]int{}
	}
	skips[why][strings.TrimPrefix(pkg, "dovetail/")]++
}

// tell says what was skipped: reasons, and for each the packages and their numbers of tests.
func tell(out io.Writer, skips map[string]map[string]int) {
	for _, why := range slices.Sorted(maps.Keys(skips)) {
		fmt.Fprintf(out, "skipped: %s\n", why)
		for _, pkg := range slices.Sorted(maps.Keys(skips[why])) {
			fmt.Fprintf(out, "\t%-30s %d\n", pkg, skips[why][pkg])
		}
	}
}
