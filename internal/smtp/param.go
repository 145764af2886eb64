package smtp

import (
	"strings"
)

// A param is one KEYWORD or KEYWORD=value behind a path (RFC 5321 section 4.1.2).
type param struct {
	keyword  string // as written
	value    string
	hasValue bool
}

func (p param) is(keyword string) bool { return strings.EqualFold(p.keyword, keyword) }

const (
	errParamEmpty   reason = "Parameter is empty"
	errParamKeyword reason = "Unexpected character in parameter keyword"
	errParamValue   reason = "Unexpected character in parameter value"
)

// parseParam reads text, which has no space, as a whole.
func parseParam(text string) (param, error) {
	if text == "" {
		return param{}, errParamEmpty
	}
	sc := scanner{s: text}
	if !alnum.has(text[0]) {
		return param{}, errParamKeyword
	}
	p := param{keyword: sc.take(&keyword)}
	if sc.end() {
		return p, nil
	}
	if !sc.skip('=') {
		return param{}, errParamKeyword
	}
	p.value, p.hasValue = sc.take(&paramValue), true
	if !sc.end() {
		return param{}, errParamValue
	}
	return p, nil
}

// eachParam calls f for the parameters in args, which are divided by single spaces, until
// it returns a refusal. command is "MAIL" or "RCPT".
func eachParam(command, args string, f func(param) Reply) Reply {
	if args == "" {
		return Reply{}
	}
	for text := range strings.SplitSeq(args, " ") {
		p, err := parseParam(text)
		if err != nil {
			return syntax("Invalid " + command + " parameter: " + err.Error())
		}
		if refusal := f(p); !refusal.IsZero() {
			return refusal
		}
	}
	return Reply{}
}

func syntax(text string) Reply      { return NewReply(501, "5.5.4", text) }
func unsupported(text string) Reply { return NewReply(555, "5.5.4", text) }

var unknownParam = unsupported("Unsupported parameters")

// once refuses a second KEYWORD= and one without a value.
func (p param) once(keyword string, given bool) Reply {
	switch {
	case given:
		return syntax("Duplicate " + keyword + "= parameter")
	case !p.hasValue:
		return syntax("Missing " + keyword + "= parameter value")
	}
	return Reply{}
}

// pathAndParams reads "FROM:<path> params" or "TO:<path> params".
func pathAndParams(args, word string, kind pathKind, w Workarounds) (p Path, params string, refusal Reply) {
	if len(args) <= len(word) || args[len(word)] != ':' || !strings.EqualFold(args[:len(word)], word) {
		return Path{}, "", syntax("Invalid parameters")
	}
	args = args[len(word)+1:]
	fail := func(err error) (Path, string, Reply) {
		return Path{}, "", syntax("Invalid " + word + ": " + err.Error())
	}
	if args != "" && (args[0] == ' ' || args[0] == '\t') {
		if w&WhitespaceBeforePath == 0 {
			return fail(errWhitespacePath)
		}
		args = strings.TrimLeft(args, " \t")
	}
	if w&MailboxForPath != 0 {
		kind |= noBrackets
	}
	p, rest, err := parsePath(args, kind)
	if err != nil {
		return fail(err)
	}
	if rest != "" && rest[0] != ' ' {
		return fail(errPathChar)
	}
	return p, strings.TrimPrefix(rest, " "), Reply{}
}
