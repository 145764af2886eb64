package transcript

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A Text is the right side of an event: literal octets and placeholders.
type Text struct {
	Source string // as in the file
	parts  []part
	bare   bool // \c: no CRLF behind it
}

type part struct {
	literal     string
	placeholder string // "" for a literal
}

const day, month = `(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)`, `(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)`

// placeholders are the names and what they match. Those of the instance (relayport, host,
// dir) match only their value, and token and badtoken what was put in for them: see Values.
var placeholders = map[string]string{
	"date":      day + `, \d\d ` + month + ` \d{4} \d\d:\d\d:\d\d [+-]\d{4}`,
	"datetime":  `\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`,
	"id":        `[A-Za-z0-9+/]{22}`,
	"session":   `[A-Za-z0-9+/=]+`,
	"pid":       `\d+`,
	"n":         `\d+`,
	"n.nnn":     `\d+\.\d{3}`,
	"port":      `\d+`,
	"token":     `[0-9a-f]{42}`,
	"badtoken":  `[0-9a-f]{42}`,
	"text":      `[^\x00-\x1F]*`, // in rules and variants only
	"host":      "",
	"relayport": "",
	"dir":       "",
}

const maxRepeat = 16 << 20 // of \{N*x}

// ParseText reads escapes and placeholders.
func ParseText(s string) (Text, error) {
	t := Text{Source: s}
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			t.parts = append(t.parts, part{literal: lit.String()})
			lit.Reset()
		}
	}
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '{' && i > 0 && s[i-1] == '%': // %{...} is literal
			lit.WriteByte('{')
		case s[i] == '{':
			end := strings.IndexByte(s[i:], '}')
			if end < 0 {
				return t, fmt.Errorf("'{' without '}' in %q", s)
			}
			name := s[i+1 : i+end]
			if _, ok := placeholders[name]; !ok {
				return t, fmt.Errorf("unknown placeholder {%s}", name)
			}
			flush()
			t.parts = append(t.parts, part{placeholder: name})
			i += end
		case s[i] == '\\':
			text, n, bare, err := escape(s[i+1:])
			if err != nil {
				return t, err
			}
			if bare {
				if i+n+1 != len(s) {
					return t, fmt.Errorf(`\c before the end of %q`, s)
				}
				t.bare = true
			}
			lit.WriteString(text)
			i += n
		default:
			lit.WriteByte(s[i])
		}
	}
	flush()
	return t, nil
}

// escape reads what stands behind a backslash; n is its length.
func escape(s string) (text string, n int, bare bool, err error) {
	switch {
	case s == "":
	case s[0] == 'c':
		return "", 1, true, nil
	case s[0] == 'r':
		return "\r", 1, false, nil
	case s[0] == 'n':
		return "\n", 1, false, nil
	case s[0] == 't':
		return "\t", 1, false, nil
	case s[0] == '\\':
		return `\`, 1, false, nil
	case s[0] == 'x' && len(s) >= 3:
		v, err := strconv.ParseUint(s[1:3], 16, 8)
		if err == nil {
			return string([]byte{byte(v)}), 3, false, nil
		}
	case s[0] == '{':
		end := strings.IndexByte(s, '}')
		count, what, ok := strings.Cut(s[1:max(1, end)], "*")
		n, err := strconv.Atoi(count)
		if end > 0 && ok && err == nil && n >= 0 && n*len(what) <= maxRepeat {
			return strings.Repeat(what, n), end + 1, false, nil
		}
	}
	return "", 0, false, fmt.Errorf(`bad escape \%.10s`, s)
}

// Values are what placeholders stand for in one replay.
type Values struct {
	Host, RelayPort, Dir string
	// Token gives the value of {token} behind what stands before it in the line, such as
	// "BURL imap://...:internal:". nil: no case has one.
	Token func(before string) string
	Bad   string // {badtoken}
}

// Expand returns the octets to send, CRLF included unless \c. Placeholders that stand for
// what the other side chooses are an error.
func (t Text) Expand(v Values) (string, error) {
	var b strings.Builder
	for _, p := range t.parts {
		switch p.placeholder {
		case "":
			b.WriteString(p.literal)
		case "host":
			b.WriteString(v.Host)
		case "relayport":
			b.WriteString(v.RelayPort)
		case "dir":
			b.WriteString(v.Dir)
		case "token":
			if v.Token == nil {
				return "", fmt.Errorf("no value for {token}")
			}
			b.WriteString(v.Token(b.String()))
		case "badtoken":
			b.WriteString(v.Bad)
		default:
			return "", fmt.Errorf("{%s} cannot be sent", p.placeholder)
		}
	}
	if !t.bare {
		b.WriteString("\r\n")
	}
	return b.String(), nil
}

// literal returns the text when it has no placeholder.
func (t Text) literal() (string, bool) {
	switch {
	case len(t.parts) == 0:
		return "", true
	case len(t.parts) == 1 && t.parts[0].placeholder == "":
		return t.parts[0].literal, true
	}
	return "", false
}

// Matches says whether line, without its line end, is what t stands for.
func (t Text) Matches(line string, v Values) bool {
	if lit, ok := t.literal(); ok {
		return lit == line
	}
	return t.regexp(v).MatchString(latin1(line))
}

func (t Text) regexp(v Values) *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`\A`)
	for _, p := range t.parts {
		switch p.placeholder {
		case "":
			b.WriteString(quote(p.literal))
		case "host":
			b.WriteString(quote(v.Host))
		case "relayport":
			b.WriteString(quote(v.RelayPort))
		case "dir":
			b.WriteString(quote(v.Dir))
		default:
			b.WriteString("(?:" + placeholders[p.placeholder] + ")")
		}
	}
	b.WriteString(`\z`)
	return regexp.MustCompile(b.String())
}

// quote is regexp.QuoteMeta for what latin1 returns.
func quote(s string) string { return regexp.QuoteMeta(latin1(s)) }

// latin1 makes each octet a rune of its own, as package regexp works on runes.
func latin1(s string) string {
	r := make([]rune, len(s))
	for i := range len(s) {
		r[i] = rune(s[i])
	}
	return string(r)
}

// lineFeeds says how many LF end inside what t stands for, its own line end included:
// that many lines are read to compare it. fixed is its length when it has no line end.
func (t Text) lineFeeds() (n, fixed int) {
	lit := ""
	for _, p := range t.parts {
		lit += p.literal
	}
	n = strings.Count(lit, "\n")
	if t.bare {
		return n, len(lit)
	}
	return n + 1, 0
}
