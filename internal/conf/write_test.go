package conf

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
)

// A line that goes on in another file, tabs, letters of several bytes, and bytes that
// would steer a terminal: marks stand under what is meant.
func TestWrite(t *testing.T) {
	t.Chdir(t.TempDir())
	file(t, "main.conf", "!include part\nport = \tx\n\tsubmission_relay_port\t= \"é\x1b[31m\"\t# c\nlogin_proxy_timeout = \\\n  ä \\\n  ö\n")
	file(t, "part", "hostname = \\\n  a \\")
	c, diags := Load("main.conf", Options{NoChecks: true})
	var b bytes.Buffer
	if err := Write(&b, c, diags); err != nil {
		t.Fatal(err)
	}
	want := "" +
		"error: main.conf line 3: Invalid port number é?[31m\n" +
		"   3 |  submission_relay_port = \"é?[31m\" # c\n" +
		"     |                          ^^^^^^^^\n" +
		"  `submission_relay_port` is a port number from 0 to 65535.\n" +
		"error: main.conf line 5: Invalid time interval: ä ö\n" +
		"   5 |   ä \\\n" +
		"     |   ^^^\n" +
		"  `login_proxy_timeout` is a whole number with its unit, such as 250ms, 30s, 5 mins.\n" +
		"2 errors, 0 warnings\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &b, want)
	}
	if v := c.Root.Value("hostname"); v != "a port = \tx" {
		t.Errorf("hostname is %q", v)
	}
	s, _ := c.Root.Get("hostname")
	if r := s.Last.Range; r.Filename != "main.conf" || r.Line != 2 {
		t.Errorf("the value stands in %v", r)
	}
	b.Reset()
	if err := write(&b, nil, diags, true); err != nil || !strings.Contains(b.String(), "\x1b[1;31merror\x1b[0m: main.conf line 3: ") || strings.Contains(b.String(), " | ") {
		t.Errorf("with colour, without files: %q, %v", &b, err)
	}
}

// Colour is for terminals only.
func TestNoColour(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if terminal(f) || terminal(&bytes.Buffer{}) {
		t.Error("a file is taken for a terminal")
	}
	if err := Write(f, nil, hcl.Diagnostics{hclError("x", "y")}); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(f.Name()); string(b) != "error: x\n  y\n1 error, 0 warnings\n" {
		t.Errorf("%q", b)
	}
}
