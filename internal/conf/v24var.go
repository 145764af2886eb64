package conf

import (
	"fmt"
	"slices"
	"strings"

	"dovetail/internal/conf/settings"
	"dovetail/internal/conf/settings/all"
)

// eachWord splits a value with variables as Dovecot does: at a space, after which all
// blanks are skipped (clause C6.7). do returns what stands for a word.
func eachWord(v string, do func(word string) string) string {
	var out strings.Builder
	for i := 0; ; {
		word, _, more := strings.Cut(v[i:], " ")
		out.WriteString(do(word))
		if !more {
			return out.String()
		}
		out.WriteByte(' ')
		for i += len(word) + 1; i < len(v) && blank24(v[i]); i++ {
		}
	}
}

// hasVariable says whether v has a word $SET:name or $ENV:NAME.
func hasVariable(v string) bool {
	if !strings.Contains(v, "$") {
		return false
	}
	found := false
	eachWord(v, func(w string) string {
		found = found || strings.HasPrefix(w, "$SET:") || strings.HasPrefix(w, "$ENV:")
		return w
	})
	return found
}

// hasSet says whether v has a word $SET:name.
func hasSet(v string) bool {
	found := false
	eachWord(v, func(w string) string {
		found = found || strings.HasPrefix(w, "$SET:")
		return w
	})
	return found
}

// text is the value as one line; of a list its elements.
func (s *Setting24) text() string {
	if s.Row.Shape == all.Value {
		return s.Value
	}
	var words []string
	for _, i := range s.Items {
		if on, err := settings.ParseBool(i.Value); on && err == nil {
			words = append(words, i.Key)
		}
	}
	return strings.Join(words, " ")
}

// variables puts the variables into the value of a line (clause C6.11): $ENV if Options say
// so, and all if one is `$SET:key` in the value of key itself. Otherwise names are only
// checked, if Options say so, and $SET stays.
func (q *parser24) variables(n *Node, l line, a *Assignment) (string, bool) {
	self, bad := false, ""
	put := func(w string) string {
		if bad != "" {
			return w
		}
		if env, ok := strings.CutPrefix(w, "$ENV:"); ok && q.opt.Expand {
			v, _ := q.opt.Env(env)
			return v
		}
		name, ok := strings.CutPrefix(w, "$SET:")
		if !ok || !q.opt.Expand && name != l.key {
			return w
		}
		self = self || name == l.key
		s, value, err := q.find(n, name)
		if err != nil {
			bad = fmt.Sprintf("$SET:%s: %v", name, err)
			return w
		}
		if s != nil && s.Last != nil && s.Last.Form == Variable && q.opt.Expand {
			value, _ = q.expand(n, value, []string{l.key, name})
		}
		return value
	}
	out := eachWord(l.value, put)
	if bad != "" {
		q.failQuoting(a.Range, "Failed to expand ", bad, "", "`$SET:name`, or `$SET:service/x/service_name` for what stands in a block.")
		return "", false
	}
	if hasSet(l.value) && !self {
		return l.value, true
	}
	return out, q.room(len(out), a.Range)
}

// find looks up a setting for $SET in n: its text, and where it is set (nil: a default).
func (q *parser24) find(n *Node, name string) (*Setting24, string, error) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return q.findPath(name[:i], name[i+1:])
	}
	row, ok := q.t.Row(name)
	if !ok || row.Shape == all.NamedFilter || row.Shape == all.ListFilter {
		return nil, "", fault24("Unknown setting: " + name)
	}
	if row.Shape != all.Value {
		return nil, "", fault24("Setting type can't be expanded to string")
	}
	for up := n; up != nil; up = up.Parent {
		if s, ok := up.Get(name); ok {
			return s, s.Value, nil
		}
	}
	return nil, q.c.Default(row), nil
}

func (q *parser24) findPath(path, name string) (*Setting24, string, error) {
	row, ok := q.t.Row(name)
	if !ok {
		return nil, "", fault24("Unknown setting: " + name)
	}
	if row.Shape != all.Value {
		return nil, "", fault24("Setting type can't be expanded to string")
	}
	roots := []*Node{q.c.Root, q.c.Builtin}
	found := false
	for _, n := range roots {
		for parts := strings.Split(path, "/"); n != nil && len(parts) > 0; {
			r, ok := resolve24(q.t, n, parts[0])
			switch {
			case ok && r.Shape == all.NamedFilter:
				n, parts = n.Child(r.Name, ""), parts[1:]
			case ok && r.Shape == all.ListFilter && len(parts) > 1:
				n, parts = n.Child(r.Name, Unescape(parts[1])), parts[2:]
			default:
				n = nil
			}
		}
		if n == nil {
			continue
		}
		found = true
		if s, ok := n.Get(name); ok {
			return s, s.Value, nil
		}
	}
	if !found {
		return nil, "", fault24("Unknown filter path: " + path)
	}
	return nil, q.c.Default(row), nil
}

// expandAll puts in all variables, after everything has been read.
func (q *parser24) expandAll() { q.expandNode(q.c.Root) }

func (q *parser24) expandNode(n *Node) {
	for _, s := range n.Settings {
		if s.Last == nil || s.Last.Form != Variable {
			continue
		}
		if s.Row.Shape != all.Value {
			q.expandItems(n, s)
			continue
		}
		if !hasVariable(s.Value) {
			continue
		}
		v, ok := q.expand(n, s.Value, nil)
		if !ok {
			return
		}
		s.Value = v
		if err := s.Row.Normalise24(v); err != nil && !strings.Contains(v, "%{") {
			q.onLine(s.Last.Range, s.Last.Range.Filename, s.Last.Range.Line, s.Row.Name+": "+err.Error(), "")
		}
	}
	for _, c := range n.Children {
		q.expandNode(c)
	}
}

func (q *parser24) expandItems(n *Node, s *Setting24) {
	for i := range s.Items {
		it := &s.Items[i]
		it.Key, _ = q.expand(n, it.Key, nil)
		it.Value, _ = q.expand(n, it.Value, nil)
	}
}

// expand puts in the variables of v. chain are the names that led here.
func (q *parser24) expand(n *Node, v string, chain []string) (string, bool) {
	good := true
	out := eachWord(v, func(w string) string {
		if env, ok := strings.CutPrefix(w, "$ENV:"); ok {
			v, _ := q.opt.Env(env)
			return v
		}
		name, ok := strings.CutPrefix(w, "$SET:")
		if !ok || !good {
			return w
		}
		if slices.Contains(chain, name) {
			good = false
			text := fmt.Sprintf("Chained $SET:%s loops back to itself", name)
			if !q.loops[text] {
				if q.loops == nil {
					q.loops = map[string]bool{}
				}
				q.loops[text] = true
				d := hclError(text, "")
				d.Extra = &Report{Level: "Fatal", Text: text}
				q.add(d)
			}
			return w
		}
		s, value, err := q.find(n, name)
		if err != nil {
			return w
		}
		if s != nil && s.Last != nil && s.Last.Form == Variable || s == nil && hasVariable(value) {
			value, good = q.expand(n, value, append(slices.Clip(chain), name))
		}
		return value
	})
	return out, good
}
