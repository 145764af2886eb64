package smtp

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// decode runs a DataDecoder over the pieces.
func decode(pieces ...[]byte) (content, behind string, done bool) {
	var d DataDecoder
	var out []byte
	for n, piece := range pieces {
		for len(piece) > 0 && !done {
			var c []byte
			c, piece, done = d.Next(piece)
			out = append(out, c...)
		}
		if done {
			return string(out), string(piece) + string(bytes.Join(pieces[n+1:], nil)), true
		}
	}
	return string(out), "", false
}

// slowDecode says what decode must do, an octet at a time: lines end with CRLF and nothing
// else, a line that is a dot is the end, and a dot before something else goes away.
func slowDecode(in string) (content, behind string, done bool) {
	var out strings.Builder
	start := true
	for i := 0; i < len(in); {
		if start && in[i] == '.' {
			switch rest := in[i+1:]; {
			case strings.HasPrefix(rest, "\r\n"):
				return out.String(), rest[2:], true
			case rest == "", rest == "\r":
				return out.String(), "", false // not decided yet
			}
			start = false
			i++
			continue
		}
		start = false
		out.WriteByte(in[i])
		i++
		if strings.HasSuffix(in[:i], "\r\n") {
			start = true
		}
	}
	return out.String(), "", false
}

// strings5 calls f with all strings over the octets that matter, up to n long.
func strings5(n int, f func(s string)) {
	alphabet := []byte("\r\n.\x00x")
	var grow func(s []byte)
	grow = func(s []byte) {
		f(string(s))
		if len(s) == n {
			return
		}
		for _, c := range alphabet {
			grow(append(s, c))
		}
	}
	grow(make([]byte, 0, n))
}

// splits calls f with s in one piece, in two at each place, and octet by octet.
func splits(s string, f func(pieces ...[]byte)) {
	b := []byte(s)
	f(b)
	for i := 1; i < len(b); i++ {
		f(b[:i], b[i:])
	}
	var single [][]byte
	for i := range b {
		single = append(single, b[i:i+1])
	}
	f(single...)
}

func TestDataDecoderFindsOnlyTheEnd(t *testing.T) {
	strings5(6, func(s string) {
		for _, in := range []string{s, "x\r\n" + s + "\r\n.\r\nNOOP\r\n"} {
			content, behind, done := slowDecode(in)
			splits(in, func(pieces ...[]byte) {
				c, r, d := decode(pieces...)
				if c != content || r != behind || d != done {
					t.Fatalf("%q in %d pieces: %q, %q, %v\nwant %q, %q, %v", in, len(pieces), c, r, d, content, behind, done)
				}
			})
		}
	})
}

func TestNormaliser(t *testing.T) {
	strings5(6, func(s string) {
		want := normalised(s)
		splits(s, func(pieces ...[]byte) {
			var n Normaliser
			var out []byte
			for _, p := range pieces {
				out = n.Append(out, p)
			}
			if string(out) != want {
				t.Fatalf("%q in %d pieces: %q, want %q", s, len(pieces), out, want)
			}
		})
	})
}

func normalised(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\n", "\r\n")
}

// delivered says what a strict relay has of s after DATA: as normalised, with a CRLF at the
// end, and where CR or a line end, any NULs and a dot come together with CRLF and a dot.
func delivered(s string) string {
	s = normalised(s)
	if s != "" && !strings.HasSuffix(s, "\r\n") {
		s += "\r\n"
	}
	var out strings.Builder
	for i := 0; i < len(s); {
		j := i
		for j < len(s) && s[j] == 0 {
			j++
		}
		if j < len(s) && s[j] == '.' {
			switch before := s[:i]; {
			case before == "" || before[len(before)-1] == '\n':
				i = j
			case before[len(before)-1] == '\r':
				out.WriteByte('\n')
				i = j
			}
		}
		for ; i < j; i++ {
			out.WriteByte(0)
		}
		if j < len(s) {
			out.WriteByte(s[j])
		}
		i = j + 1
	}
	return out.String()
}

func stuff(pieces ...[]byte) string {
	var s DotStuffer
	var out []byte
	for _, p := range pieces {
		out = s.Append(out, p)
	}
	return string(s.Finish(out))
}

func TestDotStuffer(t *testing.T) {
	strings5(6, func(s string) {
		want := delivered(s)
		splits(s, func(pieces ...[]byte) {
			sent := stuff(pieces...)
			content, behind, done := slowDecode(sent)
			if content != want || behind != "" || !done {
				t.Fatalf("%q in %d pieces is sent as %q\nrelay has %q and then %q (%v), want %q", s, len(pieces), sent, content, behind, done, want)
			}
			sloppyRelays(func(name string, ends func(string) bool, see func(string) string) {
				seen := see(sent)
				for i := range len(seen) - 1 {
					if ends(seen[:i]) {
						t.Fatalf("%q in %d pieces is sent as %q\na relay that %s ends at octet %d of %q", s, len(pieces), sent, name, i, seen)
					}
				}
			})
		})
	})
}

