package system

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"dovetail/internal/testkit/need"
)

// building holds what Binary built in this process.
var building struct {
	mu    sync.Mutex
	dir   string
	built map[string]error
}

// Binary builds one of our programs, cmd/NAME, once in a test process, and returns its
// path. A program that is not there yet is a need. Packages that use it have Main in their
// TestMain, which removes it.
func Binary(t testing.TB, name string) string {
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
	path := filepath.Join(b.dir, name)
	err, done := b.built[name]
	if !done {
		err = build(name, path)
		b.built[name] = err
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

func build(name, path string) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	if _, err := os.Stat(filepath.Join(strings.TrimSpace(string(root)), "cmd", name)); os.IsNotExist(err) {
		return errNoProgram
	}
	cmd := exec.Command("go", "build", "-o", path, "dovetail/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cmd/%s does not build: %w\n%s", name, err, out)
	}
	return nil
}

// programs returns the executables of the halves that are ours.
func (s System) programs(t testing.TB) map[string]string {
	t.Helper()
	programs := map[string]string{}
	if s.Login == Ours {
		programs["submission-login"] = Binary(t, "submission-login")
	}
	if s.Worker == Ours {
		programs["submission"] = Binary(t, "submission")
	}
	if s.Master == Ours {
		programs["dovetail"] = Binary(t, "dovetail")
	}
	return programs
}

// Main runs the tests of a package that starts systems: several at a time, as instances
// mostly wait, and removes what Binary built.
func Main(m *testing.M) int {
	flag.Parse()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if !set {
		_ = flag.Set("test.parallel", "8")
	}
	code := m.Run()
	if building.dir != "" {
		_ = os.RemoveAll(building.dir)
	}
	return code
}
