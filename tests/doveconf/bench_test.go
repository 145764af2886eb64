package doveconf

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/need"
)

// large writes a configuration of about 10,000 lines in 201 files.
func large(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	var main strings.Builder
	main.WriteString("protocols = imap submission\nhostname = mx.example.org\nauth_verbose = yes\n")
	for i := range 200 {
		name := fmt.Sprintf("conf.d/%03d.conf", i)
		fmt.Fprintf(&main, "!include %s\n", name)
		var b strings.Builder
		fmt.Fprintf(&b, "# part %d\nlocal_name mail%d.example.org {\n  ssl_cert = </etc/ssl/%d.pem\n  ssl_key = </etc/ssl/%d.key\n}\n", i, i, i, i)
		fmt.Fprintf(&b, "service extra-%d {\n  client_limit = %d\n  unix_listener extra-%d {\n    mode = 0660\n    user = vmail\n  }\n}\nplugin {\n", i, i+1, i)
		for j := range 32 {
			fmt.Fprintf(&b, "  key_%d_%d = some value of %d # and a comment\n", i, j, j)
		}
		b.WriteString("}\nmail_plugins = quota acl\n")
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "dovecot.conf")
	if err := os.WriteFile(path, []byte(main.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// The same large configuration: `doveconf-lite check`, `doveconf-lite -n`, and the
// installed `doveconf -n`, each as a program of its own.
func BenchmarkLarge(b *testing.B) {
	conf := large(b)
	lite := filepath.Join(b.TempDir(), "doveconf-lite")
	if out, err := exec.Command("go", "build", "-o", lite, "dovetail/cmd/doveconf-lite").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for _, x := range []struct {
		name string
		args []string
	}{
		{"lite-check", []string{lite, "check", conf}},
		{"lite-n", []string{lite, "-n", "-c", conf}},
		{"doveconf-n", []string{"doveconf", "-n", "-c", conf}},
	} {
		b.Run(x.name, func(b *testing.B) {
			need.Program(b, x.args[0])
			best := time.Hour
			for b.Loop() {
				start := time.Now()
				_ = exec.Command(x.args[0], x.args[1:]...).Run()
				best = min(best, time.Since(start))
			}
			b.ReportMetric(float64(best.Microseconds())/1000, "best-ms")
		})
	}
}
