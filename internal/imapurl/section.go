package imapurl

import "strings"

// errSection is what each section that is none is told.
const errSection = fault("Invalid section")

// ParseSection checks the section of an URL (RFC 3501's section-spec) and returns it as it
// can stand in an IMAP command between [ and ], whatever the URL held: numbers, and one of
// HEADER, TEXT, MIME, HEADER.FIELDS ("A" "B"), HEADER.FIELDS.NOT ("A"), or nothing.
func ParseSection(s string) (string, error) {
	n, digits := 0, 0 // digits of the present number
	for ; n < len(s); n++ {
		if isDigit(s[n]) {
			digits++
		} else if digits > 0 && s[n] == '.' {
			digits = 0
		} else {
			break
		}
	}
	number, word := s[:n], s[n:]
	switch {
	case word == "" && strings.HasSuffix(number, "."), word != "" && number != "" && digits > 0:
		return "", errSection
	case word == "":
		return number, nil
	}
	upper := strings.ToUpper(word)
	switch {
	case upper == "TEXT", upper == "HEADER", upper == "MIME" && number != "":
		return number + upper, nil
	}
	for _, w := range []string{"HEADER.FIELDS.NOT", "HEADER.FIELDS"} {
		if strings.HasPrefix(upper, w) {
			names, err := fieldNames(strings.TrimPrefix(word[len(w):], " "))
			return number + w + " (" + strings.Join(names, " ") + ")", err
		}
	}
	return "", errSection
}

// fieldNames reads a list of names of header fields, (A "B"), at least one, and returns
// them quoted.
func fieldNames(s string) (names []string, err error) {
	s, ok := strings.CutPrefix(s, "(")
	if !ok {
		return nil, errSection
	}
	for s = strings.TrimLeft(s, " "); s != ")"; {
		var name string
		if strings.HasPrefix(s, `"`) {
			name, s, ok = cutQuoted(s[1:])
		} else {
			i := max(strings.IndexAny(s, " )"), 0)
			name, s = s[:i], s[i:]
			ok = isAtom(name)
		}
		if !ok || s == "" || s[0] != ' ' && s != ")" {
			return nil, errSection
		}
		names = append(names, `"`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name)+`"`)
		s = strings.TrimLeft(s, " ")
	}
	if len(names) == 0 {
		return nil, errSection
	}
	return names, nil
}

// cutQuoted reads up to the closing quote.
func cutQuoted(s string) (text, rest string, ok bool) {
	var b []byte
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return string(b), s[i+1:], true
		case c < ' ' || c > '~':
			return "", "", false
		case c == '\\':
			if i++; i == len(s) || s[i] != '"' && s[i] != '\\' {
				return "", "", false
			}
			b = append(b, s[i])
		default:
			b = append(b, c)
		}
	}
	return "", "", false
}

func isAtom(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || strings.IndexByte(`(){%*"\`, s[i]) >= 0 {
			return false
		}
	}
	return s != ""
}