// sloppyRelays calls f with relays that take more than CRLF for the end of a line, and do
// not see NULs or CRs.
func sloppyRelays(f func(name string, ends func(string) bool, see func(string) string)) {
	same := func(s string) string { return s }
	noNULs := func(s string) string { return strings.ReplaceAll(s, "\x00", "") }
	for _, see := range []struct {
		name string
		see  func(string) string
	}{{"", same}, {" and drops NULs", noNULs}} {
		for _, ends := range [][]string{{"\r\n"}, {"\r\n", "\n"}, {"\r\n", "\n", "\r"}} {
			f(fmt.Sprintf("ends lines with any of %q%s", ends, see.name), func(s string) bool {
				for _, e := range ends {
					before, ok := strings.CutSuffix(s, e)
					if !ok {
						continue
					}
					before, ok = strings.CutSuffix(before, ".")
					if !ok {
						continue
					}
					for _, e := range ends {
						if before == "" || strings.HasSuffix(before, e) {
							return true
						}
					}
				}
				return false
			}, see.see)
		}
	}
}

func TestDotStufferManyNULs(t *testing.T) {
	for _, n := range []int{maxNULs, maxNULs + 1, 3*maxNULs + 5} {
		for _, end := range []string{"\r\n", "\r", ""} {
			in := end + strings.Repeat("\x00", n) + ".\r\nx"
			var s DotStuffer
			out := s.Append(nil, []byte(in))
			if max := 2*len(in) + maxNULs; len(out) > max {
				t.Errorf("%d NULs: %d octets, more than %d", n, len(out), max)
			}
			if dots := strings.Count(string(s.Finish(out)), ".."); dots != 1 {
				t.Errorf("%d NULs behind %q: %d doubled dots, want 1", n, end, dots)
			}
		}
	}
}

func FuzzData(f *testing.F) {
	for _, s := range []string{"a\r\n.b\r\n", "\n.\n", "\r.\r", "\x00.\r\n", ".", "..", "a\nb", strings.Repeat("x", 80) + "\r\n.\r\n"} {
		f.Add(s, uint(3))
	}
	f.Add(strings.Repeat("\x00", 15)+".0", uint(141))
	f.Fuzz(func(t *testing.T, s string, at uint) {
		cut := int(at % uint(len(s)+1))
		sent := stuff([]byte(s[:cut]), []byte(s[cut:]))
		if len(s) < maxNULs && sent != stuff([]byte(s)) {
			t.Fatalf("%q split at %d is sent otherwise", s, cut)
		}
		wire := sent + "NOOP\r\n"
		cut = min(cut, len(wire)) // NULs before a dot are not sent
		content, behind, done := decode([]byte(wire[:cut]), []byte(wire[cut:]))
		if !done || behind != "NOOP\r\n" {
			t.Fatalf("%q is sent as %q; behind it stands %q (%v)", s, sent, behind, done)
		}
		if len(s) < maxNULs && content != delivered(s) {
			t.Fatalf("%q arrives as %q, want %q", s, content, delivered(s))
		}
	})
}

// benchText is a MIME message of about 1 MiB: base64 lines of 76 characters.
func benchText(eol string) []byte {
	line := strings.Repeat("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVph", 3)[:76] + eol
	return []byte(strings.Repeat(line, 1<<20/len(line)))
}

func BenchmarkDataDecoder(b *testing.B) {
	in := benchText("\r\n")
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		var d DataDecoder
		for rest := in; len(rest) > 0; {
			_, rest, _ = d.Next(rest)
		}
	}
}

func benchmarkAppend(b *testing.B, eol string, f func(dst, chunk []byte) []byte) {
	const chunk = 32 << 10
	in := benchText(eol)
	dst := make([]byte, 0, 3*chunk)
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		for rest := in; len(rest) > 0; rest = rest[min(chunk, len(rest)):] {
			f(dst, rest[:min(chunk, len(rest))])
		}
	}
}

func BenchmarkNormaliser(b *testing.B) {
	var n Normaliser
	benchmarkAppend(b, "\r\n", n.Append)
}

func BenchmarkNormaliserBareLF(b *testing.B) {
	var n Normaliser
	benchmarkAppend(b, "\n", n.Append)
}

func BenchmarkDotStuffer(b *testing.B) {
	var s DotStuffer
	benchmarkAppend(b, "\r\n", s.Append)
}

func BenchmarkDotStufferDots(b *testing.B) {
	var s DotStuffer
	benchmarkAppend(b, "\r\n.", s.Append)
}
