package conf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf/settings/all"
)

// The language of Dovecot 2.4 (clauses C9 to C13): the same lines, but one flat name space
// of settings, and every block a filter that says where they apply.

// A Config24 is one main file of 2.4 with what it includes.
type Config24 struct {
	Path    string
	Files   []*File
	Version string // dovecot_config_version; "" if there is none
	Root    *Node
	// Builtin are the blocks and list entries that are there without a file.
	Builtin *Node
	// Checked are the errors of Dovecot's checks, in its order; the first one is its last word.
	Checked []Remark
	// Unclosed says that a brace is missing, in Dovecot's words; nothing is checked then.
	Unclosed string

	table *all.Table24
}

// A NodeKind says what a block of 2.4 is.
type NodeKind uint8

const (
	RootNode    NodeKind = iota
	ClientNode           // protocol, local, local_name, remote
	NamedNode            // ssl_server {
	ElementNode          // service x {
	GroupNode            // group @label name {
)

// A Node is a block of 2.4, or the root: settings by their full names, and blocks.
type Node struct {
	Kind     NodeKind
	Type     string // "protocol", "service", "metric_group_by"; of a group the label with its @
	Name     string
	Net      Net // of local and remote
	Open     []Range
	Settings []*Setting24 // in the order of their first assignment
	Children []*Node      // in the order of first appearance
	Uses     []Use        // @label = name, a label once
	Parent   *Node

	brought []Use // every @label = name, in order
	byKey   map[string]*Setting24
}

// A Use is a line @label = name.
type Use struct{ Label, Name string }

// A Setting24 is one setting in a Node.
type Setting24 struct {
	Row   *all.Row24
	Value string // of Shape Value: as written, unquoted
	Items []Item // of lists
	Line  bool   // the list was assigned by a line, which replaces what it was
	Last  *Assignment
	Seen  Range // of the last assignment
}

// An Item is an element of a list; of a boollist Value is yes or no.
type Item struct{ Key, Value string }

// Get returns the setting with this full name set in n itself.
func (n *Node) Get(name string) (*Setting24, bool) {
	s, ok := n.byKey[name]
	return s, ok
}

// Value is the text of a setting set in n itself, "" if it is not.
func (n *Node) Value(name string) string {
	if s := n.byKey[name]; s != nil {
		return s.Value
	}
	return ""
}

// Child returns the block of this type and name in n.
func (n *Node) Child(typ, name string) *Node {
	for _, c := range n.Children {
		if c.Type == typ && c.Name == name {
			return c
		}
	}
	return nil
}

func (n *Node) child(kind NodeKind, typ, name string) *Node {
	if c := n.Child(typ, name); c != nil {
		return c
	}
	c := &Node{Kind: kind, Type: typ, Name: name, Parent: n}
	n.Children = append(n.Children, c)
	return c
}

func (n *Node) setting(row *all.Row24) *Setting24 {
	s := n.byKey[row.Name]
	if s == nil {
		s = &Setting24{Row: row}
		n.Settings = append(n.Settings, s)
		if n.byKey == nil {
			n.byKey = map[string]*Setting24{}
		}
		n.byKey[row.Name] = s
	}
	return s
}

// put sets or replaces an element.
func (s *Setting24) put(key, value string) {
	for i := range s.Items {
		if s.Items[i].Key == key {
			s.Items[i].Value = value
			return
		}
	}
	s.Items = append(s.Items, Item{key, value})
}

// prefixes are the names that key may stand for in n (clause C9.2).
func (n *Node) prefixes(key string) []string {
	switch n.Kind {
	case ElementNode:
		return []string{n.Type + "_" + strings.ReplaceAll(n.Name, "/", "_") + "_" + key, n.Type + "_" + key, key}
	case NamedNode:
		return []string{n.Type + "_" + key, key}
	}
	return []string{key}
}

// resolve24 finds the row that key means in n.
func resolve24(t *all.Table24, n *Node, key string) (*all.Row24, bool) {
	names := n.prefixes(key)
	for i, name := range names {
		r, ok := t.Row(name)
		if ok && (i == len(names)-1 || r.Shape != all.NamedFilter) {
			return r, true
		}
	}
	return nil, false
}

// namedFilter is the named filter that the setting name is shown in when it is set in n,
// "" if none: the longest one that its name begins with.
func (t tables24) namedFilter(n *Node, name string) string {
	best := ""
	for i := len(name) - 1; i > 0 && best == ""; i-- {
		if row, ok := t.Row(name[:i]); name[i] == '_' && ok && row.Shape == all.NamedFilter {
			best = row.Name
		}
	}
	for up := n; best != "" && up != nil; up = up.Parent {
		if up.Kind == NamedNode && up.Type == best || up.Kind == ElementNode && strings.HasPrefix(best, up.Type+"_") {
			return "" // as in passdb static { password }
		}
	}
	return best
}

