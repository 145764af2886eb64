package anvil

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/leak"
)

var alice = Ident{"submission", "192.0.2.7", "alice"}

func TestIdent(t *testing.T) {
	for s, want := range map[string]Ident{
		"submission/192.0.2.7/alice":       alice,
		"submission/2001:db8::9/al/ice\tx": {"submission", "2001:db8::9", "al/ice\tx"},
		"auth":                             {Service: "auth"},
		"":                                 {},
	} {
		got := ParseIdent(s)
		if got != want || want.User != "" && got.String() != s {
			t.Errorf("%q: %+v, %q", s, got, got.String())
		}
	}
}

// pipe returns both ends of a pipe that is blocking, as descriptor 3 is.
func pipe(t *testing.T) (r *os.File, w int) {
	t.Helper()
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r = os.NewFile(uintptr(p[0]), "pipe")
	t.Cleanup(func() { r.Close(); syscall.Close(p[1]) })
	return r, p[1]
}

func isBlocking(t *testing.T, fd int) bool {
	t.Helper()
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFL, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	return flags&syscall.O_NONBLOCK == 0
}

// ways are the two in which a Pipe can write.
var ways = map[string]func(t *testing.T, w int) *Pipe{
	"opened": func(t *testing.T, w int) *Pipe {
		p, err := NewPipe(w)
		if err != nil {
			t.Fatal(err)
		}
		if p.f == nil {
			t.Fatal("the pipe was not opened once more")
		}
		return p
	},
	"shared": func(t *testing.T, w int) *Pipe { return &Pipe{fd: w} },
}

// Sessions go over the pipe as whole lines, escaped, and the descriptor stays as it was.
func TestPipe(t *testing.T) {
	for name, open := range ways {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			r, w := pipe(t)
			p := open(t, w)
			for _, err := range []error{
				p.Connect(7, alice),
				p.Disconnect(7, Ident{"submission", "2001:db8::9", "al\tice\n\x01"}),
				p.Connect(7, Ident{"submission", "", "nobody"}), // nothing
				(*Pipe)(nil).Connect(7, alice),
				(*Pipe)(nil).Close(),
			} {
				if err != nil {
					t.Error(err)
				}
			}
			long := alice
			long.User = strings.Repeat("x", MaxLine)
			if err := p.Connect(7, long); err != ErrTooLong {
				t.Errorf("long line: %v", err)
			}
			long.User = long.User[:MaxLine-len("CONNECT\t7\tsubmission/192.0.2.7/\n")]
			if err := p.Connect(7, long); err != nil {
				t.Errorf("longest line: %v", err)
			}
			if !isBlocking(t, w) {
				t.Error("the shared descriptor is not blocking any more")
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			want := "CONNECT\t7\tsubmission/192.0.2.7/alice\n" +
				"DISCONNECT\t7\tsubmission/2001:db8::9/al\x01tice\x01n\x011\n" +
				"CONNECT\t7\tsubmission/192.0.2.7/" + long.User + "\n"
			b := make([]byte, 4096)
			n, err := r.Read(b)
			if err != nil || string(b[:n]) != want {
				t.Errorf("%q, %v", b[:n], err)
			}
		})
	}
}

// An anvil process that does not read is waited for, and not for ever.
func TestPipeIsFull(t *testing.T) {
	for name, open := range ways {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			r, w := pipe(t)
			p := open(t, w)
			defer p.Close()
			if _, err := syscall.Write(w, make([]byte, 65536)); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- p.Connect(7, alice) }() // ends with its write, at the latest at its deadline
			if _, err := io.ReadFull(r, make([]byte, 65536)); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if _, err := syscall.Write(w, make([]byte, 4096*15)); err != nil {
				t.Fatal(err)
			}
			if p.f == nil {
				return
			}
			if err := p.f.SetWriteDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			if _, err := p.f.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A pipe whose reader is gone is an error. The signal that comes with it is ignored, as it
// is in every process that a master starts.
func TestPipeWithoutReader(t *testing.T) {
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGPIPE)
	for name, open := range ways {
		r, w := pipe(t)
		p := open(t, w)
		r.Close()
		if err := p.Connect(7, alice); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("%s: %v", name, err)
		}
		p.Close()
	}
}

func TestNoPipe(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, fd := range []int{int(f.Fd()), 9999} {
		if _, err := NewPipe(fd); err == nil {
			t.Errorf("descriptor %d was taken for a pipe", fd)
		}
	}
}

