package log

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"dovetail/internal/process/event"
)

// logPipe is a pipe as a master makes it, with the handshake in it. The write end is
// non-blocking.
func logPipe(t testing.TB, service string) (*Writer, *os.File) {
	t.Helper()
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	syscall.SetNonblock(fds[1], true)
	syscall.Write(fds[1], AppendHandshake(nil, service))
	r := os.NewFile(uintptr(fds[0]), "log pipe")
	t.Cleanup(func() { r.Close(); syscall.Close(fds[1]) })
	return NewWriter(fds[1], service), r
}

func closeWriter(w *Writer) { syscall.Close(w.fd); w.fd = -1 }

// What the real submission-login wrote to descriptor 2 in two sessions is what a Writer
// writes for the same calls, and a Reader understands it.
func TestRecordedLogin(t *testing.T) {
	golden, err := os.ReadFile("testdata/login.bin")
	if err != nil {
		t.Fatal(err)
	}
	const name = "submission-login: "
	var texts []string
	var pids []int
	for line := range bytes.Lines(golden) {
		l, err := Parse(strings.TrimSuffix(string(line), "\n"))
		if err != nil || l.PID == 0 {
			t.Fatalf("%q: %+v, %v", line, l, err)
		}
		if !l.Option {
			texts, pids = append(texts, l.Text), append(pids, l.PID)
		}
	}
	if len(texts) != 2 || !strings.HasPrefix(texts[0], "Disconnected: Aborted login by logging out (no auth attempts") ||
		!strings.Contains(texts[1], "user=<alüce>") {
		t.Fatalf("recorded %q", texts)
	}

	var written []byte
	for i, text := range texts {
		w, pipe := logPipe(t, name)
		w.pid = pids[i]
		w.SetIP("127.0.0.1")
		w.SetPrefix(name)
		w.Log(event.Info, name, text)
		closeWriter(w)
		b, err := io.ReadAll(pipe)
		if err != nil {
			t.Fatal(err)
		}
		written = append(written, b[handshakeHead+len(name):]...)
	}
	if !bytes.Equal(written, golden) {
		t.Errorf("written\n%q\nrecorded\n%q", written, golden)
	}

	r, err := NewReader(bytes.NewReader(append(AppendHandshake(nil, name), golden...)))
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range texts {
		rec, err := r.Next()
		if want := (Record{event.Info, name, text, pids[i]}); err != nil || rec != want {
			t.Errorf("read %+v, %v", rec, err)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// lines are what a process may write, with PID for its pid, and what the log service makes
// of it (TestRealLogService asks the real one).
var lines = []struct {
	sent, want string
	ours       bool // the real one passes on what is not printable
}{
	{"\x01\x02PID text\n", "submission: Info: text", false},
	{"\x01\x01PID text\n", "submission: Debug: text", false},
	{"\x01\x06PID text\n", "submission: Panic: text", false},
	{"\x01\x08PID prefix=my(x): \n\x01\x02PID text\n", "my(x): Info: text", false},
	{"\x01\x08PID prefix=my(x): \n\x01\x029999 text\n", "submission: Info: text", false}, // another pid's
	{"\x01\xc2PID 8 my(pfx) text: rest\n", "my(pfx) Info: text: rest", false},
	{"\x01\x42PID 8 my(pfx) text: rest\n", "my(pfx) Info: text: rest", false},
	{"\x01\x82PID text\n", "Info: text", false},
	{"\x01\xc2PID 99 text\n", "Info: text", false}, // longer than the text
	{"\x01\xc2PID 0 text\n", "Info: text", false},
	{"\x01\xc2PID x text\n", "Info: x text", false},
	{"panic: oops\n", "submission: Error: panic: oops", false},
	{"\n", "submission: Error: ", false},
	{"\x01\x02text without pid\n", "submission: Info: text without pid", false},
	{"\x01\x02PID grüße\n", "submission: Info: grüße", false},
	{"\x01\x02PID a\x1b[2Jb\rc\x00d\n", "submission: Info: a?[2Jb?c?d", true},
	{"no end", "submission: Error: no end", true},
}

func TestReader(t *testing.T) {
	for _, c := range lines {
		wire := strings.ReplaceAll(c.sent, "PID", "77")
		r, err := NewReader(io.MultiReader(bytes.NewReader(AppendHandshake(nil, "submission: ")), strings.NewReader(wire)))
		if err != nil {
			t.Fatal(err)
		}
		rec, err := r.Next()
		if err != nil {
			t.Errorf("%q: %v", c.sent, err)
		}
		if got := rec.Prefix + rec.Level.String() + ": " + rec.Text; got != c.want {
			t.Errorf("%q:\n got %q\nwant %q", c.sent, got, c.want)
		}
	}
}

// A type that no line has is told about and costs nothing else.
func TestBrokenType(t *testing.T) {
	for _, typ := range []byte{0, 7, 9, 0x3f} {
		sent := append(AppendHandshake(nil, "x: "), startByte, typ)
		r, err := NewReader(bytes.NewReader(append(sent, "77 text\n\x01\x0277 next\n"...)))
		if err != nil {
			t.Fatal(err)
		}
		rec, err := r.Next()
		if err != nil || rec.Level != event.Error || !strings.HasPrefix(rec.Text, fmt.Sprintf("broken log line: type %d", typ)) {
			t.Errorf("type %d: %+v, %v", typ, rec, err)
		}
		if rec, err := r.Next(); err != nil || rec.Text != "next" {
			t.Errorf("type %d: then %+v, %v", typ, rec, err)
		}
	}
}

func TestForgetTellsWhatTheProcessSaid(t *testing.T) {
	wire := "\x01\x0877 ip=192.0.2.1\n\x01\x0578 gone\n\x01\x0879 ip=192.0.2.2\n\x01\x0879 prefix=p: \n\x01\x0277 x\n"
	r, err := NewReader(io.MultiReader(bytes.NewReader(AppendHandshake(nil, "s: ")), strings.NewReader(wire)))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	for pid, want := range map[int]Last{
		77: {Prefix: "s: ", IP: "192.0.2.1"},
		78: {Prefix: "s: ", FatalLogged: true},
		79: {Prefix: "p: "},
		80: {Prefix: "s: "},
	} {
		if got := r.Forget(pid); got != want {
			t.Errorf("pid %d: %+v, want %+v", pid, got, want)
		}
	}
	if len(r.clients) != 0 {
		t.Errorf("%d pids are kept", len(r.clients))
	}
}

// Sessions of one process write under prefixes of their own, which go with their lines.
func TestPrefixes(t *testing.T) {
	w, pipe := logPipe(t, "submission: ")
	w.pid = 77
	w.Log(event.Info, "submission: ", "one")
	w.Log(event.Error, "submission(bob\n)<77>: ", "two")
	w.SetPrefix("submission(al): ")
	w.SetPrefix("submission(al): ")
	w.Log(event.Info, "submission(al): ", "three")
	w.Log(event.Info, "", "four")
	closeWriter(w)
	got, _ := io.ReadAll(pipe)
	want := "\x01\x0277 one\n" +
		"\x01\xc477 22 submission(bob?)<77>: two\n" +
		"\x01\x0877 prefix=submission(al): \n" +
		"\x01\xc277 16 submission(al): three\n" +
		"\x01\xc277 0 four\n"
	if got := string(got[handshakeHead+len("submission: "):]); got != want {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

// A log service that was started anew has forgotten what processes told the one before it;
// their lines have their prefixes all the same.
func TestLogServiceStartedAnew(t *testing.T) {
	const service = "submission: "
	w, pipe := logPipe(t, service)
	say := func() {
		for _, prefix := range []string{service, "submission(al)<1><x>: ", "submission(77): "} {
			w.Log(event.Info, prefix, "text")
		}
	}
	hear := func(r *Reader, err error) {
		t.Helper()
		for _, want := range []string{service, "submission(al)<1><x>: ", "submission(77): "} {
			if err == nil {
				var rec Record
				rec, err = r.Next()
				if rec.Prefix != want {
					t.Errorf("prefix %q, want %q", rec.Prefix, want)
				}
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	w.SetPrefix(service)
	say()
	hear(NewReader(pipe))
	say()
	hear(NewReader(io.MultiReader(bytes.NewReader(AppendHandshake(nil, service)), pipe)))
	w.SetPrefix("submission(al)<1><x>: ")
	say()
	hear(NewReader(io.MultiReader(bytes.NewReader(AppendHandshake(nil, service)), pipe)))
	say()
	hear(NewReader(io.MultiReader(bytes.NewReader(AppendHandshake(nil, service)), pipe)))
}

// A long text becomes lines that fit one write each and each have the head; no character
// is torn.
func TestLongTextIsSplit(t *testing.T) {
	text := strings.Repeat("0123456789ü", 1500)
	w, pipe := logPipe(t, "s: ")
	go func() { // ends when all is written: the pipe is read below
		w.Log(event.Warning, "submission(user): ", text)
		closeWriter(w)
	}()
	wire, err := io.ReadAll(pipe)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range bytes.SplitAfter(wire[handshakeHead+3:], []byte("\n")) {
		if len(line) > MaxLine {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	r, err := NewReader(bytes.NewReader(wire))
	if err != nil {
		t.Fatal(err)
	}
	var all string
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil || rec.Level != event.Warning || rec.Prefix != "submission(user): " || !utf8.ValidString(rec.Text) {
			t.Fatalf("%+v, %v", rec, err)
		}
		all += rec.Text
	}
	if all != text {
		t.Errorf("the text came back with %d of %d bytes", len(all), len(text))
	}
}

// A line that is longer than what one write keeps whole comes in pieces (clause P1.8.6).
func TestReaderBoundsLines(t *testing.T) {
	wire := append(AppendHandshake(nil, "s: "), "\x01\x0277 "...)
	wire = append(wire, bytes.Repeat([]byte("x"), 2*MaxLine)...)
	wire = append(wire, "\n\x01\x0277 next\n"...)
	r, err := NewReader(bytes.NewReader(wire))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%v %.20s %d", rec.Level, rec.Text, len(rec.Text)))
	}
	want := fmt.Sprintf("[Info xxxxxxxxxxxxxxxxxxxx %d Info <line continued> xxx %d Info <line continued> xxx %d Info next 4]",
		MaxLine-5, MaxLine+17, 5+17)
	if fmt.Sprint(got) != want {
		t.Errorf("\n got %v\nwant %s", got, want)
	}
}

// A full pipe is waited for; nothing is lost or torn.
func TestFullPipe(t *testing.T) {
	w, pipe := logPipe(t, "s: ")
	const lines = 300 // more than a pipe of 64 KiB takes
	text := strings.Repeat("y", 1000)
	go func() { // ends when all is written: the pipe is read below
		for range lines {
			w.Log(event.Info, "s: ", text)
		}
		closeWriter(w)
	}()
	r, err := NewReader(pipe)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; ; n++ {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil || rec.Text != text {
			t.Fatalf("line %d: %d bytes, %v", n, len(rec.Text), err)
		}
	}
	if n != lines {
		t.Errorf("%d of %d lines came", n, lines)
	}
}

// A log service that stands still costs lines, which are counted, and one wait.
func TestDroppedLinesAreCounted(t *testing.T) {
	w, pipe := logPipe(t, "s: ")
	w.patience = 0
	for !t.Failed() && w.dropped < 3 {
		w.Log(event.Info, "s: ", strings.Repeat("z", 4000))
	}
	r, err := NewReader(pipe)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	for range 4 { // room for more
		r.Next()
	}
	w.Log(event.Info, "s: ", "here again")
	closeWriter(w)
	var last, previous string
	for {
		rec, err := r.Next()
		if err != nil {
			break
		}
		previous, last = last, rec.Level.String()+" "+rec.Text
	}
	if previous != "Info here again" || last != "Warning Log: 3 lines were lost, the log service did not take them" {
		t.Errorf("%q, %q", previous, last)
	}
}

// Without a log service nothing happens.
func TestBrokenPipe(t *testing.T) {
	w, pipe := logPipe(t, "s: ")
	pipe.Close()
	w.Log(event.Info, "s: ", "to nobody")
	if w.dropped != 1 {
		t.Errorf("dropped %d", w.dropped)
	}
}

func TestSanitised(t *testing.T) {
	for in, want := range map[string]string{
		"plain ~":             "plain ~",
		"a\r\nb\tc\x00d\x7f":  "a??b?c?d?",
		"\x1b]0;title\x07":    "?]0;title?",
		"grüße, 世界":           "grüße, 世界",
		"bad \xff\xc3":        "bad ??",
		"c1 \u0085\u009b":     "c1 ??",
		"rtl \u202egpj.exe":   "rtl ?gpj.exe",
		"sep \u2028\u2029":    "sep ??",
		"replacement \ufffd!": "replacement \ufffd!",
	} {
		if got := sanitised(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestHandshakeIsChecked(t *testing.T) {
	good := AppendHandshake(nil, "s: ")
	for n := range len(good) {
		if _, err := NewReader(bytes.NewReader(good[:n])); err == nil {
			t.Errorf("%d bytes are enough", n)
		}
	}
	long := AppendHandshake(nil, strings.Repeat("p", maxHandshake+1))
	if _, err := NewReader(bytes.NewReader(long)); err == nil {
		t.Error("a prefix past the bound is taken")
	}
	other := append([]byte{1, 2, 3, 4}, good[4:]...)
	if _, err := NewReader(bytes.NewReader(other)); err == nil {
		t.Error("another magic is taken")
	}
}

// Whatever a process writes, a Reader returns lines that are safe to print, and ends.
func FuzzReader(f *testing.F) {
	golden, err := os.ReadFile("testdata/login.bin")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add([]byte("\x01\xc277 8 my(pfx) text\n\x01\x07\n\x01\n\n\x01\x0877 prefix=\x01\n\x01\x02\n"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		r, err := NewReader(io.MultiReader(bytes.NewReader(AppendHandshake(nil, "s: ")), bytes.NewReader(wire)))
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; ; n++ {
			rec, err := r.Next()
			if err != nil {
				return
			}
			if n > len(wire) {
				t.Fatal("more lines than bytes")
			}
			for _, s := range []string{rec.Prefix, rec.Text} {
				if strings.ContainsAny(s, "\r\n\x00\x1b\t") || !utf8.ValidString(s) {
					t.Fatalf("%q", s)
				}
			}
		}
	})
}

// What a Writer writes comes back from a Reader as one line or several, in order, whatever
// the text.
func FuzzWriter(f *testing.F) {
	f.Add("submission(a): ", "text")
	f.Add("", "\x01\x0277 forged\n\x01\x0277 twice")
	f.Add(strings.Repeat("p", maxPrefix), strings.Repeat("ü", MaxLine))
	f.Fuzz(func(t *testing.T, prefix, text string) {
		if len(text) > 32<<10 {
			return // the pipe would fill up
		}
		w, pipe := logPipe(t, "s: ")
		w.Log(event.Error, prefix, text)
		closeWriter(w)
		r, err := NewReader(pipe)
		if err != nil {
			t.Fatal(err)
		}
		var all string
		for {
			rec, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil || rec.Level != event.Error || rec.PID != os.Getpid() || rec.Prefix != sanitised(cut(prefix, maxPrefix)) {
				t.Fatalf("%+v, %v", rec, err)
			}
			all += rec.Text
		}
		if want := sanitised(text); all != want {
			t.Fatalf("%q came back as %q", want, all)
		}
	})
}

func BenchmarkLog(b *testing.B) {
	null, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	w := NewWriter(int(null.Fd()), "submission: ")
	b.ReportAllocs()
	for b.Loop() {
		w.Log(event.Info, "submission(alice)<123><abc>: ", "Disconnect from 127.0.0.1: Logged out")
	}
}
