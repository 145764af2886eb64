package doveconf

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"dovetail/internal/conf"
)

// pipe returns the path of a pipe with text in it, at its end.
func pipe(t *testing.T, text string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if _, err := w.WriteString(text); err != nil { // a pipe holds 64 KiB
		t.Fatal(err)
	}
	w.Close()
	return fmt.Sprintf("/dev/fd/%d", r.Fd())
}

// What comes from a pipe is treated as a file is, though it can be read only once: nothing
// is lost between looking at it, checking it and converting it.
func TestFromPipe(t *testing.T) {
	const later = "dovecot_config_version = 2.4.4\ndovecot_storage_version = 2.4.4\nhostname = mx.example\n"
	const sieve = "protocols = submission sieve\nssl = no\nmanagesieve_notify_capability = x\n"
	for _, x := range []struct {
		name, conf string
		args       []string
	}{
		{"converted", "protocols = submission\nhostname = mx.example\nimapc_password = hunter2\n", []string{"convert", "--to", "2.4"}},
		{"converted, with sieve", sieve, []string{"convert", "--to", "2.4"}},
		{"for 2.4 already", later, []string{"convert", "--to", "2.4"}},
		{"wrong in two ways", "protocols = submission sieve\nssl = no\nfoo = 1\n", []string{"check"}},
		{"checked for 2.4", later + "foo = 1\n", []string{"check"}},
		{"printed", "hostname = mx.example\n", []string{"-n", "-c"}},
		{"printed, with sieve", sieve, []string{"-n", "-c"}},
		{"printed for 2.4", later, []string{"-n", "-c"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			file := write(t, map[string]string{"main.conf": x.conf}) + "/main.conf"
			run := func(path string) string {
				out, errs, status := call(append(x.args, path)...)
				return fmt.Sprintf("%sstatus %d\n%s", strings.ReplaceAll(out, path, "FILE"), status, strings.ReplaceAll(errs, path, "FILE"))
			}
			want, got := run(file), run(pipe(t, x.conf))
			if got != want || !strings.Contains(got, "mx.example") && !strings.Contains(got, "sieve") && !strings.Contains(got, "foo") {
				t.Errorf("of a file\n%s\nof a pipe\n%s", want, got)
			}
		})
	}
}

// The language is that of a line outside of sections, wherever it stands.
func TestDialectOf(t *testing.T) {
	for text, want := range map[string]string{
		"dovecot_config_version = 2.4.4\n":                                                "2.4",
		"# comment\n\n  dovecot_storage_version=2.4.4":                                    "2.4",
		"service x {\n}\ndovecot_config_version = \\\n 2.4.4\n":                           "2.4",
		"dovecot_config_version \\\n = 2.4.4\n":                                           "2.4",
		"plugin {\n  dovecot_storage_version = x\n}\n":                                    "2.3",
		"plugin {\n  a {\n  }\n  dovecot_config_version = x\n}\n":                         "2.3",
		"passdb{\n  dovecot_config_version = x\n}\n":                                      "2.3",
		"# dovecot_config_version = 2.4.4\nhostname = \\\n  dovecot_config_version = x\n": "2.3",
		"dovecot_config_version_x = 1\ndovecot_config_version\n":                          "2.3",
		"": "2.3",
	} {
		file := write(t, map[string]string{"main.conf": text}) + "/main.conf"
		if got := DialectOf(file, &conf.Pipes{}); got != want {
			t.Errorf("%q: %s", text, got)
		}
	}
	file := write(t, map[string]string{"main.conf": "plugin {\n  dovecot_storage_version = x\n}\n"}) + "/main.conf"
	if out, errs, status := call("-n", "-c", file); status != 0 || !strings.Contains(out, "dovecot_storage_version = x") {
		t.Errorf("status %d: %s%s", status, out, errs)
	}
}
