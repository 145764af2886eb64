package smtp

import (
	"strings"
)

// parseEnhanced reads an enhanced status code (RFC 2034) at the beginning of text, which
// ends there or goes on with a space. rest is what follows them.
func parseEnhanced(text string) (code, rest string, ok bool) {
	if len(text) < 5 || text[1] != '.' || text[0] != '2' && text[0] != '4' && text[0] != '5' {
		return "", text, false
	}
	i := 2
	digits := func() bool {
		start := i
		for i < len(text) && '0' <= text[i] && text[i] <= '9' {
			i++
		}
		return i > start && i-start <= 3
	}
	if !digits() || i == len(text) || text[i] != '.' {
		return "", text, false
	}
	i++
	if !digits() || i < len(text) && text[i] != ' ' {
		return "", text, false
	}
	return text[:i], strings.TrimPrefix(text[i:], " "), true
}

// Split moves the enhanced code that the lines of r begin with to r.Enhanced, if the peer
// uses such codes (clause S4.8). A code of the wrong class is cut and lost; of several
// codes the first line's counts; if the first line has none the text stays as it is.
func (r Reply) Split() Reply {
	if r.Enhanced != "" || len(r.Text) == 0 {
		return r
	}
	code, _, ok := parseEnhanced(r.Text[0])
	if !ok {
		return r
	}
	if int(code[0]-'0') == r.Class() {
		r.Enhanced = code
	}
	text := make([]string, len(r.Text))
	for i, line := range r.Text {
		_, text[i], _ = parseEnhanced(line)
	}
	r.Text = text
	return r
}

// Forward returns what a client hears of the relay's reply r: with an enhanced code in any
// case, fallback or else "<class>.0.0" (clause S4.8). codes says whether the relay announced
// enhanced codes; what it says without having done so is text.
func Forward(r Reply, codes bool, fallback string) Reply {
	if codes {
		r = r.Split()
	}
	if r.Enhanced == "" {
		r.Enhanced = fallback
	}
	if r.Enhanced == "" {
		r.Enhanced = genericCodes[min(r.Class(), len(genericCodes)-1)]
	}
	return r
}

var genericCodes = [...]string{"", "", "2.0.0", "3.0.0", "4.0.0", "5.0.0"}

// WithPath returns r with "<path> " before its text, where the text does not begin with
// some path itself (clause S5.8). It is for refusals of RCPT.
func (r Reply) WithPath(p Path) Reply {
	if len(r.Text) == 0 || startsWithPath(r.Text[0]) {
		return r
	}
	text := append([]string(nil), r.Text...)
	text[0] = "<" + p.String() + "> " + text[0]
	r.Text = text
	return r
}

// startsWithPath says whether text begins with "<...>" as a word.
func startsWithPath(text string) bool {
	if text == "" || text[0] != '<' {
		return false
	}
	end := strings.IndexByte(text, '>')
	return end > 0 && (end+1 == len(text) || text[end+1] == ' ')
}

// Closing returns a 421 of our own: its first line begins with the name of the host (clause
// S1.14).
func Closing(enhanced, host string, text ...string) Reply {
	lines := append([]string(nil), text...)
	lines[0] = host + " " + lines[0]
	return NewReply(421, enhanced, lines...)
}

// OneLine returns r's code and texts as log lines have them, without the enhanced code if
// there is none, cut at limit octets with "..." and with "?" for control characters.
func (r Reply) OneLine(limit int) string {
	s := r.String()
	var b strings.Builder
	for i := 0; i < len(s) && i < limit; i++ {
		if c := s[i]; c < ' ' {
			b.WriteByte('?')
		} else {
			b.WriteByte(c)
		}
	}
	if len(s) <= limit {
		return b.String()
	}
	return b.String()[:max(limit-3, 0)] + "..."
}
