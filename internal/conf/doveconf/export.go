package doveconf

import (
	"slices"
	"strconv"
	"strings"

	"dovetail/internal/conf"
	"dovetail/internal/conf/settings"
	"dovetail/internal/conf/settings/all"
)

// A scope says which settings are shown (clause C17.1).
type scope uint8

const (
	visible scope = iota // all but the hidden ones
	full                 // -s: all
	changed              // -n: what differs from the defaults
	set                  // -N: what the files set
)

// An entry is one setting to show, or the list of the blocks of one type.
type entry struct {
	path     string // "passdb/0/driver", names escaped as in clause C8.4
	value    string // of a list: the names of its blocks
	sections []*section
	// dump: the dump and queries show it; simple: -S does. They differ for lists, for the
	// names of blocks, and for what is built in.
	dump, simple bool
	heading      bool // the name of a block, which its heading shows
}

// A section is a block around entries.
type section struct {
	path string // with a slash at the end: "service/auth/"
	typ  string
	name string // "" if it has none
}

// An exporter makes entries of settings, in the order of the table.
type exporter struct {
	table   *all.Table
	scope   scope
	modules *all.Selection // -m; nil: all
	last    string         // the root of settings after which nothing follows; "" if all do
	worker  bool           // defaults are those of the submission service's worker
	lost    lost
	out     []entry
}

// export shows root, merged with the built-in services.
func (x *exporter) export(root *conf.Block) []entry {
	x.block(&merged{file: root}, "", nil)
	return x.out
}

// merged is a block of the files, the built-in one of the same name, or both.
type merged struct {
	file, builtin *conf.Block
}

func (m *merged) value(key string) (v string, inFile, ok bool) {
	if m.file != nil {
		if s, ok := m.file.Get(key); ok {
			return s.Value, true, true
		}
	}
	if m.builtin != nil {
		if s, ok := m.builtin.Get(key); ok {
			return s.Value, false, true
		}
	}
	return "", false, false
}

func (m *merged) name() string {
	if m.file != nil {
		return m.file.Name
	}
	return m.builtin.Name
}

// children are the blocks of one type: the built-in ones first, as in Dovecot.
func (m *merged) children(typ string, services []*conf.Block) []*merged {
	var out []*merged
	var builtin []*conf.Block
	if m.builtin != nil {
		builtin = m.builtin.Of(typ)
	}
	if services != nil {
		builtin = services
	}
	have := map[string]bool{}
	for _, b := range builtin {
		c := &merged{builtin: b}
		if m.file != nil {
			c.file = m.file.Block(typ, b.ID)
		}
		have[b.ID] = true
		out = append(out, c)
	}
	if m.file != nil {
		for _, b := range m.file.Of(typ) {
			if b.Kind == conf.List || !have[b.ID] {
				out = append(out, &merged{file: b})
			}
		}
	}
	return out
}

// block adds what m has at the place prefix, which is the paths of around.
func (x *exporter) block(m *merged, prefix string, around []*section) {
	types := ""
	if m.file != nil {
		types = m.file.Path()
	} else if m.builtin != nil {
		types = m.builtin.Path()
	}
	kind, nameAt := all.Kind(0), ""
	if r, ok := x.table.Row(types); ok {
		kind, nameAt = r.Kind, r.NameAt
	}
	rows := x.table.Inside(types)
	if prefix == "" && x.modules != nil {
		rows = x.modules.Rows(x.last)
	}
	for _, r := range rows {
		switch {
		case r.Kind == all.Map:
			x.strings(m, r, prefix, around)
		case r.Kind != 0:
			x.blocks(m, r, prefix, around)
		case kind == all.Unique && r.Key == nameAt: // the heading has it
			show := m.name() != "" || x.scope != changed && (x.scope != set || m.file != nil && !m.file.Listed && !x.lost.anew[m.file])
			x.out = append(x.out, entry{path: prefix + r.Key, value: m.name(), sections: around, simple: show, heading: true})
		default:
			x.setting(m, r, kind, nameAt, prefix, around)
		}
	}
}

func (x *exporter) setting(m *merged, r *all.Row, kind all.Kind, nameAt, prefix string, around []*section) {
	def := r.Default
	if x.worker && twoDefaults(r) {
		def = workerDefault
	}
	value, inFile, ok := m.value(r.Key)
	if !ok {
		value = def
		if r.Null {
			return
		}
	}
	if kind != 0 && r.Key == nameAt {
		value, inFile = m.name(), m.file != nil && !m.file.Listed && !x.lost.lists[m.file] // the head of a block sets it
	}
	differs := value != def && !(r.Type == settings.Enum && strings.HasPrefix(def, value)) || r.Null && ok || kind == 0 && inFile && twoDefaults(r)
	simple := differs
	if x.lost.setting(m.file, r.Key) {
		inFile = false
		differs = differs && kind == all.List
	}
	e := entry{path: prefix + r.Key, value: value, sections: around}
	switch x.scope {
	case full:
		e.dump, e.simple = true, true
	case visible:
		e.dump = !r.Hidden || inFile
		e.simple = e.dump
	case changed:
		e.simple, e.dump = simple, differs
		if kind == all.Unique {
			e.dump = inFile
		}
	case set:
		e.simple, e.dump = inFile || simple, inFile || differs && x.lost.lists[m.file]
	}
	e.dump = e.dump || r.Always && m.file != nil
	if e.dump || e.simple {
		x.out = append(x.out, e)
	}
}

