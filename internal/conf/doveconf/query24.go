package doveconf

import (
	"bytes"
	"slices"
	"strings"

	"dovetail/internal/conf"
	"dovetail/internal/conf/settings/all"
)

// queries24 are single settings, lists and blocks (clause C18.9).
func (r *run24) queries24() error {
	// After an error Dovecot has nothing that is built in, not even list elements.
	builtin := len(r.c.Checked) == 0 && r.c.Unclosed == "" && r.o.scope != changed && r.o.scope != set
	root := r.c.Merged(conf.Merge24{Filter: r.o.filter.Filter, Given: r.o.filter.given(), Builtin: builtin, Groups: true})
	for _, name := range r.o.names {
		q := &query24{
			r: r, p: &printer24{out: &bytes.Buffer{}, c: r.c, scope: full, expand: r.o.expand}, bare: r.o.hideKey, builtin: builtin,
			inside: strings.Contains(r.o.names[0], "/"),
		}
		if !q.find(root, strings.Split(name, "/"), nil) && r.o.hideKey {
			q.p.out.WriteByte('\n')
		}
		if q.several {
			return fatal("Multiple settings matched with -h parameter")
		}
		r.out.block(q.p.out.Bytes())
		r.failed(r.c.Checked) // not fatal here
	}
	return nil
}

// A query24 looks for one name.
type query24 struct {
	r       *run24
	p       *printer24
	bare    bool // -h
	builtin bool
	// inside: a setting that belongs to a named filter by its name stands in it. So it is
	// when the first name asked for has a slash.
	inside  bool
	several bool // -h, and more than one setting was found
}

// find shows what path leads to from n; heads are the blocks on the way.
func (q *query24) find(n *conf.Node, path []string, heads []*conf.Node) bool {
	key := path[0]
	if key == "" { // a name that ends in a slash
		return false
	}
	row, ok := q.r.c.Resolve(n, key)
	if !ok {
		return false
	}
	switch row.Shape {
	case all.ListFilter:
		if len(path) == 1 {
			var found []*conf.Node
			for _, c := range n.Children {
				if c.Type == row.Name {
					found = append(found, c)
				}
			}
			return q.whole(found, heads)
		}
		c := n.Child(row.Name, conf.Unescape(path[1]))
		if c == nil {
			return false
		}
		if len(path) == 2 {
			return q.whole([]*conf.Node{c}, heads)
		}
		return q.find(c, path[2:], append(slices.Clip(heads), c))
	case all.NamedFilter:
		return q.namedFilter(n, row, path, heads)
	}
	s, ok := n.Get(row.Name)
	ok = ok && !(q.inside && q.r.c.NamedFilter(n, row.Name) != "")
	if ok && q.r.o.scope == changed && n.Kind == conf.RootNode && row.Shape == all.Value && s.Value == q.r.c.Default(row) {
		return false
	}
	if !ok {
		if n.Kind != conf.RootNode || q.r.o.scope == changed || q.r.o.scope == set {
			return false
		}
		s = &conf.Setting24{Row: row, Value: q.r.c.Default(row), Line: true}
		for _, w := range strings.Fields(row.Default) {
			if q.builtin {
				s.Items = append(s.Items, conf.Item{Key: w, Value: "yes"})
			}
		}
	}
	return q.setting(n, s, path[1:], heads)
}

// namedFilter is `ssl_server` or what is in it.
func (q *query24) namedFilter(n *conf.Node, row *all.Row24, path []string, heads []*conf.Node) bool {
	c := n.Child(row.Name, "")
	if c == nil {
		c = &conf.Node{Kind: conf.NamedNode, Type: row.Name, Parent: n}
	}
	inner := append(slices.Clip(heads), c)
	if len(path) > 1 && path[1] != "" {
		full, ok := q.r.c.Resolve(c, path[1])
		if !ok || q.r.c.NamedFilter(n, full.Name) != row.Name {
			return q.find(c, path[1:], inner)
		}
		s, ok := n.Get(full.Name)
		return ok && q.inside && q.setting(c, s, path[2:], inner)
	}
	var outside []*conf.Setting24
	for _, s := range n.Settings {
		if q.inside && q.p.c.NamedFilter(n, s.Row.Name) == row.Name {
			outside = append(outside, s)
		}
	}
	before := q.p.out.Len()
	q.open(heads)
	q.p.named(n, c, outside, false)
	q.close(heads)
	return q.p.out.Len() > before
}

func (q *query24) open(heads []*conf.Node) {
	for _, h := range heads {
		q.p.line(heading24(h))
		q.p.indent++
	}
}

func (q *query24) close(heads []*conf.Node) {
	for range heads {
		q.p.indent--
		q.p.line("}")
	}
}

// whole shows blocks that are in heads.
func (q *query24) whole(blocks, heads []*conf.Node) bool {
	if q.bare {
		return q.single(blocks)
	}
	q.p.hide = !q.r.o.secrets
	for i, n := range blocks {
		if i == 0 {
			q.open(heads)
		}
		q.p.block(n, false)
		if i == len(blocks)-1 {
			q.close(heads)
		}
	}
	q.p.hide = false
	return len(blocks) > 0
}

// single shows the value of the only setting in the blocks.
func (q *query24) single(blocks []*conf.Node) bool {
	var n *conf.Node
	var only *conf.Setting24
	count := 0
	var add func(blocks []*conf.Node)
	add = func(blocks []*conf.Node) {
		for _, b := range blocks {
			for _, s := range b.Settings {
				n, only = b, s
				count++
			}
			add(b.Children)
		}
	}
	add(blocks)
	q.several = count > 1
	return count == 1 && q.setting(n, only, nil, nil)
}

// setting shows s, or the element of it that rest names.
func (q *query24) setting(n *conf.Node, s *conf.Setting24, rest []string, heads []*conf.Node) bool {
	if len(rest) > 0 {
		element := strings.Join(rest, "/")
		i := slices.IndexFunc(s.Items, func(i conf.Item) bool { return i.Key == element })
		if i < 0 || s.Line && s.Row.Shape == all.BoolList {
			return false
		}
		if q.bare && len(heads) == 0 {
			q.p.line(s.Items[i].Value)
			return true
		}
		if q.bare {
			q.p.line(element + " = " + s.Items[i].Value)
			return true
		}
		s = &conf.Setting24{Row: s.Row, Items: s.Items[i : i+1]}
	}
	if !q.bare {
		q.open(heads)
		q.p.setting(n, s)
		q.close(heads)
		return true
	}
	switch {
	case s.Row.Shape == all.Value:
		q.p.line(quote24(q.p.text(n, s)))
	case s.Line && s.Row.Shape == all.BoolList:
		q.p.line(elements(s))
	default:
		for _, i := range sorted24(s) {
			q.p.line(quoteElement(i.Key) + " = " + i.Value)
		}
	}
	return true
}
