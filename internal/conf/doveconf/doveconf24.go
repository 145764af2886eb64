package doveconf

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"dovetail/internal/conf"
	"dovetail/internal/conf/settings/all"
)

// doveconf of 2.4 (clause C18).

// version24 is what the first line of a dump says.
const version24 = "2.4.4 (a5a8b3a6c8)"

// run24 is one call of the program in the dialect of 2.4.
type run24 struct {
	run
	c *conf.Config24
}

const (
	takesArgument24 = "fcioI"
	knownOptions24  = "adhHnNsPxUwFCciIkofOL"
)

func (r *run24) main(args []string) error {
	o := &r.o
	if err := parseOptions24(args, o); err != nil {
		return err
	}
	switch {
	case o.instance != "":
		return fatalf("Unknown instance name: %s", o.instance)
	case o.hash:
		return errQuiet
	case o.command != nil:
		return fatal("-F is not supported")
	}
	if !o.fileGiven {
		o.file = mainFile(r.env)
	}
	if len(o.names) == 0 {
		r.out.line(fmt.Sprintf("# %s: %s\n", version24, o.file))
		r.out.flush()
		if o.scope == visible && !o.all {
			o.scope = changed
		}
	}
	if o.defaults {
		r.c = conf.Defaults24()
	} else {
		c, diags := conf.Load24(o.file, conf.Options{
			Expand: o.expand, Env: r.env.LookupEnv, Pipes: &r.pipes, IgnoreUnknown: o.ignoreUnknown, Around: len(o.names) > 0 && !strings.Contains(o.names[0], "/"),
		})
		r.c = c
		if err := r.report(diags); err != nil {
			return err
		}
	}
	if len(o.names) > 0 {
		return r.queries24()
	}
	return r.dump24()
}

func parseOptions24(args []string, o *options) error {
	return parseLetters(args, o, knownOptions24, takesArgument24, func(c byte, value string) error {
		switch c {
		case 'a':
			o.all = true
		case 'd':
			o.defaults, o.all, o.scope = true, true, visible
		case 'f':
			return o.filter.set24(value)
		case 'F':
			o.command = []string{}
		case 'U':
			o.ignoreUnknown = true
		case 'w', 'C', 'I':
		default:
			return o.option(c, value)
		}
		return nil
	})
}

// set24 reads one -f KEY=VALUE of 2.4.
func (f *filter) set24(arg string) error {
	key, value, ok := strings.Cut(arg, "=")
	if !ok {
		return fatal("-f parameters must be in key=value format")
	}
	switch key {
	case "protocol":
		return f.set(arg)
	case "local_name":
		return f.set("lname=" + value)
	case "local", "remote":
		if _, err := conf.ParseNet(value); err != nil {
			return fatalf("-f %s: %v", arg, err)
		}
		return f.set(arg)
	}
	return fatalf("-f %s: Unknown filter key", key)
}

// dump24 is the whole configuration.
func (r *run24) dump24() error {
	r.out.line(header())
	if n := r.c.Changes(); n > 0 {
		r.out.line(fmt.Sprintf("# %d default setting changes since version %s\n", n, r.c.Version))
	}
	if r.c.Version != "" {
		r.out.line("dovecot_config_version = " + r.c.Version + "\n")
	}
	if r.o.scope == visible {
		r.out.line("# NOTE: Send doveconf -n output instead when asking for help.\n")
	}
	r.out.flush()
	if r.o.hideKey {
		return fatal("Multiple settings matched with -h parameter")
	}
	everything := r.o.scope == visible || r.o.scope == full
	p := &printer24{out: &bytes.Buffer{}, hide: !r.o.secrets, c: r.c, scope: r.o.scope, expand: r.o.expand, defaults: r.o.defaults}
	n := r.c.Root
	if r.o.filter.given() || everything {
		n = r.c.Merged(conf.Merge24{Filter: r.o.filter.Filter, Given: r.o.filter.given(), Builtin: r.o.defaults})
	}
	p.node(n, everything)
	r.out.block(p.out.Bytes())
	r.failed(r.c.Checked)
	if r.c.Unclosed != "" {
		return r.checked([]conf.Remark{{Level: "Error", Text: r.c.Unclosed}})
	}
	return r.checked(r.c.Checked)
}

