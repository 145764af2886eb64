// Package need says what a test cannot run without. A test that lacks something is
// skipped, naming what is missing; with CI=true in the environment it fails instead, so
// that a build server that lost a package does not look green.
package need

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Missing skips the test, or fails it with CI=true. what names the need: "root".
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("needs %s, and CI=true does not let it be skipped", what)
	}
	t.Skipf("needs %s", what)
}

// Asked leaves a test that only runs when a flag asks for it: one that writes what other
// tests compare with, or needs a program that no package has. flag is its name.
func Asked(t testing.TB, asked bool, flag string) {
	t.Helper()
	if !asked {
		t.Skipf("runs with %s", flag)
	}
}

// Root needs effective user 0.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root")
	}
}

// systemDirs hold daemons, and are often not in the PATH of a user.
var systemDirs = []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"}

// Program needs an executable and returns its path.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, ok := find(name)
	if !ok {
		Missing(t, "the program "+name)
	}
	return path
}

// find looks in PATH first.
func find(name string) (string, bool) {
	if path, err := exec.LookPath(name); err == nil {
		return path, true
	}
	for _, dir := range systemDirs {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, true
		}
	}
	return "", false
}

// Binaries are an installed Dovecot.
type Binaries struct {
	Dovecot, Doveconf, Doveadm string // absolute paths
	Libexec                    string // directory of submission-login and its like
	Version                    string // "2.3.19.1"
}

// Dovecot needs an installed Dovecot 2.3, with its own submission service.
func Dovecot(t testing.TB) Binaries {
	t.Helper()
	b := Binaries{
		Dovecot:  Program(t, "dovecot"),
		Doveconf: Program(t, "doveconf"),
		Doveadm:  Program(t, "doveadm"),
	}
	out, err := exec.Command(b.Dovecot, "--version").Output()
	if err != nil {
		t.Fatalf("%s --version: %v", b.Dovecot, err)
	}
	b.Version, _, _ = strings.Cut(strings.TrimSpace(string(out)), " ") // "2.3.19.1 (9b53102964)"
	if !strings.HasPrefix(b.Version, "2.3.") {
		Missing(t, "Dovecot 2.3 (found "+b.Version+")")
	}
	for _, dir := range []string{"/usr/local/libexec/dovecot", "/usr/libexec/dovecot", "/usr/lib/dovecot"} {
		if _, err := os.Stat(filepath.Join(dir, "submission-login")); err == nil {
			b.Libexec = dir
			return b
		}
	}
	Missing(t, "Dovecot's submission-login")
	return b
}
