package conf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
)

// first is the first error's text.
func first(diags hcl.Diagnostics) string {
	for _, d := range diags {
		if d.Severity == hcl.DiagError {
			return d.Summary
		}
	}
	return ""
}

// Files that are no files, and files that include each other, end in time and with a
// message that says why.
func TestBounds(t *testing.T) {
	shortWait(t)
	was := maxTotalSize
	maxTotalSize = 40 << 20
	t.Cleanup(func() { maxTotalSize = was })
	dir := t.TempDir()
	t.Chdir(dir)
	if err := syscall.Mkfifo("fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	file(t, "self", "!include ./self\nhostname = x\n")
	file(t, "twice", "!include ./twice\n!include ././twice\n")
	file(t, "ping", "!include pong\n")
	file(t, "pong", "!include ././ping\n")
	file(t, "deep", strings.Repeat("service a {\n", 5000))
	file(t, "filters", strings.Repeat("local_name a {\n", 5000))
	file(t, "noise", strings.Repeat("\x01\x02 garbage \xff\n", 50_000))
	file(t, "zero", "!include /dev/zero\n!include_try /dev/zero\n")
	file(t, "fifos", "!include fifo\nlogin_greeting = <fifo\n")
	file(t, "grow", strings.Repeat("hostname = $hostname "+strings.Repeat("x", 500)+"\n", 2000))
	file(t, "braces", "!include "+strings.Repeat("{a,b}", 40)+"\n")
	file(t, "stars", "!include "+strings.Repeat("*a", 200)+"b\n")
	file(t, strings.Repeat("a", 200), "")
	for i := range maxInclude + 2 {
		file(t, fmt.Sprintf("chain/%d", i), fmt.Sprintf("!include %d\n", i+1))
	}
	for _, c := range []struct{ name, want string }{
		{"self", "Recursive include file: ././self"},
		{"twice", "Recursive include file: ././twice"},
		{"ping", "Recursive include file: ./././ping"},
		{"deep", "Unknown setting: service { service { service"},
		{"filters", "Sections are nested more than 100 deep"},
		{"grow", "Files and values have more than 40 MB in all"},
		{"noise", "Expecting '{'"},
		{"zero", "Couldn't open include file /dev/zero: the file is too large"},
		{"fifos", "Couldn't open include file ./fifo: nothing came for 200ms"},
		{"braces", "No matches"},
		{"stars", "No matches"},
		{"chain/0", "Files include each other more than 100 deep"},
		{"fifo", "open(./fifo) failed: nothing came for 200ms"},
		{"/dev/null", ""},
		{".", ""},
		{"nosuch", "open(nosuch) failed: No such file or directory"},
	} {
		start := time.Now()
		_, diags := Load("./"+c.name, Options{NoChecks: true, Expand: true})
		if strings.HasPrefix(c.name, "/") {
			_, diags = Load(c.name, Options{NoChecks: true})
		}
		if got := first(diags); !strings.HasPrefix(got, strings.Replace(c.want, "open(", "open(./", 1)) && got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if d := time.Since(start); d > time.Minute {
			t.Errorf("%s took %v", c.name, d)
		}
		if len(diags) > maxErrors+1 {
			t.Errorf("%s: %d messages", c.name, len(diags))
		}
	}
}

// shortWait makes waiting for pipes short.
func shortWait(t *testing.T) {
	was := readTimeout
	readTimeout = 200 * time.Millisecond
	t.Cleanup(func() { readTimeout = was })
}

// A pipe whose writer says nothing does not stop the reader for good; one whose writer
// comes later is read.
func TestSlowPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { // ends when the pipe has been read
		done <- os.WriteFile(path, []byte("hostname = late\n"), 0)
	}()
	c, diags := Load(path, Options{NoChecks: true})
	if v := c.Root.Value("hostname"); v != "late" || diags.HasErrors() {
		t.Errorf("%q, %v", v, diags)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A reader and writer in one, so that the other reader does not see the end.
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	shortWait(t)
	_, diags = Load(path, Options{NoChecks: true})
	if got := first(diags); !strings.Contains(got, "nothing came for 200ms") {
		t.Errorf("%q", got)
	}
}

// 10,000 lines in 200 files.
func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	for i := range 200 {
		var s strings.Builder
		for j := range 8 {
			fmt.Fprintf(&s, "# a comment\nlocal_name host%d-%d.example.org {\n  ssl_cert = </etc/ssl/%d.pem # cert\n  ssl_key = \"</etc/ssl/%d.key\"\n  mail_plugins = $mail_plugins x\n}\n", i, j, i, j)
		}
		fmt.Fprintf(&s, "service x%d {\n  client_limit = 1\n}\n", i)
		writeFile(b, filepath.Join(dir, "conf.d", fmt.Sprintf("%03d.conf", i)), s.String())
	}
	path := filepath.Join(dir, "dovecot.conf")
	writeFile(b, path, "!include conf.d/*.conf\n")
	b.Run("parse", func(b *testing.B) {
		for b.Loop() {
			if _, diags := Load(path, Options{NoChecks: true}); diags.HasErrors() {
				b.Fatal(diags)
			}
		}
	})
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			if _, diags := Load(path, Options{}); diags.HasErrors() {
				b.Fatal(diags)
			}
		}
	})
}
