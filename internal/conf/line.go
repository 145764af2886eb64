package conf

import (
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
)

// A dialect is what Dovecot 2.3 and 2.4 do differently on the level of lines.
type dialect struct {
	blank    func(byte) bool
	unescape func(string) (string, error) // of a quoted value
	// later: keys may stand in double quotes, and `group` has a label before its name.
	later bool
}

// dialect23 is the language of 2.3: blanks are space and tab, a backslash in quotes
// protects any character.
var dialect23 = dialect{blank: blank23, unescape: unescape23}

func blank23(c byte) bool { return c == ' ' || c == '\t' }

// unescape23 takes the backslashes out of a quoted value (clause C4.5).
func unescape23(s string) (string, error) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b = append(b, s[i])
	}
	return string(b), nil
}

type lineKind uint8

const (
	lineSkip      lineKind = iota // empty or a comment
	lineContinued                 // goes on with the next physical line
	lineInclude
	lineIncludeTry
	lineSet
	lineOpen
	lineClose
	lineBad
)

// A line is one logical line, classified (clause C1.5).
type line struct {
	kind  lineKind
	key   string // lineSet: the key; lineOpen: the type; lineBad: the first word
	value string // lineSet: the value, unquoted; lineOpen: the name, ""; includes: the pattern
	named bool   // lineOpen: there is a name
	form  Form
	quote byte
	// quotedKey: the key was in quotes, which are gone.
	quotedKey bool
	bad       string // lineBad: Dovecot's text
	// Offsets into the logical line.
	keyAt, valueAt, end int
}

// A lexer joins the physical lines of one file to logical lines and keeps, for each piece,
// where it came from.
type lexer struct {
	d      *dialect
	full   []byte    // what earlier physical lines gave, without the current one
	text   string    // the logical line last classified
	pieces []piece   // of text, by rising at
	warn   func(int) // called with the offset in text of an ambiguous '#'
}

// A piece is a run of the logical line that comes from one physical line.
type piece struct {
	at   int // offset in the logical line
	file *File
	line int
	off  int // byte offset of the piece in the file
	col  int // bytes of the physical line before the piece
}

// next classifies the physical line number n, which begins at byte off of file. After
// any kind but lineContinued the caller calls done.
func (x *lexer) next(phys string, file *File, n, off int) line {
	if i := strings.IndexByte(phys, 0); i >= 0 {
		phys = phys[:i] // Dovecot's lines are C strings
	}
	skip := 0
	for skip < len(phys) && x.d.blank(phys[skip]) {
		skip++
	}
	s := phys[skip:]
	x.pieces = append(x.pieces, piece{at: len(x.full), file: file, line: n, off: off + skip, col: skip})
	if s == "" || s[0] == '#' {
		// A continued line that meets a comment or an empty line is lost (clause C3.4).
		x.text = ""
		return line{kind: lineSkip}
	}
	s = x.cutComment(s)
	s = x.trimRight(s)
	if strings.HasSuffix(s, `\`) {
		if s = x.trimRight(s[:len(s)-1]); s != "" {
			x.full = append(append(x.full, s...), ' ')
		} else {
			x.pieces = x.pieces[:len(x.pieces)-1]
		}
		return line{kind: lineContinued}
	}
	if len(x.full) > 0 {
		s = string(x.full) + s
	}
	x.text = s
	return x.classify(s)
}

// lost says, of a line to skip, whether it cuts off a continued line.
func (x *lexer) lost() bool { return len(x.full) > 0 && len(x.pieces) > 1 }

// done forgets the logical line.
func (x *lexer) done() { x.full, x.pieces = x.full[:0], x.pieces[:0] }

func (x *lexer) trimRight(s string) string {
	for s != "" && x.d.blank(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}

// cutComment ends s before the first '#' outside quotes. If a quote is not closed,
// nothing behind it is a comment (clause C2.2).
func (x *lexer) cutComment(s string) string {
	if strings.IndexByte(s, '#') < 0 {
		return s
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '\'', '"':
			for i++; i < len(s) && s[i] != c; i++ {
				if s[i] == '\\' && i+1 < len(s) {
					i++
				}
			}
		case '#':
			if !x.d.blank(s[i-1]) { // i > 0: a line that begins with # is skipped before
				x.warn(len(x.full) + i)
			}
			return s[:i]
		}
	}
	return s
}

func (x *lexer) skipBlanks(s string, i int) int {
	for i < len(s) && x.d.blank(s[i]) {
		i++
	}
	return i
}

func (x *lexer) wordEnd(s string, i int) int {
	for i < len(s) && !x.d.blank(s[i]) {
		i++
	}
	return i
}

// classify is clauses C4.1, C7.1 and C8.1.
func (x *lexer) classify(s string) line {
	l := line{end: len(s)}
	i := 0
	for i < len(s) && !x.d.blank(s[i]) && s[i] != '=' {
		i++
	}
	l.key = s[:i]
	if x.d.later && strings.HasPrefix(s, `"`) {
		key, n, err := quotedKey(s)
		if err != nil {
			l.kind, l.bad = lineBad, err.Error()
			return l
		}
		if n > 0 {
			l.key, l.quotedKey, i = key, true, n
		}
	}
	glued := i < len(s) && s[i] == '='
	i = x.skipBlanks(s, i)
	l.valueAt = i
	switch {
	case glued: // `!include=x` is a setting
	case l.key == "!include":
		l.kind, l.value = lineInclude, s[i:]
		return l
	case l.key == "!include_try":
		l.kind, l.value = lineIncludeTry, s[i:]
		return l
	}
	if i < len(s) && s[i] == '=' {
		return x.value(s, x.skipBlanks(s, i+1), l)
	}
	if l.key == "}" && i == len(s) {
		l.kind = lineClose
		return l
	}
	return x.open(s, i, l)
}

