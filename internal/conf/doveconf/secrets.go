package doveconf

import "strings"

const hiddenMark = "#hidden_use-P_to_show#"

// secretKey says whether the value of key is never shown (clause C17.15, 1).
func secretKey(key string) bool {
	for _, suffix := range []string{"_password", "_key", "_nonce"} {
		if len(key) > len(suffix) && strings.HasSuffix(key, suffix) {
			return true
		}
	}
	return strings.HasPrefix(key, "ssl_dh")
}

// hideSecrets replaces what looks like a secret inside a value (clause C17.15, 2 and 3).
func hideSecrets(v string) string {
	for _, word := range []string{"key", "secret", "pass"} {
		v = hideAfter(v, word)
	}
	for _, scheme := range []string{"http://", "https://", "ftp://"} {
		v = hideUser(v, scheme)
	}
	return v
}

func alnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// hideAfter hides what follows word, more letters and =.
func hideAfter(v, word string) string {
	if !strings.Contains(v, word) {
		return v
	}
	var out strings.Builder
	start := 0 // of what is not yet copied
	for i := 0; i < len(v); {
		j := strings.Index(v[i:], word)
		if j < 0 {
			break
		}
		j += i
		i = j + len(word)
		if j > 0 && alnum(v[j-1]) {
			continue
		}
		for i < len(v) && v[i] != '=' && v[i] != ' ' && v[i] != '\t' {
			i++
		}
		for i < len(v) && (v[i] == ' ' || v[i] == '\t') {
			i++
		}
		if i >= len(v) || v[i] != '=' {
			continue
		}
		i++
		out.WriteString(v[start:i])
		out.WriteString(hiddenMark)
		for i < len(v) && !strings.ContainsRune(" \t;:", rune(v[i])) {
			i++
		}
		start = i
	}
	out.WriteString(v[start:])
	return out.String()
}

// hideUser hides the user and password of URLs.
func hideUser(v, scheme string) string {
	var out strings.Builder
	for {
		i := strings.Index(v, scheme)
		if i < 0 {
			out.WriteString(v)
			return out.String()
		}
		i += len(scheme)
		out.WriteString(v[:i])
		v = v[i:]
		end := strings.IndexAny(v, "@/ \t")
		if end > 0 && v[end] == '@' {
			out.WriteString(hiddenMark)
			v = v[end:]
		}
	}
}
