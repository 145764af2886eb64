package all

import (
	_ "embed"
	"strings"
	"sync"

	"dovetail/internal/conf/settings"
)

// A Shape says how a name of 2.4 is used (clause C9.1).
type Shape uint8

const (
	Value       Shape = iota // key = value
	BoolList                 // words, a line or a block
	StrList                  // keys with values, a block
	NamedFilter              // a block without a name
	ListFilter               // a block with a name
)

// A Row24 is a setting or a type of block of 2.4. Enum words are those of Setting; a File
// has Type settings.File.
type Row24 struct {
	settings.Setting
	Shape  Shape
	Auth   bool // not in local and remote
	Plugin bool // known only with a driver or plug-in that a plain build lacks
	// Required is, of a filter, the setting or block that must be in it (clause C9.10).
	Required string
}

// A Table24 is the settings of Dovecot 2.4. It is shared and must not be changed.
type Table24 struct {
	Rows    []*Row24 // by name
	Builtin []PathValue
	Old     []OldValue
	byName  map[string]*Row24
}

// An OldValue is what a dovecot_config_version before Before has in place of a default.
type OldValue struct {
	Before string
	PathValue
}

//go:embed dovecot24.txt
var dovecot24 string

// Prefix24 stands for the directory in which a 2.4 built from its sources is installed.
const Prefix24 = "/usr/local"

// V24 is Dovecot 2.4.4.
var V24 = sync.OnceValue(func() *Table24 {
	t := &Table24{byName: map[string]*Row24{}}
	for l := range strings.Lines(strings.ReplaceAll(dovecot24, "@PREFIX@", Prefix24)) {
		l = strings.TrimSuffix(l, "\n")
		switch {
		case l == "" || l[0] == '#':
		case l[0] == '+':
			path, value, _ := strings.Cut(l[1:], "=")
			t.Builtin = append(t.Builtin, PathValue{path, value})
		case l[0] == '<':
			version, rest, _ := strings.Cut(l[1:], " ")
			path, value, _ := strings.Cut(rest, "=")
			t.Old = append(t.Old, OldValue{version, PathValue{path, value}})
		default:
			t.row(strings.Split(l, "\t"))
		}
	}
	return t
})

var shapes = map[string]Shape{"boollist": BoolList, "strlist": StrList, "filter": NamedFilter, "listfilter": ListFilter}

func (t *Table24) row(f []string) {
	r := &Row24{Setting: settings.Setting{Name: f[0], Default: f[3]}}
	typ, words, _ := strings.Cut(f[1], ":")
	if typ == "filter" || typ == "listfilter" {
		r.Required, words = words, ""
	}
	if r.Shape = shapes[typ]; r.Shape == Value {
		r.Type = types[typ]
		if typ == "file" {
			r.Type = settings.File
		}
	}
	for _, w := range strings.Fields(words) {
		if w == "-" {
			w = ""
		}
		r.Enum = append(r.Enum, w)
	}
	for flag := range strings.SplitSeq(f[2], ",") {
		switch flag {
		case "auth":
			r.Auth = true
		case "hidden":
			r.Hidden = true
		case "plugin":
			r.Plugin = true
		}
	}
	t.Rows = append(t.Rows, r)
	t.byName[r.Name] = r
}

// Row returns the row of a full name.
func (t *Table24) Row(name string) (*Row24, bool) {
	r, ok := t.byName[name]
	return r, ok
}

// Normalise24 checks a value as 2.4 does. The text is kept as it is (clause C11).
func (r *Row24) Normalise24(v string) error {
	switch r.Type {
	case settings.Uint, settings.Size, settings.Time, settings.MSecs:
		if v == "unlimited" || v == "infinite" {
			return nil
		}
	}
	_, err := r.Normalise(v)
	return err
}
