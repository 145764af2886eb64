package config

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// The lines that the real programs send (clause P2.3).
func TestRequestLine(t *testing.T) {
	for _, c := range []struct {
		r    Request
		want string
	}{
		{Request{Modules: []string{"submission-login", "ssl-server"}, Service: "submission"},
			"REQ\tmodule=submission-login\tmodule=ssl-server\tservice=submission\n"},
		{Request{Modules: []string{"submission", "ssl"}, Service: "submission", User: "alice",
			LocalIP: netip.MustParseAddr("::ffff:192.0.2.1"), RemoteIP: netip.MustParseAddr("2001:db8::1")},
			"REQ\tmodule=submission\tmodule=ssl\tservice=submission\tuser=alice\tlip=192.0.2.1\trip=2001:db8::1\n"},
		{Request{LocalName: "evil\tmodule=auth\nREQ"}, "REQ\tlname=evil\x01tmodule=auth\x01nREQ\n"},
		{Request{Exclude: []string{"ssl_ca"}}, "REQ\texclude=ssl_ca\n"},
	} {
		if got := string(c.r.Append(nil)); got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
		back, err := ParseRequest(strings.TrimSuffix(c.want, "\n"))
		c.r.LocalIP = c.r.LocalIP.Unmap()
		if err != nil || !reflect.DeepEqual(back, c.r) {
			t.Errorf("%q: parsed %+v, %v", c.want, back, err)
		}
	}
}

func TestVersionFirst(t *testing.T) {
	for line, ok := range map[string]bool{
		"VERSION\tconfig\t2\t0": true, "VERSION\tconfig\t2\t7": true, "VERSION\tconfig\t3\t0": false,
		"VERSION\tauth\t2\t0": false, "REQ": false, "": false,
	} {
		if _, _, err := ParseLine(line, true); (err == nil) != ok {
			t.Errorf("%q: %v", line, err)
		}
	}
	for line, want := range map[string]Command{"REQ": Ask, "FILTERS": Filters, "REQUEST": Unknown, "": Unknown} {
		if got, _, err := ParseLine(line, false); got != want || err != nil {
			t.Errorf("%q: %v, %v", line, got, err)
		}
	}
}

// A client asks the recorded questions and reads the recorded answers.
func TestClient(t *testing.T) {
	d := golden(t, "testdata/login-name.golden")
	path := serve(t, func(br *bufio.Reader, c net.Conn) {
		for _, one := range d {
			if l, err := br.ReadString('\n'); err != nil || l != one[0]+"\n" {
				t.Errorf("got %q, %v; want %q", l, err, one[0])
				return
			}
			_, _ = io.WriteString(c, one[1])
		}
	})
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, one := range d {
		r, err := ParseRequest(one[0])
		if err != nil {
			t.Fatal(err)
		}
		r.LocalName = strings.Clone(r.LocalName)
		a, err := c.Request(r)
		if err != nil {
			t.Fatal(err)
		}
		if g, _ := a.Get("login_greeting"); !strings.HasPrefix(g, "by ") || !a.UsedLocal || a.UsedRemote {
			t.Errorf("%q: %+v", one[0], a)
		}
	}
	// The server is gone: this and all further requests fail.
	_, err1 := c.Request(Request{})
	_, err2 := c.Request(Request{})
	if !errors.Is(err1, io.ErrUnexpectedEOF) && !errors.Is(err1, syscall.EPIPE) && !errors.Is(err1, syscall.ECONNRESET) || err1 != err2 {
		t.Errorf("after the end: %v, %v", err1, err2)
	}
}

func TestBounds(t *testing.T) {
	path := serve(t, func(br *bufio.Reader, c net.Conn) {
		_, _ = br.ReadString('\n')
		_, _ = io.WriteString(c, "\nERROR no such luck\n")
	})
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Request(Request{LocalName: strings.Repeat("x", MaxRequest-len("REQ\tlname=\n")+1)}); err == nil {
		t.Error("a request that is a byte too long was sent")
	}
	if _, err := c.Request(Request{LocalName: strings.Repeat("x", MaxRequest-len("REQ\tlname=\n"))}); err == nil ||
		!strings.Contains(err.Error(), "no such luck") {
		t.Errorf("the longest request: %v", err)
	}
	long := "\na=" + strings.Repeat("x", maxValue+8192) + "\n\n"
	if _, err := ReadAnswer(bufio.NewReader(strings.NewReader(long))); err == nil {
		t.Error("a value without end was taken")
	}
}

// serve answers one connection, after its version line.
func serve(t *testing.T, f func(*bufio.Reader, net.Conn)) string {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends when f does, or when the listener is closed
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		br := bufio.NewReader(c)
		if v, err := br.ReadString('\n'); err != nil || v != versionCmd {
			t.Errorf("version line %q, %v", v, err)
		}
		f(br, c)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

// What is parsed is written back to the same, and no answer makes the reader fail badly.
func FuzzRequest(f *testing.F) {
	for _, lines := range dialogs {
		for _, l := range lines {
			f.Add(l)
		}
	}
	f.Add("REQ\tlname=a\x01tb\x01")
	f.Fuzz(func(t *testing.T, line string) {
		r, err := ParseRequest(line)
		if err != nil {
			return
		}
		again, err := ParseRequest(strings.TrimSuffix(string(r.Append(nil)), "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(r.Modules, again.Modules) || r.LocalName != again.LocalName || r.LocalIP != again.LocalIP {
			t.Fatalf("%q: %+v, then %+v", line, r, again)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add("service-uses-local\tused-local\t\na=b\n\n")
	f.Add("service=x\tservice=!y\t\nplugin=\nplugin/a=b\x03c\n\n")
	f.Add("\nERROR x\n")
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ReadAnswer(bufio.NewReader(strings.NewReader(text)))
		if err != nil {
			return
		}
		again, err := ReadAnswer(bufio.NewReader(strings.NewReader(string(a.Append(nil)))))
		if err != nil || !reflect.DeepEqual(a.Values, again.Values) && !strings.Contains(text, "\x03") {
			t.Fatalf("%q: %+v, then %+v, %v", text, a, again, err)
		}
	})
}
