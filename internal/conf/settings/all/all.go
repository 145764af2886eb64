// Package all has every setting of Dovecot 2.3: for the programs that read, print, check
// and convert configuration files. The two daemons never link it; they need only package
// settings. The tables are text, read when first used.
package all

import (
	_ "embed"
	"strings"
	"sync"

	"dovetail/internal/conf/settings"
)

// A Table is all settings of one version. It is shared and must not be changed.
type Table struct {
	Rows     []*Row // in the order of doveconf -S: a section's row, then those of what it holds
	Services []Service
	byPath   map[string]*Row
	inside   map[string][]*Row
	roots    []root
	modules  map[string][]string // names of roots
}

// A root is one of the tables that Dovecot keeps settings in. A setting may stand in several.
type root struct {
	name string
	keys []string
}

// A Row is a setting, or a type of section.
type Row struct {
	settings.Setting
	Index  int    // in Table.Rows
	Key    string // the last part of Name
	Kind   Kind   // of a section; 0 for settings
	NameAt string // of a section: the setting inside that holds the block's name
	Auth   bool   // (also) in the auth group: not in local and remote (clause C10.6)
	Null   bool   // unset is different from empty: without a value it is not printed
	Always bool   // printed also if unset, when its block is
}

// A Kind says how blocks of one type merge (clause C8.2).
type Kind uint8

const (
	Unique Kind = iota + 1 // blocks of the same name are one
	List                   // every block is a new element
	Map                    // free keys, all blocks are one
)

// A Service is a built-in service: what differs from the defaults, in order. A Path is
// that of the setting below the service: "user", "unix_listener/login\ssubmission/mode".
type Service struct {
	Name   string
	Values []PathValue
}

// A PathValue is one value of a Service.
type PathValue struct{ Path, Value string }

//go:embed dovecot23.txt
var dovecot23 string

// V23 is Dovecot 2.3.19.1 as Debian builds it.
func V23() *Table { return v23() }

// V23Sieve is V23 with the settings and services of the managesieve plug-in.
func V23Sieve() *Table { return v23sieve() }

var (
	v23      = sync.OnceValue(func() *Table { return parse(dovecot23, false) })
	v23sieve = sync.OnceValue(func() *Table { return parse(dovecot23, true) })
)

// Row returns the row of a path by types: "service/inet_listener/port".
func (t *Table) Row(path string) (*Row, bool) {
	r, ok := t.byPath[path]
	return r, ok
}

// Inside returns the rows of the section path, "" for the root, in order.
func (t *Table) Inside(path string) []*Row { return t.inside[path] }

// A Selection is the settings of some modules, as doveconf -m takes them (clause C17.20). Nil
// is all settings.
type Selection struct {
	roots map[string]bool
	keys  map[string]bool
	rows  []*Row
	ends  map[string]int // root -> how many of rows its and the earlier roots have
}

// Select makes the Selection of the named modules; without names it has everything.
func (t *Table) Select(modules ...string) *Selection {
	s := &Selection{roots: map[string]bool{}, keys: map[string]bool{}, ends: map[string]int{}}
	for _, m := range modules {
		for _, r := range t.modules[m] {
			s.roots[r] = true
		}
	}
	for i, r := range t.roots {
		if i > 0 && len(modules) > 0 && !s.roots[r.name] {
			continue
		}
		s.roots[r.name] = true
		for _, k := range r.keys {
			if row, ok := t.byPath[k]; ok && !s.keys[k] {
				s.keys[k] = true
				s.rows = append(s.rows, row)
			}
		}
		s.ends[r.name] = len(s.rows)
	}
	return s
}

// Has says whether a setting or type of section outside of sections is in s.
func (s *Selection) Has(key string) bool { return s == nil || s.keys[key] }

// HasRoot says whether all of one of Dovecot's tables is in s.
func (s *Selection) HasRoot(name string) bool { return s == nil || s.roots[name] }

// Rows are the settings and sections outside of sections, in the order of doveconf -S. If
// last is not empty those of this root and the ones before it.
func (s *Selection) Rows(last string) []*Row {
	if last != "" {
		return s.rows[:s.ends[last]]
	}
	return s.rows
}

var types = map[string]settings.Type{
	"str": settings.Str, "str%": settings.StrVars, "bool": settings.Bool, "uint": settings.Uint, "octal": settings.Octal,
	"size": settings.Size, "time": settings.Time, "msecs": settings.MSecs, "port": settings.Port, "enum": settings.Enum,
}

var kinds = map[string]Kind{"unique": Unique, "list": List, "map": Map}

// parse reads the text form; the tests read both tables, so that it cannot be wrong.
func parse(text string, sieve bool) *Table {
	t := &Table{byPath: map[string]*Row{}, inside: map[string][]*Row{}, modules: map[string][]string{}}
	for l := range strings.Lines(text) {
		l = strings.TrimSuffix(l, "\n")
		switch {
		case l == "" || l[0] == '#':
		case l[0] == '@':
			if f := strings.Fields(l); f[0] == "@root" {
				t.roots = append(t.roots, root{f[1], f[2:]})
			} else {
				t.modules[f[1]] = f[2:]
			}
		case l[0] == '+' || l[0] == '?' && sieve:
			t.service(l[1:])
		case l[0] != '?':
			t.row(strings.Split(l, "\t"), sieve)
		}
	}
	return t
}

func (t *Table) row(f []string, sieve bool) {
	r := &Row{Setting: settings.Setting{Name: f[0], Default: f[3]}, Key: f[0]}
	dir := ""
	if i := strings.LastIndexByte(f[0], '/'); i >= 0 {
		dir, r.Key = f[0][:i], f[0][i+1:]
	}
	for flag := range strings.SplitSeq(f[2], ",") {
		switch flag {
		case "auth":
			r.Auth = true
		case "null":
			r.Null = true
		case "always":
			r.Always = true
		case "hidden":
			r.Hidden = true
		case "sieve":
			if !sieve {
				return
			}
		}
	}
	typ, arg, _ := strings.Cut(f[1], ":")
	if r.Kind = kinds[typ]; r.Kind != 0 {
		r.NameAt = arg
	} else {
		r.Type, r.Enum = types[typ], strings.Fields(arg)
	}
	r.Index = len(t.Rows)
	t.Rows = append(t.Rows, r)
	t.byPath[r.Name] = r
	t.inside[dir] = append(t.inside[dir], r)
}

// service adds a line service/NAME/PATH=VALUE.
func (t *Table) service(l string) {
	path, value, _ := strings.Cut(l, "=")
	_, path, _ = strings.Cut(path, "/")
	name, path, _ := strings.Cut(path, "/")
	if n := len(t.Services); n == 0 || t.Services[n-1].Name != name {
		t.Services = append(t.Services, Service{Name: name})
	}
	s := &t.Services[len(t.Services)-1]
	s.Values = append(s.Values, PathValue{path, value})
}
