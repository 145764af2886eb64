package conf

import (
	"io"
	"slices"

	"github.com/hashicorp/hcl/v2"
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

// Merged returns the filters that are in v, the most specific first, and the root.
func (v *View) Merged() []*Scope {
	out := slices.Clone(v.matched)
	slices.SortStableFunc(out, func(a, b *Scope) int { return a.Match.compare(b.Match) })
	return append(out, v.cfg.Root)
}

// Check runs the checks of clause C16 on one client's settings, as Load does on the global
// ones.
func (v *View) Check(opt Options) hcl.Diagnostics {
	p := newParser(v.cfg.Path, opt)
	p.cfg, p.schema = v.cfg, v.cfg.schema
	for g := range groups {
		if p.checks(&groups[g]) {
			c := checker{p: p, v: v, global: true, group: &groups[g]}
			groups[g].run(&c)
		}
	}
	return p.diags
}

// checks says whether a group is to be checked at all.
func (p *parser) checks(g *group) bool {
	return p.opt.Only == nil || p.opt.Only(g.reads[len(g.reads)-1])
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
