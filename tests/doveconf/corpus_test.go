// Package doveconf compares doveconf-lite with what Dovecot's doveconf printed about a
// corpus of configurations, and with the doveconf that is installed. See README.md.
package doveconf

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"dovetail/internal/conf/doveconf"
	"dovetail/internal/conf/settings/all"
	"dovetail/internal/testkit/need"
)

// A testCase is NAME.conf with what is expected beside it.
type testCase struct {
	version string // "2.3", "2.4"
	dir     string
	name    string
	env     map[string]string
}

func (c testCase) String() string { return filepath.Join(c.dir, c.name) }

func (c testCase) file(suffix string) (string, bool) {
	b, err := os.ReadFile(filepath.Join(c.dir, c.name+suffix))
	return string(b), err == nil
}

// cases finds those of one version.
func cases(t *testing.T, version string) []testCase {
	t.Helper()
	var out []testCase
	err := filepath.WalkDir(version, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".n.expected") {
			return err
		}
		dir, err := filepath.Abs(filepath.Dir(path))
		if err != nil {
			return err
		}
		c := testCase{version: version, dir: dir, name: strings.TrimSuffix(filepath.Base(path), ".n.expected"), env: map[string]string{}}
		env, _ := c.file(".env")
		for l := range strings.Lines(env) {
			if k, v, ok := strings.Cut(strings.TrimSuffix(l, "\n"), "="); ok {
				c.env[k] = v
			}
		}
		out = append(out, c)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var (
	versionLine = regexp.MustCompile(`^# (2\.[34]\S* \([0-9a-f]*\)): (.*)$`)
	noDigits    = regexp.MustCompile(`Hostname '[^']*' has no digits`)
)

// normalise takes out what belongs to a machine.
func normalise(text string) string {
	var out []string
	for _, l := range strings.Split(text, "\n") {
		if m := versionLine.FindStringSubmatch(l); m != nil {
			l = "# @VERSION@: " + m[2]
		}
		switch {
		case strings.HasPrefix(l, "# Pigeonhole version"), strings.HasPrefix(l, "managesieve_notify_capability = "),
			strings.HasPrefix(l, "managesieve_sieve_capability = "):
			continue
		case strings.HasPrefix(l, "# OS: "):
			l = "# OS: @OS@"
		case strings.HasPrefix(l, "# Hostname: "):
			l = "# Hostname: @HOSTNAME@"
		}
		if strings.HasPrefix(l, "base_dir = "+all.Prefix24) {
			l = "base_dir = @PREFIX@" + l[len("base_dir = "+all.Prefix24):]
		}
		out = append(out, l)
	}
	return noDigits.ReplaceAllString(strings.Join(out, "\n"), "Hostname '@HOSTNAME@' has no digits")
}

// lite runs doveconf-lite in the folder of the case.
func (c testCase) lite(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	t.Chdir(c.dir)
	var o, e bytes.Buffer
	status = doveconf.Main(append([]string{"--dialect=" + c.version}, args...), doveconf.Env{Stdout: &o, Stderr: &e, LookupEnv: func(name string) (string, bool) {
		v, ok := c.env[name]
		switch name {
		case "HOME":
			return "/nonexistent", true
		case "LANG":
			return "C.UTF-8", true
		}
		return v, ok
	}})
	return normalise(o.String()), normalise(e.String()), status
}

// better are the outputs in which ours differ from the real ones on purpose, with why.
var better = map[string]string{
	"2.3/feature/out-bug-missing-close-brace.n.expected": "C22.1: the real one loses a }",
	"2.4/feature/lex-comments-and-quotes.n.expected":     `C22.4: the real one prints \', which 2.4 does not read`,
	"2.4/feature/lex-quoted-key.n.expected":              "C22.5: the real one splits a key at its =",
	"2.4/feature/lex-quoted-key.a.expected":              "C22.5",
}

// Every output is as Dovecot's doveconf printed it.
func TestCorpus23(t *testing.T) { corpus(t, "2.3", cases(t, "2.3")) }

// The files that Debian's packages install, which are not copied here.
func TestDebian(t *testing.T) {
	const from = "/usr/share/dovecot"
	main, err := os.ReadFile(from + "/dovecot.conf")
	if err != nil {
		need.Missing(t, "Dovecot's packages")
	}
	dir := t.TempDir()
	files := map[string]string{"dovecot.conf": strings.Replace(string(main), from+"/protocols.d/", "protocols.d/", 1)}
	for _, pattern := range []string{from + "/conf.d/*", from + "/protocols.d/*", "debian-2.3/*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			files[strings.TrimPrefix(strings.TrimPrefix(name, from+"/"), "debian-2.3/")] = string(b)
		}
	}
	for _, p := range []string{"imapd", "lmtpd", "submissiond"} {
		if files["protocols.d/"+p+".protocol"] == "" {
			need.Missing(t, "the package of "+p)
		}
	}
	delete(files, "protocols.d/managesieved.protocol")
	delete(files, "protocols.d/pop3d.protocol")
	write(t, dir, files)
	corpus(t, "2.3", []testCase{{version: "2.3", dir: dir, name: "dovecot"}})
}

