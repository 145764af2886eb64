package transcripts

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/transcript"
)

// Every difference is shown by what it names, and everything that shows one is named.
func TestDifferences(t *testing.T) {
	ds, err := transcript.LoadDifferences("differences.txt")
	if err != nil {
		t.Fatal(err)
	}
	shows := map[string][]string{} // file or "rule": ids
	var ids []string
	for _, d := range ds {
		if slices.Contains(ids, d.ID) {
			t.Errorf("%s is listed twice", d.ID)
		}
		ids = append(ids, d.ID)
		for _, s := range d.Shown {
			word, rest, _ := strings.Cut(s, " ")
			switch {
			case s == "rule":
				if !slices.ContainsFunc(Rules, func(r transcript.Rule) bool { return r.ID == d.ID }) {
					t.Errorf("%s: no such rule", d.ID)
				}
			case word == "test":
				dir, name, _ := strings.Cut(rest, " ")
				if !hasTest(t, filepath.Join("../..", dir), name) {
					t.Errorf("%s: no %s in %s", d.ID, name, dir)
				}
			default:
				c, err := transcript.Load(s)
				if err != nil {
					t.Errorf("%s: %v", d.ID, err)
				} else if !slices.Contains(c.Differences, d.ID) || len(c.Sides) == 0 {
					t.Errorf("%s does not say that it shows %s, or whose program it is about", s, d.ID)
				}
				shows[s] = append(shows[s], d.ID)
			}
		}
	}
	if len(ds) < 40 {
		t.Errorf("the list has %d differences only", len(ds))
	}
	for _, r := range Rules {
		if !slices.Contains(ids, r.ID) {
			t.Errorf("rule %s is no difference of the list", r.ID)
		}
	}
	own, err := transcript.LoadAll("own/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range append(load(t, "variants/*.txt"), own...) {
		if len(shows[c.Path]) == 0 {
			t.Errorf("%s shows no difference of the list", c.Path)
		}
		if strings.HasPrefix(c.Path, "variants/") {
			if _, err := os.Stat(c.Name + ".txt"); err != nil {
				t.Errorf("%s takes the place of nothing", c.Path)
			}
		}
	}
}

func hasTest(t *testing.T, dir, name string) bool {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(data), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}

// A defect of the recorded server has a variant with what we do.
func TestDefectsHaveVariants(t *testing.T) {
	for _, c := range load(t, "[0-6]?-*.txt") {
		if _, err := os.Stat("variants/" + c.Name + ".txt"); c.IsDefect() && err != nil {
			t.Errorf("%s has no variant", c.Name)
		}
	}
}

// Every rule changes some case, and none changes what is expected of Dovecot alone.
func TestRulesAreUsed(t *testing.T) {
	cases := load(t, "[0-6]?-*.txt")
	for _, r := range slices.Concat(Rules, Peculiarities) {
		used := slices.ContainsFunc(cases, func(c *transcript.Case) bool {
			for _, sys := range []system.System{system.Dovecot, system.OursBoth, system.TheirsUnder} {
				if len(c.With(sys, []transcript.Rule{r}).Used) > 0 {
					return true
				}
			}
			return false
		})
		if !used {
			t.Errorf("rule %s changes no case", r.ID)
		}
	}
	for _, r := range Rules {
		if r.Applies(system.Dovecot) {
			t.Errorf("rule %s applies to Dovecot", r.ID)
		}
	}
}

// The table for the manual is what the list says. `go test -run TestTable -update` writes it.
func TestTable(t *testing.T) {
	ds, err := transcript.LoadDifferences("differences.txt")
	if err != nil {
		t.Fatal(err)
	}
	const path = "../../docs/differences.md"
	want := transcript.Markdown(ds)
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s is not what differences.txt says (%v); run with -update", path, err)
	}
}
