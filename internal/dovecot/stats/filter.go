package stats

import (
	"errors"
	"fmt"
	"strings"

	"dovetail/internal/process/event"
)

// A filter says which events the service wants:
//
//	filter = expr                                  empty: none
//	expr   = and { "OR" and }
//	and    = not { "AND" not }
//	not    = "NOT" not | "(" expr ")" | key op value
//	key    = event | category | source_location | name of a field
//	op     = "=" | ">" | "<" | ">=" | "<="
//	value  = word | "quoted", where * and ? stand for anything, \ quotes " and \
//
// An unquoted category may be a severity: category=error. Fields and sources are not
// looked at here: what depends on them is sent, and the service decides.
type filter struct{ root node }

// An answer says whether a filter wants an event.
type answer int8

const (
	no answer = iota - 1
	maybe
	yes
)

// subject is what is known of an event before it happens.
type subject struct {
	name       string
	level      event.Level
	categories []string
}

type node interface{ match(subject) answer }

type (
	and     []node
	or      []node
	not     struct{ node }
	isEvent struct{ pattern string }
	inCat   struct{ category string }
	atLevel struct{ level event.Level }
	unknown struct{} // a field
	always  struct{} // a filter that could not be read
)

func (f filter) match(s subject) answer {
	if f.root == nil {
		return no
	}
	return f.root.match(s)
}

func (n and) match(s subject) answer {
	a := yes
	for _, x := range n {
		a = min(a, x.match(s))
	}
	return a
}

func (n or) match(s subject) answer {
	a := no
	for _, x := range n {
		a = max(a, x.match(s))
	}
	return a
}

func (n not) match(s subject) answer { return -n.node.match(s) }

func (n isEvent) match(s subject) answer {
	switch {
	case strings.ContainsRune(n.pattern, '\\'):
		return maybe // whether \* is an asterisk depends on the version
	case wildcard(n.pattern, s.name):
		return yes
	}
	return no
}

func (n inCat) match(s subject) answer {
	for _, c := range s.categories {
		if c == n.category {
			return yes
		}
	}
	return no
}

func (n atLevel) match(s subject) answer {
	if s.level == n.level {
		return yes
	}
	return no
}

func (unknown) match(subject) answer { return maybe }
func (always) match(subject) answer  { return yes }

// wildcard matches * and ?, in time of len(pattern) times len(s) at most.
func wildcard(pattern, s string) bool {
	star, from := -1, 0 // the last asterisk, and where what it stands for begins to be tried
	p := 0
	for i := 0; i < len(s); {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

const maxDepth = 100 // of parentheses and NOT

var levels = map[string]event.Level{
	"debug": event.Debug, "info": event.Info, "warning": event.Warning,
	"error": event.Error, "fatal": event.Fatal, "panic": event.Panic,
}

// parseFilter reads a filter. After an error the filter wants everything.
func parseFilter(s string) (filter, error) {
	p := &parser{rest: s}
	if p.next(); p.tok == tokEnd && p.err == nil {
		return filter{}, nil
	}
	n := p.expr()
	if p.err == nil && p.tok != tokEnd {
		p.fail("%q is left over", p.text)
	}
	if p.err != nil {
		return filter{always{}}, p.err
	}
	return filter{n}, nil
}

type token uint8

const (
	tokEnd token = iota
	tokWord
	tokQuoted
	tokOp // = > < >= <=
	tokOpen
	tokClose
)

// parser reads a filter from left to right. After an error every token is tokEnd.
type parser struct {
	rest  string
	tok   token
	text  string // of a word, a quoted string without its quotes, or an operator
	depth int
	err   error
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
	p.tok, p.rest = tokEnd, ""
}

// next reads a token.
func (p *parser) next() {
	p.rest = strings.TrimLeft(p.rest, " \t\r\n")
	if p.rest == "" {
		p.tok, p.text = tokEnd, ""
		return
	}
	n := 1
	switch p.rest[0] {
	case '(':
		p.tok = tokOpen
	case ')':
		p.tok = tokClose
	case '=':
		p.tok = tokOp
	case '<', '>':
		p.tok = tokOp
		if strings.HasPrefix(p.rest[1:], "=") {
			n = 2
		}
	case '"':
		p.quoted()
		return
	default:
		p.tok = tokWord
		if n = strings.IndexAny(p.rest, " \t\r\n()=<>\""); n < 0 {
			n = len(p.rest)
		}
	}
	p.text, p.rest = p.rest[:n], p.rest[n:]
}

func (p *parser) quoted() {
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; {
		case c == '"':
			p.tok, p.text, p.rest = tokQuoted, b.String(), p.rest[i+1:]
			return
		case c == '\\' && i+1 < len(p.rest):
			i++
			b.WriteByte(p.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	p.fail("a quoted string without end")
}

// keyword says whether the token is the word, in any case.
func (p *parser) keyword(word string) bool {
	return p.tok == tokWord && strings.EqualFold(p.text, word)
}

func (p *parser) expr() node { return p.list("OR", p.and, func(l []node) node { return or(l) }) }
func (p *parser) and() node  { return p.list("AND", p.not, func(l []node) node { return and(l) }) }

func (p *parser) list(word string, part func() node, join func([]node) node) node {
	parts := []node{part()}
	for p.keyword(word) {
		p.next()
		parts = append(parts, part())
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return join(parts)
}

func (p *parser) not() node {
	if p.depth++; p.depth > maxDepth {
		p.fail("more than %d parentheses", maxDepth)
	}
	defer func() { p.depth-- }()
	switch {
	case p.keyword("NOT"):
		p.next()
		return not{p.not()}
	case p.tok == tokOpen:
		p.next()
		n := p.expr()
		if p.tok != tokClose {
			p.fail("a parenthesis without end")
		}
		p.next()
		return n
	case p.tok == tokWord, p.tok == tokQuoted:
		return p.condition()
	}
	p.fail("a condition is missing")
	return always{}
}

var errCondition = errors.New("not a condition")

// condition reads key op value.
func (p *parser) condition() node {
	key, quotedKey := p.text, p.tok == tokQuoted
	p.next()
	op, isOp := p.text, p.tok == tokOp
	p.next()
	value, quoted := p.text, p.tok == tokQuoted
	if !isOp || p.tok != tokWord && p.tok != tokQuoted {
		p.fail("%w: %.50s", errCondition, key)
		return always{}
	}
	p.next()
	if quotedKey || op != "=" {
		return unknown{}
	}
	switch strings.ToLower(key) {
	case "event":
		return isEvent{value}
	case "category":
		if level, ok := levels[value]; ok && !quoted {
			return atLevel{level}
		}
		return inCat{value}
	}
	return unknown{} // source_location, or a field
}