func corpus(t *testing.T, version string, list []testCase) {
	words, err := os.ReadFile("settings-" + version + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(words))
	equal, unequal, onPurpose := map[string]int{}, map[string]int{}, 0
	for _, c := range list {
		check := func(suffix, got string) {
			want, ok := c.file(suffix)
			if !ok {
				t.Errorf("%s%s is missing", c, suffix)
				return
			}
			name, _ := filepath.Rel(root, c.String()+suffix)
			switch {
			case got == want:
				equal[suffix]++
			case better[name] != "":
				onPurpose++
			default:
				unequal[suffix]++
				t.Errorf("%s\n%s", name, diff(want, got))
			}
		}
		out, errs, status := c.lite(t, "-n", "-c", c.name+".conf")
		check(".n.expected", out)
		check(".err.expected", errs+exit(status))
		if _, ok := c.file(".a.expected"); ok {
			out, _, status := c.lite(t, append([]string{"-c", c.name + ".conf"}, names...)...)
			if status != 0 {
				out = exit(status)
			}
			check(".a.expected", out)
		}
		if queries, ok := c.file(".q"); ok {
			check(".q.expected", c.queries(t, queries))
		}
	}
	t.Logf("%s, %d cases: equal %v, unequal %v, better on purpose %d", version, len(list), equal, unequal, onPurpose)
}

func exit(status int) string { return "exit: " + strconv.Itoa(status) + "\n" }

// queries runs the command lines of a .q file.
func (c testCase) queries(t *testing.T, lines string) string {
	var b strings.Builder
	for l := range strings.Lines(lines) {
		l = strings.TrimSpace(l)
		if l == "" || l[0] == '#' {
			continue
		}
		out, errs, status := c.lite(t, append([]string{"-c", c.name + ".conf"}, strings.Fields(l)...)...)
		b.WriteString("$ doveconf -c " + c.name + ".conf " + l + "\n" + out)
		if out != "" && !strings.HasSuffix(out, "\n") {
			b.WriteString("\n@NO-NEWLINE@\n")
		}
		for _, x := range strings.Split(errs, "\n") {
			if x != "" {
				b.WriteString("stderr: " + x + "\n")
			}
		}
		b.WriteString(exit(status) + "\n")
	}
	return b.String()
}

// diff shows where two texts begin to differ.
func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < len(w) && i < len(g) && w[i] == g[i] {
		i++
	}
	cut := func(l []string) string {
		from := max(i-2, 0)
		return strings.Join(l[min(from, len(l)):min(i+6, len(l))], "\n    ")
	}
	return "  line " + strconv.Itoa(i+1) + " want\n    " + cut(w) + "\n  got\n    " + cut(g)
}

func TestCorpus24(t *testing.T) { corpus(t, "2.4", cases(t, "2.4")) }
