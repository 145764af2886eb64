package conf

import (
	"io"
	"slices"
)

// What those need who print a whole configuration.

// Defaults is a configuration without files.
func Defaults(opt Options) *Config { return newParser("", opt).cfg }

// Sorted returns the filters in the order in which Dovecot prints them, the least specific
// first, equal ones in the order of the files (clause C17.13).
func (c *Config) Sorted() []*Scope {
	out := slices.Clone(c.Filters)
	slices.SortStableFunc(out, func(a, b *Scope) int { return b.Match.compare(a.Match) })
	return out
}

// Merged returns the root and the filters that are in v, the most specific first. A filter
// that asks for nothing, as local 0.0.0.0/0, comes after the root.
func (v *View) Merged() []*Scope {
	out := append([]*Scope{v.cfg.Root}, v.matched...)
	slices.SortStableFunc(out, func(a, b *Scope) int { return a.Match.compare(b.Match) })
	return out
}

// Matches says whether settings in a filter with m apply to the client f.
func (m Match) Matches(f Filter) bool {
	r := f.request()
	return m.matchesService(r) && m.matchesRest(r)
}

// IsTerminal says whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(interface{ Fd() uintptr })
	return ok && isTerminal(int(f.Fd()))
}
