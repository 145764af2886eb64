package rawlog

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dovetail/internal/testkit/need"
)

// files returns the contents of the files below dir, by how their names end.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		if !regexp.MustCompile(`^\d{8}-\d{6}\.\d+\.\d+\.(in|out)$`).MatchString(e.Name()) {
			t.Errorf("file name %s", e.Name())
		}
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v, want it for its owner only", e.Name(), info.Mode(), err)
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Ext(e.Name())] += string(data)
	}
	return all
}

var stamp = regexp.MustCompile(`(?m)^\d{10}\.\d{6} `)

// What passed stands in two files, each line behind its time, whatever the pieces were.
func TestLines(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []string{"EH", "LO x\r\nNOOP\r\n", "\x00\xff", "", "\n\nlast"} {
		if err := l.In([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Out([]byte("250-a\r\n250 b\r\n")); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := l.In([]byte("nobody keeps this")); err != nil {
		t.Error(err)
	}
	got := files(t, dir)
	for ext, want := range map[string]string{".in": "# EHLO x\r\n# NOOP\r\n# \x00\xff\n# \n# last", ".out": "# 250-a\r\n# 250 b\r\n"} {
		if text := stamp.ReplaceAllString(got[ext], "# "); text != want {
			t.Errorf("%s: %q, want %q", ext, got[ext], want)
		}
	}
}

// No directory: nothing is wanted. Something else in its place is said.
func TestNoDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", filepath.Join(dir, "none")} {
		l, err := Open(name)
		if l != nil || err != nil {
			t.Errorf("%q: %v, %v", name, l, err)
		}
		if err := l.In([]byte("x")); err != nil {
			t.Error(err)
		}
		l.Close()
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Open(file); l != nil || err == nil || !strings.HasPrefix(err.Error(), "rawlog: ") {
		t.Errorf("%v, %v", l, err)
	}
}

// A file that cannot be written any more is given up with one error.
func TestFull(t *testing.T) {
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		need.Missing(t, err.Error())
	}
	l := &Log{in: file{f: f}}
	if err := l.In([]byte("x")); err == nil {
		t.Error("no error")
	}
	if err := l.In([]byte("x")); err != nil {
		t.Error(err)
	}
}

// A wrapped connection is kept in both directions, and can still end one of them.
func TestWrap(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := l.Wrap(near, func(err error) { t.Error(err) })
	defer c.Close()
	far.Write([]byte("hello\n"))
	if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("bye\n"))
	c.(interface{ CloseWrite() error }).CloseWrite()
	if b, err := io.ReadAll(far); string(b) != "bye\n" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	l.Close()
	got := files(t, dir)
	if in, out := stamp.ReplaceAllString(got[".in"], ""), stamp.ReplaceAllString(got[".out"], ""); in != "hello\n" || out != "bye\n" {
		t.Errorf("%q", got)
	}
	if c := (*Log)(nil).Wrap(near, nil); c != near {
		t.Error("wrapped for nothing")
	}
}

// Tap is In and Out in one, and nil where nothing is kept.
func TestTap(t *testing.T) {
	var none *Log
	if none.Tap(nil) != nil {
		t.Error("a tap into nothing")
	}
	dir := t.TempDir()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	tap := l.Tap(func(err error) { t.Error(err) })
	tap(true, []byte("in\n"))
	tap(false, []byte("out\n"))
	l.Close()
	got := files(t, dir)
	if in, out := stamp.ReplaceAllString(got[".in"], ""), stamp.ReplaceAllString(got[".out"], ""); in != "in\n" || out != "out\n" {
		t.Errorf("in %q, out %q", in, out)
	}
}
