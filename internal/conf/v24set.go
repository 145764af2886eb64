package conf

import (
	"fmt"
	"slices"
	"strings"

	"dovetail/internal/conf/settings"
	"dovetail/internal/conf/settings/all"
)

// set24 is a line `key = value`.
func (q *parser24) set24(l line) {
	f := q.top24()
	at := q.lex.rang(0, len(l.key))
	if f.list != nil {
		q.element(outside(f.node, f.list.Name), f.list, l.key, l)
		return
	}
	a := &Assignment{
		Form: l.form, Raw: q.lex.text[min(l.valueAt, l.end):l.end], Quote: l.quote,
		Key: at, Range: q.lex.rang(l.valueAt, l.end),
	}
	value, ok := q.write24(f.node, l, a)
	if !ok {
		return
	}
	if strings.HasPrefix(l.key, "@") && !l.quotedKey {
		q.use(f.node, l, value, at)
		return
	}
	n, key := f.node, l.key
	if f.unlabelled {
		q.fails(at, key, "Unknown setting: group/"+key, "The label of a group begins with @.")
		return
	}
	// Clause C9.6: slashes lead into blocks.
	for strings.Contains(key, "/") {
		typ, rest, _ := strings.Cut(key, "/")
		row, ok := resolve24(q.t, n, typ)
		if !ok {
			break
		}
		switch row.Shape {
		case all.BoolList, all.StrList:
			q.element(n, row, rest, l)
			return
		case all.NamedFilter:
			n, key = n.child(NamedNode, row.Name, ""), rest
			continue
		case all.ListFilter:
			name, inner, more := strings.Cut(rest, "/")
			if more {
				n, key = n.child(ElementNode, row.Name, Unescape(name)), inner
				continue
			}
		}
		break
	}
	row, ok := resolve24(q.t, n, key)
	if !ok {
		q.unknown24(n, l.key, key, at)
		return
	}
	variable := l.form == Variable && hasSet(value)
	switch row.Shape {
	case all.NamedFilter:
		if !variable {
			q.fails(at, l.key, fmt.Sprintf("Setting is a named filter, use '%s {'", row.Name), "")
		} else {
			q.allowed(n, row, l.key, row.Name, at) // Dovecot ignores the line otherwise
		}
		return
	case all.ListFilter:
		if variable {
			q.fails(at, l.key, "Named list filter name must not contain $SET: "+value, "")
			return
		}
		q.fails(at, l.key, fmt.Sprintf("Setting is a named list filter, use '%s %s {'", l.key, value), "")
		return
	case all.StrList:
		if value != "" {
			q.fails(at, l.key, fmt.Sprintf("Setting is a string list, use '%s {'", row.Name), "Its elements stand in lines `key = value` inside the block.")
			return
		}
	}
	if row.Type == settings.File && l.form == Plain && l.value != "" {
		a.Path = q.here().relative(l.value)
	}
	if row.Type == settings.File && variable {
		q.fails(a.Range, l.key, "File settings must not contain $SET: "+value, "")
		return
	}
	if !variable && !q.check24value(row, l.key, value, a) || !q.allowed(n, row, l.key, row.Name, at) {
		return
	}
	q.warnGlobal24(n, row.Name, at)
	n = outside(n, row.Name)
	if row.Shape == all.BoolList || row.Shape == all.StrList {
		q.listLine(n, row, value, l, a)
		return
	}
	if f := q.c.NamedFilter(n, row.Name); f != "" {
		n.child(NamedNode, f, "") // keeps the place of the block
	}
	s := n.setting(row)
	s.Value, s.Last, s.Seen = value, a, a.Range
}

// outside is where a setting is stored that is set in n: the settings that belong to a
// named filter by their name stand around it (clause C9.3).
func outside(n *Node, name string) *Node {
	for n.Kind == NamedNode && strings.HasPrefix(name, n.Type+"_") {
		n = n.Parent
	}
	return n
}

// allowed says whether the setting may stand here.
func (q *parser24) allowed(n *Node, row *all.Row24, key, full string, at Range) bool {
	for up := n; up != nil; up = up.Parent {
		switch {
		case up.Kind == GroupNode && slices.Contains([]string{"base_dir", "import_environment", "dovecot_storage_version"}, row.Name):
			q.fails(at, key, row.Name+" cannot currently be defined inside groups", "")
			return false
		case up.Kind == ClientNode && up.Type != "protocol" && !up.Everyone() && row.Auth:
			q.fails(at, key, "Auth settings not supported inside local/remote blocks: "+full, authHelp)
			return false
		}
	}
	return true
}

// inside24 says whether n is in local, local_name or remote.
func inside24(n *Node) bool {
	for ; n != nil; n = n.Parent {
		if n.Kind == ClientNode && n.Type != "protocol" && !n.Everyone() {
			return true
		}
	}
	return false
}

