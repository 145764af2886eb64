package doveconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unstable are cases whose output does not read back, as the real one's does not.
var unstable = map[string]string{
	"2.3/feature/out-local-name-list-unquoted":         "C22.2: names with blanks are printed without quotes",
	"2.3/feature/fil-local-name":                       "C22.2",
	"2.3/feature/sec-passdb-more-than-ten":             "C17.6: the tenth comes before the second",
	"2.3/deploy/legacy-one-dot-x":                      "imap_client_workarounds loses a leading blank",
	"2.3/feature/var-append-empty-keeps-leading-space": "protocols loses a leading blank",
}

// What is printed is read back, and printed the same.
func TestRoundTrip(t *testing.T) {
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	stable := 0
	both := map[string][]testCase{"2.3": cases(t, "2.3"), "2.4": cases(t, "2.4")}
	for version, list := range both {
		for _, c := range list {
			name, _ := filepath.Rel(root, c.String())
			for _, how := range [][]string{{"-n", "-P"}, {"-N", "-P"}} {
				first, _, status := c.lite(t, append(how, "-c", c.name+".conf")...)
				if status != 0 {
					continue
				}
				again := testCase{version: version, dir: t.TempDir(), name: c.name, env: c.env}
				if err := os.WriteFile(filepath.Join(again.dir, again.name+".conf"), []byte(first), 0o600); err != nil {
					t.Fatal(err)
				}
				second, errs, _ := again.lite(t, append(how, "-c", c.name+".conf")...)
				switch {
				case first == second && unstable[name] == "":
					stable++
				case unstable[name] == "":
					t.Errorf("%s %s: read back with %s%s", name, strings.Join(how, " "), errs, diff(first, second))
				}
			}
		}
	}
	t.Logf("%d outputs are stable", stable)
}
