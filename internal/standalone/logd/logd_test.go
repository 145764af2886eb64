package logd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dovetail/internal/dovecot/log"
	"dovetail/internal/process/event"
	"dovetail/internal/testkit/need"

	"golang.org/x/sys/unix"
)

// Every conversion is what the C library makes of it.
func TestTimestampsAsC(t *testing.T) {
	date := need.Program(t, "date")
	const letters = "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%"
	var format strings.Builder
	for _, c := range letters {
		fmt.Fprintf(&format, "%%%c|", c)
	}
	zone, err := time.LoadLocation("Europe/Vienna")
	if err != nil {
		need.Missing(t, "time zones")
	}
	for _, at := range []time.Time{
		time.Date(2026, 11, 24, 12, 0, 0, 0, zone),
		time.Date(2026, 1, 1, 0, 0, 0, 0, zone),
		time.Date(2021, 1, 3, 23, 59, 59, 0, zone), // week 53 of the year before
		time.Date(2024, 12, 30, 1, 2, 3, 0, zone),  // week 1 of the next
		time.Date(2025, 7, 5, 13, 4, 5, 0, zone),
	} {
		cmd := exec.Command(date, fmt.Sprintf("--date=@%d", at.Unix()), "+"+format.String())
		cmd.Env = []string{"LC_ALL=C", "TZ=Europe/Vienna"}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(strings.TrimSuffix(string(out), "\n"), "|")
		for i, c := range letters {
			if got := string(appendTime(nil, "%"+string(c), at)); got != want[i] && c != 'r' && c != 'x' {
				t.Errorf("%v %%%c: got %q, C has %q", at, c, got, want[i])
			}
		}
	}
}

