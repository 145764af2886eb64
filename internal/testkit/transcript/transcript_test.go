package transcript

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/system"
)

const sample = `# Title (DO NOT COPY)
@case 07-x
@clauses S1.1 S1.2
@recorded dovecot 2.3.19.1
@config passdb x {
@config  driver = static
@unset ssl =
@note a note
@side login
@difference some-id
@relay up
--
C! connect tls src=127.0.0.2
S: 250-BURL imap
S: 235 ok {date}
C: a\t\x00\\\{3*xy}\c
C: b {relayport} %{x}
C2: c
C! wait 0.2
R! connect
M! close
S! tls-failed SSLError
L: out={n}
`

func TestParse(t *testing.T) {
	c, err := Parse("dir/07-x.txt", sample)
	if err != nil {
		t.Fatal(err)
	}
	if c.Title != "Title (DO NOT COPY)" || c.Number != "07" || !c.Relay || !c.IsDefect() ||
		!slices.Equal(c.Config, []string{"passdb x {", " driver = static"}) || !slices.Equal(c.Unset, []string{"ssl ="}) ||
		!slices.Equal(c.Sides, []string{"login"}) || !slices.Equal(c.Differences, []string{"some-id"}) || len(c.Log) != 1 || c.Log[0].Line != 23 {
		t.Errorf("%+v", c)
	}
	e := c.Events
	if e[0].Word != "connect" || !e[0].TLS || e[0].Source != "127.0.0.2" || e[5].Conn != 2 || e[6].Wait != 200*time.Millisecond || e[9].Word != "tls-failed" {
		t.Errorf("%+v", e)
	}
	if !e[4].continues(&e[3]) || e[5].continues(&e[4]) || e[3].continues(&e[2]) {
		t.Error("groups")
	}
	v := Values{RelayPort: "25"}
	if got, err := e[3].Text.Expand(v); err != nil || got != "a\t\x00\\xyxyxy" {
		t.Errorf("%q %v", got, err)
	}
	if got, err := e[4].Text.Expand(v); err != nil || got != "b 25 %{x}\r\n" {
		t.Errorf("%q %v", got, err)
	}
	if _, err := e[2].Text.Expand(v); err == nil {
		t.Error("a date can be sent")
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ old, by, says string }{
		{"@case 07-x", "@case 08-x", "called"},
		{"@relay up", "@relay maybe", "up or down"},
		{"@note", "@knot", "unknown header"},
		{"@side login", "@side both", "side is"},
		{"C! connect tls", "C! connect ssl", "connect"},
		{"C! wait 0.2", "C! wait x", "wait"},
		{"R! connect", "R! listen", "unknown action"},
		{"M! close", "M! close now", "close"},
		{"{date}", "{dat}", "unknown placeholder"},
		{"{date}", "{date", "without"},
		{`\x00`, `\xg0`, "bad escape"},
		{`\c`, `\c x`, `\c before`},
		{`\{3*xy}`, `\{99999999*xy}`, "bad escape"},
		{"L: out={n}\n", "L: out={n}\nC: x\n", "behind the log"},
		{"L: out={n}\n", "L: out={n}", "no LF"},
		{"C2: c", "X2: c", "unknown event"},
	} {
		text := strings.Replace(sample, c.old, c.by, 1)
		if text == sample {
			t.Fatalf("nothing to replace: %s", c.old)
		}
		if _, err := Parse("07-x.txt", text); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %v", c.by, err)
		}
	}
}

