package authd

import (
	"dovetail/internal/dovecot/tabline"
)

// A field is one extra field of a reply. A hidden one is kept for conditions only.
type field struct {
	key, value string // a value that is empty is printed without "="
	hidden     bool
}

// fields is an ordered set of fields that can be taken back to how it was. Each database
// of a chain adds to it, and what one added that failed is rolled back.
type fields struct {
	list, kept []field
}

func (f *fields) index(key string) int {
	for i := range f.list {
		if f.list[i].key == key {
			return i
		}
	}
	return -1
}

// add sets key, in its old place if it has one.
func (f *fields) add(key, value string, hidden bool) {
	if key == "" {
		return
	}
	n := field{key, value, hidden}
	if i := f.index(key); i >= 0 {
		f.list[i] = n
	} else {
		f.list = append(f.list, n)
	}
}

func (f *fields) remove(key string) {
	if i := f.index(key); i >= 0 {
		f.list = append(f.list[:i], f.list[i+1:]...)
	}
}

func (f *fields) get(key string) (string, bool) {
	if i := f.index(key); i >= 0 {
		return f.list[i].value, true
	}
	return "", false
}

func (f *fields) has(key string) bool { return f.index(key) >= 0 }

// snapshot makes rollback return to what is there now.
func (f *fields) snapshot() { f.kept = append(f.kept[:0:0], f.list...) }

func (f *fields) rollback() { f.list = append(f.list[:0:0], f.kept...) }

// append adds the fields that are not hidden to b, with TABs between them.
func (f *fields) append(b []byte) []byte {
	first := true
	for _, x := range f.list {
		if x.hidden {
			continue
		}
		if !first {
			b = append(b, '\t')
		}
		first = false
		b = tabline.AppendEscaped(b, x.key)
		if x.value != "" {
			b = append(b, '=')
			b = tabline.AppendEscaped(b, x.value)
		}
	}
	return b
}

// appendField adds TAB key=value to b.
func appendField(b []byte, key, value string) []byte {
	b = append(b, '\t')
	b = append(b, key...)
	b = append(b, '=')
	return tabline.AppendEscaped(b, value)
}
