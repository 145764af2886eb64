package transcripts

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/transcript"
)

var update = flag.Bool("update", false, "write differences.md")

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }

func load(t *testing.T, globs ...string) (cases []*transcript.Case) {
	t.Helper()
	for _, glob := range globs {
		more, err := transcript.LoadAll(glob)
		if err != nil {
			t.Fatal(err)
		}
		if len(more) == 0 {
			t.Fatalf("%s names no transcript", glob)
		}
		cases = append(cases, more...)
	}
	return cases
}

// The recordings replay against the server they were made with: that proves the replayer.
func TestTheirs(t *testing.T) {
	for _, c := range load(t, "[0-6]?-*.txt") {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			transcript.Replay(t, system.Dovecot, c.With(system.Dovecot, Peculiarities))
		})
	}
}

// What needs a part that our master does not have is shown by the same effect made in
// another way; that it is the same is seen from Dovecot.
func TestInsteadForStandalone(t *testing.T) {
	for _, c := range load(t, "standalone/*.txt") {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			transcript.Replay(t, system.Dovecot, c.With(system.Dovecot, Peculiarities))
		})
	}
}

// Our programs replay the recordings, but for what they do differently on purpose. What BURL
// fetches from (66, 67) only Dovecot's master has; tests/burl shows it with another server.
// only names cases; none: all.
func replayOurs(t *testing.T, sys system.System, only ...string) {
	sys.Need(t)
	variants := map[string]*transcript.Case{}
	for _, v := range load(t, "variants/*.txt") {
		variants[v.Name] = v
	}
	if sys.Master == system.Ours {
		for _, c := range load(t, "standalone/*.txt") {
			variants[c.Name] = c
		}
	}
	own, _ := transcript.LoadAll("own/*.txt")
	cases := append(load(t, "[0-5]?-*.txt", "6[0-58]-*.txt"), own...)
	if sys.Master == system.Theirs {
		cases = append(cases, load(t, "6[67]-*.txt", "imap/*.txt")...)
	}
	for _, c := range cases {
		if len(only) > 0 && !slices.Contains(only, c.Name) {
			continue
		}
		if v := variants[c.Name]; v != nil && (v.For(sys) || len(v.Sides) == 0) {
			c = v
		} else if len(c.Sides) > 0 && !c.For(sys) {
			continue // of our own, and about the other half
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			c := c.With(sys, slices.Concat(Rules, Peculiarities))
			if dir := filepath.Dir(c.Path); dir != "." {
				t.Logf("%s: %s", c.Path, strings.Join(c.Differences, ", "))
			}
			if len(c.Used) > 0 {
				t.Logf("rules: %s", strings.Join(c.Used, ", "))
			}
			transcript.Replay(t, sys, c)
		})
	}
}

func TestOursLogin(t *testing.T)  { replayOurs(t, system.OursLogin) }
func TestOursWorker(t *testing.T) { replayOurs(t, system.OursWorker) }
func TestOursBoth(t *testing.T)   { replayOurs(t, system.OursBoth) }
func TestStandalone(t *testing.T) { replayOurs(t, system.Standalone) }

// Dovecot's two programs run under our master: our side of what a master does is right.
func TestTheirsUnderOurs(t *testing.T) { replayOurs(t, system.TheirsUnder) }

// Each of them runs there with the other half of ours, too: some cases of all that passes
// between the two.
func TestMixedUnderOurs(t *testing.T) {
	only := []string{"05-auth-errors", "06-auth-nologin", "07-insecure-starttls", "09-implicit-tls", "10-basic-session", "11-data-relay", "25-bdat", "29-vrfy-noop-quit",
		"47-xclient-in", "49-userip-limit", "51-auth-tempfail", "52-userdb-missing", "55-implicit-external"}
	for _, sys := range []system.System{{Master: system.Ours, Login: system.Ours}, {Master: system.Ours, Worker: system.Ours}} {
		t.Run(sys.String(), func(t *testing.T) { replayOurs(t, sys, only...) })
	}
}
