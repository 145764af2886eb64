package doveconf

import (
	"slices"
	"strings"
	"testing"

	"dovetail/internal/conf"
	"dovetail/internal/conf/doveconf"
)

// undecided are files that need --dialect: they name no version, or one that is not theirs.
var undecided = []string{
	"2.3/feature/obs-24-syntax-in-23", "2.4/feature/ver-empty-file", "2.4/feature/ver-include-before-fails", "2.4/feature/ver-missing",
}

// Without --dialect the files themselves say what they are for.
func TestDialectIsFound(t *testing.T) {
	for _, version := range []string{"2.3", "2.4"} {
		for _, c := range cases(t, version) {
			if got := doveconf.DialectOf(c.String()+".conf", &conf.Pipes{}); (got == version) == slices.ContainsFunc(undecided, func(u string) bool { return strings.HasSuffix(c.String(), u) }) {
				t.Errorf("%s: %s", c, got)
			}
		}
	}
}
