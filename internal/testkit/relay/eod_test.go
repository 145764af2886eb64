package relay

import (
	"strings"
	"testing"
)

func TestEndOfData(t *testing.T) {
	for _, c := range []struct {
		data string
		end  map[string]int // by server; those not named: as "strict"
	}{
		{".\r\nx", map[string]int{"strict": 3}},
		{"a\r\n.\r\nx", map[string]int{"strict": 6}},
		{"a\r\n..\r\n", map[string]int{"strict": -1}},
		{"a\n.\nx\r\n.\r\n", map[string]int{"strict": 10, "LF.LF": 4, "any LF": 4, "any line end": 4}},
		{".\nx\r\n.\r\n", map[string]int{"strict": 8, "LF.LF": 2, "CRLF.LF": 2, "any LF": 2, "any line end": 2}},
		{"a\r.\rx\r\n.\r\n", map[string]int{"strict": 10, "CR.CR": 4, "any line end": 4}},
		{"a\n.\r\nx\r\n.\r\n", map[string]int{"strict": 11, "LF.CRLF": 5, "any LF": 5, "any line end": 5}},
	} {
		for _, e := range append([]EndOfData{Strict}, Sloppy...) {
			want, ok := c.end[e.Name]
			if !ok {
				want = c.end["strict"]
				if e.Name == "any line end" || e.Name == "CRLF.CR" || e.Name == "any LF" || strings.HasPrefix(e.Name, "NUL") {
					continue // see the smuggling test
				}
			}
			if got := e.In([]byte(c.data)); got != want {
				t.Errorf("%s in %q: %d, want %d", e.Name, c.data, got, want)
			}
			if e.Name == "any line end" {
				continue // octet by octet, it cannot know whether a LF follows
			}
			// The same, octet by octet.
			got, next := -1, 0
			for n := 0; n <= len(c.data) && got < 0; n++ {
				got, next = e.in([]byte(c.data[:n]), next)
			}
			if got != want {
				t.Errorf("%s in %q, piece by piece: %d, want %d", e.Name, c.data, got, want)
			}
		}
	}
}

func TestSmuggled(t *testing.T) {
	for _, wire := range []string{
		"a\n.\nMAIL FROM:<x>\r\n.\r\n", "a\n.\r\nMAIL\r\n.\r\n", "a\r\n.\nMAIL\r\n.\r\n", ".\nMAIL\r\n.\r\n",
		"a\r.\rMAIL\r\n.\r\n", "a\r.\r\nMAIL\r\n.\r\n", "a\r\n.\rMAIL\r\n.\r\n", "a\r.\nMAIL\r\n.\r\n",
		"a\r\x00.\rMAIL\r\n.\r\n", "a\n\x00.\r\nMAIL\r\n.\r\n", "a\n.\x00\nMAIL\r\n.\r\n", "a\r\n.\r\nMAIL\r\n.\r\n",
	} {
		if server, rest := Smuggled([]byte(wire)); server == "" || !strings.HasPrefix(string(rest), "M") && !strings.HasPrefix(string(rest), "\nM") {
			t.Errorf("%q passes; seen by %q, rest %q", wire, server, rest)
		}
	}
	for _, wire := range []string{".\r\n", "\r\n.\r\n", "a\r\n..\r\nb\r\n.\r\n", "a\r\n..\nb\r\n.\r\n", "\x00a\rb\r\n.\r\n", "a\r..\rb\r\n.\r\n"} {
		if server, rest := Smuggled([]byte(wire)); server != "" {
			t.Errorf("%q: %s sees %q behind its end", wire, server, rest)
		}
	}
}
