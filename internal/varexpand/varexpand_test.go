package varexpand

import (
	"bufio"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

func table(key byte, long string) (string, bool) {
	switch {
	case key == 's', long == "service":
		return "submission", true
	case key == 'r', long == "rip":
		return "127.0.0.1", true
	case key == 'u', long == "user":
		return "alice@example.org", true
	case long == "passdb:colour":
		return "green", true
	case key == 'e':
		return "", true
	}
	return "", false
}

// The file was made with login_greeting of a running Dovecot 2.3.19.1, whose environment
// is set below: template TAB result, or ! where it refused the template.
func TestAsDovecot(t *testing.T) {
	for k, v := range map[string]string{"VV": "Hello.World@Example.COM", "NUM": "255", "NEG": "-3", "E": ""} {
		t.Setenv(k, v)
	}
	f, err := os.Open("testdata/dovecot-2.3.19.1.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := 0
	for sc := bufio.NewScanner(f); sc.Scan(); seen++ {
		template, want, _ := strings.Cut(sc.Text(), "\t")
		got, err := Expand(template, table)
		switch {
		case want == "!":
			if err == nil {
				t.Errorf("%q is %q, want an error", template, got)
			}
		case err != nil || got != want:
			t.Errorf("%q is %q, %v; want %q", template, got, err, want)
		}
	}
	if seen < 190 {
		t.Errorf("only %d templates", seen)
	}
}

// C12.4: what is unknown shows, and the error names all of it.
func TestUnknown(t *testing.T) {
	got, err := Expand("%s %Q %{foo:bar} %{passdb:colour} %U{nope} %{if;a;eq;%{x};1;2}|%{md5:zz}.", table)
	if want := "submission UNSUPPORTED_VARIABLE_Q UNSUPPORTED_VARIABLE_foo green UNSUPPORTED_VARIABLE_nope |."; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	want := "Unknown variable '%Q'\nUnknown variable '%foo'\nUnknown variable '%nope'\nUnknown variable '%x'\nUnknown variable '%zz'"
	if err == nil || err.Error() != want {
		t.Errorf("error %q", err)
	}
}

// The texts of the errors are Dovecot's.
func TestErrorTexts(t *testing.T) {
	for template, want := range map[string]string{
		"%{if}":                      "if: missing parameter(s)",
		"%{if;a;eq;a}":               "if: requires four or five parameters, got 3",
		"%{if;a;eq;a;b;c;d}":         "if: requires four or five parameters, got 6",
		"%{if;a;xx;b;yes;no}":        "if: Unsupported comparator 'xx'",
		"%{if;x;<;1;yes;no}":         "if: x (lhs) is not a number",
		"%{if;1;<;+1;yes;no}":        "if: +1 (rhs) is not a number",
		"%{md5;rounds=x:service}":    "Cannot parse hash arguments: 'x' is not number for rounds",
		"%{md5;truncate=:service}":   "Cannot parse hash arguments: '' is not number for truncbits",
		"%{md5;format=none:service}": "Cannot parse hash arguments: 'none' is not supported format",
		"%{if;a;~;(;yes;no}":         "if: regex failed: unmatched ( or )",
	} {
		if _, err := Expand(template, table); err == nil || err.Error() != want {
			t.Errorf("%q: error %v, want %q", template, err, want)
		}
	}
}

func TestBuiltIn(t *testing.T) {
	t.Setenv("DOVECOT_HOSTNAME", "mx1")
	got, err := Expand("%{hostname}", table)
	if got != "mx1" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	if got, _ := Expand("%{pid}", table); got == "" || got == "0" {
		t.Errorf("pid %q", got)
	}
	mine := func(_ byte, long string) (string, bool) { return "mine", long == "pid" }
	if got, _ := Expand("%{pid}", mine); got != "mine" {
		t.Errorf("the caller's pid is %q", got)
	}
}

func TestBounds(t *testing.T) {
	if got, err := Expand(strings.Repeat("%099999s", 3), table); err == nil || len(got) != maxResult {
		t.Errorf("%d octets, %v", len(got), err)
	}
	deep := "x"
	for range maxDepth + 1 {
		deep = "%{if;1;==;1;" + deep + ";n}"
	}
	if _, err := Expand(deep, table); err == nil {
		t.Error("nesting without bound")
	}
	if _, err := Expand("%{md5;rounds=1048577:service}", table); err == nil {
		t.Error("rounds without bound")
	}
}

func TestUses(t *testing.T) {
	for template, want := range map[string]bool{
		"user=<%u>": true, "%Ln": true, "%-3.4Uu": true, "%{user}": false, "%%u": false, "x%": false, "un": false, "%s %u": true,
	} {
		if got := Uses(template, "un"); got != want {
			t.Errorf("%q: %v", template, got)
		}
	}
}

func TestMD4(t *testing.T) { // RFC 1320, A.5
	for in, want := range map[string]string{
		"":                              "31d6cfe0d16ae931b73c59d7e0c089c0",
		"abc":                           "a448017aaf21d8525fc10ae87aa6729d",
		strings.Repeat("1234567890", 8): "e33b4ddc9c38f2199c3e7b164fcc0536",
	} {
		h := newMD4()
		h.Write([]byte(in))
		if got := hex.EncodeToString(h.Sum(nil)); got != want {
			t.Errorf("%q: %s", in, got)
		}
	}
}

func FuzzExpand(f *testing.F) {
	file, err := os.ReadFile("testdata/dovecot-2.3.19.1.txt")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(file)) {
		template, _, _ := strings.Cut(line, "\t")
		f.Add(template)
	}
	f.Fuzz(func(t *testing.T, template string) {
		if strings.Contains(template, "rounds") || strings.Contains(strings.ToLower(template), "pkcs5") {
			return // slow on purpose
		}
		Uses(template, "un")
		got, _ := Expand(template, table)
		if len(got) > maxResult {
			t.Fatalf("%d octets", len(got))
		}
		if !strings.Contains(template, "%") && got != template {
			t.Fatalf("%q became %q", template, got)
		}
	})
}
