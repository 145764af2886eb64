package system

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"dovetail/internal/testkit/need"
)

// building holds what Binary built in this process.
var building struct {
	mu    sync.Mutex
	dir   string
	built map[string]error // by path
}

// Binary builds one of our programs, cmd/NAME, once in a test process, and returns its
// path. A program that is not there yet is a need. Packages that use it have Main in their
// TestMain, which removes it. Tests under the race detector get programs with it.
func Binary(t testing.TB, name string) string {
	t.Helper()
	return Build(t, name, "")
}

// Hasty is the build tag with which timers of minutes are seconds (package process/pace).
const Hasty = "hasty"

// Build is Binary with a build tag; those with the same tag are in one directory.
func Build(t testing.TB, name, tag string) string {
	t.Helper()
	b := &building
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == "" {
		dir, err := os.MkdirTemp("", "dtbin")
		if err == nil {
			err = os.Chmod(dir, 0o755) // Dovecot's users run what is in it
		}
		if err != nil {
			t.Fatal(err)
		}
		b.dir, b.built = dir, map[string]error{}
	}
	path := filepath.Join(b.dir, tag, name)
	err, done := b.built[path]
	if !done {
		err = build(name, path, tag)
		b.built[path] = err
	}
	if err == errNoProgram {
		need.Missing(t, "cmd/"+name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var errNoProgram = fmt.Errorf("no such program")

func build(name, path, tag string) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	if _, err := os.Stat(filepath.Join(strings.TrimSpace(string(root)), "cmd", name)); os.IsNotExist(err) {
		return errNoProgram
	}
	args, cgo := []string{"build", "-tags", tag, "-o", path}, "CGO_ENABLED=0"
	switch {
	case Race: // which needs cgo, and no limit of the address space
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	case name == "submission" || name == "submission-login":
		args = append(args, "-ldflags", "-E dovetail_entry") // as the Makefile does
	}
	cmd := exec.Command("go", append(args, "dovetail/cmd/"+name)...)
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cmd/%s does not build: %w\n%s", name, err, out)
	}
	return nil
}

// programs returns the executables that the configuration has to name: those of a half
// that is not the master's own.
func (s System) programs(t testing.TB) map[string]string {
	t.Helper()
	programs := map[string]string{}
	for name, side := range map[string]Side{"submission-login": s.Login, "submission": s.Worker} {
		switch {
		case side == Ours:
			programs[name] = Binary(t, name)
		case s.Master == Ours:
			programs[name] = filepath.Join(need.Dovecot(t).Libexec, name)
		}
	}
	if s.Master == Ours {
		Binary(t, "dovetail")
	}
	return programs
}

// Main runs the tests of a package that starts systems: several at a time, as instances
// mostly wait, and removes what Binary built.
func Main(m *testing.M) int { return MainParallel(m, 8) }

// MainParallel is Main with so many tests at a time, unless -parallel says otherwise.
func MainParallel(m *testing.M, n int) int {
	flag.Parse()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if !set {
		_ = flag.Set("test.parallel", strconv.Itoa(n))
	}
	code := m.Run()
	if building.dir != "" {
		_ = os.RemoveAll(building.dir)
	}
	return code
}
