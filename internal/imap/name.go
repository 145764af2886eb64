package imap

import (
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

func itoa(n int) string { return strconv.Itoa(n) }

// quote writes a quoted string; ok is false if s needs a literal.
func quote(s string) (q string, ok bool) {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return "", false
		}
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`, true
}

// ErrName: a mailbox cannot have such a name.
var ErrName = errors.New("mailbox name is not UTF-8")

// EncodeName writes a mailbox name as IMAP has it (RFC 3501 section 5.1.3): what is not
// printable ASCII in a form of UTF-7. The result is printable ASCII.
func EncodeName(name string) (string, error) {
	if !utf8.ValidString(name) {
		return "", ErrName
	}
	encoding := base64.NewEncoding("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,").WithPadding(base64.NoPadding)
	var b strings.Builder
	for name != "" {
		n := strings.IndexFunc(name, isPlain)
		if n < 0 {
			n = len(name)
		}
		if n > 0 {
			var units []byte
			for _, u := range utf16.Encode([]rune(name[:n])) {
				units = append(units, byte(u>>8), byte(u))
			}
			b.WriteString("&" + encoding.EncodeToString(units) + "-")
			name = name[n:]
			continue
		}
		if b.WriteByte(name[0]); name[0] == '&' {
			b.WriteByte('-')
		}
		name = name[1:]
	}
	return b.String(), nil
}

func isPlain(r rune) bool { return r >= ' ' && r <= '~' }
