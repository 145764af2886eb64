package doveconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dovetail/internal/conf"
)

// FuzzPrint: what doveconf-lite prints of any configuration is read back, and printed the
// same. What 2.3 itself prints unreadably (clause C22) is left out.
func FuzzPrint(f *testing.F) {
	for _, path := range corpus(f, "deploy", "feature") {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b), false)
	}
	more, _ := filepath.Glob("../../../tests/doveconf/2.4/*/*.conf")
	for _, path := range more {
		b, _ := os.ReadFile(path)
		f.Add(string(b), true)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string, later bool) {
		if outside(text) || strings.ContainsAny(text, "\x00\r\v\f") || !later && strings.Contains(text, "local_name") {
			return
		}
		dialect := map[bool]string{true: "2.4", false: "2.3"}[later]
		print := func(text string) (string, string, int) {
			file := filepath.Join(dir, "fuzz.conf")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return call("--dialect", dialect, "-N", "-P", "-c", file)
		}
		first, _, status := print(text)
		if status != 0 || unreadable(text, first) {
			return
		}
		second, errs, _ := print(first)
		if first != second {
			t.Errorf("printed\n%s\nthen\n%s%s", first, second, errs)
		}
	})
}

// outside says whether text reaches beyond itself: to other files, or to the resolver.
func outside(text string) bool {
	return strings.Contains(text, "include") || strings.Contains(text, "local") || strings.Contains(text, "remote")
}

// unreadable says whether the printed text has what 2.3 cannot print readably: values
// that begin with a quote or <, end in a backslash, or hold a $ that names something; names
// of sections that need quotes for more than a blank; more than ten passdbs; what is left of
// a listen with ports, an obsolete form, may have the looks of a port again.
func unreadable(text, printed string) bool {
	for line := range strings.Lines(printed) {
		if strings.HasPrefix(line, "listen = ") && strings.Contains(line, ":") {
			return true
		}
	}
	if strings.Count(printed, "passdb {") > 9 || strings.Count(printed, "userdb {") > 9 {
		return true
	}
	return strings.ContainsAny(text, "\"'\\<$#") || strings.Contains(text, "{{")
}

// FuzzConvert: whatever the input is, the result is right for 2.4.
func FuzzConvert(f *testing.F) {
	for _, path := range corpus(f, "deploy", "feature") {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		if outside(text) {
			return
		}
		file := filepath.Join(dir, "fuzz.conf")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if DialectOf(file, &conf.Pipes{}) != "2.3" {
			return
		}
		out, _, status := call("convert", "--to", "2.4", file)
		if status == 2 {
			return
		}
		if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, errs, status := call("--dialect", "2.4", "-n", "-c", file); status != 0 && strings.Contains(errs, " line ") {
			t.Errorf("%s\nis converted to\n%s\n%s", text, out, errs)
		}
	})
}
