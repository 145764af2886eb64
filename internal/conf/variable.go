package conf

import "strings"

// substitute puts in the variables of a value (clauses C6.1 to C6.7). Words are split as
// Dovecot does: at a space, after which all blanks are skipped. So a word behind a tab is
// part of the word before it.
func (p *parser) substitute(f *frame, l line, a *Assignment) (string, bool) {
	var out strings.Builder
	v, i := l.value, 0
	for {
		word, _, more := strings.Cut(v[i:], " ")
		value, bad := p.word(word, l.key)
		if bad != "" {
			at := p.lex.rang(l.valueAt+i, l.valueAt+i+len(word))
			p.failQuoting(at, strings.TrimSuffix(bad, word), word, "", "Only settings that stand outside of sections can be named. A value in quotes keeps its $.")
			return "", false
		}
		out.WriteString(value)
		if !more {
			return out.String(), p.room(out.Len(), a.Range)
		}
		out.WriteByte(' ')
		for i += len(word) + 1; i < len(v) && p.lex.d.blank(v[i]); i++ {
		}
	}
}

// word is what stands for one word of the value of key; bad is the error, if any.
func (p *parser) word(word, key string) (value, bad string) {
	name, dollar := strings.CutPrefix(word, "$")
	self := name == key
	if !dollar || !p.opt.Expand && !self {
		return word, ""
	}
	if env, ok := strings.CutPrefix(name, "ENV:"); ok {
		value, _ := p.opt.Env(env)
		return value, ""
	}
	if _, list := p.schema.Section(name); list {
		return "", "Invalid variable: $" + name
	}
	known, ok := p.schema.Setting(name)
	if !ok || strings.Contains(name, "/") {
		return "", "Unknown variable: $" + name
	}
	for i := len(p.open) - 1; i >= 0; i-- {
		if s, ok := p.open[i].scope.Get(name); ok {
			return s.Value, ""
		}
		if !self {
			break // only the nearest filter counts (clause C6.4)
		}
	}
	return known.Default, ""
}
