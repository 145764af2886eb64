package conf

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf/settings/all"
)

func TestSplitList(t *testing.T) {
	for in, want := range map[string]string{
		"a b,c": "a|b|c", ` "x y" , z`: "x y|z", "": "", `"q\"r"`: `q"r`, `a"b`: `!'"' in the middle of a string`,
		`"a`: `!Missing ending '"'`, `"a"b`: `!Expected ',' or ' ' after '"'`, `"a\`: `!Value ends with '\'`, `"" a`: "a",
	} {
		words, err := splitList(in)
		got := strings.Join(words, "|")
		if err != nil {
			got = "!" + err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestPercentSyntax(t *testing.T) {
	for in, want := range map[string]string{
		"plain 5% %u %%{": "", "%{user}": "", "%{user | domain | lower}": "", "%{a | | b}": "", "%{user | f(1, 'x', \"y\", z, k=-2)}": "",
		"%{a + 1}": "", "%{user | domain": "syntax error, unexpected end of file, expecting CCBRACE or PIPE",
		"%{user | default('x)}": "syntax error, unexpected end of file, expecting MINUS or NAME or VALUE or NUMBER",
		"%{a b}":                "syntax error, unexpected NAME, expecting CCBRACE or PIPE", `%{f('\q')}`: "Invalid character escape",
	} {
		if got := percentSyntax(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func load24(t testing.TB, text string, opt Options) (*Config24, hcl.Diagnostics) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "main.conf")
	if err := os.WriteFile(path, []byte("dovecot_config_version = 2.4.4\ndovecot_storage_version = 2.4.4\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load24(path, opt)
}

func TestNamesInBlocks(t *testing.T) {
	c, diags := load24(t, "service x {\n  client_limit = 2\n  inet_listener y {\n    port = 7\n    listen = ::1\n  }\n}\nssl_server {\n  cert_file = a\n}\npassdb static {\n  password = p\n}\n", Options{})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	s := c.Root.Child("service", "x")
	y := s.Child("inet_listener", "y")
	if s.Value("service_client_limit") != "2" || y.Value("inet_listener_port") != "7" || c.Root.Value("ssl_server_cert_file") != "a" ||
		c.Root.Child("passdb", "static").Value("passdb_static_password") != "p" {
		t.Error("names are not as clause C9.2 has them")
	}
	if l, _ := y.Get("listen"); l == nil || !reflect.DeepEqual(l.Items, []Item{{"::1", "yes"}}) {
		t.Errorf("%+v", l)
	}
}

func TestDepth24(t *testing.T) {
	_, diags := load24(t, strings.Repeat("metric x {\n", maxDepth+10), Options{})
	if !strings.Contains(diags.Error(), "nested more than") {
		t.Error(diags)
	}
}

// The built-in blocks have only known settings with right values.
func TestBuiltin24(t *testing.T) {
	tab := all.V24()
	values := tab.Builtin
	for _, o := range tab.Old {
		values = append(values, o.PathValue)
	}
	for _, v := range values {
		parts := strings.Split(v.Path, "/")
		name := parts[len(parts)-1]
		if row, ok := tab.Row(parts[max(len(parts)-2, 0)]); ok && (row.Shape == all.BoolList || row.Shape == all.StrList) {
			continue // an element
		}
		row, ok := tab.Row(name)
		if !ok {
			t.Errorf("%s is not known", v.Path)
		} else if row.Shape == all.Value && !hasVariable(v.Value) {
			if err := row.Normalise24(v.Value); err != nil {
				t.Errorf("%s = %s: %v", v.Path, v.Value, err)
			}
		}
	}
	for _, r := range tab.Rows {
		if err := r.Normalise24(r.Default); r.Shape == all.Value && err != nil && !hasVariable(r.Default) {
			t.Errorf("default of %s: %v", r.Name, err)
		}
	}
}

func FuzzLoad24(f *testing.F) {
	found, _ := filepath.Glob("../../tests/doveconf/2.4/*/*.conf")
	for _, path := range found {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b), false)
		f.Add(string(b), true)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string, expand bool) {
		if strings.Contains(text, "include") || strings.Contains(text, "local") || strings.Contains(text, "remote") || strings.Contains(text, "<") {
			return
		}
		path := filepath.Join(dir, "fuzz.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, _ := Load24(path, Options{Expand: expand})
		c.Merged(Merge24{Filter: Filter{Service: "imap"}, Given: true, Builtin: true, Groups: true})
	})
}
