package system

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// Built are our programs.
type Built struct {
	Login, Worker, Dovetail string // absolute paths
}

var building struct {
	once sync.Once
	dir  string
	out  []byte
	err  error
}

// Binaries builds our programs, once in a test process. Packages that use it have Main in
// their TestMain.
func Binaries(t testing.TB) Built {
	t.Helper()
	b := &building
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "dtbin"); b.err != nil {
			return
		}
		if b.err = os.Chmod(b.dir, 0o755); b.err != nil { // Dovecot's users run them
			return
		}
		cmd := exec.Command("go", "build", "-o", b.dir+"/", "dovetail/cmd/...")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		b.out, b.err = cmd.CombinedOutput()
	})
	if b.err != nil {
		t.Fatalf("our programs do not build: %v\n%s", b.err, b.out)
	}
	at := func(name string) string { return filepath.Join(b.dir, name) }
	return Built{Login: at("submission-login"), Worker: at("submission"), Dovetail: at("dovetail")}
}

// programs returns the executables of the halves that are ours.
func (s System) programs(t testing.TB) map[string]string {
	t.Helper()
	programs := map[string]string{}
	if s.Login == Ours {
		programs["submission-login"] = Binaries(t).Login
	}
	if s.Worker == Ours {
		programs["submission"] = Binaries(t).Worker
	}
	return programs
}

// Main runs the tests of a package that starts systems: several at a time, as instances
// mostly wait, and removes what Binaries built.
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
