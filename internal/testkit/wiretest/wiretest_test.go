package wiretest

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

type pair struct{ A, B uint32 }

func parsePair(b []byte) (pair, error) {
	if len(b) != 8 {
		return pair{}, errors.New("not 8 bytes")
	}
	return pair{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])}, nil
}

func (p pair) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, p.A)
	return binary.LittleEndian.AppendUint32(b, p.B)
}

// swapped writes the fields in the wrong order, which a round trip against itself, with a
// parser that has the same mistake, would not show.
func swapped(p pair, b []byte) []byte { return pair{p.B, p.A}.append(b) }

// short accepts what is cut off.
func short(b []byte) (pair, error) {
	return parsePair(append(append([]byte(nil), b...), make([]byte, 8-len(b))...))
}

func golden(t *testing.T) string {
	dir := os.Getenv("WIRETEST_DIR")
	if dir == "" {
		dir = t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "pair-1.bin"), []byte{1, 0, 0, 0, 2, 0, 0, 0}, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestGoodCodecPasses(t *testing.T) {
	glob := filepath.Join(golden(t), "pair-*.bin")
	Golden(t, glob, parsePair, pair.append)
	GoldenOpen(t, glob, parsePair, pair.append)
}

// Each broken codec must fail; each runs in a child of this test, since a failure ends it.
func TestBrokenCodecsFail(t *testing.T) {
	broken := map[string]struct {
		run  func(t *testing.T, dir string)
		says string
	}{
		"swapped": {func(t *testing.T, dir string) { Golden(t, filepath.Join(dir, "pair-*.bin"), parsePair, swapped) }, "is written as"},
		"short":   {func(t *testing.T, dir string) { Golden(t, filepath.Join(dir, "pair-*.bin"), short, pair.append) }, "bytes parse"},
		"nofile":  {func(t *testing.T, dir string) { Golden(t, filepath.Join(dir, "none-*.bin"), parsePair, pair.append) }, "names no file"},
	}
	if name := os.Getenv("WIRETEST_CHILD"); name != "" {
		broken[name].run(t, golden(t))
		return
	}
	dir := golden(t)
	for name, c := range broken {
		cmd := exec.Command(os.Args[0], "-test.run=^TestBrokenCodecsFail$")
		cmd.Env = append(os.Environ(), "WIRETEST_CHILD="+name, "WIRETEST_DIR="+dir)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.says) {
			t.Errorf("%s: want a failure that says %q, got err %v and\n%s", name, c.says, err, out)
		}
	}
}
