package conf

import (
	"strings"

	"dovetail/internal/conf/settings/all"
)

// Merged is the configuration as the client f gets it: blocks that match it become part
// of what is around them, the last one winning; the others stay (clause C18.6). Groups
// are put in where they are used. builtin: with what is there without a file.
func (c *Config24) Merged(f Filter, given, builtin bool) *Node {
	root := c.Root.clone24(nil)
	c.groups24(root)
	if given {
		root.apply24(f)
	}
	if builtin {
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

// apply24 makes the blocks that match f part of n.
func (n *Node) apply24(f Filter) {
	children := n.Children
	n.Children = nil
	var matching []*Node
	for _, c := range children {
		if c.Matches(f) {
			matching = append(matching, c)
		} else {
			n.Children = append(n.Children, c)
		}
	}
	for _, c := range matching {
		c.apply24(f)
		rest := &Node{Kind: c.Kind, Type: c.Type, Name: c.Name, Net: c.Net, Parent: n}
		keep := c.Children[:0:0]
		for _, x := range c.Children {
			if x.Kind == ClientNode {
				x.Parent = rest
				rest.Children = append(rest.Children, x)
			} else {
				keep = append(keep, x)
			}
		}
		c.Children = keep
		n.merge24(c, true)
		if len(rest.Children) > 0 {
			n.Children = append(n.Children, rest)
		}
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
