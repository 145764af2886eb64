package varexpand

import (
	"regexp"
	"strings"
	"testing"
)

func TestERE(t *testing.T) {
	for _, c := range []struct {
		re, text string
		want     bool
	}{
		{"", "", true}, {"", "x", true}, {"a|", "b", true}, {"^$", "", true}, {"^$", "x", false},
		{"a{2,3}", "xaay", true}, {"^a{2,3}$", "aaaa", false}, {"^a{2,}$", "aaaa", true}, {"^(ab){2}$", "abab", true},
		{"^(ab){2}$", "ab", false}, {"^a{0}$", "", true}, {"[^a-c]", "abc", false}, {"[^a-c]", "abcd", true}, {"[]x]", "]", true},
		{"[[.-.]]", "-", true}, {"[[=a=]b]", "a", true}, {"^[[:digit:][:upper:]]+$", "A1", true}, {`a\.b`, "axb", false},
		{`^\w+\s\W$`, "a_1 -", true}, {"x(^a|b$)y?", "xb", true}, {"(a*)*b", strings.Repeat("a", 500), false}, {"a|b|c", "zc", true},
		{"(a|(b|c))+d", "abcd", true}, {".", "\xff", true}, {"a)", "a)", true}, {"^a++$", "aa", true},
	} {
		re, err := compileERE(c.re)
		if err != nil {
			t.Errorf("%q: %v", c.re, err)
			continue
		}
		if got := re.match(c.text); got != c.want {
			t.Errorf("%q in %q: %v", c.re, c.text, got)
		}
	}
}

func TestBadERE(t *testing.T) {
	for _, s := range []string{
		"(", "[", "[a", "[[:foo:]]", "[[:alpha", "[z-a]", "a{", "a{x}", "a{2,1}", "a{256}", "*", "+a", "a|*", "(?)", `a\`, `(a)\1`, `\bfoo`,
		"((((a{200}){200}){200}))", strings.Repeat("(", 101) + strings.Repeat(")", 101), "(((((){255}){255}){255}){255}){255}",
	} {
		if _, err := compileERE(s); err == nil {
			t.Errorf("%q compiles", s)
		}
	}
}

// Where package regexp takes the expression as POSIX, both agree.
func FuzzERE(f *testing.F) {
	for _, s := range []string{"a|b*c", "^(a{2}|[b-d]+)?e$", "(x|y|)(z)", "[^]a]$", "a.b"} {
		f.Add(s, "abcde")
	}
	f.Fuzz(func(t *testing.T, expr, text string) {
		mine, err := compileERE(expr)
		if err != nil {
			return
		}
		got := mine.match(text)
		for _, s := range []string{expr, text} { // what both read alike
			if strings.Trim(s, "abcdexyz01|()*+?^$") != "" {
				return
			}
		}
		theirs, err := regexp.CompilePOSIX(expr)
		if err != nil {
			return
		}
		if want := theirs.MatchString(text); got != want {
			t.Errorf("%q in %q: %v, want %v", expr, text, got, want)
		}
	})
}