func TestMatches(t *testing.T) {
	v := Values{Host: "vm", RelayPort: "2525", Dir: "/tmp/a.b"}
	for _, c := range []struct {
		text, line string
		want       bool
	}{
		{"250 OK", "250 OK", true},
		{"250 OK", "250 OK ", false},
		{"", "", true},
		{"(a|b)", "a", false},
		{"t: {date}", "t: Mon, 23 Nov 2026 10:48:42 +0000", true},
		{"t: {date}", "t: Mon, 3 Nov 2026 10:48:42 +0000", false},
		{"{id}:T2", "abcdefghijklmnopqrstuv:T2", true},
		{"{id}", "abcdefghijklmnopqrstu", false},
		{"p {port} {relayport} {host} {dir}", "p 1 2525 vm /tmp/a.b", true},
		{"p {port} {relayport} {host} {dir}", "p 1 2526 vm /tmp/a.b", false},
		{"{dir}", "/tmp/aXb", false},
		{"<{session}>", "<9HoJzQlhYI9/AAAB>", true},
		{"<{session}>", "<a><b>", false},
		{`\xFF{n}`, "\xff7", true},
		{`\xFF{n}`, "\xc3\xbf7", false},
		{"[{host}:{datetime}]", "[vm:2026-11-24 18:00:00]", true},
		{"({n.nnn} secs)", "(0.001 secs)", true},
		{"({n.nnn} secs)", "(0.01 secs)", false},
	} {
		text, err := ParseText(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := text.Matches(c.line, v); got != c.want {
			t.Errorf("%q matches %q: %v", c.text, c.line, got)
		}
	}
}

func TestRules(t *testing.T) {
	c, err := Parse("07-x.txt", strings.Replace(sample, "L: out={n}\n", `S: 250-BURL imap imap://x
C: AUTH
S: 501 5.5.4 Missing SASL mechanism parameter
C: AUTH LOGIN
S: 334 x
C: y
S: 535 5.7.8 no
L: submission(a)<1>: Info: Disconnected: Logged out (state=READY) in=1 out=100
L: submission-login: Info: Disconnected: x in=1 out=100
`, 1))
	if err != nil {
		t.Fatal(err)
	}
	rule := Rule{ID: "r", Applies: system.System.IsOurs, Change: func(c *Case, _ system.System) bool {
		n := c.RemoveServerLines(func(line string, _ bool) bool { return strings.HasPrefix(line, "250-BURL") })
		c.ExtraLog("x {text}", c.FailedAttempts())
		return n == 2
	}}
	x := c.With(system.OursBoth, []Rule{rule})
	if len(x.Events) != len(c.Events)-2 || len(x.Used) != 1 || len(x.Extra) != 1 || x.Extra[0].Count != 1 {
		t.Errorf("%+v", x)
	}
	want := 100 - len("250-BURL imap imap://x\r\n") // the one before 235 was the login's
	if got := x.Log[0].Text.Source; !strings.HasSuffix(got, " out="+strconv.Itoa(want)) {
		t.Errorf("out: %s, want %d", got, want)
	}
	if x.Log[1].Text.Source != c.Log[1].Text.Source {
		t.Errorf("another process's line is changed: %s", x.Log[1].Text.Source)
	}
	if y := c.With(system.Dovecot, []Rule{rule}); len(y.Used) != 0 || len(y.Events) != len(c.Events) {
		t.Error("the rule was used where it does not apply")
	}
}

func TestDifferences(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.txt")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# c\nid: a\nsubject: s\ndovecot: d\n  and | more\nhere: h\nclauses: S1 S2\nshown: rule\nshown: open\n")
	ds, err := LoadDifferences(path)
	if err != nil || len(ds) != 1 || ds[0].Theirs != "d and | more" || len(ds[0].Shown) != 2 || len(ds[0].Clauses) != 2 {
		t.Fatalf("%+v %v", ds, err)
	}
	if got := Markdown(ds); !strings.HasSuffix(got, "| s | d and \\| more | h |\n") {
		t.Error(got)
	}
	for _, bad := range []string{"subject: s\n", "id: a\nsubject: s\n", "id: a\nfoo: s\n", "id: a\nnonsense\n"} {
		write(bad)
		if _, err := LoadDifferences(path); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample)
	f.Add("# x\n@case 07-x\n--\nC: \\{2*}\\c\n")
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 4096 {
			return
		}
		c, err := Parse("07-x.txt", s)
		if err != nil {
			return
		}
		for _, e := range c.Events {
			if line, err := e.Text.Expand(Values{}); err == nil && !e.Action && len(line) < 1<<16 && !strings.Contains(e.Text.Source, "\\c") {
				if !e.Text.Matches(strings.TrimSuffix(line, "\r\n"), Values{}) {
					t.Errorf("%q does not match itself", e.Text.Source)
				}
			}
		}
	})
}
