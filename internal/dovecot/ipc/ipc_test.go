package ipc

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/leak"
)

// proxies are sessions of a test.
type proxies struct{ all []Session }

func (p *proxies) List() []Session { return p.all }

func (p *proxies) Kick(match func(Session) bool) int {
	before := len(p.all)
	p.all = slices.DeleteFunc(p.all, match)
	return before - len(p.all)
}

func three() []Session {
	alt := func(user string) []Field { return []Field{{"user_mail", user + "@example.org"}, {"user_org", "x\ty"}} }
	backend := netip.MustParseAddrPort("127.0.0.1:2525")
	return []Session{
		{"odd/name", alt("odd/name"), "submission", netip.MustParseAddr("127.0.0.1"), backend},
		{"alice", alt("alice"), "submission", netip.MustParseAddr("192.0.2.7"), backend},
		{"alice", nil, "submission", netip.MustParseAddr("2001:db8::9"), netip.MustParseAddrPort("198.51.100.1:587")},
	}
}

// sessionsOfGolden are those that were proxied when the golden file was recorded.
func sessionsOfGolden() []Session {
	all := three()
	all[1].Source = all[0].Source
	all[2] = all[1]
	return all
}

// What the real login process says, this one says.
func TestDialogOfDovecot(t *testing.T) {
	leak.Check(t)
	b, err := os.ReadFile("testdata/login.golden")
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() { // ends when near is closed
		done <- NewServer(&proxies{sessionsOfGolden()}, nil).Serve(context.Background(), far, 1234)
	}()
	_ = near.SetDeadline(time.Now().Add(10 * time.Second))
	br := bufio.NewReader(near)
	tag := 0
	for n, l := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		word, quoted, _ := strings.Cut(l, ": ")
		text, err := strconv.Unquote(quoted)
		if err != nil {
			t.Fatal(err)
		}
		text = strings.ReplaceAll(text, "@PORT@", "2525")
		switch word {
		case "C":
			if tag++; tag == 1 {
				fmt.Fprint(near, "VERSION\tipc-proxy\t1\t0\n")
			}
			fmt.Fprintf(near, "%d\t%s\n", tag, text)
			continue
		case "S":
			text = fmt.Sprintf("%d\t%s", tag, text)
		}
		if got, err := br.ReadString('\n'); err != nil || got != text {
			t.Errorf("line %d: got %q, %v\nwant %q", n+1, got, err, text)
		}
	}
	near.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// endsWithItsLast is a process that ends when its last session is kicked.
type endsWithItsLast struct {
	proxies
	srv  *Server
	over chan struct{}
}

func (p *endsWithItsLast) Kick(match func(Session) bool) int {
	n := p.proxies.Kick(match)
	go func() { // ends when the answer has been written
		defer close(p.over)
		p.srv.Settle()
	}()
	return n
}

// Settle waits for the answer that is being written.
func TestSettle(t *testing.T) {
	leak.Check(t)
	p := &endsWithItsLast{proxies: proxies{three()[:1]}, over: make(chan struct{})}
	p.srv = NewServer(p, nil)
	p.srv.Settle()
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- p.srv.Serve(context.Background(), far, 1) }() // ends when near is closed
	_ = near.SetDeadline(time.Now().Add(10 * time.Second))
	br := bufio.NewReader(near)
	for range 2 {
		if _, err := br.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprint(near, "VERSION\tipc-proxy\t1\t0\n7\tKICK\todd/name\n")
	if _, err := br.ReadByte(); err != nil { // the rest is not read yet
		t.Fatal(err)
	}
	if line, err := br.ReadString('\n'); err != nil || line != "\t+1\n" {
		t.Errorf("%q %v", line, err)
	}
	<-p.over
	near.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A service that says something wrong is left, with an error; one that closes without.
func TestServeEnds(t *testing.T) {
	const version = "VERSION\tipc-proxy\t1\t0\n"
	for text, want := range map[string]string{
		"":                                 "",
		version:                            "",
		version + "1\tKI":                  "EOF",
		"VERSION\tipc-proxy\t2\t0\n":       "not compatible",
		"VERSION\tipc-server\t1\t0\n":      "not compatible",
		version + "1\n":                    "invalid input: 1",
		version + "1\t\n":                  "invalid input",
		version + "x\tLIST-FULL\n":         "invalid input",
		version + strings.Repeat("1", 9e3): "buffer full",
	} {
		near, far := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, near) }() // ends when near is closed
		done := make(chan error, 1)
		go func() { done <- NewServer(&proxies{}, nil).Serve(context.Background(), far, 1) }() // ends when near is closed
		_, _ = io.WriteString(near, text)
		near.Close()
		err := <-done
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
}

// Run ends with its context, connected or not.
func TestRunEnds(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), Path)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	NewServer(&proxies{}, nil).Run(ctx, path, 1)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel = context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		NewServer(&proxies{}, nil).Run(ctx, path, 1)
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	<-done
}

// Whatever the service sends: whole lines come back, each with the tag of its command.
func FuzzServe(f *testing.F) {
	for _, c := range asked {
		f.Add("1\t" + c + "\n")
	}
	f.Add("1\tLIST-FULL\n2\tKICK\talice\n")
	f.Fuzz(func(t *testing.T, text string) {
		near, far := net.Pipe()
		got := make(chan string, 1)
		go func() { // ends when near is closed
			b, _ := io.ReadAll(near)
			got <- string(b)
		}()
		done := make(chan struct{})
		go func() { // ends when near is closed
			defer close(done)
			_ = NewServer(&proxies{three()}, nil).Serve(context.Background(), far, 1)
		}()
		_, _ = io.WriteString(near, "VERSION\tipc-proxy\t1\t0\n"+text)
		near.Close()
		<-done
		out := <-got
		if out != "" && !strings.HasSuffix(out, "\n") {
			t.Fatalf("%q: %q", text, out)
		}
		for n, l := range strings.Split(strings.TrimSuffix(out, "\n"), "\n") {
			if _, rest, ok := strings.Cut(l, "\t"); n >= 2 && (!ok || rest == "" || !strings.ContainsRune(":+-", rune(rest[0]))) {
				t.Fatalf("%q: line %q", text, l)
			}
		}
	})
}
