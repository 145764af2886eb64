package handoff

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Whatever comes as record and data: no panic, and what is taken is written again to the
// byte, but for what the layout leaves open (padding, octets behind an address, a missing
// NUL).
func FuzzRecord(f *testing.F) {
	files, _ := filepath.Glob("testdata/login-*.bin")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:recordSize])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			return
		}
		_ = ParseSubmission(m.Payload)
		if len(m.Session)+1+len(m.Payload) > MaxData {
			return // data of the full size without a NUL cannot be written with one
		}
		again, err := parseMessage(m.append(nil))
		if err != nil {
			t.Fatalf("%+v cannot be read again: %v", m, err)
		}
		if !bytes.Equal(again.append(nil), m.append(nil)) {
			t.Fatalf("%+v became %+v", m, again)
		}
	})
}

// Whatever a script answers is taken whole or refused.
func FuzzScriptAnswer(f *testing.F) {
	for _, s := range []string{"", "alice\tuid=8\n", "a\x01tb\tc\x01\n", "\n", "a", "a\nb\n", "a\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseScriptAnswer(b)
		if err == nil && (a.User == "" || !bytes.HasSuffix(b, []byte("\n"))) {
			t.Fatalf("%q was taken as %+v", b, a)
		}
	})
}
