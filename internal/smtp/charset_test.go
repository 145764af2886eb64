package smtp

import (
	"strings"
	"testing"
)

func TestCharsets(t *testing.T) {
	letters := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	all := func(from, to byte, but string) string {
		var b strings.Builder
		for c := from; c <= to; c++ {
			if strings.IndexByte(but, c) < 0 {
				b.WriteByte(c)
			}
		}
		return b.String()
	}
	for _, tt := range []struct {
		name string
		set  charset
		want string
	}{
		{"atext", atext, letters + "!#$%&'*+-/=?^_`{|}~"},
		{"qtext", qtext, all(' ', '~', `"\`)},
		{"graphic", graphic, all(' ', '~', "")},
		{"textString", textString, "\t" + all(' ', '~', "")},
		{"visible", visible, all('!', '~', "")},
		{"paramValue", paramValue, all('!', '~', "=")},
		{"xchar", xchar, all('!', '~', "+=")},
		{"dcontent", dcontent, all('!', '~', `[\]`)},
		{"alnum", alnum, letters},
		{"keyword", keyword, letters + "-"},
		{"label", label, letters + "-_"},
	} {
		for c := range 256 {
			if got, want := tt.set.has(byte(c)), strings.IndexByte(tt.want, byte(c)) >= 0; got != want {
				t.Errorf("%s has %q: %v, want %v", tt.name, rune(c), got, want)
			}
		}
	}
}