// tables24 is where names are looked up.
type tables24 struct{ *all.Table24 }

// NamedFilter is the named filter that a setting is shown in when it is set in n.
func (c *Config24) NamedFilter(n *Node, name string) string {
	return tables24{c.table}.namedFilter(n, name)
}

// Short is the name of a setting as it is written in n.
func (n *Node) Short(name string) string {
	for _, p := range n.prefixes("") {
		if short, ok := strings.CutPrefix(name, p); ok && short != "" && n.Kind != RootNode {
			return short
		}
	}
	return name
}

// A parser24 reads one configuration of 2.4. The embedded parser gives it files, lines and
// the list of problems.
type parser24 struct {
	*parser
	c      *Config24
	t      *all.Table24
	frames []frame24
	// unknownOK: unknown settings and sections are ignored (doveconf -U).
	unknownOK bool
	loops     map[string]bool
}

// A frame24 is an open block.
type frame24 struct {
	node  *Node
	list  *all.Row24 // inside the block of this list, which is in node
	quiet bool       // not looked at
	// unlabelled: inside `group x y {` without @, where only blocks can be set.
	unlabelled bool
}

// Load24 reads a configuration of 2.4.
func Load24(path string, opt Options) (*Config24, hcl.Diagnostics) {
	q := newParser24(path, opt)
	if q.openMain(path) {
		q.run()
		q.end()
	}
	q.c.Files = q.cfg.Files
	return q.c, q.diags
}

// Defaults24 is a configuration without files.
func Defaults24() *Config24 { return newParser24("", Options{}).c }

func newParser24(path string, opt Options) *parser24 {
	p := newParser(path, opt)
	p.lex.d = &dialect24
	t := all.V24()
	q := &parser24{parser: p, t: t, unknownOK: opt.IgnoreUnknown, c: &Config24{Path: path, Root: &Node{}, Builtin: builtin24(t, ""), table: t}}
	q.frames = []frame24{{node: q.c.Root}}
	p.onLine24 = q.apply24
	return q
}

// builtin24 makes the blocks that exist without a file, as version had them.
func builtin24(t *all.Table24, version string) *Node {
	root := &Node{}
	for _, v := range t.Builtin {
		builtinValue(t, root, v)
	}
	for _, o := range t.Old {
		if version == "" || version >= o.Before {
			continue
		}
		builtinValue(t, root, o.PathValue)
	}
	return root
}

func builtinValue(t *all.Table24, n *Node, v all.PathValue) {
	parts := strings.Split(v.Path, "/")
	for len(parts) > 2 {
		if parts[0] == "group" {
			n, parts = n.child(GroupNode, parts[1], Unescape(parts[2])), parts[3:]
			continue
		}
		kind := ElementNode
		if row, ok := t.Row(parts[0]); ok && row.Shape == all.NamedFilter {
			kind = NamedNode
		}
		n, parts = n.child(kind, parts[0], Unescape(parts[1])), parts[2:]
	}
	row, ok := t.Row(parts[0])
	if !ok {
		return // the tests find those
	}
	s := n.setting(row)
	switch {
	case len(parts) == 2:
		s.put(Unescape(parts[1]), v.Value)
	case row.Shape == all.BoolList:
		s.Line = true
		s.Items = nil
		for _, w := range strings.Fields(v.Value) {
			s.put(w, "yes")
		}
	default:
		s.Value = v.Value
	}
}

// Default is the default of a root setting, by the version of the file.
func (c *Config24) Default(row *all.Row24) string {
	if s, ok := c.Builtin.Get(row.Name); ok && row.Shape == all.Value {
		return s.Value
	}
	return row.Default
}

func (q *parser24) top24() *frame24 { return &q.frames[len(q.frames)-1] }

// fails is an error of a setting, which 2.4 prefixes with its key.
func (q *parser24) fails(r Range, key, text, detail string) { q.fail(r, key+": "+text, detail) }

