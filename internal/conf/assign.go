package conf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

func hclError(summary, detail string) *hcl.Diagnostic {
	return &hcl.Diagnostic{Severity: hcl.DiagError, Summary: summary, Detail: detail}
}

// set is a line `key = value` in the section on top.
func (p *parser) set(l line) {
	keyAt := p.lex.rang(0, len(l.key))
	f := p.top()
	p.warnGlobalAfterFilter(f, l.key, keyAt)
	a := &Assignment{
		Form: l.form, Raw: p.lex.text[min(l.valueAt, l.end):l.end], Quote: l.quote,
		Key: keyAt, Range: p.lex.rang(l.valueAt, l.end),
	}
	value, ok := p.rightSide(f, l, a)
	switch {
	case !ok:
	case l.key == "" && f.prefix == "":
		p.fail(keyAt, "Missing key name ('=' at the beginning of line)", "The name of the setting stands before the =.")
	default:
		p.assign(f, l.key, value, a)
	}
}

// warnGlobalAfterFilter is clause C10.11.
func (p *parser) warnGlobalAfterFilter(f *frame, key string, at Range) {
	if f.block != nil && f.block.Kind == Map {
		return // nothing outside can name what is inside
	}
	in, path := p.here(), f.prefix+key
	first, seen := p.seen[path]
	inside := slices.ContainsFunc(p.open[1:], func(f frame) bool { return f.auth == authNone })
	switch {
	case inside && !seen:
		p.seen[path] = seenAt{in.file, in.line}
	case !inside && seen:
		text := fmt.Sprintf("Global setting %s won't change the setting inside an earlier filter at %s "+
			"(if this is intentional, avoid this warning by moving the global setting before %s)", path, first, first)
		p.warn(at, fmt.Sprintf("%s line %d: %s", in.file.Path, in.line, text), text, "")
	}
}

// rightSide computes the value of a line as far as Options say (clauses C5, C6).
func (p *parser) rightSide(f *frame, l line, a *Assignment) (string, bool) {
	switch l.form {
	case FromFile:
		a.Path = p.here().relative(l.value)
		if !p.opt.Expand {
			return "<" + l.value, true
		}
		root, _, _ := strings.Cut(f.prefix+l.key, "/")
		if wrong := f.block != nil && f.block.Kind == Map && strings.Contains(l.key, "/"); !p.opt.Only.Has(root) || p.opt.Only != nil && wrong {
			return "", true
		}
		return p.readValue(f.prefix+l.key, a)
	case Variable:
		return p.substitute(f, l, a)
	}
	return l.value, true
}

// readValue is the content of the file a.Path, for the key Dovecot would name.
func (p *parser) readValue(key string, a *Assignment) (string, bool) {
	if text, ok := p.content[a.Path]; ok {
		return text, true
	}
	text, dir, err := p.readFile(a.Path)
	switch {
	case dir:
		p.fail(a.Range, fmt.Sprintf("%s: read(%s) failed: Is a directory", key, a.Path), "A < takes the content of a file.")
		return "", false
	case err != nil:
		p.fail(a.Range, fmt.Sprintf("%s: Can't open file %s: %s", key, a.Path, reason(err)),
			"The value is the content of this file, which must be readable.")
		return "", false
	case !p.room(len(text), a.Range):
		return "", false
	}
	if p.content == nil {
		p.content = map[string]string{}
	}
	p.content[a.Path] = text
	return text, true
}

// room counts n more bytes, and says whether they are within the bound.
func (p *parser) room(n int, at Range) bool {
	p.bytes += int64(n)
	if p.bytes <= maxTotalSize {
		return true
	}
	if !p.stopped {
		p.fail(at, fmt.Sprintf("Files and values have more than %d MB in all", maxTotalSize>>20), "Nothing more is read.")
		p.stopped = true
	}
	return false
}

// assign sets key, which may be a path (clause C8.4), in the section of f.
func (p *parser) assign(f *frame, key, value string, a *Assignment) {
	b, name, ok := p.resolve(f.block, key)
	if !ok {
		p.unknown(f, key, a.Key, false)
		return
	}
	if b.Kind == Map {
		b.set(name, value, a)
		return
	}
	if sec, ok := p.schema.Section(join(b.path, name)); ok {
		p.list(f, b, name, sec, value, a)
		return
	}
	known, ok := p.schema.Setting(join(b.path, name))
	if !ok {
		p.unknown(f, key, a.Key, false)
		return
	}
	value, err := known.Normalise(value)
	if err != nil {
		p.fail(a.Range, err.Error(), rightValue(key, known, a))
		return
	}
	if known.Auth && f.scope.Match.notAuth() {
		p.authInside(key, a.Key)
		return
	}
	if sec, ok := p.schema.Section(b.path); ok && sec.Key == name && b.parent != nil {
		b.Name, b.NameRange = value, a.Range
	}
	b.set(name, value, a)
}

// notAuth is clause C10.6.
func (m Match) notAuth() bool {
	return m.LocalName != nil || m.Local.Bits > 0 || m.Remote.Bits > 0
}

