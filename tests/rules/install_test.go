package rules

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dovetail/internal/testkit/need"
)

// What `make install` lays below PREFIX, besides conf.d/ and docs/, of which it takes all.
var installed = []string{
	"bin/doveconf-lite",
	"lib/systemd/system/dovetail.service",
	"lib/sysusers.d/dovetail.conf",
	"libexec/dovetail/dovetail",
	"libexec/dovetail/submission",
	"libexec/dovetail/submission-login",
	"sbin/dovetail",
	"share/doc/dovetail/CHANGELOG.md",
	"share/doc/dovetail/LICENSE",
	"share/doc/dovetail/README.md",
	"share/man/man1/doveconf-lite.1",
	"share/man/man8/dovetail.8",
	"share/man/man8/submission-login.8",
	"share/man/man8/submission.8",
}

// `make install` lays programs, manual pages, documents, examples and the unit; wherever a
// program is named by its path it is there.
func TestInstall(t *testing.T) {
	root := t.TempDir()
	const prefix = "/opt/mail"
	cmd := exec.Command(need.Program(t, "make"), "-s", "-C", "../..", "install", "DESTDIR="+root, "PREFIX="+prefix)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := slices.Clone(installed)
	for from, to := range map[string]string{"../../conf.d/*.conf": "share/doc/dovetail/examples", "../../docs/*.md": "share/doc/dovetail"} {
		files, err := filepath.Glob(from)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", from, err)
		}
		for _, f := range files {
			want = append(want, to+"/"+filepath.Base(f))
		}
	}
	var got []string
	named := regexp.MustCompile(`/(?:opt|usr)/[-a-z/]*(?:libexec|sbin)/[-a-z/\\]+`)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, root+prefix+"/")
		got = append(got, name)
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		program := strings.Contains(name, "bin/") || strings.Contains(name, "libexec/")
		if mode := map[bool]fs.FileMode{true: 0o755, false: 0o644}[program]; info.Mode() != mode {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
		if program || strings.HasSuffix(name, ".md") { // documents speak of PREFIX=/usr
			return nil
		}
		text, err := os.ReadFile(path)
		for _, p := range named.FindAllString(string(text), -1) {
			p = strings.ReplaceAll(p, `\`, "") // of a manual page
			if _, err := os.Stat(root + p); err != nil {
				t.Errorf("%s names %s, which is not there", name, p)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("wanted (-), installed (+):\n%s", d)
	}
}
