package master_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/need"
)

// The same clients come and go at the real submission-login and at the echo program, which
// tell the master the same: the counts, and what is left out when they change quickly.
func TestRecordsAsTheRealLogin(t *testing.T) {
	ours := echo(t)
	real := filepath.Join(need.Dovecot(t).Libexec, "submission-login")
	for _, c := range []struct {
		name, block string
		script      func(*guests)
		want        []uint32
	}{
		{"three at a time", "client_limit = 3\nservice_count = 0\n", func(g *guests) {
			a, b, c := g.comes(), g.comes(), g.comes()
			g.leaves(b)
			d := g.comes()
			g.leaves(a)
			g.pause()
			g.leaves(c)
			g.leaves(d)
			g.pause()
		}, []uint32{3, 0, 1, 0, 1, 2, 3}},
		{"four in all", "client_limit = 3\nservice_count = 4\n", func(g *guests) {
			a, b, c := g.comes(), g.comes(), g.comes()
			g.leaves(b)
			d := g.comes()
			g.leaves(a)
			g.pause()
			g.leaves(c)
			g.leaves(d)
			g.pause()
		}, []uint32{3, 0, 1, 0}},
		{"one at a time", "client_limit = 1\nservice_count = 0\n", func(g *guests) {
			g.leaves(g.comes())
			g.leaves(g.comes())
			g.pause()
		}, []uint32{1, 0, 1, 0, 1}},
	} {
		for program, path := range map[string]string{"real": real, "ours": ours} {
			t.Run(c.name+" "+program, func(t *testing.T) {
				t.Parallel()
				var got []uint32
				for range 3 { // what is held back depends on the clock, and a machine may be slow
					if got = records(t, path, c.block, c.script); slices.Equal(got, c.want) {
						return
					}
				}
				t.Errorf("%v, want %v", got, c.want)
			})
		}
	}
}

// records runs script against the program and returns what it wrote to descriptor 5, for
// which a fifo stands in: programs insist on a pipe.
func records(t *testing.T, program, block string, script func(*guests)) []uint32 {
	t.Helper()
	dir, err := os.MkdirTemp("", "records")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("#!/bin/sh\ncat %[1]s >>%[2]s/status 5>&- 6>&- 7>&- &\nexec %[3]s 5>%[1]s\n", fifo, dir, program)
	if err := os.WriteFile(filepath.Join(dir, "login"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	i := instance.Start(t, "service submission-login {\nexecutable = "+dir+"/login\nvsz_limit = 0\nprocess_limit = 1\n"+block+"}\n")
	script(&guests{t, i.Addr("submission")})
	b, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		t.Fatal(err)
	}
	var counts []uint32
	for ; len(b) > 0; b = b[masterproto.StatusSize:] {
		r, err := masterproto.ParseStatus(b[:masterproto.StatusSize])
		if err != nil {
			t.Fatal(err)
		}
		counts = append(counts, r.Available)
	}
	return counts
}

// guests are clients that say nothing but QUIT.
type guests struct {
	t    *testing.T
	addr string
}

func (g *guests) comes() net.Conn {
	g.t.Helper()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(make([]byte, 200)); err != nil {
		g.t.Fatal(err)
	}
	return c
}

func (g *guests) leaves(c net.Conn) {
	c.Write([]byte("QUIT\r\n"))
	for b := make([]byte, 200); ; {
		if _, err := c.Read(b); err != nil {
			c.Close()
			return
		}
	}
}

// pause is longer than the second for which a record may be held back.
func (g *guests) pause() { time.Sleep(1500 * time.Millisecond) }
