// Package tabline is the line form that Dovecot's text protocols share: fields split by
// TAB, each field escaped so that it holds no NUL, TAB, CR or LF (clauses P0.1 to P0.3).
//
//	NUL -> \x01 '0'   \x01 -> \x01 '1'   TAB -> \x01 't'   CR -> \x01 'r'   LF -> \x01 'n'
//
// Empty fields are meaningful and kept. What the fields mean is the business of the
// packages that speak a protocol.
package tabline

import "strings"

const escape = '\x01'

// AppendEscaped adds the escaped form of s to b.
func AppendEscaped(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case 0:
			b = append(b, escape, '0')
		case escape:
			b = append(b, escape, '1')
		case '\t':
			b = append(b, escape, 't')
		case '\r':
			b = append(b, escape, 'r')
		case '\n':
			b = append(b, escape, 'n')
		default:
			b = append(b, c)
		}
	}
	return b
}

// Escape returns the escaped form of s; s itself when nothing needs it.
func Escape(s string) string {
	if !strings.ContainsAny(s, "\x00\x01\t\r\n") {
		return s
	}
	return string(AppendEscaped(make([]byte, 0, len(s)+8), s))
}

// Unescape reverses Escape. As Dovecot does, it takes any other byte behind an escape
// byte as it is, and drops a lone escape byte at the end.
func Unescape(s string) string {
	i := strings.IndexByte(s, escape)
	if i < 0 {
		return s
	}
	b := append(make([]byte, 0, len(s)), s[:i]...)
	for ; i < len(s); i++ {
		if s[i] != escape {
			b = append(b, s[i])
			continue
		}
		if i++; i == len(s) {
			break
		}
		switch s[i] {
		case '0':
			b = append(b, 0)
		case '1':
			b = append(b, escape)
		case 't':
			b = append(b, '\t')
		case 'r':
			b = append(b, '\r')
		case 'n':
			b = append(b, '\n')
		default:
			b = append(b, s[i])
		}
	}
	return string(b)
}

// Split returns the unescaped fields of line, which has no line end.
func Split(line string) []string {
	fields := strings.Split(line, "\t")
	for i, f := range fields {
		fields[i] = Unescape(f)
	}
	return fields
}

// Append adds the fields to b as one line, escaped, with its LF.
func Append(b []byte, fields ...string) []byte {
	for i, f := range fields {
		if i > 0 {
			b = append(b, '\t')
		}
		b = AppendEscaped(b, f)
	}
	return append(b, '\n')
}

// A Field is one key=value of a line; a bare word has no value and HasValue false.
type Field struct {
	Key, Value string
	HasValue   bool
}

// ParseField splits an unescaped field at its first '='.
func ParseField(s string) Field {
	k, v, ok := strings.Cut(s, "=")
	return Field{Key: k, Value: v, HasValue: ok}
}

// Fields are the key=value fields of a line, in order.
type Fields []Field

// ParseFields parses unescaped fields, as Split returns them.
func ParseFields(fields []string) Fields {
	out := make(Fields, len(fields))
	for i, f := range fields {
		out[i] = ParseField(f)
	}
	return out
}

// Get returns the value of the first field named key, and whether there is one.
func (fs Fields) Get(key string) (string, bool) {
	for _, f := range fs {
		if f.Key == key {
			return f.Value, true
		}
	}
	return "", false
}

// Has says whether a field named key is there, with or without a value.
func (fs Fields) Has(key string) bool {
	_, ok := fs.Get(key)
	return ok
}
