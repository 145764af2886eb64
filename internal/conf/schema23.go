package conf

import (
	_ "embed"
	"strings"
	"sync"
)

//go:embed schema23.txt
var schema23 string

type table struct {
	settings map[string]Known
	names    map[string][]string
	sections map[string]Section
	services []*Block
}

// Dovecot23 is the Schema of Dovecot 2.3.
var Dovecot23 = sync.OnceValue(func() Schema {
	t := &table{settings: map[string]Known{}, names: map[string][]string{}, sections: map[string]Section{
		"service": {Kind: Unique, Key: "name"}, "service/unix_listener": {Kind: Unique, Key: "path"},
		"service/fifo_listener": {Kind: Unique, Key: "path"}, "service/inet_listener": {Kind: Unique, Key: "name"},
		"passdb": {Kind: List, Key: "name", Auth: true}, "userdb": {Kind: List, Key: "name", Auth: true},
		"namespace": {Kind: Unique, Key: "name"}, "namespace/mailbox": {Kind: Unique, Key: "name"},
		"plugin": {Kind: Map}, "dict": {Kind: Map},
		"metric": {Kind: Unique, Key: "name"}, "event_exporter": {Kind: Unique, Key: "name"},
	}}
	root := &Block{}
	for _, l := range strings.Split(schema23, "\n") {
		if path, ok := strings.CutPrefix(l, "+"); ok {
			path, v, _ := strings.Cut(path, "=")
			p := strings.Split(path, "/")
			b := root.Block("service", p[1])
			if b == nil {
				b = root.add("service", p[1], Unique)
				b.Name = p[1]
			}
			if len(p) == 5 {
				id := Unescape(p[3])
				c := b.Block(p[2], id)
				if c == nil {
					c = b.add(p[2], id, Unique)
					c.Name = id
				}
				b = c
			}
			if key := p[len(p)-1]; key != "name" && key != "path" {
				b.set(key, v, &Assignment{})
			}
			continue
		}
		f := strings.Split(l, "\t")
		if len(f) != 4 {
			continue
		}
		typ, enum, _ := strings.Cut(f[1], ":")
		dir, name := "", f[0]
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			dir, name = name[:i], name[i+1:]
		}
		t.names[dir] = append(t.names[dir], name)
		t.settings[f[0]] = Known{Default: f[2], Type: typ, Auth: f[3] == "auth", Normalise: func(s string) (string, error) {
			return interim(typ, strings.Fields(enum), s)
		}}
	}
	t.services = root.Blocks
	return t
})

func (t *table) Setting(path string) (Known, bool) { k, ok := t.settings[path]; return k, ok }
func (t *table) Section(path string) (Section, bool) {
	s, ok := t.sections[path]
	return s, ok
}
func (t *table) Services() []*Block            { return t.services }
func (t *table) Settings(path string) []string { return t.names[path] }
func (t *table) Sections(path string) []string {
	var out []string
	for k := range t.sections {
		if i := strings.LastIndexByte(k, '/'); i < 0 && path == "" {
			out = append(out, k)
		} else if i >= 0 && k[:i] == path {
			out = append(out, k[i+1:])
		}
	}
	return out
}