// apply24 acts on a line.
func (q *parser24) apply24(in *input, l line) {
	if l.kind == lineSkip || !q.version(l) {
		return
	}
	f := q.top24()
	if f.quiet {
		switch l.kind {
		case lineOpen:
			q.push24(l, frame24{node: f.node, quiet: true})
		case lineClose:
			q.pop24()
		case lineBad:
			q.fail(q.lex.rang(0, l.end), l.bad, "")
		}
		return
	}
	switch l.kind {
	case lineSet:
		q.set24(l)
	case lineOpen:
		q.open24(l)
	case lineClose:
		if len(q.frames) == 1 {
			q.fail(q.lex.rang(0, 1), "Unexpected '}'", "No section is open here.")
			return
		}
		if n := f.node; f.list == nil && !f.unlabelled && (n.Kind == NamedNode || n.Kind == ElementNode) {
			if row, ok := q.t.Row(n.Type); ok && row.Required != "" && !q.hasRequired(n, row.Required) {
				q.fail(q.lex.rang(0, 1), fmt.Sprintf("Named filter %s is required to have %s setting, but it is missing", row.Name, row.Required), "")
			}
		}
		q.pop24()
	case lineInclude, lineIncludeTry:
		q.include(in, l)
	case lineBad:
		q.bad24(l)
	}
}

func (q *parser24) push24(l line, f frame24) {
	q.push(frame{key: l.key, scope: q.cfg.Root})
	if q.parser.top().quiet {
		f.quiet = true
	}
	q.frames = append(q.frames, f)
}

func (q *parser24) pop24() {
	q.frames = q.frames[:len(q.frames)-1]
	q.parser.open = q.parser.open[:len(q.parser.open)-1]
}

func (q *parser24) bad24(l line) {
	detail := "A line is `setting = value`, `section name {`, `}` alone, or `!include files`."
	switch {
	case l.bad == "Garbage after '{'":
		detail = "The brace must be the last thing on its line; what is inside follows on lines of its own."
	case strings.HasPrefix(l.bad, "Unknown escape"):
		detail = `Inside quotes only \\ and \" are known.`
	}
	if l.key == "group" {
		detail = "`group @label name {`"
	}
	q.fail(q.lex.rang(0, l.end), l.bad, detail)
}

// hasRequired says whether a block has the setting or block that must be in it.
func (q *parser24) hasRequired(n *Node, name string) bool {
	if _, ok := n.Get(name); ok {
		return true
	}
	return slices.ContainsFunc(n.Children, func(c *Node) bool { return c.Type == name })
}

// end is what is found after the last line.
func (q *parser24) end() {
	if s, ok := q.c.Root.Get("dovecot_storage_version"); !q.stoppedEarly() && (!ok || s.Value == "") {
		const text = "dovecot_storage_version setting must be set"
		d := hclError(text, "`dovecot_storage_version = "+newest24+"` stands next to dovecot_config_version.")
		d.Extra = &Report{Level: "Fatal", Text: text}
		q.add(d)
	}
	if q.opt.Expand {
		q.expandAll()
	}
	if len(q.cfg.Checked) > 0 {
		q.c.Unclosed = q.cfg.Checked[0].Text
	} else if !q.opt.NoChecks {
		q.check24()
	}
}

// stoppedEarly says whether Dovecot would have stopped at a line.
func (q *parser24) stoppedEarly() bool {
	return slices.ContainsFunc(q.diags, func(d *hcl.Diagnostic) bool {
		r, ok := d.Extra.(*Report)
		return ok && d.Severity == hcl.DiagError && !r.AtEnd
	})
}

const newest24 = "2.4.4"

var versions24 = []string{"2.4.0", "2.4.1", "2.4.2", "2.4.3", newest24}

// version is clause C13: it says whether the line is to be looked at.
func (q *parser24) version(l line) bool {
	const name = "dovecot_config_version"
	at := q.lex.rang(l.valueAt, l.end)
	if q.c.Version == "" && (l.kind != lineSet || l.key != name) {
		if l.kind != lineBad {
			q.fail(q.lex.rang(0, l.end), "The first setting must be dovecot_config_version", "Begin the file with `dovecot_config_version = "+newest24+"`.")
			q.c.Version = newest24 // once is enough
		}
		return false
	}
	if l.kind != lineSet || l.key != name || len(q.frames) > 1 {
		return true
	}
	switch {
	case q.c.Version != "":
		if l.value != q.c.Version {
			q.fail(at, name+" value can't be changed once set", "It was "+q.c.Version+".")
		}
		return false
	case l.form != Plain:
		q.fail(at, "Invalid "+name+": value is not a string", "A version such as "+newest24+".")
	case !slices.Contains(versions24, l.value):
		q.fail(at, fmt.Sprintf("Invalid %s: Currently supported versions are: %s", name, strings.Join(versions24, " ")), "")
	default:
		q.c.Version = l.value
		q.c.Builtin = builtin24(q.t, l.value)
		return false
	}
	q.c.Version = newest24
	return false
}
