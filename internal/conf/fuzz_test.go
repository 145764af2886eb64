package conf

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func nowhere(context.Context, string) (netip.Addr, error) {
	return netip.Addr{}, errors.New("Name or service not known")
}

// Any bytes load, quickly; every message points into a file that was read, and can be
// shown; every value that is kept points to where it stands.
func FuzzLoad(f *testing.F) {
	for _, list := range [][]string{someHeads, someLines, rightLines, someValues} {
		for _, s := range list {
			f.Add([]byte("service auth {\n  " + s + "\n}\nhostname = " + s + "\n" + s + "\n"))
		}
	}
	f.Add([]byte("hostname = a \\\n  b \\\n\n# x\nlocal 10.0.0.0/8 {\nremote ::1 {\nprotocol x {\n"))
	f.Add([]byte("!include *\n!include ./main.conf\n!include {a,{b,c}[!d]*}\nplugin {\n\x00a = b\xff\n}"))
	f.Add(bytes.Repeat([]byte("service a {\n"), 150))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		if bytes.Contains(text, []byte("/")) {
			return // no files but ours
		}
		path := filepath.Join(dir, "main.conf")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		c, diags := Load(path, Options{Resolve: nowhere, Own: true})
		if d := time.Since(start); d > 5*time.Second {
			t.Fatalf("took %v", d)
		}
		if err := write(io.Discard, c, diags, true); err != nil {
			t.Fatal(err)
		}
		for _, d := range diags {
			if d.Extra.(*Report) == nil || d.Summary == "" {
				t.Fatalf("bare message %+v", d)
			}
			if s := d.Subject; s != nil {
				inFile(t, Range{Range: *s}, len(text))
			}
		}
		for _, s := range append([]*Scope{c.Root}, c.Filters...) {
			inBlock(t, s.Block, len(text))
		}
		if _, err := c.View(Filter{Service: "x", RemoteIP: netip.IPv6Loopback()}); err != nil {
			if _, ok := err.(*ConflictError); !ok {
				t.Fatal(err)
			}
		}
	})
}

func inFile(t *testing.T, r Range, size int) {
	if r.Filename != "" && (r.Start.Byte < 0 || r.Start.Byte > r.End.Byte || r.End.Byte > size || r.Start.Line < 1) {
		t.Fatalf("range %+v in a file of %d bytes", r, size)
	}
}

func inBlock(t *testing.T, b *Block, size int) {
	for _, s := range b.Settings {
		inFile(t, s.Last.Key, size)
		inFile(t, s.Last.Range, size)
	}
	for _, c := range b.Blocks {
		for _, o := range c.Open {
			inFile(t, o, size)
		}
		inBlock(t, c, size)
	}
}
