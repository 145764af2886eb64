package conf

import "strings"

// SetsVersion says whether text, a main file or the beginning of one, is for 2.4: whether
// it sets dovecot_config_version or dovecot_storage_version outside of sections. Files that
// it includes do not count.
func SetsVersion(text string) bool {
	x := lexer{d: &dialect24, warn: func(int) {}}
	file := &File{Text: text}
	depth := 0
	for phys := range strings.Lines(text) {
		l := x.next(strings.TrimSuffix(strings.TrimSuffix(phys, "\n"), "\r"), file, 0, 0)
		switch {
		case l.kind == lineContinued:
			continue
		case l.kind == lineSet && depth == 0 && (l.key == "dovecot_config_version" || l.key == "dovecot_storage_version"):
			return true
		case l.kind == lineOpen, l.kind == lineBad && strings.HasSuffix(x.text, "{"):
			depth++
		case l.kind == lineClose, l.kind == lineBad && strings.HasPrefix(x.text, "}"):
			depth = max(depth-1, 0)
		}
		x.done()
	}
	return false
}
