// Package rules holds the project to its own map: imports.txt, and internal/README.md.
package rules

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"dovetail/internal/testkit/need"
)

const (
	module   = "dovetail/"
	internal = module + "internal/"
)

// A pkg is a package of the project.
type pkg struct {
	path    string
	imports []string // not of its tests
	deps    []string // all that it links
}

// packages asks the go command for all packages of the project.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command(need.Program(t, "go"), "list", "-f", `{{.ImportPath}}|{{join .Imports " "}}|{{join .Deps " "}}`, "./...")
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "|")
		all = append(all, pkg{f[0], strings.Fields(f[1]), strings.Fields(f[2])})
	}
	return all
}

// within says whether a path is what a name of imports.txt stands for.
func within(name, path string) bool {
	for _, p := range []string{internal + name, module + name, name} {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// A rule is a line of imports.txt.
type rule struct {
	line  int
	word  string // layer, never, only
	left  []string
	right []string
}

func rules(t *testing.T) []rule {
	t.Helper()
	f, err := os.Open("imports.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []rule
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		text := strings.TrimSpace(sc.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		word, rest, _ := strings.Cut(text, " ")
		sep := "->"
		if word == "layer" {
			sep = ":"
		}
		left, right, ok := strings.Cut(rest, sep)
		if !ok || len(strings.Fields(left)) == 0 || len(strings.Fields(right)) == 0 {
			t.Fatalf("imports.txt line %d: %q is no rule", n, text)
		}
		all = append(all, rule{n, word, strings.Fields(left), strings.Fields(right)})
	}
	return all
}

// layerOf returns the number of the layer of a path: the one with the longest name for it.
func layerOf(layers []rule, path string) int {
	found, length := -1, 0
	for i, l := range layers {
		for _, name := range l.right {
			if within(name, path) && len(name) > length {
				found, length = i, len(name)
			}
		}
	}
	return found
}

func TestImports(t *testing.T) {
	pkgs := packages(t)
	var layers []rule
	for _, r := range rules(t) {
		switch r.word {
		case "layer":
			layers = append(layers, r)
		case "never":
			for _, bad := range breaks(r, pkgs, func(p pkg) []string { return p.deps }) {
				t.Errorf("imports.txt line %d: %s", r.line, bad)
			}
		case "only":
			for _, p := range pkgs {
				if matches(r.left, p.path) {
					continue
				}
				for _, i := range p.imports {
					if matches(r.right, i) {
						t.Errorf("imports.txt line %d: %s imports %s", r.line, short(p.path), short(i))
					}
				}
			}
		default:
			t.Errorf("imports.txt line %d: unknown word %q", r.line, r.word)
		}
	}
	for _, p := range pkgs {
		mine := layerOf(layers, p.path)
		if mine < 0 {
			t.Errorf("%s is in no layer of imports.txt", short(p.path))
			continue
		}
		for _, i := range p.imports {
			if !strings.HasPrefix(i, module) {
				continue
			}
			if his := layerOf(layers, i); his > mine {
				t.Errorf("%s (%s) imports %s (%s)", short(p.path), layers[mine].left[0], short(i), layers[his].left[0])
			}
		}
	}
}

func matches(names []string, path string) bool {
	for _, n := range names {
		if within(n, path) {
			return true
		}
	}
	return false
}

// breaks returns what breaks a never rule.
func breaks(r rule, pkgs []pkg, has func(pkg) []string) []string {
	var bad []string
	for _, p := range pkgs {
		if !matches(r.left, p.path) {
			continue
		}
		for _, d := range has(p) {
			if matches(r.right, d) {
				bad = append(bad, fmt.Sprintf("%s has %s", short(p.path), short(d)))
			}
		}
	}
	return bad
}

func short(p string) string { return strings.TrimPrefix(strings.TrimPrefix(p, internal), module) }

// A rule that cannot be broken would be none.
func TestRulesBite(t *testing.T) {
	r := rule{word: "never", left: []string{"standalone/master"}, right: []string{"smtp", "net/http"}}
	for dep, want := range map[string]int{
		internal + "smtp": 1, internal + "smtp/server": 1, "net/http": 1, "net/http/httptest": 1,
		internal + "smtpx": 0, "net": 0, "net/smtp": 0,
	} {
		p := pkg{path: internal + "standalone/master", deps: []string{dep}}
		if got := breaks(r, []pkg{p}, func(p pkg) []string { return p.deps }); len(got) != want {
			t.Errorf("%s: %v", dep, got)
		}
	}
	layers := []rule{{right: []string{"smtp"}}, {right: []string{"smtp/server"}}}
	if a, b := layerOf(layers, internal+"smtp"), layerOf(layers, internal+"smtp/server/x"); a != 0 || b != 1 {
		t.Errorf("layers %d %d", a, b)
	}
}

// Every room of the house is on its map.
func TestMap(t *testing.T) {
	b, err := os.ReadFile("../../internal/README.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range packages(t) {
		room, ok := strings.CutPrefix(p.path, internal)
		if !ok {
			continue
		}
		if parts := strings.Split(room, "/"); len(parts) > 2 {
			room = strings.Join(parts[:2], "/") // a closet
		}
		if seen[room] {
			continue
		}
		seen[room] = true
		if !onMap(string(b), room) {
			t.Errorf("internal/README.md has no line for `%s`", room)
		}
	}
}

// onMap: the map names a room as `a/b`, as `a/*`, or as `b` in a line about another `a/`.
func onMap(text, room string) bool {
	dir, base := path.Split(room)
	for line := range strings.Lines(text) {
		if strings.Contains(line, "`"+room+"`") || dir != "" &&
			(strings.Contains(line, "`"+dir+"*`") || strings.Contains(line, "`"+dir) && strings.Contains(line, "`"+base+"`")) {
			return true
		}
	}
	return false
}

// A test is skipped through package need alone, which makes a failure of it with CI=true.
func TestNothingIsSkippedInSilence(t *testing.T) {
	seen := false
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "testdata" {
			return fs.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "/rules_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, l := range strings.Split(string(text), "\n") {
			if !strings.Contains(l, ".Skip(") && !strings.Contains(l, ".Skipf(") && !strings.Contains(l, ".SkipNow(") {
				continue
			}
			if strings.Contains(path, "internal/testkit/need/") {
				seen = true
				continue
			}
			t.Errorf("%s:%d: %s", path, i+1, strings.TrimSpace(l))
		}
		return nil
	})
	if err != nil || !seen {
		t.Error(seen, err)
	}
}
