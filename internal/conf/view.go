package conf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

// A View is the settings of one client: all filters that match it merged, the most
// specific first (clause C10.9). It shares what did not need merging with its Config and
// does not change.
type View struct {
	cfg  *Config
	root *Block
	// matched are the filters in it, in file order.
	matched []*Scope

	// UsesLocal and UsesRemote: some filter for this service asks for a local address or
	// name, or for a remote address; UsedLocal and UsedRemote: such a filter matched
	// (clause P2.4).
	UsesLocal, UsesRemote, UsedLocal, UsedRemote bool

	others []use // filters for protocols that did not match, if the Filter names none
}

// A ConflictError says that two filters match the same client, none is the more specific
// one, and both set Key (clause C10.10).
type ConflictError struct {
	Key string
	At  Range // where the second filter begins
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("Conflict in setting %s found from filter at %s:%d", e.Key, e.At.Filename, e.At.Line)
}

// View merges the settings for one client. The error is a *ConflictError.
func (c *Config) View(f Filter) (*View, error) { return c.view(f.request()) }

func (c *Config) view(r request) (*View, error) {
	v := &View{cfg: c}
	for _, u := range c.index.uses {
		switch {
		case u.match.matchesService(r):
			v.UsesLocal = v.UsesLocal || u.local
			v.UsesRemote = v.UsesRemote || u.remote
		case r.service == nil:
			v.others = append(v.others, u)
		}
	}
	var match []*Scope
	for _, i := range c.index.candidates(r) {
		s := c.Filters[i]
		if s.Match.matchesService(r) && s.Match.matchesRest(r) {
			v.UsedLocal = v.UsedLocal || s.Match.asksLocal()
			v.UsedRemote = v.UsedRemote || s.Match.asksRemote()
			match = append(match, s)
		}
	}
	v.matched = match
	if len(match) == 0 {
		v.root = c.Root.Block
		return v, nil
	}
	match = v.Merged()
	v.root = match[0].clone()
	for i, s := range match[1:] {
		strict := !s.Match.weaker(match[i].Match)
		key := ""
		if strict {
			key = c.conflict(v.root, s.Block)
		}
		if key == "" {
			key = v.root.merge(s.Block, strict)
		}
		if key != "" {
			return nil, &ConflictError{Key: key, At: s.Open[0]}
		}
	}
	return v, nil
}

// conflict returns the setting outside of sections that both a and b have; of several the
// one that Dovecot comes to first.
func (c *Config) conflict(a, b *Block) string {
	var both []string
	for _, s := range b.Settings {
		if _, ok := a.byKey[s.Key]; ok {
			both = append(both, s.Key)
		}
	}
	if len(both) < 2 {
		return strings.Join(both, "")
	}
	for _, name := range c.schema.Settings("") {
		if slices.Contains(both, name) {
			return name
		}
	}
	return both[0]
}

// clone copies b, not the blocks in it.
func (b *Block) clone() *Block {
	c := *b
	c.Settings, c.Blocks = slices.Clone(b.Settings), slices.Clone(b.Blocks)
	c.byKey, c.byID = make(map[string]*Setting, len(b.byKey)), make(map[string]*Block, len(b.byID))
	for k, s := range b.byKey {
		c.byKey[k] = s
	}
	for k, s := range b.byID {
		c.byID[k] = s
	}
	return &c
}

// merge adds to b what src sets and b does not. strict: a key that both set is a
// conflict, and returned. Blocks in b may be shared and are copied before they change.
func (b *Block) merge(src *Block, strict bool) (conflict string) {
	strict = strict && b.Kind != Map // maps are merged without a word
	for _, s := range src.Settings {
		if _, ok := b.byKey[s.Key]; ok {
			if strict {
				return s.Key
			}
			continue
		}
		b.Settings = append(b.Settings, s)
		if b.byKey == nil {
			b.byKey = map[string]*Setting{}
		}
		b.byKey[s.Key] = s
	}
	for _, c := range src.Blocks {
		id := c.Type + "/" + c.ID
		have := b.byID[id]
		if have == nil || c.Kind == List {
			b.Blocks = append(b.Blocks, c)
			if b.byID == nil {
				b.byID = map[string]*Block{}
			}
			b.byID[id] = c
			continue
		}
		if strict && c.Kind == Unique && len(have.Open) > 0 && len(c.Open) > 0 {
			// Both heads set the key field.
			if c.Type == "unix_listener" || c.Type == "fifo_listener" {
				return "path"
			}
			return "name"
		}
		own := have.clone()
		b.Blocks[slices.Index(b.Blocks, have)] = own
		b.byID[id] = own
		if key := own.merge(c, strict); key != "" {
			return key
		}
	}
	return ""
}

