package conf

import "strings"

// percentSyntax checks the %{...} in a value of 2.4 (clause C12.6). It returns Dovecot's
// words about the first mistake, "" if there is none.
//
//	text  = { any | "%%{" | "%{" stage { "|" stage } "}" }
//	stage = [ NAME [ "(" [ arg { "," arg } ] ")" ] [ op (NUMBER | NAME) ] ]
//	arg   = [ "-" ] NUMBER | VALUE | NAME [ "=" arg ]
func percentSyntax(v string) string {
	for {
		i := strings.Index(v, "%")
		if i < 0 || i+1 >= len(v) {
			return ""
		}
		v = v[i+1:]
		switch {
		case v[0] == '%':
			v = strings.TrimPrefix(v[1:], "{")
		case v[0] == '{':
			p := percent{s: v[1:]}
			p.next()
			if bad := p.stages(); bad != "" {
				return bad
			}
			v = p.s
		}
	}
}

// percent reads the inside of one %{...}.
type percent struct {
	s   string // not yet read
	tok string // the token read last: a name of bison's
	bad string // of the lexer: it comes before everything else
}

const (
	tokEnd    = "end of file"
	tokClose  = "CCBRACE"
	tokPipe   = "PIPE"
	tokOpen   = "OPAREN"
	tokParen  = "CPAREN"
	tokComma  = "COMMA"
	tokEq     = "EQ"
	tokMinus  = "MINUS"
	tokName   = "NAME"
	tokValue  = "VALUE"
	tokNumber = "NUMBER"
)

var percentSigns = map[byte]string{'}': tokClose, '|': tokPipe, '(': tokOpen, ')': tokParen, ',': tokComma, '=': tokEq, '-': tokMinus, '+': "PLUS", '*': "STAR", '/': "SLASH", '%': "PERC"}

func nameStart(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80 }

func (p *percent) next() {
	p.s = strings.TrimLeft(p.s, " \t\r\n\v\f")
	if p.s == "" {
		p.tok = tokEnd
		return
	}
	c := p.s[0]
	n := 1
	switch {
	case nameStart(c):
		for n < len(p.s) && (nameStart(p.s[n]) || p.s[n] >= '0' && p.s[n] <= '9' || strings.IndexByte("_/;:.-", p.s[n]) >= 0) {
			n++
		}
		p.tok = tokName
	case c >= '0' && c <= '9':
		for n < len(p.s) && p.s[n] >= '0' && p.s[n] <= '9' {
			n++
		}
		p.tok = tokNumber
	case c == '\'' || c == '"':
		n = p.quoted(c)
	case percentSigns[c] != "":
		p.tok = percentSigns[c]
	default:
		p.tok = "invalid token"
	}
	p.s = p.s[n:]
}

// quoted reads a string; one that does not end is the end of the text.
func (p *percent) quoted(q byte) int {
	for i := 1; i < len(p.s); i++ {
		switch p.s[i] {
		case q:
			p.tok = tokValue
			return i + 1
		case '\\':
			i++
			if i < len(p.s) && strings.IndexByte(`\'"trnx01234567`, p.s[i]) < 0 && p.bad == "" {
				p.bad = "Invalid character escape"
			}
		}
	}
	p.tok = tokEnd
	return len(p.s)
}

func (p *percent) unexpected(want string) string {
	if p.bad != "" {
		return p.bad
	}
	return "syntax error, unexpected " + p.tok + ", expecting " + want
}

func (p *percent) stages() string {
	const after = tokClose + " or " + tokPipe
	for {
		want := tokClose + " or " + tokPipe + " or " + tokName
		if p.tok == tokName {
			p.next()
			want = after
			if p.tok == tokOpen {
				if bad := p.arguments(); bad != "" {
					return bad
				}
			}
			switch p.tok {
			case "PLUS", tokMinus, "STAR", "SLASH", "PERC":
				p.next()
				if p.tok != tokNumber && p.tok != tokName {
					return p.unexpected(tokName + " or " + tokNumber)
				}
				p.next()
			}
		}
		switch {
		case p.bad != "":
			return p.bad
		case p.tok == tokClose:
			return ""
		case p.tok != tokPipe:
			return p.unexpected(want)
		}
		p.next()
	}
}

// arguments reads from ( to ).
func (p *percent) arguments() string {
	const start = tokMinus + " or " + tokName + " or " + tokValue + " or " + tokNumber
	p.next()
	for {
		switch p.tok {
		case tokMinus:
			if p.next(); p.tok != tokNumber {
				return p.unexpected(tokNumber)
			}
		case tokName, tokNumber, tokValue:
		default:
			return p.unexpected(start)
		}
		name := p.tok == tokName
		p.next()
		if name && p.tok == tokEq {
			p.next()
			continue
		}
		switch p.tok {
		case tokComma:
			p.next()
		case tokParen:
			p.next()
			return ""
		default:
			return p.unexpected(tokParen + " or " + tokComma)
		}
	}
}