// A printer24 writes blocks of 2.4 (clause C18.5).
type printer24 struct {
	out    *bytes.Buffer
	indent int
	hide   bool
	scope  scope
	expand bool
	// defaults: what is built in is part of the configuration.
	defaults bool
	c        *conf.Config24
}

// inner is a printer for what stands in a block.
func (p *printer24) inner() *printer24 {
	q := *p
	q.out, q.indent = &bytes.Buffer{}, p.indent+1
	return &q
}

func (p *printer24) line(s string) {
	for range p.indent {
		p.out.WriteString("  ")
	}
	p.out.WriteString(s + "\n")
}

// node writes what stands in n: settings, blocks, groups. all: also defaults of the root.
func (p *printer24) node(n *conf.Node, everything bool) {
	named := map[string][]*conf.Setting24{} // of named filters in n
	var own []*conf.Setting24
	for _, s := range n.Settings {
		if f := p.c.NamedFilter(n, s.Row.Name); f != "" {
			named[f] = append(named[f], s)
		} else {
			own = append(own, s)
		}
	}
	if everything && n.Kind == conf.RootNode {
		grouped := p.c.Merged(conf.Merge24{Groups: true})
		for _, row := range p.c.Table().Rows {
			_, has := n.Get(row.Name)
			if !p.visible(row) || has && p.c.NamedFilter(n, row.Name) == "" {
				continue
			}
			s := &conf.Setting24{Row: row, Value: p.c.Default(row), Line: true}
			if strings.HasPrefix(s.Value, "$SET:") && !p.defaults {
				s.Value = "0"
			}
			if p.defaults {
				for _, w := range strings.Fields(row.Default) {
					s.Items = append(s.Items, conf.Item{Key: w, Value: "yes"})
				}
			}
			if g, ok := grouped.Get(row.Name); ok && !has {
				s = g
			}
			own = append(own, s)
		}
	}
	p.settings(n, own)
	for _, f := range p.order(n, named) {
		if f.Kind == conf.NamedNode {
			p.named(n, f, named[f.Type], everything)
			continue
		}
		p.block(f, everything)
	}
	for _, u := range n.Uses {
		p.line(u.Label + " = " + u.Name)
	}
}

func (p *printer24) visible(row *all.Row24) bool {
	return row.Shape <= all.StrList && !row.Plugin && (!row.Hidden || p.scope == full) && row.Name != "dovecot_config_version"
}

// order is the blocks of n in the order of first appearance; a named filter that only
// settings outside of it made comes where its first setting stands.
func (p *printer24) order(n *conf.Node, named map[string][]*conf.Setting24) []*conf.Node {
	out := slices.Clone(n.Children)
	for _, s := range n.Settings {
		f := p.c.NamedFilter(n, s.Row.Name)
		if f == "" || slices.ContainsFunc(out, func(c *conf.Node) bool { return c.Type == f }) {
			continue
		}
		out = append(out, &conf.Node{Kind: conf.NamedNode, Type: f, Parent: n, Open: []conf.Range{s.Seen}})
	}
	for f := range named {
		if !slices.ContainsFunc(out, func(c *conf.Node) bool { return c.Type == f }) {
			out = append(out, &conf.Node{Kind: conf.NamedNode, Type: f, Parent: n})
		}
	}
	return out
}

// named is a named filter with the settings that belong to it by name. An empty one is
// not shown.
func (p *printer24) named(n, f *conf.Node, outside []*conf.Setting24, everything bool) {
	inner := p.inner()
	inner.settings(f, append(slices.Clone(outside), f.Settings...))
	for _, c := range f.Children {
		if c.Kind == conf.NamedNode {
			inner.named(f, c, nil, everything)
		} else {
			inner.block(c, everything)
		}
	}
	if inner.out.Len() > 0 {
		p.line(f.Type + " {")
		p.out.Write(inner.out.Bytes())
		p.line("}")
	}
}

// block is any other block. Empty blocks of clients and groups are not shown.
func (p *printer24) block(n *conf.Node, everything bool) {
	if n.Everyone() {
		p.node(n, everything)
		return
	}
	inner := p.inner()
	inner.node(n, everything)
	if inner.out.Len() == 0 && (n.Kind == conf.ClientNode || n.Kind == conf.GroupNode) {
		return
	}
	p.line(heading24(n))
	p.out.Write(inner.out.Bytes())
	p.line("}")
}

