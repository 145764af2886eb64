package tabline

import (
	"slices"
	"strings"
	"testing"
)

func TestEscapeTable(t *testing.T) {
	for plain, escaped := range map[string]string{
		"":             "",
		"plain":        "plain",
		"a\tb":         "a\x01tb",
		"\x00\x01\r\n": "\x010\x011\x01r\x01n",
		"ü":            "ü",
	} {
		if got := Escape(plain); got != escaped {
			t.Errorf("Escape(%q) = %q, want %q", plain, got, escaped)
		}
		if got := Unescape(escaped); got != plain {
			t.Errorf("Unescape(%q) = %q, want %q", escaped, got, plain)
		}
	}
}

// Clause P0.2: an unknown letter stands for itself, a lone escape at the end is dropped.
func TestUnescapeLenient(t *testing.T) {
	if got := Unescape("a\x01xb\x01"); got != "axb" {
		t.Errorf("got %q", got)
	}
}

func TestSplitKeepsEmptyFields(t *testing.T) {
	got := Split("OK\t9\tuser=a\x01tb\t")
	if want := []string{"OK", "9", "user=a\tb", ""}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFields(t *testing.T) {
	fs := ParseFields(Split("user=bob\tproxy\tpass=a=b\tuser=second"))
	if v, ok := fs.Get("user"); v != "bob" || !ok {
		t.Errorf("user = %q, %v", v, ok)
	}
	if v, _ := fs.Get("pass"); v != "a=b" {
		t.Errorf("pass = %q", v)
	}
	if !fs.Has("proxy") || fs.Has("host") {
		t.Error("bare word lost or invented")
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add("user=a\tb\x01\n", "")
	f.Add("\x01", "\x00\r")
	f.Fuzz(func(t *testing.T, a, b string) {
		line := string(Append(nil, a, b))
		if strings.ContainsAny(line[:len(line)-1], "\x00\r\n") {
			t.Fatalf("line %q holds a raw control byte", line)
		}
		if got := Split(line[:len(line)-1]); !slices.Equal(got, []string{a, b}) {
			t.Fatalf("%q, %q came back as %q", a, b, got)
		}
		Unescape(a) // must not panic on anything
	})
}