func TestTimestampForms(t *testing.T) {
	at := time.Date(2026, 11, 4, 9, 5, 7, 12345678, time.UTC)
	for format, want := range map[string]string{
		"%b %d %H:%M:%S ":        "Nov 04 09:05:07 ",
		"%Y-%m-%d %T.%{usecs}: ": "2026-11-04 09:05:07.012345: ",
		"%{usecs":                "%{usecs",
		"100%":                   "100%",
		"%Ex %Oy %!":             "11/04/26 26 %!",
		"":                       "",
	} {
		if got := string(appendTime(nil, format, at)); got != want {
			t.Errorf("%q: got %q, want %q", format, got, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	want := Settings{Path: "/a", InfoPath: "/b", DebugPath: "", Timestamp: "%H ", Facility: "local3", Instance: "x", JSON: true}
	env := map[string]string{}
	for _, e := range want.Environ() {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	if got := FromEnv(func(name string) string { return env[name] }); got != want {
		t.Errorf("got %+v", got)
	}
	if got := want.Files(); fmt.Sprint(got) != "[/a /b]" {
		t.Errorf("files: %v", got)
	}
	if got := (Settings{Path: "syslog", InfoPath: "/dev/stderr"}).Files(); len(got) != 0 {
		t.Errorf("files: %v", got)
	}
}

var at = time.Date(2026, 11, 24, 12, 0, 0, 5000, time.UTC)

func rec(level event.Level, text string) log.Record {
	return log.Record{Level: level, Prefix: "submission-login: ", Text: text, PID: 42}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Errors, information and debug lines go where each is to go.
func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		set        Settings
		a, b, c, s string // lines by initial letters
	}{
		{Settings{Path: dir + "/a"}, "DIWEFP", "", "", ""},
		{Settings{Path: dir + "/a", InfoPath: dir + "/b"}, "WEFP", "DI", "", ""},
		{Settings{Path: dir + "/a", InfoPath: dir + "/b", DebugPath: dir + "/c"}, "WEFP", "I", "D", ""},
		{Settings{Path: dir + "/a", DebugPath: dir + "/c"}, "IWEFP", "", "D", ""},
	} {
		for _, n := range "abc" {
			os.Remove(dir + "/" + string(n))
		}
		c.set.Timestamp = "%b %d %H:%M:%S "
		o, err := Open(c.set)
		if err != nil {
			t.Fatal(err)
		}
		for l := event.Debug; l <= event.Panic; l++ {
			o.Write("submission-login", rec(l, "text"), at)
		}
		o.Close()
		for n, want := range map[string]string{"a": c.a, "b": c.b, "c": c.c} {
			b, _ := os.ReadFile(dir + "/" + n)
			got := ""
			for line := range strings.Lines(string(b)) {
				word, ok := strings.CutPrefix(line, "Nov 24 12:00:00 submission-login: ")
				if !ok || !strings.HasSuffix(word, ": text\n") {
					t.Errorf("line %q", line)
					continue
				}
				got += word[:1]
			}
			if got != want {
				t.Errorf("%+v: %s has %s, want %s", c.set, n, got, want)
			}
		}
	}
	if st, err := os.Stat(dir + "/a"); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
}

func TestJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	o, err := Open(Settings{Path: path, JSON: true})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	o.Write("submission", log.Record{Level: event.Warning, Prefix: "submission(a): ", Text: `say "hi" \ ü`, PID: 7}, at)
	text := read(t, path)
	want := `{"time":"2026-11-24T12:00:00.000005Z","level":"warning","service":"submission","pid":7,"prefix":"submission(a): ","text":"say \"hi\" \\ ü"}` + "\n"
	if text != want {
		t.Errorf("got  %swant %s", text, want)
	}
	var parsed map[string]any
	if err := json.Unmarshal([]byte(text), &parsed); err != nil || parsed["text"] != `say "hi" \ ü` {
		t.Errorf("%v %v", parsed, err)
	}
}

// What cannot be opened is an error that names it, and says why.
func TestCannotOpen(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(Settings{Path: dir + "/no/log", InfoPath: dir})
	want := "Can't open log file " + dir + "/no/log: No such file or directory\nCan't open log file " + dir + ": Is a directory"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

// A full disk is said once; lines go to syslog until it is over, then it is said how many
// they were.
func TestFullDisk(t *testing.T) {
	got := fakeSyslog(t, "unixgram")
	dir := t.TempDir()
	o, err := Open(Settings{Path: dir + "/log", Facility: "mail", Instance: "dovecot"})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	full, err := unix.Open("/dev/full", unix.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !o.Replace(dir+"/log", full) {
		t.Fatal("not replaced")
	}
	o.Write("auth", rec(event.Info, "one"), at)
	o.Write("auth", rec(event.Error, "two"), at.Add(time.Second))
	for _, want := range []string{
		"<19>Nov 24 12:00:00 dovecot: log: Error: writing to " + dir + "/log failed: No space left on device. Lines go elsewhere until it works again",
		"<22>Nov 24 12:00:00 dovecot: submission-login: one",
		"<19>Nov 24 12:00:01 dovecot: submission-login: Error: two",
	} {
		if line := got(); line != want {
			t.Errorf("got  %s\nwant %s", line, want)
		}
	}
	if err := o.Reopen(); err != nil {
		t.Fatal(err)
	}
	o.Write("auth", rec(event.Info, "three"), at.Add(retryAfter+time.Second))
	want := "submission-login: Info: three\nlog: Warning: " + dir + "/log can be written to again; 2 lines went elsewhere\n"
	if text := read(t, dir+"/log"); text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

// fakeSyslog listens as syslog does; the function returns the next message.
func fakeSyslog(t *testing.T, network string) func() string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dt")
	if err != nil {
		t.Fatal(err)
	}
	path := dir + "/log"
	old := syslogSockets
	syslogSockets = []string{path}
	t.Cleanup(func() { syslogSockets = old; os.RemoveAll(dir) })
	lines := make(chan string, 100)
	addr := &net.UnixAddr{Name: path, Net: network}
	receive := func(c net.Conn) {
		for {
			b := make([]byte, 8192)
			n, err := c.Read(b)
			if err != nil {
				return
			}
			for m := range bytes.SplitSeq(bytes.TrimSuffix(b[:n], []byte{0}), []byte{0}) {
				lines <- string(m)
			}
		}
	}
	if network == "unixgram" {
		c, err := net.ListenUnixgram(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go receive(c)
	} else {
		ln, err := net.ListenUnix(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go receive(c)
			}
		}()
	}
	return func() string {
		select {
		case l := <-lines:
			return l
		case <-time.After(10 * time.Second):
			t.Fatal("no message")
			return ""
		}
	}
}

// Severities are Dovecot's, and its Info lines have no severity word.
func TestSyslog(t *testing.T) {
	for _, network := range []string{"unixgram", "unix"} {
		got := fakeSyslog(t, network)
		o, err := Open(Settings{Path: "syslog", Facility: "local0", Instance: "my"})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{
			"<135>Nov 24 12:00:00 my: submission-login: Debug: x",
			"<134>Nov 24 12:00:00 my: submission-login: x",
			"<132>Nov 24 12:00:00 my: submission-login: Warning: x",
			"<131>Nov 24 12:00:00 my: submission-login: Error: x",
			"<130>Nov 24 12:00:00 my: submission-login: Fatal: x",
			"<130>Nov 24 12:00:00 my: submission-login: Panic: x",
		} {
			o.Write("submission-login", rec(event.Level(i), "x"), at)
			if line := got(); line != want {
				t.Errorf("%s: got  %q\nwant %q", network, line, want)
			}
		}
		o.Close()
	}
}

// Lines that are read are worth more than what the master has to say of a process's end.
func TestSourceDoesWhatIsAskedWhenEmpty(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	w := os.NewFile(uintptr(p[1]), "w")
	if _, err := w.Write(log.AppendHandshake(nil, "svc: ")); err != nil {
		t.Fatal(err)
	}
	src, err := newSource(p[0], "other: ")
	if err != nil {
		t.Fatal(err)
	}
	defer src.close()
	for i := range 100 {
		fmt.Fprintf(w, "\x01\x02%d line %d\n", 5, i)
	}
	order := make(chan string, 200)
	src.do(func() { order <- "asked" })
	go func() {
		defer close(order)
		lines, err := log.NewReader(src)
		if err != nil {
			order <- err.Error()
			return
		}
		for {
			r, err := lines.Next()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					order <- err.Error()
				}
				return
			}
			order <- r.Prefix + r.Text
		}
	}()
	for i := range 100 {
		if got, want := <-order, fmt.Sprintf("svc: line %d", i); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	if got := <-order; got != "asked" {
		t.Fatalf("got %s", got)
	}
	fmt.Fprintf(w, "\x01\x025 more\n")
	if got := <-order; got != "svc: more" {
		t.Fatalf("got %s", got)
	}
	src.do(func() { order <- "again" })
	if got := <-order; got != "again" {
		t.Fatalf("got %s", got)
	}
	fmt.Fprintf(w, "\x01\x025 last\n")
	src.end()
	if got := <-order; got != "svc: last" {
		t.Fatalf("got %s", got)
	}
	if got, ok := <-order; ok {
		t.Fatalf("after the end: %s", got)
	}
}

// A pipe whose handshake an earlier log process has read has its service's prefix all the
// same.
func TestSourceWithoutHandshake(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(p[1], []byte("\x01\x0242 hello\n")); err != nil {
		t.Fatal(err)
	}
	unix.Close(p[1])
	src, err := newSource(p[0], "auth: ")
	if err != nil {
		t.Fatal(err)
	}
	defer src.close()
	lines, err := log.NewReader(src)
	if err != nil {
		t.Fatal(err)
	}
	r, err := lines.Next()
	if err != nil || r.Prefix != "auth: " || r.Text != "hello" || r.PID != 42 {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := lines.Next(); err != io.EOF {
		t.Errorf("%v", err)
	}
}

func TestRecentErrors(t *testing.T) {
	var r recent
	r.add(rec(event.Info, "no"), at)
	r.add(rec(event.Error, "a\tb"), at)
	if got, want := r.all(), fmt.Sprintf("error\t%d\tsubmission-login: \ta\x01tb\n", at.Unix()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for i := range maxErrors + 10 {
		r.add(rec(event.Warning, fmt.Sprint(i)), at)
	}
	if n := strings.Count(r.all(), "\n"); n != maxErrors {
		t.Errorf("%d lines are kept", n)
	}
	for range 600 {
		r.add(rec(event.Warning, strings.Repeat("x", 4000)), at)
	}
	if n := len(r.all()); n > maxErrorBytes {
		t.Errorf("%d bytes are kept", n)
	}
}

// The master's orders: anything that is none is an error.
func FuzzOrder(f *testing.F) {
	for _, s := range []string{"8 42 BYE", "8 42 FATAL service(x): child 42 returned error 1", "8 42 DEFAULT-FATAL x", "9 1 BYE", "x", "8 y BYE", "8 1 WHAT", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(p[1])
		src, err := newSource(p[0], "x: ")
		if err != nil {
			t.Fatal(err)
		}
		defer src.close()
		r := &role{readers: map[int]*reader{8: {source: src, service: "x"}}, out: &Output{places: map[string]*place{}}}
		err = r.order(line)
		word, _, _ := strings.Cut(line, " ")
		if err == nil && word != "8" && strings.TrimLeft(word, "+0") != "8" {
			t.Errorf("%q was taken", line)
		}
	})
}

func FuzzTimestamp(f *testing.F) {
	f.Add("%b %d %H:%M:%S ")
	f.Add("%{usecs}%E%O%")
	f.Fuzz(func(t *testing.T, format string) {
		if got := appendTime(nil, format, at); len(got) > 40*len(format)+40 {
			t.Errorf("%q gives %d bytes", format, len(got))
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	o, err := Open(Settings{Path: filepath.Join(b.TempDir(), "log"), Timestamp: "%b %d %H:%M:%S "})
	if err != nil {
		b.Fatal(err)
	}
	defer o.Close()
	r := rec(event.Info, "Login: user=<alice>, method=PLAIN, rip=127.0.0.1, lip=127.0.0.1, mpid=15217, secured, session=<luTm2glh3LJ/AAAB>")
	b.ReportAllocs()
	for b.Loop() {
		o.Write("submission-login", r, at)
	}
}
