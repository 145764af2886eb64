package imapurl

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// What the real worker answers to each URL follows from Parse and the checks, as far as
// these go: what is left to say about an URL that passes is about mailboxes.
func TestAsDovecot(t *testing.T) {
	alice := Reader{User: "alice", Host: host, Port: 143}
	differ := map[string]string{ // our answer, and why it is another one
		"imap://%69map.example%2Etest/INBOX/;UID=1":                                                                   "",                                                   // it loses letters
		"imap://alice@imap.example.test/INBOX/;UID=1;URLAUTH=submit+a%0D%0A250%20x:internal:{bad}":                    "No 'submit+a??250 x' access allowed for user alice", // it ends the line
		"imap://alice@imap.example.test/INBOX/;UID=1;EXPIRE=1969-12-31T23:59:59Z;URLAUTH=submit+alice:internal:{bad}": "URLAUTH has expired",                                // -1 is no time for it
	}
	n := 0
	for _, row := range rows(t) {
		n++
		url, answer := strings.ReplaceAll(strings.ReplaceAll(row[0], "{bad}", badToken), "{token}", badToken), row[1]
		prefix := "501 5.5.4 Invalid chunk URL: "
		u, err := Parse(url)
		if err == nil && u.Rump == "" {
			prefix, err = "554 5.6.6 IMAP URL resolution failed: ", alice.CheckPlain(u)
		} else if err == nil {
			prefix, err = `554 5.6.6 IMAP URLAUTH resolution failed: Failed to fetch URLAUTH "`+row[0]+`": `, alice.CheckAuth(u, time.Now())
		}
		if want, ok := differ[row[0]]; ok {
			if err == nil && want != "" || err != nil && err.Error() != want {
				t.Errorf("%s: %v, want %q", row[0], err, want)
			}
			continue
		}
		if err != nil {
			if got := strings.ReplaceAll(prefix+err.Error(), badToken, "{bad}"); got != answer {
				t.Errorf("%s\n got %s\nwant %s", row[0], got, answer)
			}
			continue
		}
		switch rest := strings.TrimPrefix(answer, prefix); {
		case strings.HasPrefix(answer, "250 "), answer == "{dies}", answer == "554 5.6.6 IMAP URLAUTH resolution failed":
		case strings.HasPrefix(answer, "554-5.6.6 IMAP URL resolution failed: Mailbox doesn't exist: a|"): // of two lines
		case strings.HasPrefix(strings.TrimPrefix(rest, "Invalid URLAUTH: "), "Mailbox doesn't exist: "), strings.HasPrefix(rest, "Invalid mailbox name: "):
		case rest == "Message not found", strings.TrimPrefix(rest, "Invalid URLAUTH: ") == "Invalid UIDVALIDITY", rest == "URLAUTH verification failed":
		default:
			t.Errorf("%s\npasses here, but not there: %s", row[0], answer)
		}
	}
	if n < 200 {
		t.Errorf("only %d URLs", n)
	}
}

