// Package wiretest checks codecs against bytes that somebody else wrote: a C program that
// has the peer's struct, or a recording of the peer.
package wiretest

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

// Golden checks that parse accepts every file that glob names, that appendTo writes the
// same bytes again (behind what the buffer already holds), and that no shorter prefix of
// them parses. It fails when glob names no file.
func Golden[T any](t *testing.T, glob string, parse func([]byte) (T, error), appendTo func(T, []byte) []byte) {
	t.Helper()
	each(t, glob, func(t *testing.T, data []byte) {
		roundTrip(t, data, parse, appendTo)
		for n := range data {
			if v, err := parse(data[:n:n]); err == nil {
				t.Errorf("the first %d of %d bytes parse, as %+v", n, len(data), v)
			}
		}
	})
}

// GoldenOpen is Golden for forms without an end of their own (a text whose prefix is a
// text, too): prefixes may parse, but parse must not panic on them.
func GoldenOpen[T any](t *testing.T, glob string, parse func([]byte) (T, error), appendTo func(T, []byte) []byte) {
	t.Helper()
	each(t, glob, func(t *testing.T, data []byte) {
		roundTrip(t, data, parse, appendTo)
		for n := range data {
			_, _ = parse(data[:n:n])
		}
	})
}

func each(t *testing.T, glob string, check func(*testing.T, []byte)) {
	t.Helper()
	paths, err := filepath.Glob(glob)
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Fatalf("%s names no file", glob)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			check(t, data)
		})
	}
}

func roundTrip[T any](t *testing.T, data []byte, parse func([]byte) (T, error), appendTo func(T, []byte) []byte) {
	t.Helper()
	v, err := parse(bytes.Clone(data))
	if err != nil {
		t.Fatalf("does not parse: %v\n%s", err, hex.Dump(data))
	}
	const before = "before"
	got := appendTo(v, []byte(before))
	if !bytes.HasPrefix(got, []byte(before)) {
		t.Fatalf("append wrote over what the buffer held: %q", got)
	}
	if got = got[len(before):]; !bytes.Equal(got, data) {
		t.Errorf("%+v is written as\n%swant\n%s", v, hex.Dump(got), hex.Dump(data))
	}
}
