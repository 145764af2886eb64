// Package echo is a small program on package service, for tests of the life under a
// master. It greets every client and answers lines:
//
//	S: 220 <pid> <listener> <ssl|-> <haproxy|->
//	C: QUIT             S: 221, and closes
//	C: HOLD             S: 250; the client may not be dropped any more
//	C: DEAF             S: 250; the session does not end when it is told to
//	C: PANIC            a panic in Serve
//	C: PANIC GO         a panic in another goroutine of the session
//	C: FATAL            ends the process with status 89
//	C: RETIRE           S: 250; the process takes no more clients
//	C: TITLE <text>     S: 250; changes the process's title
//	C: EXEC <program>   S: what it writes to its standard output, without line ends
//	C: USER <name> <ip> S: 250; says whose session this is
//	C: MEMLIMIT         S: 250 <the collector's limit>
//	C: anything else    S: 250 <the same>
//
// With -pipe it logs the lines of fifos, with the fifo's name.
//
// When the session must end it says 421 4.3.2, when it is dropped 421 4.0.0, after a panic
// 421 4.3.0.
package echo

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"dovetail/internal/process/service"
)

// Program returns the echo program. Options: -fail setup|start|panic makes it fail there,
// -slow makes Start wait until the process is told to end, -drop drops rights at the start,
// -keep is shutdown_clients = no, -n gives another name.
func Program() service.Program {
	var fail string
	var slow, keep bool
	p := service.Program{
		Name:  "echo",
		About: "a program for tests",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&fail, "fail", "", "")
			fs.BoolVar(&slow, "slow", false, "")
			fs.BoolVar(&keep, "keep", false, "")
		},
		Setup: func(p *service.Process) error {
			p.SetShutdownClients(!keep)
			switch fail {
			case "setup":
				return errors.New("ssl_cert: no such file")
			case "panic":
				panic("not thought of")
			}
			return nil
		},
		Start: func(p *service.Process) error {
			if slow {
				<-p.Context().Done()
			}
			if fail == "start" {
				return errors.New("auth: no such socket")
			}
			return nil
		},
		Serve: serve,
	}
	for _, a := range os.Args {
		switch a {
		case "-drop":
			p.DropAtStart = true
		case "-pipe":
			p.Pipe = pipe
		}
	}
	next := p.Flags
	p.Flags = func(fs *flag.FlagSet) { next(fs); fs.Bool("drop", false, ""); fs.Bool("pipe", false, "") }
	return p
}

func pipe(p *service.Process, i int, f *os.File) {
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		p.Log.Info("%s: %s", p.Env.Listeners[i].Name, lines.Text())
	}
}

const idle = 60 * time.Second

func serve(ctx context.Context, c *service.Client) {
	say := func(format string, args ...any) { fmt.Fprintf(c.Conn, format+"\r\n", args...) }
	word := func(on bool, w string) string {
		if on {
			return w
		}
		return "-"
	}
	var dropped atomic.Bool
	wake := func() { c.Conn.SetReadDeadline(time.Now()) }
	stop := context.AfterFunc(ctx, wake)
	defer stop()
	c.Droppable(func() { dropped.Store(true); wake() })
	c.OnPanic(func() { say("421 4.3.0 A bug") })
	c.Conn.SetReadDeadline(time.Now().Add(idle))
	say("220 %d %s %s %s", os.Getpid(), c.Listener.Name, word(c.Listener.SSL, "ssl"), word(c.Listener.HAProxy, "haproxy"))
	lines := bufio.NewScanner(c.Conn)
	for lines.Scan() {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "QUIT":
			say("221 Bye")
			return
		case "HOLD":
			c.Droppable(nil)
			say("250 held")
		case "DEAF":
			stop()
			c.Conn.SetReadDeadline(time.Time{})
			say("250 what?")
		case "PANIC":
			if arg == "" {
				panic("oops\nsecond line")
			}
			c.Go(func() { panic("oops elsewhere") })
		case "THEN":
			c.Then(func() {
				say("250 then %s", arg)
				if arg == "panic" {
					panic("oops later")
				}
				io.Copy(c.Conn, c.Conn) // ends with the client
			})
			return
		case "FATAL":
			c.Process.Fatal("told to die")
		case "RETIRE":
			c.Process.Retire()
			say("250 retired")
		case "TITLE":
			c.Process.SetTitle(arg)
			say("250 titled")
		case "EXEC":
			out, err := exec.Command("/bin/sh", "-c", arg).CombinedOutput()
			say("250 %s %v", strings.Join(strings.Fields(string(out)), " "), err)
		case "USER":
			name, ip, _ := strings.Cut(arg, " ")
			addr, _ := netip.ParseAddr(ip)
			c.Identify(name, addr)
			say("250 %s", name)
		case "MEMLIMIT":
			say("250 %d", debug.SetMemoryLimit(-1))
		default:
			say("250 %s", lines.Text())
		}
	}
	switch {
	case dropped.Load():
		say("421 4.0.0 Connection queue full")
	case context.Cause(ctx) == service.ErrShutdown:
		say("421 4.3.2 Shutting down")
	}
}