func heading24(n *conf.Node) string {
	switch n.Kind {
	case conf.NamedNode:
		return n.Type + " {"
	case conf.ClientNode:
		return n.Type + " " + n.Name + " {"
	case conf.GroupNode:
		return "group " + n.Type + " " + quoteName24(n.Name) + " {"
	}
	return n.Type + " " + quoteName24(n.Name) + " {"
}

// quoteName24 quotes the name of a block.
func quoteName24(s string) string {
	if s == "" || s[0] == '=' || strings.ContainsAny(s, " \t\r\n\v\f\"\\#{'") {
		return `"` + escape24(s) + `"`
	}
	return s
}

// escape24 protects what 2.4 reads back; the real one also protects ', and then does not
// read it back (clause C22.4).
func escape24(s string) string { return escaper24.Replace(s) }

var escaper24 = strings.NewReplacer(`"`, `\"`, `\`, `\\`)

// settings writes settings of n sorted by their full names.
func (p *printer24) settings(n *conf.Node, list []*conf.Setting24) {
	slices.SortStableFunc(list, func(a, b *conf.Setting24) int { return strings.Compare(a.Row.Name, b.Row.Name) })
	for _, s := range list {
		if p.scope == changed && n.Kind == conf.RootNode && s.Row.Shape == all.Value && s.Value == p.c.Default(s.Row) {
			continue
		}
		p.setting(n, s)
	}
}

func (p *printer24) setting(n *conf.Node, s *conf.Setting24) {
	key := n.Short(s.Row.Name)
	switch {
	case s.Row.Shape == all.Value:
		p.line(key + " = " + p.value(s.Row.Name, p.text(n, s)))
	case s.Line && (s.Row.Shape == all.BoolList || len(s.Items) == 0):
		p.line(key + " = " + elements(s))
	default:
		p.line(key + " {")
		for _, i := range sorted24(s) {
			p.line("  " + quoteElement(i.Key) + " = " + p.value(i.Key, i.Value))
		}
		p.line("}")
	}
}

// text is the value of s; variables in what is built in are put in with -x. Those of the
// files have been, when they were read.
func (p *printer24) text(n *conf.Node, s *conf.Setting24) string {
	if p.expand && s.Last == nil {
		return p.c.Expand(n, s.Value)
	}
	return s.Value
}

// elements is a boollist as a line.
func elements(s *conf.Setting24) string {
	words := make([]string, len(s.Items))
	for i, it := range s.Items {
		words[i] = it.Key
	}
	return listLine(words)
}

// listLine writes elements so that they are read back. A line that begins and ends with
// quotes would lose them before its elements are looked at; a comma at the end keeps them.
// (The real one writes none.)
func listLine(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = quoteElement(w)
	}
	text := strings.Join(quoted, " ")
	if text != "" && text[0] == '"' && text[len(text)-1] == '"' && (len(words) > 1 || strings.ContainsAny(words[0], " \t\"")) {
		text += ","
	}
	return text
}

// sorted24 are the elements of a block: of a strlist by key.
func sorted24(s *conf.Setting24) []conf.Item {
	items := slices.Clone(s.Items)
	if s.Row.Shape == all.StrList {
		slices.SortStableFunc(items, func(a, b conf.Item) int { return strings.Compare(a.Key, b.Key) })
	}
	return items
}

func quoteElement(s string) string {
	if s == "" || strings.ContainsAny(s, " \t\r\n\v\f\"\\#=") {
		return `"` + escape24(s) + `"`
	}
	return s
}

func (p *printer24) value(name, v string) string {
	if p.hide && v != "" && (conf.SecretKey(name) || strings.HasSuffix(name, "_secret") && name != "_secret") {
		return "# hidden, use -P to show it"
	}
	hidden := v
	if p.hide {
		hidden = conf.HideSecrets(v)
	}
	if hidden != v {
		return hidden
	}
	return quote24(v)
}

func quote24(v string) string {
	blank := func(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }
	if v == "" || strings.IndexByte(v, '#') < 0 && !blank(v[0]) && !blank(v[len(v)-1]) {
		return v
	}
	return `"` + escape24(v) + `"`
}
