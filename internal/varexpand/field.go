package varexpand

import (
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
)

// A field is what stands between the % and the variable.
type field struct {
	offset, width int // octets; negative: from the end
	zeros         bool
	modifiers     string
}

const modifierLetters = "LUEXRHNMDT"

// parse reads the field that begins at i, behind the %, and returns where it ends.
func (f *field) parse(s string, i int) int {
	negative := false
	if i < len(s) && s[i] == '-' {
		negative = true
		i++
	}
	f.zeros, f.width, i = number(s, i)
	// Without a dot the sign means nothing: %-5u is %5u.
	if i < len(s) && s[i] == '.' {
		f.offset, f.width = f.width, 0
		if negative {
			f.offset = -f.offset
		}
		i++
		// A leading 0 of the offset means nothing, one of the width pads.
		f.zeros = i < len(s) && s[i] == '0'
		if f.zeros {
			i++
		}
		negative = i < len(s) && s[i] == '-'
		if negative {
			i++
		}
		_, f.width, i = number(s, i)
		if negative {
			f.width = -f.width
		}
	}
	start := i
	for i < len(s) && i-start < maxModifiers && strings.IndexByte(modifierLetters, s[i]) >= 0 {
		i++
	}
	f.modifiers = s[start:i]
	return i
}

// number reads digits; a number over maxWidth is maxWidth.
func number(s string, i int) (zero bool, n, end int) {
	zero = i < len(s) && s[i] == '0'
	for ; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
		n = min(n*10+int(s[i]-'0'), maxWidth)
	}
	return zero, n, i
}

// append adds value to b, modified and cut as f says.
func (f *field) append(b []byte, value string) []byte {
	for i := range len(f.modifiers) {
		value = f.modify(f.modifiers[i], value)
	}
	switch {
	case f.offset >= 0:
		value = value[min(f.offset, len(value)):]
	case len(value) > -f.offset:
		value = value[len(value)+f.offset:]
	}
	switch {
	case f.width == 0:
	case f.zeros:
		for range f.width - len(value) {
			b = append(b, '0')
		}
	case f.width > 0:
		value = value[:min(f.width, len(value))]
	case len(value)+f.width >= 0:
		value = value[:len(value)+f.width]
	}
	return append(b, value...)
}

func (f *field) modify(modifier byte, s string) string {
	switch modifier {
	case 'L':
		return mapASCII(s, 'A', 'Z', 'a'-'A')
	case 'U':
		return mapASCII(s, 'a', 'z', -('a' - 'A'))
	case 'E':
		return escapeQuotes(s)
	case 'X':
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			n = 0
		}
		return strconv.FormatUint(n, 16)
	case 'R':
		b := []byte(s)
		slices.Reverse(b)
		return string(b)
	case 'H':
		return f.bucket(uint64(elfHash(s)))
	case 'N':
		sum := md5.Sum([]byte(s))
		return f.bucket(binary.BigEndian.Uint64(sum[:8]))
	case 'M':
		sum := md5.Sum([]byte(s))
		return hex.EncodeToString(sum[:])
	case 'D':
		return strings.ReplaceAll(s, ".", ",dc=")
	case 'T':
		return strings.TrimRight(s, " \t\n\v\f\r")
	}
	return s
}

// escapeQuotes puts a backslash before both kinds of quotes and before backslashes.
func escapeQuotes(s string) string {
	if !strings.ContainsAny(s, `"'\`) {
		return s
	}
	b := make([]byte, 0, len(s)+8)
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\'' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return string(b)
}

// mapASCII adds delta to the octets from lo to hi.
func mapASCII(s string, lo, hi byte, delta int) string {
	var b []byte
	for i := range len(s) {
		if s[i] >= lo && s[i] <= hi {
			if b == nil {
				b = []byte(s)
			}
			b[i] = byte(int(s[i]) + delta)
		}
	}
	if b == nil {
		return s
	}
	return string(b)
}

// bucket prints a hash in hexadecimal, 32 bits of it: modulo the field's width, filled
// with zeros to its offset. Both are used up.
func (f *field) bucket(hash uint64) string {
	if f.width > 0 {
		hash %= uint64(f.width)
	}
	s := strconv.FormatUint(hash&0xffffffff, 16)
	if n := f.offset - len(s); n > 0 {
		s = strings.Repeat("0", n) + s
	}
	f.width, f.offset = 0, 0
	return s
}

// elfHash is the hash function of ELF symbol tables, but keeps the four top bits out
// by one more exclusive or.
func elfHash(s string) uint32 {
	var h uint32
	for i := range len(s) {
		h = h<<4 + uint32(s[i])
		if g := h & 0xf0000000; g != 0 {
			h ^= g >> 24
			h ^= g
		}
	}
	return h
}
