package conf

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMatchNames(t *testing.T) {
	for _, c := range []struct {
		name, list string
		want       bool
	}{
		{"mx.example.org", "mx.example.org", true},
		{"MX.Example.Org", "mx.eXample.org", true},
		{"mx.example.org", "*.example.org", true},
		{"x.mx.example.org", "*.example.org", false},
		{"example.org", "*.example.org", false},
		{"mx1.example.org", "mx*.example.org", false},
		{"mx.example.org", "mx.*.org", true},
		{"mx.example.org", "*", false},
		{"mx", "*", true},
		{"b.example.org", "a.example.org b.example.org", true},
		{"", "", true},
		{"a.example.org.", "a.example.org", false},
	} {
		if got := matchNames(c.name, c.list); got != c.want {
			t.Errorf("%q in %q: %v", c.name, c.list, got)
		}
	}
}

func TestParseNet(t *testing.T) {
	for arg, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "10.1": "10.0.0.1", "192.0.2.9/24": "192.0.2.9/24", "[2001:db8::1]": "2001:db8::1", "::1/64": "::1/64",
		"0x7f.1": "127.0.0.1", "010.1": "8.0.0.1", "1": "0.0.0.1", "4294967295": "255.255.255.255", "0.0.0.0/0": "0.0.0.0/0",
		"192.0.2.1/33": "Invalid network mask: 33", "::1/129": "Invalid network mask: 129", "192.0.2.1/": "Invalid network mask: ", "192.0.2.1/+8": "Invalid network mask: +8",
		"256.1.1.1": "gethostbyname(256.1.1.1) failed: Name or service not known", "1.2.3.4.5": "gethostbyname(1.2.3.4.5) failed: Name or service not known",
		"0b1.1": "gethostbyname(0b1.1) failed: Name or service not known", "1_0.1": "gethostbyname(1_0.1) failed: Name or service not known",
		"": "gethostbyname() failed: Name or service not known", "fe80::1%lo": "gethostbyname(fe80::1%lo) failed: Name or service not known",
	} {
		n, bad := parseNet(arg, nowhere)
		if bad == "" {
			bad = n.String()
		}
		if bad != want {
			t.Errorf("%q: %s, want %s", arg, bad, want)
		}
	}
}

func TestGlob(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, f := range []string{"a.conf", "b.conf", "B.conf", ".hidden.conf", "c d.conf", "sub/x.conf", "sub/y.txt", "sub2/x.conf", "[z].conf", "{q}"} {
		file(t, f, "")
	}
	if err := os.Symlink("nowhere", "dangling.conf"); err != nil {
		t.Fatal(err)
	}
	for pattern, want := range map[string]string{
		"*.conf":           "B.conf [z].conf a.conf b.conf c d.conf dangling.conf",
		".*.conf":          ".hidden.conf",
		"?.conf":           "B.conf a.conf b.conf",
		"[ab].conf":        "a.conf b.conf",
		"[!ab].conf":       "B.conf",
		"[^ab].conf":       "B.conf",
		"[[:upper:]].conf": "B.conf",
		"[a-c].conf":       "a.conf b.conf",
		`\[z\].conf`:       "[z].conf",
		"{b,a}.conf":       "b.conf a.conf",
		"{b,{a,B}}.conf":   "b.conf a.conf B.conf",
		"{sub/*,a.conf}":   "sub/x.conf sub/y.txt a.conf",
		"sub*/x.conf":      "sub/x.conf sub2/x.conf",
		"*/*.conf":         "sub/x.conf sub2/x.conf",
		"sub//x.conf":      "sub//x.conf",
		"c d.conf":         "c d.conf",
		"nosuch":           "",
		"nosuch/*":         "",
		"{a.conf,nosuch}":  "a.conf",
		"{a.conf,a.conf}":  "a.conf a.conf",
		"[ab.conf":         "",
		"{a.conf":          "",
		"{q}":              "",
		"\\{q\\}":          "{q}",
		"":                 "",
	} {
		if got := strings.Join(glob(pattern, 100), " "); got != want {
			t.Errorf("%q: %q, want %q", pattern, got, want)
		}
	}
	abs := glob(filepath.Join(dir, "{a,b}.conf"), 100)
	if !slices.Equal(abs, []string{filepath.Join(dir, "a.conf"), filepath.Join(dir, "b.conf")}) {
		t.Errorf("%q", abs)
	}
	if got := glob("*", 3); len(got) > 3 {
		t.Errorf("limit: %q", got)
	}
}

func TestClosest(t *testing.T) {
	names := []string{"submission_relay_host", "submission_relay_port", "listen", "ssl", "hostname"}
	for key, want := range map[string]string{
		"submission_relay_hots": "submission_relay_host", "submision_relay_port": "submission_relay_port", "lsiten": "listen",
		"Hostname": "hostname", "sssl": "ssl", "banana": "", "": "", strings.Repeat("x", 300): "",
	} {
		if got := closest(key, names); got != want {
			t.Errorf("%q: %q, want %q", key, got, want)
		}
	}
}
