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
		c, diags := conf.Load24(o.file, conf.Options{Expand: o.expand, Env: r.env.LookupEnv, IgnoreUnknown: o.ignoreUnknown})
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
	p := &printer24{out: &bytes.Buffer{}, hide: !r.o.secrets, c: r.c, scope: r.o.scope, expand: r.o.expand}
	n := r.c.Root
	if r.o.filter.given() || everything {
		n = r.c.Merged(r.o.filter.Filter, r.o.filter.given(), everything)
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
	c      *conf.Config24
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
		for _, row := range p.c.Table().Rows {
			if _, set := n.Get(row.Name); set || !p.visible(row) {
				continue
			}
			s := &conf.Setting24{Row: row, Value: p.c.Default(row), Line: true}
			for _, w := range strings.Fields(row.Default) {
				s.Items = append(s.Items, conf.Item{Key: w, Value: "yes"})
			}
			if f := p.c.NamedFilter(n, row.Name); f != "" {
				named[f] = append(named[f], s)
			} else {
				own = append(own, s)
			}
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
	return (row.Shape == all.Value || row.Shape == all.BoolList) && !row.Plugin && (!row.Hidden || p.scope == full) &&
		row.Name != "dovecot_config_version" && !strings.HasSuffix(row.Name, "_name")
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
	inner := &printer24{out: &bytes.Buffer{}, indent: p.indent + 1, hide: p.hide, scope: p.scope, expand: p.expand, c: p.c}
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
	inner := &printer24{out: &bytes.Buffer{}, indent: p.indent + 1, hide: p.hide, scope: p.scope, expand: p.expand, c: p.c}
	inner.node(n, everything)
	if inner.out.Len() == 0 && n.Kind == conf.ClientNode {
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
	if p.hide && v != "" && (secretKey(name) || strings.HasSuffix(name, "_secret") && name != "_secret") {
		return "# hidden, use -P to show it"
	}
	hidden := v
	if p.hide {
		hidden = hideSecrets(v)
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

// queries24 are single settings, lists and blocks (clause C18.9).
func (r *run24) queries24() error {
	// After an error Dovecot has nothing that is built in, not even list elements.
	builtin := len(r.c.Checked) == 0 && r.c.Unclosed == "" && r.o.scope != changed && r.o.scope != set
	root := r.c.Merged(r.o.filter.Filter, r.o.filter.given(), builtin)
	for _, name := range r.o.names {
		q := &query24{r: r, p: &printer24{out: &bytes.Buffer{}, c: r.c, scope: full, expand: r.o.expand}, bare: r.o.hideKey, builtin: builtin}
		if !q.find(root, root, strings.Split(name, "/"), nil) && r.o.hideKey {
			q.p.out.WriteByte('\n')
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
}

// find shows what path leads to from n; heads are the blocks on the way.
func (q *query24) find(root, n *conf.Node, path []string, heads []*conf.Node) bool {
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
			found := false
			for _, c := range n.Children {
				if c.Type == row.Name {
					q.whole(c, heads)
					found = true
				}
			}
			return found
		}
		c := n.Child(row.Name, conf.Unescape(path[1]))
		if c == nil {
			return false
		}
		if len(path) == 2 {
			q.whole(c, heads)
			return true
		}
		return q.find(root, c, path[2:], append(slices.Clip(heads), c))
	case all.NamedFilter:
		return q.namedFilter(root, n, row, path, heads)
	}
	s, ok := n.Get(row.Name)
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

// namedFilter is `ssl_server`, with what only stands inside, or `ssl_server/`, with what
// belongs to it by name, too.
func (q *query24) namedFilter(root, n *conf.Node, row *all.Row24, path []string, heads []*conf.Node) bool {
	c := n.Child(row.Name, "")
	if c == nil {
		c = &conf.Node{Kind: conf.NamedNode, Type: row.Name, Parent: n}
	}
	if len(path) > 1 && path[1] != "" {
		if full, ok := q.r.c.Resolve(c, path[1]); ok && full.Name == row.Name+"_"+path[1] {
			return q.find(root, n, append([]string{full.Name}, path[2:]...), heads)
		}
		return q.find(root, c, path[1:], append(slices.Clip(heads), c))
	}
	var outside []*conf.Setting24
	if len(path) > 1 {
		for _, s := range n.Settings {
			if q.p.c.NamedFilter(n, s.Row.Name) == row.Name {
				outside = append(outside, s)
			}
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

func (q *query24) whole(n *conf.Node, heads []*conf.Node) {
	q.open(heads)
	q.p.hide = !q.r.o.secrets
	q.p.block(n, false)
	q.p.hide = false
	q.close(heads)
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
