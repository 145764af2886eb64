package smtp

import (
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// maxMailSize is the default of submission_max_mail_size in Dovecot's worker.
const maxMailSize = 40 << 20

// known are the lines where we differ from Dovecot 2.3 on purpose.
func known(g goldenLine) bool {
	return g.relayed == "VRFY " // an empty string is sent as one here
}

// TestMatchesDovecot compares what the parsers say of a command, and what is sent on to the
// relay, with what Dovecot's worker said and sent.
func TestMatchesDovecot(t *testing.T) {
	n := 0
	for f := range goldenFields(t, "testdata/commands-*.txt", 4) {
		g := goldenLine{f[0], f[1], f[2], f[3]}
		if known(g) {
			continue
		}
		n++
		relayed, reply := ours(g)
		if relayed != g.relayed || reply != g.reply {
			t.Errorf("%s: %q\n got %q, %q\nwant %q, %q", g.setup, g.command, relayed, reply, g.relayed, g.reply)
		}
	}
	if n < 5000 {
		t.Errorf("only %d lines compared", n)
	}
}

// goldenFields yields the lines of the golden files that match pattern, split into n fields
// of which all but the first are quoted.
func goldenFields(t *testing.T, pattern string, n int) iter.Seq[[]string] {
	names, _ := filepath.Glob(pattern)
	if len(names) == 0 {
		t.Fatalf("no golden file %s", pattern)
	}
	return func(yield func([]string) bool) {
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
				if len(f) != n {
					t.Fatalf("%s: %d fields in %q", name, len(f), line)
				}
				for i := range f[1:] {
					if f[i+1], err = strconv.Unquote(f[i+1]); err != nil {
						t.Fatalf("%s: %q: %v", name, line, err)
					}
				}
				if !yield(f) {
					return
				}
			}
		}
	}
}

// knownReplies are where a client hears something else of us, on purpose.
var knownReplies = map[string]string{
	// A code ends with a space or with the line, and is one then however short the text is.
	"250 2.0.0\tx\r\n":          "250 2.0.0 2.0.0\tx\r\n",
	"250 2.0.0\t\r\n":           "250 2.0.0 2.0.0\t\r\n",
	"250 2.0.0\r\n":             "250 2.0.0 \r\n",
	"250 2.1.1-xxx\r\n":         "250 2.0.0 2.1.1-xxx\r\n",
	"250 2.1.1\\xx\r\n":         "250 2.0.0 2.1.1\\xx\r\n",
	"250-a\r\n250 2.1.0 bb\r\n": "250-2.0.0 a\r\n250 2.0.0 2.1.0 bb\r\n",
	"421 5.3.2\r\n":             "421-4.0.0 host.test Lost connection to relay server:\r\n421 4.0.0  (connection lost)\r\n",
}

// TestRepliesMatchDovecot compares what a client hears of a relay's reply.
func TestRepliesMatchDovecot(t *testing.T) {
	n := 0
	for f := range goldenFields(t, "testdata/replies-*.txt", 3) {
		codes := f[0] == "full"
		n++
		var p ReplyParser
		var got string
		_, r, ok, err := p.Parse([]byte(f[1]))
		switch {
		case err != nil:
			got = "bad: " + err.Error()
		case !ok:
			t.Errorf("%q is not complete", f[1])
		case r.Code == 421 && codes:
			r = r.Split()
			if r.Enhanced == "" {
				r.Enhanced = "4.0.0"
			}
			// Dovecot drops the first word, which is kept here (clause S13.19).
			first := r.Text[0]
			if _, rest, ok := strings.Cut(first, " "); ok {
				first = rest
			}
			text := append([]string{"Lost connection to relay server:", first}, r.Text[1:]...)
			text[len(text)-1] += " (connection lost)"
			got = string(Closing(r.Enhanced, "host.test", text...).Append(nil))
		case r.Code == 530 || r.Code == 421:
			continue
		default:
			got = string(Forward(r, codes, "").Append(nil))
		}
		want := f[2]
		if other, ok := knownReplies[f[1]]; ok && codes {
			want = other
		}
		if got != want {
			t.Errorf("%s: %q\n got %q\nwant %q", f[0], f[1], got, want)
		}
	}
	if n < 300 {
		t.Errorf("only %d replies compared", n)
	}
}

// ours does what Dovecot did for g.
func ours(g goldenLine) (relayed, reply string) {
	var relay Cap
	var w Workarounds
	for _, s := range setups {
		if s.name == g.setup {
			relay, _ = ParseCapList(s.ehlo)
			if strings.Contains(s.ehlo, "BINARYMIME") {
				relay |= CapChunking
			}
			if s.workarounds != "" {
				w = WhitespaceBeforePath | MailboxForPath
			}
		}
	}
	announced := relay | CapAuth | CapSize | CapChunking
	word, args, _ := strings.Cut(g.command, " ")
	ok := "250 2.0.0 Ok"
	var refusal Reply
	switch word {
	case "MAIL":
		var from Path
		var params MailParams
		from, params, refusal = ParseMail(args, announced, w)
		if refusal.IsZero() && params.Size > maxMailSize {
			refusal = NewReply(552, "5.2.3", "Message size exceeds administrative limit")
		}
		params.Auth, params.HasAuth = "alice", true
		relayed, ok = string(AppendMail(nil, from, &params, relay)), "250 2.1.0 Ok"
	case "RCPT":
		var to Path
		var params RcptParams
		to, params, refusal = ParseRcpt(args, announced, w)
		relayed = string(AppendRcpt(nil, to, &params, relay))
	case "VRFY":
		var s string
		var given bool
		s, given, refusal = ParseString(args)
		if !given {
			refusal = syntax("Invalid parameters")
		}
		relayed = "VRFY " + string(AppendString(nil, s))
	case "NOOP":
		_, _, refusal = ParseString(args)
		relayed, ok = "NOOP", "250 2.0.0 OK"
	case "EHLO", "HELO":
		if args == "" {
			return "Received: from unknown", "501"
		}
		name, valid := HeloDomain(args, word == "EHLO")
		if !valid {
			name = "unknown"
		}
		return "Received: from " + name, "250"
	}
	if !refusal.IsZero() {
		return "", strings.TrimSuffix(string(refusal.Append(nil)), "\r\n")
	}
	return relayed, ok
}