const authHelp = "The auth service does not know the client's addresses when it reads its settings. Inside `protocol` it works."

func (p *parser) authInside(key string, at Range) {
	p.fail(at, "Auth settings not supported inside local/remote blocks: "+key, authHelp)
}

// list is `passdb = x`: the words of value are made elements. Maps ignore it.
func (p *parser) list(f *frame, b *Block, typ string, sec Section, value string, a *Assignment) {
	if sec.Auth && f.scope.Match.notAuth() {
		p.authInside(typ, a.Key)
		return
	}
	if sec.Kind == Map {
		p.child(b, typ, "", sec)
		return
	}
	for _, id := range strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' }) {
		if sec.Kind == List && b.Block(typ, Unescape(id)) != nil {
			p.exists(b, typ, Unescape(id), a.Range)
			continue
		}
		c := p.child(b, typ, Unescape(id), sec)
		c.Listed = len(c.Open) == 0
		c.Open, c.NameRange = append(c.Open, a.Key), a.Range
	}
}

// exists reports the name of a list element that another one has. Elements without a name
// have their number for it.
func (p *parser) exists(b *Block, typ, id string, at Range) {
	where := b.Block(typ, id).Pos()
	p.fail(at, fmt.Sprintf("%s/%s already exists", typ, Escape(id)),
		fmt.Sprintf("At %s line %d. A %s needs no name; those that have one need different ones.", where.Filename, where.Line, typ))
}

// resolve follows the slashes of key from b on: to the block that holds the setting, and
// its name there. The blocks on the way must exist, in the file or built in.
func (p *parser) resolve(b *Block, key string) (*Block, string, bool) {
	for b != nil {
		typ, rest, slash := strings.Cut(key, "/")
		if !slash {
			return b, key, true
		}
		sec, ok := p.schema.Section(join(b.path, typ))
		if !ok {
			return nil, "", false
		}
		if sec.Kind == Map {
			if strings.Contains(rest, "/") {
				return nil, "", false
			}
			return p.child(b, typ, "", sec), rest, true
		}
		id, inner, ok := strings.Cut(rest, "/")
		if !ok {
			return nil, "", false
		}
		id = Unescape(id)
		if b.Block(typ, id) == nil && !p.builtin(b, typ, id) {
			return nil, "", false
		}
		if b.Block(typ, id) == nil {
			p.child(b, typ, id, sec).Name = id
		}
		b, key = b.Block(typ, id), inner
	}
	return nil, "", false
}

// child is the block of this type and ID inside b, made if it is not there. Of a plain
// list a new one is made always.
func (p *parser) child(b *Block, typ, id string, sec Section) *Block {
	if c := b.Block(typ, id); c != nil && sec.Kind != List {
		return c
	}
	return b.add(typ, id, sec.Kind)
}

// builtin says whether the built-in services have the block typ id at the place of b.
func (p *parser) builtin(b *Block, typ, id string) bool {
	if b.parent == nil {
		if typ == "service" {
			for _, s := range p.schema.Services() {
				if s.ID == id {
					return true
				}
			}
		}
		return false
	}
	if b.parent.parent == nil && b.Type == "service" {
		for _, s := range p.schema.Services() {
			if s.ID == b.ID {
				return s.Block(typ, id) != nil
			}
		}
	}
	return false
}

// openSection is a line `type name {` (clause C8).
func (p *parser) openSection(l line) {
	f := *p.top()
	head := p.lex.rang(0, l.end)
	keyAt := p.lex.rang(0, len(l.key))
	if narrow := filterWords[l.key]; narrow != nil {
		p.openFilter(f, l, head, narrow)
		return
	}
	if l.key == "}" {
		p.closeAndOpen(&f, keyAt)
		return
	}
	id := l.value
	if l.value == "" {
		id = strconv.Itoa(p.sections)
		p.sections++
	}
	next := frame{key: l.key, scope: f.scope, prefix: f.prefix + l.key + "/" + Escape(id) + "/"}
	if p.forgotten(l.key, head) {
		if f.block.Kind == Map {
			p.fail(head, "Section not allowed here", p.suggest(&f, l.key, true))
		} else {
			p.unknown(&f, l.key, keyAt, true)
		}
		p.open = p.open[:1]
		p.openSection(l)
		return
	}
	b, typ, ok := p.resolve(f.block, l.key)
	if !ok {
		next.quiet = true
		p.unknown(&f, l.key, keyAt, true)
		p.push(next)
		return
	}
	if b.Kind == Map {
		p.fail(head, "Section not allowed here", fmt.Sprintf("`%s` holds only lines `key = value`.", b.Type))
		next.quiet = true
		p.push(next)
		return
	}
	sec, ok := p.schema.Section(join(b.path, typ))
	switch {
	case !ok:
		if _, ok := p.schema.Setting(join(b.path, typ)); ok {
			// Clause C8.6: the setting gets the name of the section.
			a := &Assignment{Raw: l.value, Key: keyAt, Range: head}
			p.assign(&f, l.key, Escape(id), a)
		} else {
			next.quiet = true
			p.unknown(&f, l.key, keyAt, true)
		}
	case sec.Auth && f.scope.Match.notAuth():
		next.quiet = true
		p.authInside(l.key, keyAt)
	case sec.Kind == List && b.Block(typ, id) != nil:
		next.quiet = true
		p.exists(b, typ, id, head)
	default:
		next.block = p.openBlock(b, typ, id, sec, l, head)
	}
	p.push(next)
}

