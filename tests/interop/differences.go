package interop

import (
	"strings"

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
}

// compared returns what should be equal, and the ids of what was applied.
func compared(sys system.System, truth, got *record) (want, have, used []string) {
	want, have = truth.lines, got.lines
	for _, d := range differences {
		if !d.applies(sys) {
			continue
		}
		w, n := change(want, d.truth)
		h, m := change(have, d.got)
		if n+m > 0 {
			used = append(used, d.id)
		}
		want, have = w, h
	}
	return want, have, used
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
