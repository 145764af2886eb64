package imapurl

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// String writes the URL, up to the access: the rump that a token is made for, if it has
// URLAUTH. It is another one than Rump if that was written in another way.
func (u *URL) String() string {
	var b strings.Builder
	b.WriteString("imap://")
	if u.User != "" || u.AuthType != "" {
		encode(&b, u.User, "")
		if u.AuthType != "" {
			b.WriteString(";AUTH=")
			encode(&b, u.AuthType, "")
		}
		b.WriteByte('@')
	}
	b.WriteString(u.Host)
	if u.Port != 0 {
		b.WriteString(":" + strconv.Itoa(int(u.Port)))
	}
	b.WriteByte('/')
	encode(&b, u.Mailbox, "/")
	if u.UIDValidity != 0 {
		fmt.Fprintf(&b, ";UIDVALIDITY=%d", u.UIDValidity)
	}
	if u.UID == 0 {
		if u.Search != "" {
			b.WriteByte('?')
			encode(&b, u.Search, "/")
		}
		return b.String()
	}
	fmt.Fprintf(&b, "/;UID=%d", u.UID)
	if u.Section != "" {
		b.WriteString("/;SECTION=")
		encode(&b, u.Section, "/")
	}
	if u.Partial != nil {
		fmt.Fprintf(&b, "/;PARTIAL=%d", u.Partial.Offset)
		if u.Partial.Size != 0 {
			fmt.Fprintf(&b, ".%d", u.Partial.Size)
		}
	}
	if u.Access != "" {
		if !u.Expire.IsZero() {
			b.WriteString(";EXPIRE=" + u.Expire.UTC().Format(time.RFC3339))
		}
		b.WriteString(";URLAUTH=" + u.Access)
		if u.AccessUser != "" {
			b.WriteByte('+')
			encode(&b, u.AccessUser, "")
		}
	}
	return b.String()
}

// encode writes s with everything %-encoded but what RFC 5092 calls uchar, and also. A
// slash stands for itself between segments that are neither empty nor dots, since those
// would not survive.
func encode(b *strings.Builder, s, also string) {
	const hex = "0123456789ABCDEF"
	begin := 0 // of the segment
	for i := range len(s) {
		c := s[i]
		plain := isUnreserved(c) || strings.IndexByte("!$'()*,", c) >= 0 || strings.IndexByte(also, c) >= 0
		switch {
		case c == '/':
			end := i + 1 + strings.IndexByte(s[i+1:]+"/", '/')
			plain = plain && i > begin && end > i+1
			begin = i + 1
		case c == '.':
			end := i + strings.IndexByte(s[i:]+"/", '/')
			plain = strings.Trim(s[begin:end], ".") != ""
		}
		if plain {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
}