// warnGlobal24 is clause C10.11.
func (q *parser24) warnGlobal24(n *Node, name string, at Range) {
	in := q.here()
	first, seen := q.seen[name]
	if n.Kind == RootNode {
		if seen {
			text := fmt.Sprintf("Global setting %s won't change the setting inside an earlier filter at %s "+
				"(if this is intentional, avoid this warning by moving the global setting before %s)", name, first, first)
			q.warn(at, fmt.Sprintf("%s line %d: %s", in.file.Path, in.line, text), text, "")
		}
		return
	}
	for up := outside(n, name); up != nil; up = up.Parent {
		if up.Kind == ElementNode || up.Kind == GroupNode || up.Kind == RootNode && outside(n, name) == up {
			return
		}
	}
	if !seen {
		q.seen[name] = seenAt{in.file, in.line}
	}
}

// write24 computes the value of a line as far as Options say; $SET stays, to be put in when
// everything is read.
func (q *parser24) write24(n *Node, l line, a *Assignment) (string, bool) {
	switch l.form {
	case FromFile:
		a.Path = q.here().relative(l.value)
		if !q.opt.Expand {
			return "<" + l.value, true
		}
		content, dir, err := q.readFile(a.Path)
		if dir || err != nil {
			why := "read(%s) failed: Is a directory"
			if err != nil {
				why = "Can't open file %s: " + reason(err)
			}
			detail := "The value is the content of this file, which must be readable."
			if _, known := resolve24(q.t, n, l.key); !known {
				detail = q.help24(n, l.key)
			}
			q.fail(a.Range, l.key+": "+fmt.Sprintf(why, a.Path), detail)
			return "", false
		}
		return content, q.room(len(content), a.Range)
	case Variable:
		return q.variables(n, l, a)
	}
	return l.value, true
}

// check24value is clause C11 for 2.4.
func (q *parser24) check24value(row *all.Row24, key, value string, a *Assignment) bool {
	if row.Type != settings.Str || row.Shape != all.Value {
		if bad := percentSyntax(value); bad != "" {
			q.failQuoting(a.Range, key+": ", value, ": "+bad, "`%{` begins a variable: `%{name | filter}`. `%%{` is the text %{.")
			return false
		}
	}
	if row.Shape != all.Value {
		return true
	}
	if row.Type == settings.File {
		return q.checkFile(key, value, a)
	}
	if strings.Contains(value, "%{") || !q.opt.Expand && (strings.Contains(value, "$SET:") || strings.Contains(value, "$ENV:")) {
		return true
	}
	if err := row.Normalise24(value); err != nil {
		k := Known{Type: row.Type, Enum: row.Enum}
		q.fails(a.Range, key, err.Error(), rightValue(key, k, a))
		return false
	}
	return true
}

// checkFile is clause C5.7.
func (q *parser24) checkFile(key, value string, a *Assignment) bool {
	if !q.opt.Expand || value == "" || strings.HasPrefix(value, "inline:") || strings.Contains(value, "%{") {
		return true
	}
	path := q.here().relative(value)
	_, dir, err := q.readFile(path)
	switch {
	case err != nil:
		q.fails(a.Range, key, fmt.Sprintf("open(%s) failed: %s", path, reason(err)), "The value is the name of a file, which must be readable.")
	case dir:
		q.fails(a.Range, key, fmt.Sprintf("read(%s) failed: Is a directory", path), "")
	}
	return err == nil && !dir
}

// unknown24 is clause C9.9.
func (q *parser24) unknown24(n *Node, key, last string, at Range) {
	if q.unknownOK {
		return
	}
	text := "Unknown setting: " + last
	prefix := n.Type + "_"
	switch n.Kind {
	case NamedNode:
		text += fmt.Sprintf(" (%s%s not found either.)", prefix, last)
	case ElementNode:
		text += fmt.Sprintf(" (%s%s or %s%s_%s not found either.", prefix, last, prefix, strings.ReplaceAll(n.Name, "/", "_"), last)
		if like := q.similar(prefix, "_"+last); len(like) == 1 {
			text += " Did you mean " + like[0] + "?"
		} else if len(like) > 1 {
			text += " Did you mean one of: " + strings.Join(like, ", ") + "?"
		}
		text += ")"
	}
	q.fails(at, key, text, q.help24(n, last))
}

// similar are the settings prefix + one word + suffix.
func (q *parser24) similar(prefix, suffix string) []string {
	var out []string
	for _, r := range q.t.Rows {
		rest, ok := strings.CutPrefix(r.Name, prefix)
		if rest, more := strings.CutSuffix(rest, suffix); ok && more && rest != "" && !strings.Contains(rest, "_") && !r.Plugin {
			out = append(out, r.Name)
		}
	}
	return out
}

// help24 says what an unknown name may have been meant to be.
func (q *parser24) help24(n *Node, key string) string {
	if now, ok := all.Renamed[key]; ok {
		return now.Help()
	}
	names := make([]string, 0, len(q.t.Rows))
	for _, r := range q.t.Rows {
		names = append(names, n.Short(r.Name))
	}
	if best := closest(key, names); best != "" {
		return fmt.Sprintf("Did you mean `%s`?", best)
	}
	if _, ok := Dovecot23().Setting(key); ok {
		return "It is a setting of 2.3 that 2.4 does not have."
	}
	return "There is no setting of this name."
}