// serve answers lines of one client by a table, until the client leaves or a line has the
// answer "close". What was said is returned by the function.
func serve(t *testing.T, answers map[string]string) (*Client, func() []string) {
	t.Helper()
	near, far := net.Pipe()
	var said []string
	done := make(chan struct{})
	go func() { // ends when the client closes, or on close
		defer close(done)
		defer far.Close()
		br := bufio.NewReader(far)
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			line = strings.TrimSuffix(line, "\n")
			said = append(said, line)
			a := answers[line]
			if a == "close" {
				return
			}
			if _, err := io.WriteString(far, a); err != nil {
				return
			}
		}
	}()
	c, err := NewClient(near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); <-done })
	return c, func() []string { c.Close(); <-done; return said }
}

func TestClient(t *testing.T) {
	leak.Check(t)
	c, said := serve(t, map[string]string{
		"LOOKUP\tsubmission/192.0.2.7/alice":      "10\n",
		"LOOKUP\tsubmission/192.0.2.7/al\x01tice": "0\r\n",
		"PENALTY-GET\t192.0.2.1":                  "3 1795543698\n",
		"PENALTY-GET\t192.0.2.2":                  "0 0\n",
		"CONNECT-DUMP":                            "submission/192.0.2.7/al\x01tice\t12\t3\nother\t13\t1\n\n",
	})
	ctx := t.Context()
	if n, err := c.Lookup(ctx, alice); n != 10 || err != nil {
		t.Error(n, err)
	}
	if n, err := c.Lookup(ctx, Ident{"submission", "192.0.2.7", "al\tice"}); n != 0 || err != nil {
		t.Error(n, err)
	}
	if p, err := c.Penalty(ctx, "192.0.2.1"); p.Value != 3 || p.Last.Unix() != 1795543698 || err != nil {
		t.Error(p, err)
	}
	if p, err := c.Penalty(ctx, "192.0.2.2"); p.Value != 0 || !p.Last.IsZero() || err != nil {
		t.Error(p, err)
	}
	want := []Connection{{Ident{"submission", "192.0.2.7", "al\tice"}, 12, 3}, {Ident{Service: "other"}, 13, 1}}
	if all, err := c.Connections(ctx); fmt.Sprint(all) != fmt.Sprint(want) || err != nil {
		t.Error(all, err)
	}
	for _, err := range []error{c.SetPenalty("192.0.2.1", 77, 4), c.SetPenalty("192.0.2.1", 0, 0), c.SetPenaltyExpire(time.Hour)} {
		if err != nil {
			t.Error(err)
		}
	}
	for _, err := range []error{c.SetPenalty("192.0.2.1", 77, 0), c.SetPenalty("192.0.2.1", 1, MaxPenalty+1)} {
		if err == nil {
			t.Error("what the service closes on was sent")
		}
	}
	if _, err := c.Lookup(ctx, Ident{User: strings.Repeat("x", MaxLine)}); err != ErrTooLong {
		t.Error(err)
	}
	lines := said()
	if lines[0]+"\n" != version || strings.Join(lines[len(lines)-3:], "|") != "PENALTY-INC\t192.0.2.1\t77\t4|PENALTY-INC\t192.0.2.1\t0\t0|PENALTY-SET-EXPIRE-SECS\t3600" {
		t.Errorf("%q", lines)
	}
}

// A service that dies, or talks nonsense, is lost for everyone who waits and everyone
// later. Nobody is told a number.
func TestClientLosesService(t *testing.T) {
	for name, answer := range map[string]string{
		"closed": "close", "long": strings.Repeat("1", maxAnswer+1),
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			c, _ := serve(t, map[string]string{"LOOKUP\tsubmission/192.0.2.7/alice": answer})
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if n, err := c.Lookup(t.Context(), alice); err != ErrLost {
						t.Error(n, err)
					}
				})
			}
			wg.Wait()
			<-c.Done()
			if _, err := c.Lookup(t.Context(), alice); err != ErrLost {
				t.Error(err)
			}
		})
	}
	for _, nonsense := range []string{"x\n", "\n", "-1\n", "99999999999\n"} {
		c, _ := serve(t, map[string]string{"LOOKUP\tsubmission/192.0.2.7/alice": nonsense})
		if n, err := c.Lookup(t.Context(), alice); err == nil {
			t.Errorf("%q was taken for %d", nonsense, n)
		}
	}
	c, _ := serve(t, map[string]string{strings.TrimSuffix(version, "\n"): "hello\n"})
	<-c.Done() // nobody had asked
}

// Who stops waiting does not take the next one's answer away.
func TestClientLeavesAnAnswer(t *testing.T) {
	leak.Check(t)
	near, far := net.Pipe()
	defer far.Close()
	br := bufio.NewReader(far)
	started := make(chan *Client, 1)
	go func() { // ends with NewClient
		c, err := NewClient(near)
		if err != nil {
			t.Error(err)
		}
		started <- c
	}()
	if _, err := br.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	c := <-started
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { // ends when ctx does
		_, err := c.Lookup(ctx, alice)
		first <- err
	}()
	if _, err := br.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	second := make(chan int, 1)
	go func() { // ends with the answer below
		n, err := c.Lookup(t.Context(), alice)
		if err != nil {
			t.Error(err)
		}
		second <- n
	}()
	if _, err := br.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(far, "1\n2\n"); err != nil {
		t.Fatal(err)
	}
	if n := <-second; n != 2 {
		t.Errorf("got %d", n)
	}
}

