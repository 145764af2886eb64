package all

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"dovetail/internal/conf/settings"
)

var update = flag.Bool("update", false, "write docs/settings.md")

const reference = "../../../../docs/settings.md"

// The reference says what the tables say. `go test ./internal/conf/settings/all -update`
// writes it.
func TestReference(t *testing.T) {
	want := settingsReference(t)
	if *update {
		if err := os.WriteFile(reference, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/settings.md is not that of the tables: go test ./internal/conf/settings/all -update")
	}
}

// What its head says of units is so: `fails` has the values that must have one.
func TestUnitsOfReference(t *testing.T) {
	for _, x := range []struct {
		typ   settings.Type
		value string
		fails bool
	}{
		{settings.Size, "40", false}, {settings.Size, "40M", false},
		{settings.Time, "30", true}, {settings.Time, "30s", false}, {settings.Time, "5 mins", false}, {settings.Time, "0", false},
		{settings.MSecs, "30", true}, {settings.MSecs, "30s", false}, {settings.MSecs, "0", false},
	} {
		if _, err := x.typ.Normalise(x.value, nil); (err != nil) != x.fails {
			t.Errorf("%v %s: %v", x.typ, x.value, err)
		}
	}
	head, _, _ := strings.Cut(settingsReference(t), "## ")
	if !strings.Contains(head, "a time must have one (`30s`, `5 mins`), except 0.") {
		t.Errorf("%s", head)
	}
}

// docs are the lines of doc.txt.
func docs(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("doc.txt")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for l := range strings.Lines(string(text)) {
		name, doc, ok := strings.Cut(strings.TrimSpace(l), "\t")
		if !ok || out[name] != "" {
			t.Errorf("doc.txt: %q", l)
		}
		out[name] = doc
	}
	return out
}

func settingsReference(t *testing.T) string {
	t.Helper()
	used := map[string][]string{}
	add := func(program string, typ reflect.Type) {
		for _, f := range reflect.VisibleFields(typ) {
			if name := f.Tag.Get("setting"); name != "" {
				used[name] = append(used[name], program)
			}
		}
	}
	add("submission-login", reflect.TypeFor[settings.Login]())
	add("submission", reflect.TypeFor[settings.Submission]())
	add("submission", reflect.TypeFor[settings.BURLServer]())
	used["ssl"] = []string{"submission-login", "submission"} // the struct has the field's name
	used["dovetail_log_format"] = []string{"submission-login", "submission"}

	var b strings.Builder
	b.WriteString("# Settings\n\nNames, types and defaults are those of Dovecot 2.3.19.1 in Debian; `-` is what 2.4 does not have.\n" +
		"A size is in octets unless it has a unit (`40M`), a time must have one (`30s`, `5 mins`), except 0.\n" +
		"What `doveconf-lite` prints of a configuration is that of `doveconf`; `doveconf-lite check` says what the programs do not do.\n\n" +
		"## What the programs use\n\n| setting | type | default | in 2.4 | used by | |\n| --- | --- | --- | --- | --- | --- |\n")
	doc := docs(t)
	for _, s := range settings.Table() {
		if s.Program != "" {
			continue // its default stands with the other row
		}
		def := "`" + s.Default + "`"
		for _, other := range settings.Table() {
			if other.Name == s.Name && other.Program != "" {
				def += ", " + other.Program + ": `" + other.Default + "`"
			}
		}
		if doc[s.Name] == "" || used[s.Name] == nil {
			t.Errorf("%s: doc %q, used by %v", s.Name, doc[s.Name], used[s.Name])
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", s.Name, typeOf(s), code(def), later(s.Name), strings.Join(used[s.Name], ", "), doc[s.Name])
		delete(doc, s.Name)
	}
	b.WriteString("\n## What only these programs have\n\nUnder Dovecot they stand in `plugin { }`; `dovetail` takes them at the root, too. All since 1.0.\n\n" +
		"| setting | type | default | used by | |\n| --- | --- | --- | --- | --- |\n")
	for _, s := range settings.Own {
		if doc[s.Name] == "" || used[s.Name] == nil {
			t.Errorf("%s: doc %q, used by %v", s.Name, doc[s.Name], used[s.Name])
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", s.Name, typeOf(s), code("`"+s.Default+"`"), strings.Join(used[s.Name], ", "), doc[s.Name])
		delete(doc, s.Name)
	}
	for name := range doc {
		t.Errorf("doc.txt has %s", name)
	}
	b.WriteString("\n## What they leave to others\n\nKnown, checked and printed; the two programs do not look at them.\n\n| setting | type | default | in 2.4 |\n| --- | --- | --- | --- |\n")
	for _, s := range V23().Rows {
		if s.Kind == 0 && used[s.Name] == nil {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s.Name, typeOf(s.Setting), code("`"+s.Default+"`"), later(s.Name))
		}
	}
	return b.String()
}

// later is what a setting of 2.3 is called in 2.4.
func later(name string) string {
	short := name[strings.LastIndexByte(name, '/')+1:]
	if now, ok := Renamed[short]; ok && now.To != name {
		if now.To == "" {
			return "-"
		}
		return "`" + now.To + "`"
	}
	if _, ok := V24().Row(strings.ReplaceAll(name, "/", "_")); ok {
		return "same"
	}
	return "-"
}

func typeOf(s settings.Setting) string {
	if s.Type == settings.Enum {
		return strings.Join(s.Enum, ", ")
	}
	return s.Type.String()
}

// code is text in backquotes, in a cell of a table.
func code(s string) string {
	if s == "``" {
		return ""
	}
	return strings.ReplaceAll(s, "|", `\|`)
}
