package conf

import (
	"strings"

	"github.com/hashicorp/hcl/v2"
)

// A Config is one main file with everything it includes. It does not change after Load,
// and may be read by several goroutines.
type Config struct {
	Path    string   // of the main file, as given to Load
	Files   []*File  // every file that was read, in the order of opening; Files[0] is the main file
	Root    *Scope   // what stands outside every filter
	Filters []*Scope // one for each different filter, in the order of first appearance
	// Checked is what Dovecot says of its checks when it reads the files: warnings, and at the
	// end perhaps an error, which is its last word (clause C16.1).
	Checked []Remark

	schema Schema
	index  index
}

// Schema is what Load was told, or took.
func (c *Config) Schema() Schema { return c.schema }

// A File is one file as it was read. An included file may occur several times.
type File struct {
	Path string // as opened: the directory of the including file and the match
	Text string // the content, for showing lines in messages
}

// A Scope is everything said for one filter, wherever in the files it stands. Blocks of
// the same filter continue the same Scope (clause C10.5).
type Scope struct {
	*Block         // the settings and sections of the filter; its Type and ID are empty
	Match  Match   // whom it applies to; the zero Match for Root
	Open   []Range // the lines that open it, in file order; empty for Root
}

// A Range is a place in a file, with the line Dovecot would name for it.
type Range struct {
	hcl.Range
	Line int // for a continued line its last physical line (clause C1.6), else Start.Line
}

// A Block is one section: `service NAME {`, `passdb {`, `plugin {`; or a Scope's own
// level. Sections with the same name under the same parent are one Block where the
// language merges them (clause C8.2).
type Block struct {
	Type string // "service", "unix_listener"; "" for a Scope's own level
	Kind Kind   // how blocks of this type merge
	// ID is what later blocks of the same type are compared with: the name in the head of
	// the section, or the running number (from 0, counted over all unnamed sections that
	// are not filters) if it has none. Empty for maps.
	ID      string
	Unnamed bool // the head has no name
	Listed  bool // a line `passdb = 0` made it
	// Name is the value of the type's key field (Schema.Section): the name in the head,
	// until `name =` or `path =` inside replaces it (clause C8.3).
	Name      string
	NameRange Range   // of the name; of the head if there is none
	Open      []Range // the lines that open it, in file order; empty if only a path (service/x/key) made it
	Settings  []*Setting
	Blocks    []*Block

	path   string // types of this and the blocks around it, joined by '/': "service/inet_listener"
	byKey  map[string]*Setting
	byID   map[string]*Block // key: Type + "/" + ID; for plain lists the last one with that ID
	parent *Block
}

// A Kind says how sections of one type merge, clause C8.2.
type Kind uint8

const (
	Unique Kind = iota + 1 // blocks of the same name are one
	List                   // every block is a new element
	Map                    // free keys, all blocks are one
)

// A Setting is one key of a Block with its value. Assigning the same key again replaces
// the value (clause C4.9).
type Setting struct {
	Key string
	// Value is what Dovecot keeps: variables put in as far as Options say, then converted
	// to the form doveconf prints (clause C11), unquoted.
	Value string
	Last  *Assignment
}

// A Form is how a value was written.
type Form uint8

const (
	Plain    Form = iota // text, perhaps quoted
	FromFile             // <path
	Variable             // text with a $ that may name something
)

// An Assignment is one line `key = value`.
type Assignment struct {
	Form  Form
	Raw   string // as written, quotes included, comment and blanks around it not
	Quote byte   // the quote around it, ' or ", or 0
	Value string // as in Setting, after this line
	Path  string // Form FromFile: the path, made relative to the file's directory
	Key   Range  // where the key stands
	Range Range  // where the value stands
	// By is the obsolete setting that the line has in fact, when Dovecot translated it
	// (clause C14); "" as a rule.
	By string
}

// Get returns the setting key of this block, not of blocks inside it.
func (b *Block) Get(key string) (*Setting, bool) {
	s, ok := b.byKey[key]
	return s, ok
}

// Value returns the value of key in this block, "" if it is not set.
func (b *Block) Value(key string) string {
	if s := b.byKey[key]; s != nil {
		return s.Value
	}
	return ""
}

// Path is the block's place by types alone: "service/inet_listener"; "" for a Scope's
// own level. With "/" and a key it is the name that Schema.Setting takes.
func (b *Block) Path() string { return b.path }

// Parent returns the block around this one, nil for a Scope's own level.
func (b *Block) Parent() *Block { return b.parent }

// Of returns the blocks of one type directly inside b, in the order of definition.
func (b *Block) Of(typ string) []*Block {
	var out []*Block
	for _, c := range b.Blocks {
		if c.Type == typ {
			out = append(out, c)
		}
	}
	return out
}

// Block returns the block of this type and ID directly inside b, nil if there is none.
func (b *Block) Block(typ, id string) *Block { return b.byID[typ+"/"+id] }

// Pos is where the block begins: its first head, or the zero Range.
func (b *Block) Pos() Range {
	if len(b.Open) == 0 {
		return b.NameRange
	}
	return b.Open[0]
}

// Find walks a path as it may stand at the root of a file (clause C8.4), types and
// escaped IDs alternating and a key at the end: "service/auth/client_limit".
func (b *Block) Find(path string) (*Setting, bool) {
	for {
		typ, rest, ok := strings.Cut(path, "/")
		if !ok {
			return b.Get(path)
		}
		if m := b.Block(typ, ""); m != nil && m.Kind == Map {
			return m.Get(rest)
		}
		id, key, ok := strings.Cut(rest, "/")
		if !ok {
			return nil, false
		}
		if b = b.Block(typ, Unescape(id)); b == nil {
			return nil, false
		}
		path = key
	}
}

// add makes an empty block inside b.
func (b *Block) add(typ, id string, kind Kind) *Block {
	c := &Block{Type: typ, Kind: kind, ID: id, parent: b, path: join(b.path, typ)}
	b.Blocks = append(b.Blocks, c)
	if b.byID == nil {
		b.byID = map[string]*Block{}
	}
	b.byID[typ+"/"+id] = c
	return c
}

// set assigns key and returns the setting.
func (b *Block) set(key, value string, a *Assignment) *Setting {
	s := b.byKey[key]
	if s == nil {
		s = &Setting{Key: key}
		b.Settings = append(b.Settings, s)
		if b.byKey == nil {
			b.byKey = map[string]*Setting{}
		}
		b.byKey[key] = s
	}
	a.Value = value
	s.Value, s.Last = value, a
	return s
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}

// Escape writes a section's name as it stands in a path (clause C8.4).
func Escape(name string) string { return nameEscaper.Replace(name) }

// Unescape reverses Escape.
func Unescape(id string) string { return nameUnescaper.Replace(id) }

var (
	nameEscaper   = strings.NewReplacer("/", `\s`, "=", `\e`, `\`, `\\`, " ", `\_`, ",", `\+`)
	nameUnescaper = strings.NewReplacer(`\s`, "/", `\e`, "=", `\\`, `\`, `\_`, " ", `\+`, ",")
)
