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

// Truths are kept by name.
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

// Dovecot shows the same twice: what varies is normalised, and the cases wait for what
// they need. Without this a difference of ours would mean nothing.
func TestTheirsIsSteady(t *testing.T) {
	system.Dovecot.Need(t)
	for _, sc := range scenarios() {
		t.Run(id(sc.name), func(t *testing.T) {
			t.Parallel()
			if sc.slow && testing.Short() {
				t.Skip("slow")
			}
			one, two := sc.truth(t), sc.play(t, system.Dovecot)
			if len(one.lines()) < 2 {
				t.Fatalf("the record is almost empty: %q", one.lines())
			}
			if d, _ := compared(system.Dovecot, one, two); d != "" {
				t.Errorf("the second run differs: %s\nlogs:\n%s\n%s", d, one.log, two.log)
			}
		})
	}
}

// The pairings with one of ours show what Dovecot's own pair shows.
func TestPairings(t *testing.T) {
	system.Dovecot.Need(t)
	for _, sys := range []system.System{system.OursLogin, system.OursWorker, system.OursBoth} {
		t.Run(sys.String(), func(t *testing.T) {
			sys.Need(t)
			for _, sc := range scenarios() {
				t.Run(id(sc.name), func(t *testing.T) {
					t.Parallel()
					if sc.slow && testing.Short() {
						t.Skip("slow")
					}
					o := sc.play(t, sys)
					d, used := compared(sys, sc.truth(t), o)
					if len(used) > 0 {
						t.Logf("differences on purpose: %s", strings.Join(used, ", "))
					}
					if d != "" {
						t.Errorf("differs from Dovecot: %s\nlog:\n%s", d, o.log)
					}
				})
			}
		})
	}
}
