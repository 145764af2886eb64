package need

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A test that needs what is not there is skipped by name, and fails when CI=true. It runs
// itself as a child, since a skip ends the test.
func TestMissingIsNamed(t *testing.T) {
	if os.Getenv("NEED_TEST_CHILD") != "" {
		Program(t, "no-such-program-as-this")
		return
	}
	for _, c := range []struct{ ci, want, not string }{
		{"", "--- SKIP", "--- FAIL"},
		{"true", "--- FAIL", "--- SKIP"},
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMissingIsNamed$", "-test.v")
		cmd.Env = append(os.Environ(), "NEED_TEST_CHILD=1", "CI="+c.ci)
		out, _ := cmd.CombinedOutput()
		text := string(out)
		if !strings.Contains(text, c.want) || strings.Contains(text, c.not) {
			t.Errorf("CI=%q: want %s, got\n%s", c.ci, c.want, text)
		}
		if !strings.Contains(text, "needs the program no-such-program-as-this") {
			t.Errorf("CI=%q: the need is not named:\n%s", c.ci, text)
		}
	}
}

func TestProgramIsFound(t *testing.T) {
	if path := Program(t, "sh"); !strings.HasPrefix(path, "/") {
		t.Errorf("sh found at %q", path)
	}
}
