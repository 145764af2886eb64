package conf

import (
	"os"
	"slices"
	"strings"
)

// glob is glob(3) with GLOB_BRACE, as includes use it (clause C7.3): braces first, one
// alternative after the other, then the matches of each in byte order. Names that begin
// with a dot match only a pattern that does too. limit bounds the number of matches.
func glob(pattern string, limit int) []string {
	var out []string
	for _, p := range braces(pattern, 0) {
		if len(out) >= limit {
			break
		}
		if !strings.ContainsAny(p, `*?[\`) {
			if _, err := os.Lstat(p); err == nil {
				out = append(out, p)
			}
			continue
		}
		start, rest := "", p
		if i := strings.LastIndexByte(p[:strings.IndexAny(p, `*?[\`)], '/'); i >= 0 {
			start, rest = p[:i+1], p[i+1:]
		}
		found := walk(start, strings.Split(rest, "/"), nil, limit-len(out))
		slices.Sort(found)
		out = append(out, found...)
	}
	return out
}

// maxBraces bounds how many patterns one pattern with braces makes.
const maxBraces = 10_000

// braces expands the first {a,b} of p and what follows it. A brace without its partner,
// and {}, are ordinary characters.
func braces(p string, made int) []string {
	open, end, alts := brace(p)
	if end < 0 || made > maxBraces {
		return []string{p}
	}
	var out []string
	for _, a := range alts {
		out = append(out, braces(p[:open]+a+p[end+1:], made+len(out)+len(alts))...)
	}
	return out
}

// brace finds the first pair of braces and the alternatives inside; end is -1 if there
// is none.
func brace(p string) (open, end int, alts []string) {
	for open = 0; open < len(p); open++ {
		switch {
		case p[open] == '\\':
			open++
			continue
		case p[open] != '{' || strings.HasPrefix(p[open:], "{}"):
			continue
		}
		depth, from := 0, open+1
		alts = alts[:0]
		for i := from; i < len(p); i++ {
			switch p[i] {
			case '\\':
				i++
			case '{':
				depth++
			case ',':
				if depth == 0 {
					alts, from = append(alts, p[from:i]), i+1
				}
			case '}':
				if depth == 0 {
					return open, i, append(alts, p[from:i])
				}
				depth--
			}
		}
		return 0, -1, nil // glibc: an open brace without its partner is an ordinary character
	}
	return 0, -1, nil
}

// walk adds to out the files below dir ("" or ending in a slash) that match parts.
func walk(dir string, parts []string, out []string, limit int) []string {
	part, rest := parts[0], parts[1:]
	if part == "" && len(rest) > 0 { // a double slash
		return walk(dir+"/", rest, out, limit)
	}
	try := func(name string) {
		path := dir + name
		if len(rest) > 0 {
			if st, err := os.Stat(path); err == nil && st.IsDir() {
				out = walk(path+"/", rest, out, limit)
			}
		} else if _, err := os.Lstat(path); err == nil && len(out) < limit {
			out = append(out, path)
		}
	}
	if !strings.ContainsAny(part, `*?[\`) {
		try(part)
		return out
	}
	from := dir
	if from == "" {
		from = "."
	}
	f, err := os.Open(from)
	if err != nil {
		return out
	}
	names, _ := f.Readdirnames(maxFiles)
	f.Close()
	slices.Sort(names)
	for _, n := range names {
		if (n[0] != '.' || part[0] == '.') && fnmatch(part, n) {
			try(n)
		}
	}
	return out
}

// fnmatch matches one path component. Stars are tried without recursion, so that the
// time is at most the product of both lengths.
func fnmatch(p, s string) bool {
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(s) {
		if i < len(p) && p[i] == '*' {
			star, mark = i, j
			i++
			continue
		}
		if n := one(p[i:], s[j]); n > 0 {
			i += n
			j++
			continue
		}
		if star < 0 {
			return false
		}
		mark++
		i, j = star+1, mark
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// one says how many bytes of p match the byte c; 0 if they do not, or p is empty.
func one(p string, c byte) int {
	if p == "" {
		return 0
	}
	switch p[0] {
	case '?':
		return 1
	case '\\':
		if len(p) > 1 {
			p = p[1:]
			if p[0] == c {
				return 2
			}
			return 0
		}
	case '[':
		if n, ok := set(p, c); n > 0 {
			if ok {
				return n
			}
			return 0
		}
	}
	if p[0] == c {
		return 1
	}
	return 0
}

// set matches c with the bracket expression p begins with, n bytes long; n is 0 if the
// bracket is not closed and therefore is an ordinary character.
func set(p string, c byte) (n int, ok bool) {
	i := 1
	negated := i < len(p) && (p[i] == '!' || p[i] == '^')
	if negated {
		i++
	}
	for first := true; i < len(p); first = false {
		if p[i] == ']' && !first {
			return i + 1, ok != negated
		}
		if name, rest, found := strings.Cut(p[i:], ":]"); found && strings.HasPrefix(name, "[:") {
			ok = ok || class(name[2:], c)
			i = len(p) - len(rest)
			continue
		}
		if p[i] == '\\' && i+1 < len(p) {
			i++
		}
		lo := p[i]
		hi := lo
		i++
		if i+1 < len(p) && p[i] == '-' && p[i+1] != ']' {
			i++
			if p[i] == '\\' && i+1 < len(p) {
				i++
			}
			hi = p[i]
			i++
		}
		ok = ok || lo <= c && c <= hi
	}
	return 0, false
}

// class is a POSIX character class in the C locale; an unknown one matches nothing.
func class(name string, c byte) bool {
	lower, upper, digit := c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9'
	switch name {
	case "alpha":
		return lower || upper
	case "digit":
		return digit
	case "alnum":
		return lower || upper || digit
	case "lower":
		return lower
	case "upper":
		return upper
	case "xdigit":
		return digit || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
	case "punct":
		return c > ' ' && c < 0x7f && !lower && !upper && !digit
	case "space":
		return c == ' ' || c >= '\t' && c <= '\r'
	}
	return false
}
