package conf

import "strings"

const eventFilterHelp = "An event filter is made of `field=value` (also < and >) with and, or, not and parentheses, such as `category=ssl or event=auth_*`."

// eventFilter checks an expression that selects events (clause C16.22), as in log_debug. It
// returns Dovecot's words about the first mistake, which are bison's, "" if there is none.
// later is 2.4.
//
//	filter = [ expr ]
//	expr   = { "not" | "(" } key op value { ")" } [ ("and" | "or") expr ]
//	op     = "=" | "<" | ">" | "<=" | ">="
func eventFilter(s string, later bool) string {
	l := eventLexer{s: s, later: later}
	if l.next(); l.tok == evEnd {
		return ""
	}
	for depth, first := 0, true; ; first = false {
		for l.tok == evNot || l.tok == "'('" {
			if first = false; l.tok == "'('" {
				depth++
			}
			l.next()
		}
		if l.tok != evToken && l.tok != evString {
			if first {
				return l.unexpected(evEnd) // the empty filter was taken for done
			}
			return l.unexpected(evToken, evString, evNot, "'('")
		}
		key := l.text
		if l.next(); l.tok != "'='" && l.tok != "'<'" && l.tok != "'>'" {
			return l.unexpected("'='", "'>'", "'<'")
		}
		equal := l.tok == "'='"
		if l.next(); !equal && l.tok == "'='" {
			l.next()
		}
		switch l.tok {
		case evToken, evString, "AND", "OR", evNot:
		default:
			return l.unexpected()
		}
		if !equal && (key == "event" || key == "category" || key == "source_location") {
			return "Only fields support inequality comparisons"
		}
		for l.next(); l.tok == "')'" && depth > 0; depth-- {
			l.next()
		}
		switch {
		case l.tok == "AND" || l.tok == "OR":
			l.next()
		case l.tok == evEnd && depth == 0:
			return ""
		case depth > 0:
			return l.unexpected("AND", "OR", "')'")
		default:
			return l.unexpected(evEnd)
		}
	}
}

// Tokens of a filter; single characters stand in quotes.
const (
	evEnd    = "$end"
	evToken  = "TOKEN"
	evString = "STRING"
	evNot    = "NOT"
	evOther  = "$undefined"
)

type eventLexer struct {
	s         string // not yet read
	tok, text string
	later     bool
}

func (l *eventLexer) unexpected(want ...string) string {
	name := func(tok string) string {
		switch {
		case l.later && tok == evEnd:
			return "end of file"
		case l.later && tok == evOther:
			return "invalid token"
		}
		return tok
	}
	text := "syntax error, unexpected " + name(l.tok)
	for i, w := range want {
		text += []string{", expecting ", " or "}[min(i, 1)] + name(w)
	}
	return text
}

func (l *eventLexer) next() {
	l.s = strings.TrimLeft(l.s, " \t\n\r")
	if l.s == "" {
		l.tok = evEnd
		return
	}
	n := 0
	for n < len(l.s) && (alnum(l.s[n]) || strings.IndexByte(":.*?_-", l.s[n]) >= 0 || l.later && (l.s[n] == '/' || l.s[n] == '%')) {
		n++
	}
	switch c := l.s[0]; {
	case n > 0:
		l.text, l.tok = l.s[:n], evToken
		for _, word := range []string{"AND", "OR", evNot} {
			if strings.EqualFold(l.text, word) {
				l.tok = word
			}
		}
	case c == '"':
		l.quoted()
		return
	case strings.IndexByte("<>=()", c) >= 0:
		n, l.tok = 1, "'"+string(c)+"'"
	default:
		n, l.tok = 1, evOther
	}
	l.s = l.s[n:]
}

// quoted reads a string; one that does not end is the end of the text.
func (l *eventLexer) quoted() {
	var b strings.Builder
	for i := 1; i < len(l.s); i++ {
		switch c := l.s[i]; {
		case c == '"':
			l.text, l.tok, l.s = b.String(), evString, l.s[i+1:]
			return
		case c == '\\' && i+1 < len(l.s):
			if i++; l.s[i] != '\\' && l.s[i] != '"' {
				b.WriteByte('\\')
			}
			b.WriteByte(l.s[i])
		default:
			b.WriteByte(c)
		}
	}
	l.tok, l.s = evEnd, ""
}

func alnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
