package burl

import (
	"strings"

	"dovetail/internal/smtp"
)

// A Refusal says in a reply why there is no data. 5xx: it will not be otherwise; 4xx: it
// may be, and the cause was logged.
type Refusal struct{ Reply smtp.Reply }

func (r *Refusal) Error() string { return r.Reply.String() }

func refuse(enhanced, text string) error { return &Refusal{smtp.NewReply(554, enhanced, text)} }

// bareRefusal is for URLs about which no more is told (clause S7.7): those of others, and
// those of which nobody said what is wrong.
var bareRefusal = refuse("5.6.6", "IMAP URLAUTH resolution failed")

// authRefusal says why an URL with URLAUTH, the client's own text, is of no use (clause
// S7.6).
func authRefusal(text, why string) error {
	return refuse("5.6.6", `IMAP URLAUTH resolution failed: Failed to fetch URLAUTH "`+text+`": `+why)
}

// plainRefusal is for an URL without URLAUTH (clause S7.5).
func plainRefusal(why string) error { return refuse("5.6.6", "IMAP URL resolution failed: "+why) }

// printable replaces control characters.
func printable(r rune) rune {
	if r < ' ' || r >= 0x7f && r < 0xa0 {
		return '?'
	}
	return r
}

// withoutTiming cuts off what Dovecot's imap says about the time a command took:
// " (0.001 + 0.000 + 0.001 secs)."
func withoutTiming(text string) string {
	rest, ok := strings.CutSuffix(text, " secs).")
	if i := strings.LastIndex(rest, " ("); ok && i >= 0 && strings.Trim(rest[i+2:], "0123456789.+ ") == "" {
		return rest[:i]
	}
	return text
}
