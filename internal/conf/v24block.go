package conf

import (
	"fmt"
	"strings"

	"dovetail/internal/conf/settings/all"
)

// open24 is a line `type name {` (clauses C9 and C10).
func (q *parser24) open24(l line) {
	f := q.top24()
	head := q.lex.rang(0, l.end)
	n := f.node
	next := frame24{node: n}
	fail := func(text, detail string) {
		q.fail(head, text, detail)
		next.quiet = true
		q.push24(l, next)
	}
	if l.key == "group" && strings.Contains(l.value, " ") {
		q.group(l, head)
		return
	}
	if filterWords[l.key] != nil && !under24(n, ElementNode) && !under24(n, NamedNode) {
		q.client(l, head)
		return
	}
	row, ok := resolve24(q.t, n, l.key)
	if !ok {
		q.noSection(n, l, fail)
		return
	}
	switch row.Shape {
	case all.Value:
		fail(fmt.Sprintf("Setting %s cannot be used as a section", row.Name), "")
		return
	case all.BoolList, all.StrList:
		if l.value != "" {
			fail(fmt.Sprintf("Setting %s cannot have a value for the section", row.Name), "")
			return
		}
		next.list = row
		q.push24(l, next)
		return
	case all.NamedFilter:
		if l.named {
			fail(fmt.Sprintf("%s { } must not have a section name", l.key), "")
			return
		}
		next.node = n.child(NamedNode, row.Name, "")
	case all.ListFilter:
		if bad := badNesting(n, row.Name); bad != "" {
			fail(bad, "")
			return
		}
		if !l.named {
			detail := fmt.Sprintf("`%s NAME {`", l.key)
			if row.Name == "passdb" || row.Name == "userdb" {
				detail += fmt.Sprintf("; without a line `driver` the name is that of the driver, as in `%s passwd-file {`.", l.key)
			}
			fail(fmt.Sprintf("%s { } is missing section name", l.key), detail)
			return
		}
		if row.Auth && n.Child(row.Name, l.value) == nil && inside24(n) {
			fail(fmt.Sprintf("Failed to set %s=%s for struct auth: Auth settings not supported inside local/remote blocks: %[1]s", row.Name, Escape(l.value)), authHelp)
			return
		}
		next.node = n.child(ElementNode, row.Name, l.value)
	}
	next.node.Open = append(next.node.Open, head)
	q.push24(l, next)
}

func under24(n *Node, kind NodeKind) bool {
	for ; n != nil; n = n.Parent {
		if n.Kind == kind {
			return true
		}
	}
	return false
}

// badNesting is clause C9.7.
func badNesting(n *Node, typ string) string {
	for up := n; up != nil; up = up.Parent {
		if up.Kind != ElementNode {
			continue
		}
		if typ == "service" || typ == "namespace" && (up.Type == "namespace" || up.Type == "mailbox") || typ == "mailbox" && up.Type == "mailbox" {
			return fmt.Sprintf("%s { .. } not allowed under %s { .. }", typ, up.Type)
		}
	}
	return ""
}

// noSection is an unknown type of block.
func (q *parser24) noSection(n *Node, l line, fail func(text, detail string)) {
	key := l.key
	if filterWords[key] != nil {
		inner := n
		for inner.Kind != ElementNode && inner.Kind != NamedNode {
			inner = inner.Parent
		}
		if key == "protocol" && n.Type == "service" {
			fail("Setting service_protocol cannot be used as a section", "")
			return
		}
		fail(notInside(key, inner.Type), "Filters stand around sections.")
		return
	}
	if q.unknownOK {
		q.push24(l, frame24{node: n, quiet: true})
		return
	}
	text := "Unknown section name: " + key
	switch n.Kind {
	case ElementNode, GroupNode:
		text += fmt.Sprintf(" (%s_%s_%s, %s_%s not found either.)", n.Type, strings.ReplaceAll(n.Name, "/", "_"), key, n.Type, key)
	case NamedNode:
		text += fmt.Sprintf(" (%s_%s, %[1]s_%[2]s not found either.)", n.Type, key)
	}
	detail := q.help24(n, key)
	if key == "plugin" {
		detail = "In 2.4 the settings of plug-ins stand outside of sections, many under new names."
	}
	fail(text, detail)
}

// group is `group @label name {` (clause C9.16).
func (q *parser24) group(l line, head Range) {
	label, name, _ := strings.Cut(l.value, " ")
	next := frame24{node: q.top24().node}
	switch {
	case !strings.HasPrefix(label, "@"):
		next.unlabelled = true // nothing is known in it
	case next.node.Kind != RootNode:
		q.fail(head, "groups must defined at top-level, not under filters", "")
		next.quiet = true
	default:
		next.node = next.node.child(GroupNode, label, name)
		next.node.Open = append(next.node.Open, head)
	}
	q.push24(l, next)
}

// client is protocol, local, local_name, remote.
func (q *parser24) client(l line, head Range) {
	n := q.top24().node
	next := frame24{node: n}
	fail := func(text string) {
		q.fail(head, text, filterHelp(text))
		next.quiet = true
		q.push24(l, next)
	}
	for up := n; up != nil; up = up.Parent {
		if up.Kind == GroupNode {
			fail(fmt.Sprintf("%s { %s { .. } } not allowed (use %s { %s { .. } } instead)", up.Type, l.key, l.key, up.Type))
			return
		}
	}
	m := match24(n)
	arg := l.value
	if l.key == "local_name" {
		if strings.Contains(arg, " ") {
			fail("Multiple names no longer supported in local_name value")
			return
		}
		arg = strings.ToLower(arg)
	}
	if bad := filterWords[l.key](&m, arg, q.opt.Resolve); bad != "" {
		fail(bad)
		return
	}
	name := arg
	var net Net
	switch l.key {
	case "local":
		net, name = m.Local, m.Local.String()
	case "remote":
		net, name = m.Remote, m.Remote.String()
	}
	next.node = n.child(ClientNode, l.key, name)
	next.node.Net = net
	next.node.Open = append(next.node.Open, head)
	q.push24(l, next)
}

// match24 is what the filters around n ask for.
func match24(n *Node) Match {
	if n == nil {
		return Match{}
	}
	m := match24(n.Parent)
	if n.Kind == ClientNode {
		switch n.Type {
		case "protocol":
			m.Protocol = &n.Name
		case "local":
			m.Local = n.Net
		case "remote":
			m.Remote = n.Net
		case "local_name":
			m.LocalName = &n.Name
		}
	}
	return m
}

// Everyone says whether n is a block local 0.0.0.0/0 or the like, which is no filter.
func (n *Node) Everyone() bool {
	return n.Kind == ClientNode && (n.Type == "local" || n.Type == "remote") && n.Net.Bits == 0
}

// matches says whether this block, apart from those around it, is for the client f, and
// whether f says anything about what the block asks for.
func (n *Node) matches(f Filter) (matches, asked bool) {
	if n.Kind != ClientNode {
		return false, false
	}
	if n.Everyone() {
		return true, true
	}
	switch n.Type {
	case "protocol":
		asked = f.Service != "" || f.EmptyService
	case "local":
		asked = f.LocalIP.IsValid()
	case "remote":
		asked = f.RemoteIP.IsValid()
	case "local_name":
		asked = f.LocalName != "" || f.EmptyName
	}
	alone := *n
	alone.Parent = nil
	return asked && match24(&alone).Matches(f), asked
}