// Our client asks the real anvil, and our lines arrive on the real pipe.
func TestRealService(t *testing.T) {
	i := instance.Start(t, "service submission-login {\n  process_min_avail = 1\n}\n")
	c, err := Dial(t.Context(), i.Socket("anvil"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := realPipe(t, i)
	defer p.Close()
	pid := os.Getpid()
	odd := Ident{"submission", "192.0.2.7", "odd/\tname\x01"}
	for _, id := range []Ident{alice, alice, odd} {
		if err := p.Connect(pid, id); err != nil {
			t.Fatal(err)
		}
	}
	count := func(id Ident, want int) {
		t.Helper()
		i.Until(fmt.Sprintf("%d of %v", want, id), func() bool {
			n, err := c.Lookup(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return n == want
		})
	}
	count(odd, 1)
	count(alice, 2)
	all, err := c.Connections(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	for _, l := range all {
		if l.PID != pid || l.Ident != odd && (l.Ident != alice || l.Count != 2) {
			t.Errorf("%+v", l)
		}
	}
	out, err := i.Doveadm("who")
	if err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), fmt.Sprintf("alice 2 submission (%d) (192.0.2.7)", pid)) {
		t.Errorf("%v\n%s", err, out)
	}
	for range 2 {
		if err := p.Disconnect(pid, alice); err != nil {
			t.Fatal(err)
		}
	}
	count(alice, 0)
	if err := c.SetPenalty("192.0.2.1", 77, 2); err != nil {
		t.Fatal(err)
	}
	if p, err := c.Penalty(t.Context(), "192.0.2.1"); p.Value != 2 || time.Since(p.Last) > time.Minute || err != nil {
		t.Error(p, err)
	}
	if p, err := c.Penalty(t.Context(), "192.0.2.9"); p.Value != 0 || !p.Last.IsZero() || err != nil {
		t.Error(p, err)
	}
}

// realPipe opens the pipe that one of the instance's processes has as descriptor 3.
func realPipe(t *testing.T, i *instance.Instance) (p *Pipe) {
	t.Helper()
	b, err := os.ReadFile(i.Base + "/master.pid")
	if err != nil {
		t.Fatal(err)
	}
	var master int
	fmt.Sscan(string(b), &master)
	i.Until("a process has the pipe", func() bool {
		for _, pid := range leak.Children(master) {
			path := filepath.Join("/proc", fmt.Sprint(pid), "fd/3")
			if target, _ := os.Readlink(path); !strings.HasPrefix(target, "pipe:") {
				continue // such as the log process, which has /dev/null there
			}
			fd, err := syscall.Open(path, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
			if err != nil {
				continue // it has ended
			}
			defer syscall.Close(fd)
			if p, err = NewPipe(fd); err != nil {
				t.Fatal(err)
			}
			return true
		}
		return false
	})
	return p
}

// Whatever is sent: no panic, and what is taken keeps its bounds.
func FuzzRequest(f *testing.F) {
	for _, d := range dialogs {
		for _, l := range strings.Split(d, "\n") {
			f.Add(l)
		}
	}
	f.Fuzz(func(t *testing.T, line string) {
		_ = ParseVersion(line)
		r, err := ParseRequest(line)
		if err != nil {
			return
		}
		if r.PID < 0 || r.Verb == PenaltyInc && r.Value > MaxPenalty || r.Verb == Nothing && line != "" {
			t.Errorf("%q: %+v", line, r)
		}
	})
}

// Whatever a service answers to each question: a value or an error, and the client ends.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{"1\n", "3 1795543698\n", "a/b/c\t12\t3\n\n", "x\t1\n\n", "\n", "0", "1 x\n", "99999999999 1\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, ask := range []func(*Client) error{
			func(c *Client) error { _, err := c.Lookup(t.Context(), alice); return err },
			func(c *Client) error { _, err := c.Penalty(t.Context(), "x"); return err },
			func(c *Client) error { _, err := c.Connections(t.Context()); return err },
		} {
			near, far := net.Pipe()
			done := make(chan struct{})
			go func() { // ends when the two lines are read and s is written, or near is closed
				defer close(done)
				defer far.Close()
				br := bufio.NewReader(far)
				for range 2 {
					if _, err := br.ReadString('\n'); err != nil {
						return
					}
				}
				_, _ = io.WriteString(far, s)
			}()
			c, err := NewClient(near)
			if err != nil {
				t.Fatal(err)
			}
			_ = ask(c)
			c.Close()
			<-done
		}
	})
}
