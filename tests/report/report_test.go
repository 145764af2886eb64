package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"dovetail/internal/testkit/need"
)

// What the go command says of packages that pass, fail, panic, do not build, and skip.
func TestReport(t *testing.T) {
	for pkg, c := range map[string]struct {
		ok   bool
		want []string
		not  []string
	}{
		"./testdata/pass":    {true, []string{"ok  \tdovetail/tests/report/testdata/pass\t"}, []string{"hidden"}},
		"./testdata/skip":    {true, []string{"skipped: needs the moon\n\ttests/report/testdata/skip     2\n"}, []string{"hidden"}},
		"./testdata/fail":    {false, []string{"--- FAIL: TestBad", "this is bad", "FAIL\tdovetail/tests/report/testdata/fail\t"}, []string{"hidden"}},
		"./testdata/panics":  {false, []string{"panic: at the wrong moment", "so far", "FAIL\t"}, []string{"hidden"}},
		"./testdata/nobuild": {false, []string{"undefined: nothing"}, nil},
		"./testdata/none":    {false, nil, nil},
	} {
		cmd := exec.Command(need.Program(t, "go"), "test", "-json", pkg)
		cmd.Env = append(os.Environ(), "CI=")
		in, _ := cmd.Output() // its status says the same
		var out strings.Builder
		if ok := report(strings.NewReader(string(in)), &out); ok != c.ok {
			t.Errorf("%s: %v, want %v", pkg, ok, c.ok)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in\n%s", pkg, want, out.String())
			}
		}
		for _, not := range c.not {
			if strings.Contains(out.String(), not) {
				t.Errorf("%s: %q is in\n%s", pkg, not, out.String())
			}
		}
	}
}

// A stream that breaks off is a failure, and what had begun is told.
func TestReportOfHalf(t *testing.T) {
	var out strings.Builder
	const in = `{"Action":"run","Package":"p","Test":"TestX"}
{"Action":"output","Package":"p","Test":"TestX","Output":"so far\n"}
`
	if report(strings.NewReader(in), &out) || !strings.Contains(out.String(), "so far") {
		t.Errorf("%s", out.String())
	}
}