// listOf is the list row in n, to be edited by a block: it begins with what is built in.
func (q *parser24) listOf(n *Node, row *all.Row24) *Setting24 {
	if s, ok := n.Get(row.Name); ok {
		return s
	}
	s := n.setting(row)
	if n.Kind == RootNode {
		if row.Shape == all.BoolList {
			for _, w := range strings.Fields(row.Default) {
				s.put(w, "yes")
			}
		}
		if b, ok := q.c.Builtin.Get(row.Name); ok {
			s.Items = slices.Clone(b.Items)
		}
	}
	return s
}

// element is a line in a list block.
func (q *parser24) element(n *Node, row *all.Row24, key string, l line) {
	a := &Assignment{
		Form: l.form, Raw: q.lex.text[min(l.valueAt, l.end):l.end], Quote: l.quote,
		Key: q.lex.rang(0, len(l.key)), Range: q.lex.rang(l.valueAt, l.end),
	}
	full := l
	full.key = row.Name + "/" + key
	value, ok := q.write24(q.top24().node, full, a)
	if !ok {
		return
	}
	if !hasSet(value) {
		if bad := percentSyntax(value); bad != "" {
			q.failQuoting(a.Range, l.key+": ", value, ": "+bad, "")
			return
		}
	}
	unknown := strings.Contains(value, "%{") || hasSet(value) || !q.opt.Expand && (strings.Contains(value, "$SET:") || strings.Contains(value, "$ENV:"))
	off := false
	if row.Shape == all.BoolList && !unknown {
		b, err := settings.ParseBool(value)
		if err != nil {
			q.fails(a.Range, l.key, err.Error(), "`yes` adds the element to the list, `no` takes it away.")
			return
		}
		off = !b
	}
	if !q.allowed(n, row, l.key, full.key, a.Key) {
		return
	}
	s := q.listOf(n, row)
	s.put(key, value)
	s.Last, s.Seen = a, a.Range
	if s.Line && off {
		s.Items = slices.DeleteFunc(s.Items, func(i Item) bool { return i.Key == key })
	}
}

// listLine is a line that assigns a whole list.
func (q *parser24) listLine(n *Node, row *all.Row24, value string, l line, a *Assignment) {
	words, err := splitList(value)
	if err != nil {
		q.fails(a.Range, l.key, err.Error(), "Elements are separated by blanks or commas; one with blanks stands in double quotes.")
		return
	}
	s := n.setting(row)
	s.Items, s.Line, s.Last, s.Seen = nil, true, a, a.Range
	for _, w := range words {
		s.put(unescapeElement(w), "yes")
	}
}

// unescapeElement passes an element through the unescaping of names, as 2.4 does (clause
// C9.12). A backslash before another character becomes a slash.
func unescapeElement(w string) string {
	var b strings.Builder
	for i := 0; i < len(w); i++ {
		if w[i] != '\\' || i+1 == len(w) {
			b.WriteByte(w[i])
			continue
		}
		i++
		switch w[i] {
		case 's':
			b.WriteByte('/')
		case 'e':
			b.WriteByte('=')
		case '_':
			b.WriteByte(' ')
		case '+':
			b.WriteByte(',')
		case '\\':
			b.WriteByte('\\')
		default:
			b.WriteByte('\\')
			b.WriteByte(w[i])
		}
	}
	return b.String()
}

// use is a line @label = name (clause C9.17).
func (q *parser24) use(n *Node, l line, name string, at Range) {
	for up := n; up != nil; up = up.Parent {
		if up.Kind == GroupNode {
			q.fail(at, "Recursive include groups not allowed", "")
			return
		}
	}
	if l.form == Variable && hasSet(name) {
		q.fail(at, "Include groups cannot contain $variables", "")
		return
	}
	builtin := builtinGroups[l.key]
	label := slices.ContainsFunc(q.c.Root.Children, func(c *Node) bool { return c.Kind == GroupNode && c.Type == l.key })
	switch {
	case !label && builtin == nil:
		q.fail(at, "Unknown group label "+l.key, "A group must be defined before it is used.")
		return
	case !slices.Contains(builtin, name) && q.c.Root.Child(l.key, name) == nil:
		q.fail(q.lex.rang(l.valueAt, l.end), fmt.Sprintf("Unknown group %s=%s", l.key, name), "A group must be defined before it is used.")
		return
	}
	u := Use{l.key, name}
	n.brought = append(n.brought, u)
	for i := range n.Uses {
		if n.Uses[i].Label == l.key {
			n.Uses[i] = u
			return
		}
	}
	n.Uses = append(n.Uses, u)
}

// builtinGroups is clause C9.18.
var builtinGroups = map[string][]string{"@mailbox_defaults": {"english"}, "@metric_defaults": {"backend", "proxy"}}