// closeAndOpen is a line `} userdb {`, which Dovecot takes for a section called }.
func (p *parser) closeAndOpen(f *frame, at Range) {
	if f.block != nil && f.block.Kind == Map {
		p.fail(at, "Section not allowed here", "")
	} else {
		p.unknown(f, "}", at, true)
	}
	p.diags[len(p.diags)-1].Detail = "`}` must be the only thing on its line."
	if len(p.open) > 1 {
		p.open = p.open[:len(p.open)-1]
	}
	p.push(frame{key: "}", scope: p.top().scope, quiet: true})
}

// forgotten says whether the head of a section shows that the brace of the section
// before it is missing: it begins its line, exists only at the root, and this is not the
// root.
func (p *parser) forgotten(key string, head Range) bool {
	f := p.top()
	if f.block == nil || f.block.parent == nil || head.Start.Column != 1 || f.auth != authNone {
		return false
	}
	_, here := p.schema.Section(join(f.block.path, key))
	_, root := p.schema.Section(key)
	return root && !here
}

// openBlock makes or continues the block of a section.
func (p *parser) openBlock(b *Block, typ, id string, sec Section, l line, head Range) *Block {
	if sec.Kind == Map {
		id = ""
	}
	c := p.child(b, typ, id, sec)
	c.Open = append(c.Open, head)
	if sec.Kind == Map {
		return c
	}
	c.Unnamed = l.value == ""
	c.Name, c.NameRange = l.value, head
	if l.named {
		c.NameRange = p.lex.rang(l.valueAt, l.valueAt+len(l.value))
	}
	return c
}

// openFilter is `protocol`, `local`, `local_name`, `remote` (clause C10).
func (p *parser) openFilter(f frame, l line, head Range, narrow func(*Match, string, resolver) string) {
	m := f.scope.Match
	next := frame{key: l.key, scope: f.scope, filter: true}
	if bad := narrow(&m, l.value, p.opt.Resolve); bad != "" {
		p.fail(head, bad, filterHelp(bad))
		next.quiet = true
		p.push(next)
		return
	}
	next.scope = p.scope(m, head)
	next.block = p.sameBlock(next.scope.Block, f.block)
	p.push(next)
}

func filterHelp(bad string) string {
	switch {
	case strings.HasPrefix(bad, "gethostbyname"):
		return "An address, a network ADDRESS/BITS, or the name of a host that the resolver knows."
	case strings.HasPrefix(bad, "Invalid network mask"):
		return "At most 32 bits for IPv4, 128 for IPv6."
	case strings.Contains(bad, "requires"):
		return "The network inside must be a part of the one around it."
	}
	return "Filters stand inside each other in this order: local, local_name, remote, protocol."
}

// scope finds or makes the Scope of a filter (clause C10.5).
func (p *parser) scope(m Match, head Range) *Scope {
	if m.same(p.cfg.Root.Match) {
		return p.cfg.Root // local 0.0.0.0/0 asks for nothing
	}
	for _, s := range p.byMatch[m.key()] {
		if s.Match.same(m) {
			s.Open = append(s.Open, head)
			return s
		}
	}
	s := &Scope{Block: &Block{}, Match: m, Open: []Range{head}}
	p.cfg.Filters = append(p.cfg.Filters, s)
	if p.byMatch == nil {
		p.byMatch = map[string][]*Scope{}
	}
	p.byMatch[m.key()] = append(p.byMatch[m.key()], s)
	return s
}

// key is equal for filters that are the same.
func (m Match) key() string {
	var b strings.Builder
	fmt.Fprint(&b, m.Local.Addr, "/", m.Local.Bits, " ", m.Remote.Addr, "/", m.Remote.Bits)
	if m.LocalName != nil {
		fmt.Fprintf(&b, " n%q", strings.ToLower(*m.LocalName))
	}
	if m.Protocol != nil {
		fmt.Fprintf(&b, " p%q", *m.Protocol)
	}
	return b.String()
}

// sameBlock is the block inside root at the place of b in its own scope: a filter inside
// a section goes on in that section (clause C8.9). It is nil, and nothing is known in it,
// unless the blocks exist there or are built in.
func (p *parser) sameBlock(root, b *Block) *Block {
	if b == nil || b.parent == nil {
		if b == nil {
			return nil
		}
		return root
	}
	up := p.sameBlock(root, b.parent)
	if up == nil {
		return nil
	}
	if c := up.Block(b.Type, b.ID); c != nil {
		return c
	}
	if !p.builtin(up, b.Type, b.ID) {
		return nil
	}
	c := up.add(b.Type, b.ID, b.Kind)
	c.Name = b.ID
	return c
}