// OtherServices are, if the Filter named no service, the protocols whose filters set one
// of the settings that are wanted: for them the answer is another one. A protocol may
// begin with a !.
func (v *View) OtherServices(wanted func(name string) bool) []string {
	var out []string
	for _, u := range v.others {
		if slices.ContainsFunc(u.scopes, func(i int) bool {
			s := v.cfg.Filters[i]
			return slices.ContainsFunc(s.Settings, func(s *Setting) bool { return wanted(s.Key) }) ||
				slices.ContainsFunc(s.Blocks, func(b *Block) bool { return wanted(b.Type) })
		}) {
			out = append(out, *u.match.Protocol)
		}
	}
	return out
}

// Sections returns the merged sections of one type at the root, services with what is
// built in.
func (v *View) Sections(typ string) []*Block {
	if typ == "service" {
		return v.serviceBlocks()
	}
	return v.root.Of(typ)
}

// Root is the merged settings as a Block, for those who need more than the methods give.
func (v *View) Root() *Block { return v.root }

// Get returns the value of a setting if the files set it, in the form of clause C11. The
// name is a path as in clause C8.4: "listen", "service/auth/client_limit",
// "plugin/quota".
func (v *View) Get(name string) (string, bool) {
	if s, ok := v.root.Find(name); ok {
		return s.Value, true
	}
	return "", false
}

// Value is Get with the default, or what a built-in service has, for what is not set. It
// is "" for names that do not exist.
func (v *View) Value(name string) string {
	if s, ok := v.root.Find(name); ok {
		return s.Value
	}
	if !strings.Contains(name, "/") {
		k, _ := v.cfg.schema.Setting(name)
		return k.Default
	}
	builtin := &Block{}
	for _, s := range v.cfg.schema.Services() {
		if strings.HasPrefix(name, "service/"+Escape(s.ID)+"/") {
			builtin.Blocks, builtin.byID = []*Block{s}, map[string]*Block{"service/" + s.ID: s}
		}
	}
	if s, ok := builtin.Find(name); ok {
		return s.Value
	}
	k, _ := v.cfg.schema.Setting(typesOf(name))
	return k.Default
}

// typesOf drops the names of sections from a path: service/x/user is service/user.
func typesOf(path string) string {
	parts := strings.Split(path, "/")
	var out []string
	for i := 0; i < len(parts); i += 2 {
		out = append(out, parts[i])
	}
	return strings.Join(out, "/")
}

// Range is where the value of name stands; the zero Range if the files do not set it.
func (v *View) Range(name string) hcl.Range {
	if s, ok := v.root.Find(name); ok {
		return s.Last.Range.Range
	}
	return hcl.Range{}
}

// A KV is one line of plugin {}.
type KV struct {
	Key, Value string
	Range      hcl.Range
}

// Plugin returns the lines of plugin {}, those of filters first.
func (v *View) Plugin() []KV {
	b := v.root.Block("plugin", "")
	if b == nil {
		return nil
	}
	out := make([]KV, len(b.Settings))
	for i, s := range b.Settings {
		out[i] = KV{s.Key, s.Value, s.Last.Range.Range}
	}
	return out
}

// A ListSection is a passdb or a userdb.
type ListSection struct {
	Name   string
	Values map[string]string // what is set, in the form of clause C11
	Range  hcl.Range         // of its head
	block  *Block
}

// Get returns a value, or the default.
func (s ListSection) Get(key string) string { return s.Values[key] }

// At is where the value of key stands; the head if it is not set.
func (s ListSection) At(key string) hcl.Range {
	if set, ok := s.block.Get(key); ok {
		return set.Last.Range.Range
	}
	return s.Range
}

// Passdbs returns the passdb sections in the order in which they are asked: those of
// matching filters first.
func (v *View) Passdbs() []ListSection { return v.list("passdb") }

// Userdbs is Passdbs for userdb sections.
func (v *View) Userdbs() []ListSection { return v.list("userdb") }

func (v *View) list(typ string) []ListSection {
	var out []ListSection
	for _, b := range v.root.Of(typ) {
		s := ListSection{Name: b.Name, Values: map[string]string{}, Range: b.Pos().Range, block: b}
		for _, key := range v.cfg.schema.Settings(typ) {
			k, _ := v.cfg.schema.Setting(join(typ, key))
			s.Values[key] = k.Default
		}
		s.Values["name"] = b.Name
		for _, set := range b.Settings {
			s.Values[set.Key] = set.Value
		}
		out = append(out, s)
	}
	return out
}
