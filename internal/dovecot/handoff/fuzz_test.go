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
