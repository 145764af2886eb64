package interop

import (
	"os"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/testkit/system"
)

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }

func scenarios() []scenario {
	return slices.Concat(loginCases(), processCases(), adminCases(), limitCases(), killCases(), relayCases(), clientCases())
}

// A case is asked for by its name.
func TestNamesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, sc := range scenarios() {
		if seen[id(sc.name)] {
			t.Errorf("two cases are called %q", sc.name)
		}
		seen[id(sc.name)] = true
	}
}

func id(name string) string { return strings.NewReplacer(" ", "-", ",", "", ":", "").Replace(name) }

// The pairings with one of ours show what Dovecot's own pair shows. It shows the same
// twice: what varies is normalised, and the cases wait for what they need. Without this a
// difference of ours would mean nothing.
func TestPairings(t *testing.T) {
	t.Parallel()
	system.OursBoth.Need(t)
	cases := scenarios()
	slices.SortStableFunc(cases, func(a, b scenario) int { // the slow ones first
		if a.slow == b.slow {
			return 0
		}
		if a.slow {
			return -1
		}
		return 1
	})
	for _, sc := range cases {
		if sc.slow && testing.Short() {
			continue
		}
		t.Run(id(sc.name), func(t *testing.T) {
			t.Parallel()
			truth := sc.played(t, system.Dovecot)
			if len(truth.lines()) < 2 {
				t.Fatalf("the record is almost empty: %q", truth.lines())
			}
			for _, sys := range []system.System{system.Dovecot, system.OursLogin, system.OursWorker, system.OursBoth} {
				t.Run(sys.String(), func(t *testing.T) {
					t.Parallel()
					got := sc.played(t, sys)
					d, used := compared(sys, truth, got)
					if len(used) > 0 {
						t.Logf("differences on purpose: %s", strings.Join(used, ", "))
					}
					if d != "" {
						t.Errorf("differs from Dovecot: %s\nlog:\n%s\nlog of Dovecot:\n%s", d, got.log, truth.log)
					}
				})
			}
		})
	}
}
