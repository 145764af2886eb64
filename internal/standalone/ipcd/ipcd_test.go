package ipcd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/dovecot/ipc"
	"dovetail/internal/process/event"
	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/leak"
)

const patience = 20 * time.Second

// sockets are those of a service: of ours, or of the real one.
type sockets struct {
	t            *testing.T
	asks, logins string // paths
}

// ours runs a Server until the test ends.
func ours(t *testing.T) (sockets, *Server, *lines) {
	t.Helper()
	log := &lines{}
	s := New(event.New(log, "", false))
	k := sockets{t, filepath.Join(t.TempDir(), "ipc"), filepath.Join(t.TempDir(), ipc.Path)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for _, path := range []string{k.asks, k.logins} {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		wg.Go(func() { // ends with l
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { s.Serve(ctx, c, filepath.Base(path)) }) // ends with ctx
			}
		})
	}
	return k, s, log
}

type lines struct {
	mu  sync.Mutex
	all []string // guarded by mu
}

func (l *lines) Log(level event.Level, prefix, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, level.String()+": "+text)
}

func (k sockets) dial(path string) net.Conn {
	k.t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		k.t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { c.Close() })
	return c
}

// login is a login process: it answers each command word as given, with its tag for T. It
// is there when login returns.
func (k sockets) login(answers map[string]string) net.Conn {
	k.t.Helper()
	c := k.dial(k.logins)
	before := k.ask("proxy\t*\tCOUNT")
	fmt.Fprintf(c, "VERSION\tipc-server\t1\t0\nHANDSHAKE\tproxy\t4711\n")
	br := bufio.NewReader(c)
	if line, err := br.ReadString('\n'); err != nil || line != "VERSION\tipc-proxy\t1\t0\n" {
		k.t.Fatalf("the service says %q, %v", line, err)
	}
	go func() { // ends with c
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			tag, command, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			word, _, _ := strings.Cut(command, "\t")
			answer, ok := answers[word]
			switch {
			case word == "COUNT":
				answer = "T\t+1\n"
			case !ok:
				answer = "T\t-Unknown command\n"
			}
			if answer == "CLOSE" {
				c.Close()
				return
			}
			fmt.Fprint(c, strings.ReplaceAll(answer, "T\t", tag+"\t"))
		}
	}()
	for end := time.Now().Add(patience); k.ask("proxy\t*\tCOUNT") == before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			k.t.Fatal("the login process is not known")
		}
	}
	return c
}

// ask returns the answer to a line, its lines joined by |.
func (k sockets) ask(line string) string {
	k.t.Helper()
	c := k.dial(k.asks)
	defer c.Close()
	fmt.Fprintf(c, "%s\n", line)
	return k.hear(bufio.NewReader(c))
}

func (k sockets) hear(br *bufio.Reader) string {
	k.t.Helper()
	var all []string
	for {
		l, err := br.ReadString('\n')
		if err != nil {
			k.t.Fatalf("after %q: %v", all, err)
		}
		l = strings.TrimSuffix(l, "\n")
		if all = append(all, l); l == "" || l[0] != ':' {
			return strings.Join(all, "|")
		}
	}
}

// What the real service says, ours says: without login processes, and with one.
func TestAsRealService(t *testing.T) {
	i := instance.Start(t, "")
	mine, _, _ := ours(t)
	both := map[string]sockets{"real": {t, i.Socket("ipc"), i.Socket("login/ipc-proxy")}, "ours": mine}
	for _, round := range []string{"without", "with one"} {
		if round != "without" {
			for _, k := range both {
				k.login(map[string]string{
					"LIST-FULL": "T\t:username\tservice\tsrc-ip\tdest-ip\tdest-port\nT\t:alice\tsubmission\t::1\t127.0.0.1\t587\nT\t+\n",
					"KICK":      "T\t+2\n", "BAD": "T\t-Missing parameter\n",
				})
			}
		}
		for _, line := range []string{
			"proxy\t*\tLIST-FULL", "proxy\t*\tKICK\talice", "proxy\t*\tBAD", "proxy\t*\tNO-SUCH\tx", "other\t*\tKICK\tx",
			"proxy\t1\tKICK\tx", "proxy\t4711\tKICK\tx", "proxy\tx\tKICK\tx", "proxy\t*", "proxy", "", "VERSION\tipc-client\t1\t0",
		} {
			want, got := both["real"].ask(line), both["ours"].ask(line)
			if got != want {
				t.Errorf("%s: %q: %q, the real one says %q", round, line, got, want)
			}
		}
	}
}