// value reads the right side of `key = value`, which begins at i (clause C4.3).
func (x *lexer) value(s string, i int, l line) line {
	l.kind, l.valueAt = lineSet, i
	v := s[i:]
	switch {
	case strings.HasPrefix(v, "<"):
		l.form, l.value = FromFile, s[x.skipBlanks(s, i+1):]
	case v != "" && v[0] != '\'' && v[0] != '"' && strings.IndexByte(v, '$') >= 0:
		l.form, l.value = Variable, v
	case v == `"` || v == `'`: // first and last at once
		l.value = ""
	case len(v) > 1 && (v[0] == '"' || v[0] == '\'') && v[len(v)-1] == v[0]:
		l.quote = v[0]
		var err error
		if l.value, err = x.d.unescape(v[1 : len(v)-1]); err != nil {
			l.kind, l.bad = lineBad, err.Error()
		}
	default:
		l.value = v
	}
	return l
}

// open reads what follows the type in the head of a section, from i on.
func (x *lexer) open(s string, i int, l line) line {
	l.kind = lineOpen
	label, grouped := "", false
	if x.d.later && l.key == "group" && !strings.HasPrefix(s[i:], "{") { // group @label name {
		j := x.wordEnd(s, i)
		if j == len(s) {
			l.kind, l.bad = lineBad, "Expecting group name"
			return l
		}
		label, i, grouped = s[i:j]+" ", x.skipBlanks(s, j), true
	}
	if grouped { // its name is a word in any case
		j := x.wordEnd(s, i)
		l.value, l.named, i = s[i:j], true, x.skipBlanks(s, j)
	} else if i < len(s) && s[i] == '"' {
		l.valueAt, l.named = i, true
		if q := strings.IndexByte(s[i+1:], '"'); q >= 0 {
			name, err := x.d.unescape(s[i+1 : i+1+q])
			if err != nil {
				l.kind, l.bad = lineBad, err.Error()
				return l
			}
			l.value, i = name, x.skipBlanks(s, i+q+2)
		} else {
			i = len(s)
		}
	} else if i < len(s) && s[i] != '{' {
		j := x.wordEnd(s, i)
		l.value, l.named, i = s[i:j], true, x.skipBlanks(s, j)
	}
	l.value = label + l.value
	switch {
	case i >= len(s) || s[i] != '{':
		l.kind, l.bad = lineBad, "Expecting '{'"
	case i+1 < len(s):
		l.kind, l.bad = lineBad, "Garbage after '{'"
	}
	return l
}

// rang is where text[from:to] of the logical line stands. Of a line that begins in one
// file and goes on in the one that includes it, it is the part in the latter.
func (x *lexer) rang(from, to int) Range {
	if len(x.pieces) == 0 {
		return Range{}
	}
	last := x.pieces[len(x.pieces)-1]
	for _, p := range x.pieces {
		if p.file == last.file {
			from = max(from, p.at)
			break
		}
	}
	r := Range{Line: last.line}
	r.Filename, r.Start, r.End = last.file.Path, x.pos(from), x.pos(max(to, from))
	return r
}

func (x *lexer) pos(at int) hcl.Pos {
	p := &x.pieces[0]
	for i := len(x.pieces) - 1; i > 0; i-- {
		if at >= x.pieces[i].at {
			p = &x.pieces[i]
			break
		}
	}
	in := at - p.at
	col := in
	if end := p.off + in; in >= 0 && end <= len(p.file.Text) {
		col = utf8.RuneCountInString(p.file.Text[p.off:end])
	}
	return hcl.Pos{Line: p.line, Column: p.col + col + 1, Byte: p.off + in}
}
