package conf

import (
	"slices"
	"strings"
)

// An index finds the filters that can match a client without trying all: hosts with
// thousands of names have one local_name block for each.
type index struct {
	// named are the filters for exactly one TLS server name without *, by that name in
	// lower case; others all the rest. Numbers are those of Config.Filters, rising.
	named  map[string][]int
	others []int
	uses   []use
}

// A use says what filters for one protocol ask for.
type use struct {
	match         Match // only Protocol
	local, remote bool
	scopes        []int
}

func newIndex(filters []*Scope) index {
	x := index{named: map[string][]int{}}
	uses := map[string]int{}
	for i, s := range filters {
		if n := s.Match.LocalName; n != nil && !strings.ContainsAny(*n, "* ") {
			name := strings.ToLower(*n)
			x.named[name] = append(x.named[name], i)
		} else {
			x.others = append(x.others, i)
		}
		key := ""
		if s.Match.Protocol != nil {
			key = "=" + *s.Match.Protocol
		}
		u, ok := uses[key]
		if !ok {
			u = len(x.uses)
			uses[key] = u
			x.uses = append(x.uses, use{match: Match{Protocol: s.Match.Protocol}})
		}
		x.uses[u].local = x.uses[u].local || s.Match.asksLocal()
		x.uses[u].remote = x.uses[u].remote || s.Match.asksRemote()
		x.uses[u].scopes = append(x.uses[u].scopes, i)
	}
	return x
}

func (m Match) asksLocal() bool  { return m.Local.Bits > 0 || m.LocalName != nil }
func (m Match) asksRemote() bool { return m.Remote.Bits > 0 }

// asks says whether m asks for anything: local 0.0.0.0/0 does not.
func (m Match) asks() bool { return m.Protocol != nil || m.asksLocal() || m.asksRemote() }

// candidates are the filters that r can match, in file order.
func (x *index) candidates(r request) []int {
	if r.localName == nil {
		return x.others
	}
	exact := x.named[strings.ToLower(*r.localName)]
	if len(exact) == 0 {
		return x.others
	}
	both := append(slices.Clone(exact), x.others...)
	slices.Sort(both)
	return both
}
