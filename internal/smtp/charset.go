package smtp

// A charset is a set of ASCII characters, a bit each.
type charset [2]uint64

func (s *charset) has(c byte) bool { return c < 128 && s[c>>6]>>(c&63)&1 != 0 }

// span returns the length of the longest prefix of text that is made of s.
func (s *charset) span(text string) int {
	for i := 0; i < len(text); i++ {
		if !s.has(text[i]) {
			return i
		}
	}
	return len(text)
}

// all says whether text has no other characters.
func (s *charset) all(text string) bool { return s.span(text) == len(text) }

// The sets of RFC 5321 and 3461. TestCharsets says in words what the bits say.
var (
	atext      = charset{0xa3ffacfa00000000, 0x7fffffffc7fffffe} // of atoms
	qtext      = charset{0xfffffffb00000000, 0x7fffffffefffffff} // in quoted strings, without backslash
	graphic    = charset{0xffffffff00000000, 0x7fffffffffffffff} // 0x20 to 0x7e: behind a backslash
	textString = charset{0xffffffff00000200, 0x7fffffffffffffff} // graphic and HT
	visible    = charset{0xfffffffe00000000, 0x7fffffffffffffff} // 0x21 to 0x7e: of EHLO parameters
	paramValue = charset{0xdffffffe00000000, 0x7fffffffffffffff} // visible without =
	xchar      = charset{0xdffff7fe00000000, 0x7fffffffffffffff} // visible without + and =
	dcontent   = charset{0xfffffffe00000000, 0x7fffffffc7ffffff} // visible without [ \ ]
	alnum      = charset{0x03ff000000000000, 0x07fffffe07fffffe}
	keyword    = charset{0x03ff200000000000, 0x07fffffe07fffffe} // alnum and -
	label      = charset{0x03ff200000000000, 0x07fffffe87fffffe} // keyword and _: of domains, leniently
)
