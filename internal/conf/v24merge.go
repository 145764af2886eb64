package conf

import (
	"strings"

	"dovetail/internal/conf/settings/all"
)

// A Merge24 says what becomes part of a configuration.
type Merge24 struct {
	// Filter is the client for whom: blocks that match it become part of what is around
	// them, the last one winning; the others stay (clause C18.6). If Given.
	Filter
	Given   bool
	Builtin bool // what is there without a file
	Groups  bool // the groups, where they are used
}

// Merged is the configuration put together as m says.
func (c *Config24) Merged(m Merge24) *Node {
	root := c.Root.clone24(nil)
	if m.Groups {
		c.groups24(root)
	}
	if m.Given {
		root.apply24(m.Filter)
	}
	if m.Builtin {
		root.merge24(c.Builtin, false)
	}
	return root
}

func (n *Node) clone24(parent *Node) *Node {
	m := *n
	m.Parent, m.byKey = parent, make(map[string]*Setting24, len(n.Settings))
	m.Settings = append([]*Setting24(nil), n.Settings...)
	for _, s := range n.Settings {
		m.byKey[s.Row.Name] = s
	}
	m.Children = make([]*Node, len(n.Children))
	for i, c := range n.Children {
		m.Children[i] = c.clone24(&m)
	}
	return &m
}

// merge24 adds what src has. over: a setting that both have becomes that of src.
func (n *Node) merge24(src *Node, over bool) {
	for _, s := range src.Settings {
		old, ok := n.byKey[s.Row.Name]
		switch {
		case !ok:
			n.Settings = append(n.Settings, s)
			if n.byKey == nil {
				n.byKey = map[string]*Setting24{}
			}
			n.byKey[s.Row.Name] = s
		case over:
			for i := range n.Settings {
				if n.Settings[i] == old {
					n.Settings[i] = s
				}
			}
			n.byKey[s.Row.Name] = s
		}
	}
	for _, c := range src.Children {
		if have := n.Child(c.Type, c.Name); have != nil {
			have.merge24(c, over)
		} else {
			n.Children = append(n.Children, c.clone24(n))
		}
	}
}

// groups24 puts the groups in that n and its blocks use.
func (c *Config24) groups24(n *Node) {
	for _, u := range n.brought {
		if g := c.Root.Child(u.Label, u.Name); g != nil {
			n.merge24(g, false)
		}
	}
	for _, child := range n.Children {
		if child.Kind != GroupNode {
			c.groups24(child)
		}
	}
}

// apply24 makes the blocks that match f part of n, and drops those for others.
func (n *Node) apply24(f Filter) {
	children := n.Children
	n.Children = nil
	var matching []*Node
	for _, c := range children {
		switch matches, asked := c.matches(f); {
		case matches:
			matching = append(matching, c)
		case !asked:
			if c.Kind == ClientNode {
				c.apply24(f)
			}
			n.Children = append(n.Children, c)
		}
	}
	for _, c := range matching {
		c.apply24(f)
		n.merge24(c, true)
	}
}

// Table is the settings the configuration was read with.
func (c *Config24) Table() *all.Table24 { return c.table }

// Resolve finds the row that key means in n.
func (c *Config24) Resolve(n *Node, key string) (*all.Row24, bool) { return resolve24(c.table, n, key) }

// Find looks up a setting for n: in n, around it, in groups, or its default. ok is false
// if it is unknown, or its value is known only when the server runs.
func (c *Config24) Find(n *Node, name string) (value string, ok bool) {
	row, ok := c.table.Row(name)
	if !ok {
		return "", false
	}
	for up := n; up != nil; up = up.Parent {
		if s, set := up.Get(name); set {
			v := s.text()
			return v, !strings.Contains(v, "%{") && !hasVariable(v)
		}
	}
	return c.Default(row), true
}

// Expand puts the values of settings into a default or built-in value with $SET:name.
func (c *Config24) Expand(n *Node, v string) string {
	if !hasVariable(v) {
		return v
	}
	return eachWord(v, func(w string) string {
		name, ok := strings.CutPrefix(w, "$SET:")
		if !ok {
			return w
		}
		if value, ok := c.Find(n, name); ok {
			return value
		}
		return w
	})
}

// Changes is how many defaults differ from those of the newest version (clause C13.6).
func (c *Config24) Changes() int { return changes24[c.Version] }

// changes24 as doveconf of 2.4.4 counts them.
var changes24 = map[string]int{"2.4.0": 33, "2.4.1": 29, "2.4.2": 23, "2.4.3": 3}

// Resolve24 finds the row of 2.4 that key means in n, which need not be of a Config24.
func Resolve24(t *all.Table24, n *Node, key string) (*all.Row24, bool) { return resolve24(t, n, key) }
