package log

import "unicode/utf8"

// plain says whether c can stand in a line as it is: printable ASCII.
func plain(c byte) bool { return ' ' <= c && c < 0x7f }

// AppendSanitised adds text to b with a '?' for every character that could end a line,
// drive a terminal or make text look like other text: control characters, line and
// paragraph separators, marks that turn the writing direction, and octets that are not
// UTF-8. Dovecot uses the same '?'.
func AppendSanitised(b []byte, text string) []byte {
	for i := 0; i < len(text); {
		if c := text[i]; c < utf8.RuneSelf {
			if !plain(c) {
				c = '?'
			}
			b = append(b, c)
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(text[i:])
		if r == utf8.RuneError && n == 1 || misleading(r) {
			b = append(b, '?')
		} else {
			b = append(b, text[i:i+n]...)
		}
		i += n
	}
	return b
}

func misleading(r rune) bool {
	return r < 0xa0 || // C1 controls
		r == 0x200e || r == 0x200f || // direction marks
		0x2028 <= r && r <= 0x202e || // separators, embeddings, overrides
		0x2066 <= r && r <= 0x2069 || // isolates
		r == 0xfeff
}
