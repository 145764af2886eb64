// Package confd tests the example snippets.
package confd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dovetail/internal/conf"
	"dovetail/internal/testkit/need"
)

// base is what the snippets are added to.
const base = `protocols = submission
ssl = no
passdb {
  driver = static
  args = password=x
}
userdb {
  driver = static
  args = uid=65534 gid=65534 home=/tmp
}
submission_relay_host = 127.0.0.1
`

// snippets returns each file with a configuration that includes it.
func snippets(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.conf")
	if err != nil || len(files) == 0 {
		t.Fatal("no snippets", err)
	}
	dir := t.TempDir()
	all := map[string]string{}
	for _, f := range files {
		path, err := filepath.Abs(f)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, f)
		if err := os.WriteFile(name, []byte(base+"!include "+path+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		all[f] = name
	}
	return all
}

func TestSnippetsParse(t *testing.T) {
	for f, path := range snippets(t) {
		if _, diags := conf.Load(path, conf.Options{Own: true}); diags.HasErrors() {
			t.Errorf("%s: %v", f, diags)
		}
	}
}

// The real doveconf accepts each, and sees the programs and the limits.
func TestSnippetsInDovecot(t *testing.T) {
	need.Dovecot(t)
	for f, path := range snippets(t) {
		out, err := exec.Command("doveconf", "-n", "-c", path).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", f, err, out)
			continue
		}
		text, _ := os.ReadFile(f)
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "executable = ") && !strings.Contains(string(out), line) {
				t.Errorf("%s: doveconf -n does not show %q:\n%s", f, line, out)
			}
		}
	}
}