// Several login processes: one list, counts that add up, the first error.
func TestSeveralLogins(t *testing.T) {
	leak.Check(t)
	k, s, log := ours(t)
	k.login(map[string]string{
		"LIST-FULL": "T\t:username\tservice\tsrc-ip\tdest-ip\tdest-port\nT\t:alice\tsubmission\t::1\t::2\t587\nT\t+\n",
		"KICK":      "T\t+2\n", "MIX": "T\t+1\n", "GONE": "T\t+1\n",
	})
	k.login(map[string]string{
		"LIST-FULL": "T\t:username\tuser_mail\tservice\tsrc-ip\tdest-ip\tdest-port\nT\t:bob\tbob@x\tsubmission\t::3\t::4\t25\nT\t+\n",
		"KICK":      "T\t+3\n", "MIX": "T\t-no\n", "GONE": "CLOSE",
	})
	for line, want := range map[string]string{
		"proxy\t*\tLIST-FULL": ":username\tuser_mail\tservice\tsrc-ip\tdest-ip\tdest-port|:alice\t\tsubmission\t::1\t::2\t587|:bob\tbob@x\tsubmission\t::3\t::4\t25|+",
		"proxy\t*\tKICK\tx":   "+5",
		"proxy\t2\tKICK\tx":   "+3",
		"proxy\t*\tMIX":       "-no",
	} {
		if got := k.ask(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
	if got := k.ask("proxy\t*\tGONE"); got != "+1" {
		t.Errorf("with one that ends: %q", got)
	}
	if got := k.ask("proxy\t*\tKICK\tx"); got != "+2" {
		t.Errorf("without it: %q", got)
	}
	c := k.dial(k.asks)
	defer c.Close()
	fmt.Fprint(c, "proxy\t*\tKICK\tx\nproxy\t*\tMIX\r\nproxy\n")
	br := bufio.NewReader(c)
	for _, want := range []string{"+2", "+1", "-Invalid input"} {
		if got := k.hear(br); got != want {
			t.Errorf("several lines: %q, want %q", got, want)
		}
	}
	s.Leave()
	for end := time.Now().Add(patience); k.ask("proxy\t*\tCOUNT") != "+"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("somebody stays")
		}
	}
	if len(log.all) > 0 {
		t.Errorf("log %q", log.all)
	}
}

// A login process that talks nonsense is left, and who asked hears of it.
func TestWrongLogins(t *testing.T) {
	leak.Check(t)
	k, s, log := ours(t)
	for _, answer := range []string{"nonsense\n", "T\t\n", "9\t+\n", "T\tx\n", strings.Repeat("x", 2*maxLine) + "\n"} {
		k.login(map[string]string{"KICK": answer})
		if got := k.ask("proxy\t*\tKICK\tx"); got != "-"+errWrong.Error() && got != "+" {
			t.Errorf("%.20q: %q", answer, got)
		}
		for end := time.Now().Add(patience); k.ask("proxy\t*\tCOUNT") != "+"; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it is still asked")
			}
		}
	}
	for _, greeting := range []string{"x\n", "VERSION\tipc-server\t2\t0\n", "VERSION\tipc-server\t1\t0\nHANDSHAKE\tother\t1\n"} {
		c := k.dial(k.logins)
		fmt.Fprint(c, greeting)
		if b, err := io.ReadAll(c); err != nil || string(b) != "VERSION\tipc-proxy\t1\t0\n" {
			t.Errorf("%q: %q, %v", greeting, b, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.logins) > 0 {
		t.Errorf("%d login processes", len(s.logins))
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	if n := len(log.all); n != 4 || !slices.ContainsFunc(log.all, func(l string) bool { return strings.Contains(l, "not a login process of version 1") }) {
		t.Errorf("log %q", log.all)
	}
}

// A login process that ends before it has read what we say is no error.
func TestLeavers(t *testing.T) {
	k, s, log := ours(t)
	for _, early := range []string{"", "VERSION\tipc-server\t1\t0\n", "VERSION\tipc-server\t1\t0\nHANDSHAKE\tproxy\t1\n"} {
		for _, path := range []string{k.logins, k.asks} {
			near, far := pair(t)
			fmt.Fprint(far, early)
			far.Close()
			s.Serve(context.Background(), near, filepath.Base(path))
		}
	}
	for _, l := range log.all {
		t.Error(l)
	}
}

// pair returns two ends of a connection.
func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial("unix", l.Addr().String()); err == nil {
		near, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

// Whatever askers and login processes say: each line gets one answer, and nothing stays.
func FuzzServe(f *testing.F) {
	f.Add("proxy\t*\tLIST-FULL", "T\t:a\tb\nT\t+\n")
	f.Add("proxy\t*\tKICK\tx", "T\t+2\n")
	f.Add("proxy\t1\tLIST-FULL", "T\t:\nT\t:\t\t\t\t\t\t\nT\t-\n")
	f.Add("proxy\t18446744073709551616\tX", "")
	f.Fuzz(func(t *testing.T, line, answer string) {
		if strings.ContainsAny(line, "\r\n") || len(line) > 1000 || len(answer) > 4000 {
			return
		}
		a := answered{last: "+"}
		for l := range strings.SplitSeq(answer, "\n") {
			switch text, _ := strings.CutPrefix(l, "T\t"); {
			case strings.HasPrefix(text, ":"):
				a.lines = append(a.lines, text[1:])
			case text != "":
				a.last = text
			}
		}
		merged := merge([]answered{a, {nil, "+"}, a})
		if len(a.lines) > 0 {
			columns := strings.Count(merged[0], "\t")
			for _, l := range merged {
				if strings.Count(l, "\t") != columns {
					t.Fatalf("%q: row %q of %q", answer, l, merged[0])
				}
			}
			if want := 2*len(a.lines) - 1; len(merged) != want {
				t.Fatalf("%q: %d rows, want %d", answer, len(merged), want)
			}
		}
		if last := sum([]answered{a, {nil, "+1"}}); last == "" {
			t.Fatalf("%q: no last line", answer)
		}
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() { // ends when near is closed
			defer close(done)
			New(event.New(&lines{}, "", false)).Serve(context.Background(), far, "ipc")
		}()
		go func() { _, _ = io.WriteString(near, line+"\n") }() // ends with near
		got, err := bufio.NewReader(near).ReadString('\n')
		if err != nil || got[0] != '+' && got[0] != '-' {
			t.Fatalf("%q: %q %v", line, got, err)
		}
		near.Close()
		<-done
	})
}
