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
func stderr(diags hcl.Diagnostics) string {
	var b strings.Builder
	say := func(level, text string) { fmt.Fprintf(&b, "doveconf: %s: %s\n", level, text) }
	var last string
	var again strings.Builder
	for _, d := range diags {
		r := d.Extra.(*Report)
		if r.Text == "" && r.Global == 0 {
			continue
		}
		if d.Severity == hcl.DiagError && !r.AtEnd {
			say("Fatal", r.Text)
			return b.String() + "exit: 89\n"
		}
		if !r.AtEnd {
			say(r.Level, r.Text)
			for range r.Global {
				fmt.Fprintf(&again, "doveconf: %s: %s\n", r.Level, r.Text)
			}
			continue
		}
		for range r.Global {
			fmt.Fprintf(&again, "doveconf: Error: %s\n", d.Summary)
		}
		if last == "" {
			last = r.Text
		}
	}
	b.WriteString(again.String())
	if last != "" {
		say("Fatal", last)
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
			if got := stderr(diags); got != string(want) {
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
