package conf

import (
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf/settings"
	"dovetail/internal/conf/settings/all"
)

const hiddenMark = "#hidden_use-P_to_show#"

// SecretKey says whether doveconf never shows the value of key (clause C17.15, 1).
func SecretKey(key string) bool {
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
	for at = pos; at < len(v); at++ {
		if strings.IndexByte("ksphf", v[at]) < 0 {
			continue
		}
		for _, w := range secretWords {
			if strings.HasPrefix(v[at:], w) {
				return at, len(w), false
			}
		}
		for _, w := range secretSchemes {
			if strings.HasPrefix(v[at:], w) {
				return at, len(w), true
			}
		}
	}
	return -1, 0, false
}

// MentionsSecret says whether a value has any of the words and schemes behind which
// HideSecrets looks.
func MentionsSecret(v string) bool {
	at, _, _ := nextSecret(v, 0)
	return at >= 0
}

// HideSecrets replaces what looks like a secret inside a value, as doveconf does (clause
// C17.15, 2 and 3).
// It goes from word to word; what one of them skips is not looked at again.
func HideSecrets(v string) string {
	if !MentionsSecret(v) {
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

// Veil returns line, a logical line as it stands in a file, with its value starred out if
// that is a secret or may be one: letter for letter, so that marks below it stay in place.
// It goes further than HideSecrets, as it is for lines that are wrong: misspelt names,
// missing signs. Names of files, as in `ssl_key = <file`, are no secrets.
func Veil(line string) string {
	from := strings.IndexFunc(line, nameRune)
	if from < 0 {
		return line
	}
	key := line[from:]
	if i := strings.IndexFunc(key, func(c rune) bool { return !nameRune(c) }); i >= 0 {
		key = key[:i]
	}
	at := from + len(key)
	value := strings.TrimLeft(line[at:], blanks)
	if value != "" && (value[0] == '=' || value[0] == ':') {
		value = strings.TrimLeft(value[1:], blanks)
	}
	if !secretValue(joined.Replace(value)) && !secretLine(key, strings.TrimSpace(value)) {
		return line
	}
	return line[:len(line)-len(value)] + stars(value)
}

const blanks = " \t\v\f"

// joined puts the physical lines of a value together.
var joined = strings.NewReplacer("\\\r\n", " ", "\\\n", " ")

func nameRune(c rune) bool { return c == '_' || c == '/' || c < 0x80 && alnum(byte(c)) }

// secretLine says whether a value is a secret because of its key.
func secretLine(key, value string) bool {
	_, notBool := settings.ParseBool(value)
	switch {
	case key == "pass" && notBool == nil: // of passdb
		return false
	case value == "{" || strings.HasPrefix(value, "<") || !secretName(key):
		return false
	case strings.HasPrefix(key, "ssl_") && strings.HasPrefix(value, "/"): // the < is missing
		return false
	}
	for _, end := range []string{"_file", "_path", "_dir"} {
		if strings.HasSuffix(key, end) {
			return false
		}
	}
	return true
}

// secretName says whether key names a secret, or may be meant to. Settings that exist are
// secrets only if doveconf hides them.
func secretName(key string) bool {
	if SecretKey(key) || strings.HasSuffix(key, "_secret") {
		return true
	}
	if !secretWord(key) && !nearSecret(key) {
		return false
	}
	_, known := all.V23Sieve().Row(key)
	if !known {
		_, known = all.V24().Row(key)
	}
	return !known
}

// secretWord says whether name has a word for a secret, perhaps a misspelt one.
func secretWord(name string) bool {
	name = strings.ToLower(name)
	for _, w := range []string{"pass", "secret", "key", "nonce", "token", "pwd"} {
		if strings.Contains(name, w) {
			return true
		}
	}
	for _, part := range strings.FieldsFunc(name, func(c rune) bool { return c == '_' || c == '/' }) {
		if part == "pw" {
			return true
		}
		for _, near := range misspelt {
			if distance(part, near.word, near.slips) <= near.slips {
				return true
			}
		}
	}
	return false
}

// nearSecret says whether key is near the name of a secret setting: submission_relaypasword.
func nearSecret(key string) bool {
	for _, r := range all.V23().Inside("") {
		if slips := 1 + len(r.Name)/8; SecretKey(r.Name) && distance(key, r.Name, slips) <= slips {
			return true
		}
	}
	return false
}

// misspelt are words for secrets, and how many slips there may be in them.
var misspelt = []struct {
	word  string
	slips int
}{{"password", 2}, {"passwd", 1}, {"secret", 1}, {"nonce", 1}}

// secretValue says whether there is a secret inside a value: one that doveconf hides, a
// word=... of such a name, or one in a URL.
func secretValue(v string) bool {
	if HideSecrets(v) != v {
		return true
	}
	for i := range len(v) {
		switch {
		case v[i] == '=':
			word := strings.TrimRight(v[:i], blanks)
			word = word[strings.LastIndexFunc(word, func(c rune) bool { return !nameRune(c) })+1:]
			if secretWord(word) {
				return true
			}
		case strings.HasPrefix(v[i:], "://"):
			rest := v[i+3:]
			if end := strings.IndexAny(rest, "@/"+blanks); end >= 0 && rest[end] == '@' && strings.Contains(rest[:end], ":") {
				return true
			}
		}
	}
	return false
}

// stars covers text. What goes on with the next line still shows it.
func stars(text string) string {
	var b strings.Builder
	for i, c := range text {
		rest := text[i:]
		if c != '\n' && c != '\r' && !strings.HasPrefix(rest, "\\\n") && !strings.HasPrefix(rest, "\\\r\n") {
			c = '*'
		}
		b.WriteRune(c)
	}
	return b.String()
}

// maxContinued is how many bytes before a line are searched for the beginning of what it
// continues.
const maxContinued = 64 << 10

// Excerpt returns the physical line at which r begins, as it may be shown: without its end,
// and veiled; how many letters stand before r in it, and how many r has in it, at least 1.
// The line is "" if there is none in files.
func Excerpt(files []*File, r *hcl.Range) (line string, before, letters int) {
	for _, f := range files {
		if f.Path != r.Filename || r.Start.Line == 0 || r.Start.Byte > len(f.Text) {
			continue
		}
		from := strings.LastIndexByte(f.Text[:r.Start.Byte], '\n') + 1
		end := len(f.Text)
		if i := strings.IndexByte(f.Text[r.Start.Byte:], '\n'); i >= 0 {
			end = r.Start.Byte + i
		}
		before = utf8.RuneCountInString(f.Text[from:r.Start.Byte])
		letters = max(utf8.RuneCountInString(f.Text[r.Start.Byte:max(min(r.End.Byte, end), r.Start.Byte)]), 1)
		line = stars(f.Text[from:end])
		if first, found := logicalStart(f.Text, from); found {
			line = Veil(f.Text[first:end])
			line = line[strings.LastIndexByte(line, '\n')+1:]
		} // else nobody knows what it belongs to
		return strings.TrimSuffix(line, "\r"), before, letters
	}
	return "", 0, 0
}

// logicalStart is where the logical line begins that has the physical line at from. found
// is false if that is too far away.
func logicalStart(text string, from int) (at int, found bool) {
	for at = from; at > 0; {
		if from-at > maxContinued {
			return 0, false
		}
		before := strings.LastIndexByte(text[:at-1], '\n') + 1
		if !continues(text[before : at-1]) {
			break
		}
		at = before
	}
	return at, true
}

// continues says whether a physical line goes on with the next one (clause C3).
func continues(phys string) bool {
	x := lexer{d: &dialect23, warn: func(int) {}}
	return x.next(strings.TrimSuffix(phys, "\r"), nil, 0, 0).kind == lineContinued
}
