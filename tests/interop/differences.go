package interop

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-cmp/cmp"

	"dovetail/internal/testkit/system"
)

// A difference changes what Dovecot showed to what the system should show, or takes out
// of what the system showed what Dovecot has no word for. The ids are those of
// tests/transcripts/differences.txt.
type difference struct {
	id      string
	applies func(system.System) bool
	truth   func(line string) (string, bool) // false: the line is gone
	got     func(line string) (string, bool)
}

func keep(line string) (string, bool) { return line, true }

var differences = []difference{
	{
		id:      "burl-announced-only-when-it-works",
		applies: func(s system.System) bool { return s.Login == system.Ours },
		truth:   func(line string) (string, bool) { return line, line != "S: 250-BURL imap" },
		got:     keep,
	},
	{
		id:      "burl-announced-only-when-it-works",
		applies: func(s system.System) bool { return s.Worker == system.Ours },
		truth:   func(line string) (string, bool) { return line, !strings.HasPrefix(line, "S: 250-BURL imap imap://") },
		got:     keep,
	},
	{
		id:      "failed-attempts-logged-at-once",
		applies: func(s system.System) bool { return s.Login == system.Ours },
		truth:   keep,
		got: func(line string) (string, bool) {
			return line, !strings.HasPrefix(line, "submission-login: Info: Login attempt ")
		},
	},
	{
		id:      "login-not-taken-is-answered",
		applies: func(s system.System) bool { return s.Login == system.Ours },
		truth:   keep,
		got: func(line string) (string, bool) {
			return line, line != "S: 421 4.3.0 sub.example.test Internal login failure. Refer to server log for more information."
		},
	},
	{
		id:      "relay-421-text-kept",
		applies: func(s system.System) bool { return s.Worker == system.Ours },
		truth: func(line string) (string, bool) {
			// The relays of these cases say "421 4.3.2 relay.test going down"; before they
			// have announced enhanced codes the first word is the code.
			for _, dropped := range []string{"relay.test ", "4.3.2 "} {
				for _, before := range []string{" 4.3.2 ", " 4.0.0 ", "relay server: "} {
					rest := "going down (connection lost)"
					if dropped == "4.3.2 " {
						rest = "relay.test " + rest
					}
					if strings.Contains(line, before+rest) {
						return addToOut(strings.Replace(line, before+rest, before+dropped+rest, 1), len(dropped)), true
					}
				}
			}
			return line, true
		},
		got: keep,
	},
	{
		id:      "reset-logged-plainly",
		applies: func(s system.System) bool { return s.IsOurs() },
		truth:   plainReset,
		got:     plainReset, // Dovecot's half of a pairing
	},
	{ // No difference: Dovecot's worker says it only by chance.
		id:      "started-during-a-reload",
		applies: func(system.System) bool { return true },
		truth:   neverAbsent,
		got:     keep,
	},
	{
		id:      "started-during-a-reload",
		applies: func(s system.System) bool { return s.Worker == system.Theirs },
		truth:   keep,
		got:     neverAbsent,
	},
}

// neverAbsent takes out what a worker of Dovecot says that is started in advance, just when a
// reload makes the sockets anew.
func neverAbsent(line string) (string, bool) {
	return line, line != "submission({pid}): Error: auth-master: login: connect({dir}/run/auth-master) failed: No such file or directory"
}

var (
	readFailed = regexp.MustCompile(`read\(size=\d+\) failed: `)
	outCount   = regexp.MustCompile(` out=(\d+)$`)
)

// plainReset takes out where a reset was noticed. Inside a chunk Dovecot does not say it.
func plainReset(line string) (string, bool) {
	line = readFailed.ReplaceAllString(line, "")
	return strings.Replace(line, ": Connection reset by peer (unfinished BDAT command)", " (unfinished BDAT command)", 1), true
}

// addToOut corrects the count of octets at the end of a logout line.
func addToOut(line string, octets int) string {
	m := outCount.FindStringSubmatch(line)
	if m == nil {
		return line
	}
	n, _ := strconv.Atoi(m[1])
	return outCount.ReplaceAllString(line, fmt.Sprintf(" out=%d", n+octets))
}

// compared returns how the record of the system differs from what Dovecot showed, by
// chapter, and the ids of the differences that were applied. "" means: not at all.
func compared(sys system.System, truth, got *record) (diff string, used []string) {
	if len(truth.chapters) != len(got.chapters) {
		return fmt.Sprintf("%d chapters, Dovecot has %d", len(got.chapters), len(truth.chapters)), nil
	}
	for i, c := range truth.chapters {
		want, have := c.lines, got.chapters[i].lines
		for _, d := range differences {
			if !d.applies(sys) {
				continue
			}
			w, n := change(want, d.truth)
			h, m := change(have, d.got)
			if n+m > 0 && !slices.Contains(used, d.id) {
				used = append(used, d.id)
			}
			want, have = w, h
		}
		if x := cmp.Diff(want, have); x != "" {
			diff += fmt.Sprintf("%s (-Dovecot +%v):\n%s", c.name, sys, x)
		}
	}
	return diff, used
}

func change(lines []string, f func(string) (string, bool)) (out []string, changed int) {
	for _, l := range lines {
		x, stays := f(l)
		if !stays || x != l {
			changed++
		}
		if stays {
			out = append(out, x)
		}
	}
	return out, changed
}
