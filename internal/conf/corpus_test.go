package conf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
)

// stderr is what doveconf -n would write to standard error, with its exit status.
func stderr(c *Config, diags hcl.Diagnostics, opt Options) string {
	var b strings.Builder
	say := func(level, text string) { fmt.Fprintf(&b, "doveconf: %s: %s\n", level, text) }
	for _, d := range diags {
		r := d.Extra.(*Report)
		if r.Text == "" || r.AtEnd {
			continue
		}
		say(r.Level, r.Text)
		if d.Severity == hcl.DiagError {
			return b.String() + "exit: 89\n"
		}
	}
	once := map[string]bool{}
	fatal := ""
	for _, r := range c.Checked {
		if r.Level == "Error" {
			fatal = fmt.Sprintf("Error in configuration file %s: %s", c.Path, r.Text)
			break
		}
		say(r.Level, r.Text)
		once[r.Text] = r.Once
	}
	if v, err := c.View(Filter{}); err == nil {
		for _, level := range []string{"Warning", "Error"} {
			for _, r := range v.Checks(opt) {
				if r.Level == level && !once[r.Text] {
					say(r.Level, r.Text)
				}
			}
		}
	}
	if fatal != "" {
		say("Fatal", fatal)
		return b.String() + "exit: 89\n"
	}
	return b.String() + "exit: 0\n"
}

// The corpus is a folder of configurations with what Dovecot 2.3's doveconf says of them,
// NAME.conf and NAME.err.expected.
func TestCorpus(t *testing.T) {
	root := os.Getenv("DOVETAIL_CONF_CORPUS")
	if root == "" {
		t.Skip("DOVETAIL_CONF_CORPUS is not set")
	}
	dirs := []string{"2.3/feature", "2.3/deploy", "debian-2.3", "2.3/deploy/panel-sql-tree"}
	bad := 0
	for _, dir := range dirs {
		files, _ := filepath.Glob(filepath.Join(root, dir, "*.err.expected"))
		t.Chdir(filepath.Join(root, dir))
		for _, f := range files {
			want, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			base := strings.TrimSuffix(filepath.Base(f), ".err.expected")
			if _, err := os.Stat(base + ".needs"); err == nil {
				continue
			}
			c, diags := Load(base+".conf", Options{})
			if a, err := os.ReadFile(base + ".a.expected"); err == nil && !diags.HasErrors() {
				compareValues(t, dir+"/"+base, c, string(a))
			}
			if got := stderr(c, diags, Options{}); got != string(want) {
				bad++
				t.Errorf("%s/%s:\n--- got\n%s--- want\n%s", dir, base, got, want)
			}
		}
	}
	t.Log(bad, "differ;", compared, "values compared")
}

// compareValues compares lines NAME = VALUE, as doveconf NAME... prints them.
func compareValues(t *testing.T, name string, c *Config, want string) {
	v, err := c.View(Filter{})
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	for _, l := range strings.Split(want, "\n") {
		key, value, ok := strings.Cut(l, " = ")
		if strings.HasSuffix(value, "{") || strings.HasSuffix(l, "{") {
			return // what follows is printed as sections
		}
		if ok && !strings.HasPrefix(key, " ") && v.Value(key) != value {
			t.Errorf("%s: %s is %q, want %q", name, key, v.Value(key), value)
		}
		if ok {
			compared++
		}
	}
}

var compared int
