package conf

import "strings"

// dialect24 is the language of 2.4 on the level of lines.
var dialect24 = dialect{blank: blank24, unescape: unescape24, later: true}

func blank24(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// A fault24 is an error whose text is Dovecot's.
type fault24 string

func (f fault24) Error() string { return string(f) }

// unescape24 takes the backslashes out of a quoted value (clause C4.6).
func unescape24(s string) (string, error) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", fault24(`Unknown escape sequence \`)
		}
		if s[i] != '\\' && s[i] != '"' {
			return "", fault24(`Unknown escape sequence \` + s[i:i+1])
		}
		b = append(b, s[i])
	}
	return string(b), nil
}

// quotedKey reads a key in double quotes at the start of s: n is its length with them.
func quotedKey(s string) (key string, n int, err error) {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			key, err := unescape24(s[1:i])
			return key, i + 1, err
		}
	}
	return "", 0, nil
}

// splitList reads the elements of a boollist's line (clause C9.12).
func splitList(v string) ([]string, error) {
	var out []string
	sep := func(c byte) bool { return blank24(c) || c == ',' }
	for i := 0; i < len(v); {
		if sep(v[i]) {
			i++
			continue
		}
		if v[i] == '"' {
			var b []byte
			i++
			for ; i < len(v) && v[i] != '"'; i++ {
				if v[i] == '\\' {
					i++
					if i == len(v) {
						return nil, fault24(`Value ends with '\'`)
					}
				}
				b = append(b, v[i])
			}
			if i == len(v) {
				return nil, fault24(`Missing ending '"'`)
			}
			i++
			if i < len(v) && !sep(v[i]) {
				return nil, fault24(`Expected ',' or ' ' after '"'`)
			}
			if len(b) > 0 {
				out = append(out, string(b))
			}
			continue
		}
		j := i
		for ; j < len(v) && !sep(v[j]); j++ {
			if v[j] == '"' {
				return nil, fault24(`'"' in the middle of a string`)
			}
		}
		out = append(out, v[i:j])
		i = j
	}
	return out, nil
}