// Everything of an URL comes out decoded, and the rump to the octet.
func TestParse(t *testing.T) {
	for in, want := range map[string]URL{
		"imap://mx/": {Host: "mx"},
		"IMAP://al%40ice;AUTH=PL%41IN@mx.example.:1430/a/b%2Fc;UIDVALIDITY=7/;UID=9/;SECTION=1.HEADER/;PARTIAL=5.10": {
			User: "al@ice", AuthType: "PLAIN", Host: "mx.example", Port: 1430, Mailbox: "a/b/c", UIDValidity: 7, UID: 9, Section: "1.HEADER", Partial: &Range{5, 10}},
		"imap://[::1]/%E2%82%AC?SUBJECT%20x": {Host: "[::1]", Mailbox: "€", Search: "SUBJECT x"},
		"imap://a@mx/x/;UID=1;expire=2030-01-02T03:04:05+01:00;URLAUTH=Submit+b%2Bc:Internal:00112233445566778899aabbccddeeff": {
			User: "a", Host: "mx", Mailbox: "x", UID: 1, Expire: time.Date(2030, 1, 2, 2, 4, 5, 0, time.UTC), Access: "Submit", AccessUser: "b+c", Mechanism: "Internal",
			Token: []byte("\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff"), Rump: "imap://a@mx/x/;UID=1;expire=2030-01-02T03:04:05+01:00;URLAUTH=Submit+b%2Bc"},
		"imap://a@mx/x/;UID=1/;PARTIAL=0;URLAUTH=anonymous": {User: "a", Host: "mx", Mailbox: "x", UID: 1, Partial: &Range{}, Access: "anonymous",
			Rump: "imap://a@mx/x/;UID=1/;PARTIAL=0;URLAUTH=anonymous"},
		"imap://mx/x/;UID=1/;SECTION=/a//b/;PARTIAL=3": {Host: "mx", Mailbox: "x", UID: 1, Section: "a//b", Partial: &Range{Offset: 3}},
	} {
		u, err := Parse(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if !u.Expire.IsZero() {
			u.Expire = u.Expire.UTC()
		}
		if !reflect.DeepEqual(*u, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", in, *u, want)
		}
	}
	if _, err := Parse("imap://mx/" + strings.Repeat("a", MaxLength-9)); err == nil {
		t.Error("an URL beyond the limit is taken")
	}
	if _, err := Parse("imap://mx/" + strings.Repeat("a", MaxLength-10)); err != nil {
		t.Error(err)
	}
}

// What is written is read as the same again, dots and slashes in strange places too.
func TestString(t *testing.T) {
	for _, u := range []URL{
		{Host: "mx"}, {Host: "[::1]", Port: 99, User: "a;b:c@d/e", AuthType: "*"},
		{Host: "mx", Mailbox: "a/b;c?d#e%f&g"}, {Host: "mx", Mailbox: "x", Search: "TEXT \"?/\""},
		{Host: "mx", Mailbox: "../..", UID: 1}, {Host: "mx", Mailbox: "/a//b/", UID: 1}, {Host: "mx", Mailbox: "./x/...", UID: 1}, {Host: "mx", Mailbox: "/", UID: 1},
		{Host: "mx", Mailbox: "ä\x01\xff", UIDValidity: 4294967295, UID: 1, Section: "1/../;2", Partial: &Range{1, 2}},
		{Host: "mx", Mailbox: "x", UID: 1, Section: "/", Partial: &Range{}},
		{Host: "mx", User: "a", Mailbox: "x", UID: 1, Access: "submit", AccessUser: "b+c:d", Expire: time.Date(2030, 1, 2, 2, 4, 5, 0, time.UTC)},
	} {
		s := u.String()
		got, err := Parse(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if u.Access != "" {
			u.Rump = s
		}
		if !reflect.DeepEqual(*got, u) {
			t.Errorf("%s:\n got %+v\nwant %+v", s, *got, u)
		}
	}
}

// A section can stand in a command afterwards, whatever it was.
func TestParseSection(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "1": "1", "1.2.3": "1.2.3", "header": "HEADER", "1.mime": "1.MIME", "text": "TEXT", "1.2.text": "1.2.TEXT",
		"header.fields (a \"b\\\"c\")": `HEADER.FIELDS ("a" "b\"c")`, "1.HEADER.FIELDS.NOT( x  ]y )": `1.HEADER.FIELDS.NOT ("x" "]y")`, `HEADER.FIELDS ("" "\\")`: `HEADER.FIELDS ("" "\\")`,
	} {
		if got, err := ParseSection(in); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"MIME", ".", "1.", "1..2", "1TEXT", "TEXT.1", "HEADER.FIELDS", "HEADER.FIELDS ()", "HEADER.FIELDS (a", "HEADER.FIELDS (a)b", "HEADER.FIELDS (a\r\nb)",
		"HEADER.FIELDS (\"a\nb\")", "HEADER.FIELDS (a {3})", "HEADER.FIELDS (%)", "TEXT]", "1]\r\nx", "HEADER.FIELDS  (a)", `HEADER.FIELDS ("a)`, `HEADER.FIELDS ("a"b)`, "HEADER.FIELDS.NOTX (a)"} {
		if got, err := ParseSection(in); !errors.Is(err, errSection) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestCheckAuthExpires(t *testing.T) {
	u, err := Parse("imap://alice@mx/INBOX/;UID=1;EXPIRE=2030-01-01T00:00:00Z;URLAUTH=submit+alice:internal:" + badToken)
	if err != nil {
		t.Fatal(err)
	}
	r := Reader{User: "ALICE", Host: "*", Port: 143}
	at := time.Date(2030, 1, 1, 0, 0, 0, 999, time.UTC)
	if err := r.CheckAuth(u, at); err != nil {
		t.Errorf("in its last second: %v", err)
	}
	if err := r.CheckAuth(u, at.Add(time.Second)); err == nil || err.Error() != "URLAUTH has expired" {
		t.Error(err)
	}
	if err := (Reader{Host: "*", Port: 143}).CheckAuth(u, at); err == nil {
		t.Error("nobody may read it")
	}
	if err := (Reader{User: "alice", Port: 143}).CheckAuth(u, at); err == nil || err.Error() != "Invalid URL: Inappropriate host name" {
		t.Errorf("without a host: %v", err)
	}
	if err := (Reader{Host: "", Port: 143}).CheckPlain(u); err == nil {
		t.Error("without a host nothing fits")
	}
	// Users whose names differ by more than ASCII case are different.
	u.AccessUser = "\u212Aim" // the sign of Kelvin, which Unicode folds to k
	if err := (Reader{User: "kim", Host: "*", Port: 143}).CheckAuth(u, at); err == nil {
		t.Error("Kelvin is K")
	}
}

func FuzzParse(f *testing.F) {
	for _, row := range rows(f) {
		f.Add(strings.ReplaceAll(strings.ReplaceAll(row[0], "{bad}", badToken), "{token}", badToken))
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := Parse(s)
		if err != nil {
			if !utf8.ValidString(err.Error()) || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("error %q", err)
			}
			return
		}
		if !strings.HasPrefix(s, u.Rump) || u.Rump != "" && u.UID == 0 || u.Mechanism != "" && len(u.Token) < 16 {
			t.Errorf("%q: %+v", s, u)
		}
		reader := Reader{User: u.User, Host: u.Host, Port: 143}
		_, _ = reader.CheckPlain(u), reader.CheckAuth(u, time.Now())
		again, err := Parse(u.String())
		if err != nil {
			t.Fatalf("%q: %q: %v", s, u.String(), err)
		}
		again.Rump, again.Mechanism, again.Token = u.Rump, u.Mechanism, u.Token
		if !again.Expire.Equal(u.Expire) {
			t.Errorf("%q: expire %v, %v", s, u.Expire, again.Expire)
		}
		again.Expire = u.Expire
		if !reflect.DeepEqual(u, again) {
			t.Errorf("%q: %q:\n%+v\n%+v", s, u.String(), u, again)
		}
	})
}

func FuzzParseSection(f *testing.F) {
	for _, s := range []string{"1.2.HEADER.FIELDS (a \"b\\\"\")", "", "TEXT", "2.MIME", "header.fields.not (Subject {5}", "1.", "4294967296", "HEADER.FIELDS ()", "]\r\nX LOGOUT"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out, err := ParseSection(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(out, "\r\n\x00{") && !strings.Contains(out, `"`) || strings.ContainsFunc(out, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q", out)
		}
		if again, err := ParseSection(out); err != nil || again != out {
			t.Errorf("%q: %q, %v", out, again, err)
		}
	})
}
