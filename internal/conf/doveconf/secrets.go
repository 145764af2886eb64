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

var (
	secretWords   = []string{"key", "secret", "pass"}
	secretSchemes = []string{"http://", "https://", "ftp://"}
)

// nextSecret finds the first word or scheme in v from pos on, -1 if there is none.
func nextSecret(v string, pos int) (at, length int, scheme bool) {
	at = -1
	look := func(list []string, isScheme bool) {
		for _, w := range list {
			if i := strings.Index(v[pos:], w); i >= 0 && (at < 0 || pos+i < at) {
				at, length, scheme = pos+i, len(w), isScheme
			}
		}
	}
	look(secretWords, false)
	look(secretSchemes, true)
	return at, length, scheme
}

// mentionsSecret says whether a value has any of the words or schemes.
func mentionsSecret(v string) bool {
	at, _, _ := nextSecret(v, 0)
	return at >= 0
}

// hideSecrets replaces what looks like a secret inside a value (clause C17.15, 2 and 3).
// It goes from word to word; what one of them skips is not looked at again.
func hideSecrets(v string) string {
	if !mentionsSecret(v) {
		return v
	}
	var out strings.Builder
	copied := 0
	hide := func(from, to int) {
		out.WriteString(v[copied:from])
		out.WriteString(hiddenMark)
		copied = to
	}
	blank := func(c byte) bool { return c == ' ' || c == '\t' }
	skip := func(i int, until string) int {
		if j := strings.IndexAny(v[i:], until); j >= 0 {
			return i + j
		}
		return len(v)
	}
	for pos := 0; ; {
		i, n, scheme := nextSecret(v, pos)
		switch {
		case i < 0:
			out.WriteString(v[copied:])
			return out.String()
		case scheme:
			pos = skip(i+n, "@/ \t")
			if pos < len(v) && v[pos] == '@' && pos > i+n {
				hide(i+n, pos)
			}
		case i > 0 && alnum(v[i-1]):
			pos = i + 1
		default:
			for pos = skip(i+n, "= \t"); pos < len(v) && blank(v[pos]); pos++ {
			}
			if pos < len(v) && v[pos] == '=' {
				end := skip(pos+1, " \t;:")
				hide(pos+1, end)
				pos = end
			}
		}
	}
}

func alnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
