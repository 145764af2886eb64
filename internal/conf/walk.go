package conf

import (
	"strings"
)

// A SourceLine is one logical line with everything around it, for those who rewrite files.
type SourceLine struct {
	Kind SourceKind
	File string
	Line int    // its last physical line
	Raw  string // the physical lines as they stand, line ends included
	// Indent is the blanks before it, Comment the comment behind it with its #.
	Indent, Comment string
	Key             string // SourceSet: the key; SourceOpen: the type
	Value           string // SourceSet: unquoted, of FromFile the path; SourceOpen: the name; includes: the pattern
	Named           bool   // SourceOpen: there is a name
	Form            Form
	Quoted          bool
	Depth           int // how many files include this one
}

// A SourceKind says what a line is.
type SourceKind uint8

const (
	SourceBlank   SourceKind = iota // empty or a comment
	SourceSet                       // key = value
	SourceOpen                      // type name {
	SourceClose                     // }
	SourceInclude                   // !include, !include_try
	SourceBad                       // none of these
)

var sourceKinds = map[lineKind]SourceKind{
	lineSkip: SourceBlank, lineSet: SourceSet, lineOpen: SourceOpen, lineClose: SourceClose,
	lineInclude: SourceInclude, lineIncludeTry: SourceInclude, lineBad: SourceBad,
}

// Walk calls do for each line of the file at path in the language of 2.3 and of the files
// it includes, in the order of reading. Problems of reading are passed over: Load says them.
func Walk(path string, opt Options, do func(SourceLine)) {
	p := newParser(path, opt)
	p.onLine24 = func(in *input, l line) {
		do(p.source(in, l))
		if l.kind == lineInclude || l.kind == lineIncludeTry {
			p.include(in, l)
		}
	}
	if p.openMain(path) {
		p.run()
	}
}

func (p *parser) source(in *input, l line) SourceLine {
	s := SourceLine{
		Kind: sourceKinds[l.kind], File: in.file.Path, Line: in.line, Key: l.key, Value: l.value, Named: l.named,
		Form: l.form, Quoted: l.quote != 0, Depth: in.depth,
	}
	last := p.lex.pieces[len(p.lex.pieces)-1]
	first := p.lex.pieces[0]
	if first.file != last.file || l.kind == lineSkip {
		first = last
	}
	b := in.file.Text
	start := first.off - first.col
	s.Raw = b[start:in.off]
	s.Indent = b[start:first.off]
	phys := strings.TrimSuffix(strings.TrimSuffix(b[last.off:in.off], "\n"), "\r")
	if l.kind != lineSkip && strings.IndexByte(b[last.off:in.off], '#') >= 0 {
		quiet := lexer{d: p.lex.d, warn: func(int) {}}
		if cut := quiet.cutComment(phys); len(cut) < len(phys) && phys != "" {
			s.Comment = phys[len(cut):]
		}
	}
	return s
}
