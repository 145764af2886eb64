package doveconf

import (
	"bytes"
	"slices"
	"strings"

	"dovetail/internal/conf"
)

// A printer writes entries as blocks (clauses C17.5 to C17.8).
type printer struct {
	out    *bytes.Buffer
	indent int
	hide   bool // secrets (clause C17.15)
	open   []*section
	// query: blocks around the entries are printed as far as the query says; see dump.
	query string
}

// dump writes entries sorted by path. Blocks of which nothing is shown are left out.
//
// A query for what is inside a block prints the name of the first block it shows in the
// heading of the outermost one, as Dovecot does (clause C22.3).
func (p *printer) dump(entries []entry) {
	shown := slices.DeleteFunc(slices.Clone(entries), func(e entry) bool { return !e.dump })
	slices.SortStableFunc(shown, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	first := true
	for _, e := range shown {
		if p.query != "" && !under(e.path, p.query) {
			continue
		}
		p.enter(e.sections, first)
		first = false
		p.setting(e)
	}
	p.enter(nil, false)
}

// under says whether path is name or inside it.
func under(path, name string) bool {
	rest, ok := strings.CutPrefix(path, name)
	return ok && (rest == "" || rest[0] == '/')
}

// enter closes and opens blocks so that those in want are open.
func (p *printer) enter(want []*section, first bool) {
	same := 0
	for same < len(p.open) && same < len(want) && p.open[same].path == want[same].path {
		same++
	}
	for len(p.open) > same {
		p.open = p.open[:len(p.open)-1]
		p.indent--
		p.line("}")
	}
	for i, s := range want[same:] {
		name := s.name
		if first && p.query != "" && strings.Count(p.query, "/") > 1 && len(want) > 1 {
			if name = ""; i == 0 {
				name = want[len(want)-1].name
			}
		}
		p.line(heading(s.typ, name))
		p.indent++
		p.open = append(p.open, s)
	}
}

func heading(typ, name string) string {
	switch {
	case name == "":
		return typ + " {"
	case strings.ContainsAny(name, " "):
		return typ + ` "` + escape(name) + `" {`
	}
	return typ + " " + name + " {"
}

// escape protects quotes and backslashes.
func escape(s string) string { return escaper.Replace(s) }

var escaper = strings.NewReplacer(`"`, `\"`, `'`, `\'`, `\`, `\\`)

func (p *printer) line(s string) {
	for range p.indent {
		p.out.WriteString("  ")
	}
	p.out.WriteString(s)
	p.out.WriteByte('\n')
}

func (p *printer) setting(e entry) {
	key := e.path
	if n := len(e.sections); n > 0 {
		key = key[len(e.sections[n-1].path):]
	}
	value := e.value
	if p.hide && value != "" && conf.SecretKey(key) {
		p.line(key + " = # hidden, use -P to show it")
		return
	}
	if p.hide && conf.MentionsSecret(value) {
		p.line(key + " = " + quoteHidden(value))
		return
	}
	p.line(key + " = " + quote(value))
}

// quote is clause C17.8.
func quote(v string) string {
	if !needsQuotes(v) {
		return v
	}
	return `"` + escape(v) + `"`
}

func needsQuotes(v string) bool {
	if v == "" {
		return false
	}
	blank := func(c byte) bool { return c == ' ' || c == '\t' }
	return strings.IndexByte(v, '#') >= 0 || blank(v[0]) || blank(v[len(v)-1])
}

// quoteHidden is the form of a value in which something may be hidden: escaped as if it
// were quoted, but without the quotes (clause C22.11).
func quoteHidden(v string) string {
	if needsQuotes(v) {
		v = escape(v)
	}
	return conf.HideSecrets(v)
}

// filter writes what one filter sets as blocks in the order local, local_name, remote,
// protocol, whatever their order in the file was (clause C17.13).
func (p *printer) filter(m conf.Match, entries []entry) {
	var heads []*section
	add := func(typ, name string) { heads = append(heads, &section{typ: typ, name: name}) }
	if m.Local.Bits > 0 {
		add("local", m.Local.String())
	}
	if m.LocalName != nil {
		add("local_name", *m.LocalName)
	}
	if m.Remote.Bits > 0 {
		add("remote", m.Remote.String())
	}
	if m.Protocol != nil {
		add("protocol", *m.Protocol)
	}
	inner := &printer{out: &bytes.Buffer{}, indent: p.indent + len(heads), hide: p.hide}
	inner.dump(entries)
	if inner.out.Len() == 0 {
		return
	}
	for _, h := range heads {
		p.line(h.typ + " " + h.name + " {") // never quoted (clause C22.2)
		p.indent++
	}
	p.out.Write(inner.out.Bytes())
	for range heads {
		p.indent--
		p.line("}")
	}
}