// twoDefaults: the setting is in several groups with different defaults, so that any value
// differs from one of them (clause C17.10).
func twoDefaults(r *all.Row) bool { return r.Name == "submission_max_mail_size" }

// workerDefault is the other default of submission_max_mail_size.
const workerDefault = "40 M"

// strings adds a map.
func (x *exporter) strings(m *merged, r *all.Row, prefix string, around []*section) {
	if m.file == nil {
		return
	}
	b := m.file.Block(r.Key, "")
	if b == nil {
		return
	}
	in := &section{path: prefix + r.Key + "/", typ: r.Key}
	x.out = append(x.out, entry{path: prefix + r.Key, sections: around, simple: true})
	for _, s := range b.Settings {
		x.out = append(x.out, entry{
			path: in.path + s.Key, value: s.Value, sections: append(slices.Clip(around), in), dump: true, simple: true,
		})
	}
}

// blocks adds the blocks of type r.
func (x *exporter) blocks(m *merged, r *all.Row, prefix string, around []*section) {
	var services []*conf.Block
	if r.Name == "service" {
		services = builtinServices(x.table)
	}
	children := m.children(r.Key, services)
	if len(children) == 0 {
		return
	}
	at := len(x.out)
	x.out = append(x.out, entry{path: prefix + r.Key, sections: around, simple: true})
	names := make([]string, len(children))
	for i, c := range children {
		name := c.name()
		if r.Kind == all.List {
			name = ""
		}
		names[i] = conf.Escape(name)
		if name == "" {
			names[i] = strconv.Itoa(i)
		}
		in := &section{path: prefix + r.Key + "/" + names[i] + "/", typ: r.Key, name: name}
		x.block(c, in.path, append(slices.Clip(around), in))
	}
	x.out[at].value = strings.Join(names, " ")
}

func builtinServices(t *all.Table) []*conf.Block {
	if t == all.V23Sieve() {
		return conf.Dovecot23Sieve().Services()
	}
	return conf.Dovecot23().Services()
}

// lost are the settings that a dump with -f does not show as set: when Dovecot merges
// filters, a block that the most specific one does not have is made anew, with its values,
// but without the marks that they were set.
type lost struct {
	settings map[*conf.Setting]bool
	lists    map[*conf.Block]bool // passdb and userdb blocks that were made anew
	anew     map[*conf.Block]bool // other blocks that were
}

func (l *lost) setting(b *conf.Block, key string) bool {
	if b == nil || l.settings == nil {
		return false
	}
	s, ok := b.Get(key)
	return ok && l.settings[s]
}

// A place is a block that exists while filters are merged.
type place map[string]place

// findLost follows the merging of scopes, the most specific first.
func findLost(scopes []*conf.Scope, services []*conf.Block) lost {
	l := lost{map[*conf.Setting]bool{}, map[*conf.Block]bool{}, map[*conf.Block]bool{}}
	if len(scopes) < 2 {
		return lost{}
	}
	root := place{}
	for _, s := range services {
		root.add(s)
	}
	for i, s := range scopes {
		l.merge(root, s.Block, false, i == 0)
	}
	return l
}

func (p place) add(b *conf.Block) place {
	key := b.Type + "/" + b.ID
	if p[key] == nil {
		p[key] = place{}
	}
	for _, c := range b.Blocks {
		p[key].add(c)
	}
	return p[key]
}

// merge adds what b has to p. anew: b itself was just made; first: nothing is lost.
func (l *lost) merge(p place, b *conf.Block, anew, first bool) {
	for _, s := range b.Settings {
		if anew && b.Kind != conf.Map {
			l.settings[s] = true
		}
	}
	for _, c := range b.Blocks {
		switch c.Kind {
		case conf.List:
			if !first {
				l.lists[c] = true
				l.merge(place{}, c, true, false)
			}
		case conf.Unique:
			inner, ok := p[c.Type+"/"+c.ID]
			if !ok {
				inner = place{}
				p[c.Type+"/"+c.ID] = inner
			}
			l.anew[c] = !ok && !first
			l.merge(inner, c, l.anew[c], first)
		}
	}
}
