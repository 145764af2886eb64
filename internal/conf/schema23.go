package conf

import (
	"strings"
	"sync"

	"dovetail/internal/conf/settings/all"
)

// Dovecot23 is the Schema of Dovecot 2.3; Dovecot23Sieve the one with the settings that
// the managesieve package adds.
var (
	Dovecot23      = sync.OnceValue(func() Schema { return newTable(all.V23()) })
	Dovecot23Sieve = sync.OnceValue(func() Schema { return newTable(all.V23Sieve()) })
)

// A table makes a Schema of a table of package all.
type table struct {
	rows     *all.Table
	services []*Block
}

func newTable(rows *all.Table) *table {
	t := &table{rows: rows}
	root := &Block{}
	for _, s := range rows.Services {
		b := root.add("service", s.Name, Unique)
		b.Name = s.Name
		for _, v := range s.Values {
			in, key := b, v.Path
			if typ, rest, ok := strings.Cut(key, "/"); ok {
				id, last, _ := strings.Cut(rest, "/")
				if id, key = Unescape(id), last; in.Block(typ, id) == nil {
					in.add(typ, id, Unique).Name = id
				}
				in = in.Block(typ, id)
			}
			if row, ok := rows.Row(in.path); ok && row.NameAt == key {
				continue // in.Name has it
			}
			in.set(key, v.Value, &Assignment{})
		}
	}
	t.services = root.Blocks
	return t
}

// Setting is part of Schema.
func (t *table) Setting(path string) (Known, bool) {
	row, ok := t.rows.Row(path)
	if !ok || row.Kind != 0 {
		return Known{}, false
	}
	return Known{Default: row.Default, Auth: row.Auth, Type: row.Type, Enum: row.Enum, Normalise: row.Normalise}, true
}

// Section is part of Schema.
func (t *table) Section(path string) (Section, bool) {
	row, ok := t.rows.Row(path)
	if !ok || row.Kind == 0 {
		return Section{}, false
	}
	return Section{Kind: Kind(row.Kind), Key: row.NameAt, Auth: row.Auth}, true
}

// Services is part of Schema.
func (t *table) Services() []*Block { return t.services }

// Settings is part of Schema.
func (t *table) Settings(path string) []string { return t.names(path, false) }

// Sections is part of Schema.
func (t *table) Sections(path string) []string { return t.names(path, true) }

func (t *table) names(path string, sections bool) []string {
	var out []string
	for _, row := range t.rows.Inside(path) {
		if (row.Kind != 0) == sections {
			out = append(out, row.Key)
		}
	}
	return out
}

// Select is part of Schema.
func (t *table) Select(modules ...string) *all.Selection { return t.rows.Select(modules...) }
