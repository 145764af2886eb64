package master

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/standalone/logd"
)

// The test binary is also the programs that the master under test starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "child" {
		child := map[string]func(){
			"echo":   echoChild,
			"fail":   func() { os.Exit(7) },
			"silent": func() { select {} },
			"log":    func() { os.Exit(logd.Main()) },
			"anvil":  anvilChild,
		}[os.Args[2]]
		child()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// program is the command of a service that runs this binary as a child.
func program(name string) []string { return []string{os.Args[0], "child", name} }

// An echoProcess is a service of the plain kind: it does what its clients say.
//
//	pid           -> its pid
//	env NAME      -> the variable
//	full          -> offset of the login notify file, after a SIGUSR1 if one is due
//	log TEXT      -> a log line
//	raw BYTES     -> written to the log pipe, quoted as in Go
//	anvil LINE    -> written to anvil
//	exit N        -> exits
//	kill N        -> kills itself
//	anything else -> the same
type echoProcess struct {
	env   masterproto.Env
	slots chan struct{} // one for each client

	mu      sync.Mutex
	clients map[net.Conn]bool // guarded by mu
	left    int               // guarded by mu; -1: any number
	usr1    int               // guarded by mu
	dead    bool              // guarded by mu
}

func echoChild() {
	env, err := masterproto.ParseEnv(os.Environ())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(89)
	}
	e := &echoProcess{env: env, clients: map[net.Conn]bool{}, left: -1}
	if env.ServiceCount > 0 {
		e.left = int(env.ServiceCount)
	}
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGUSR1)
	e.mu.Lock()
	e.reportLocked()
	e.mu.Unlock()
	slots := make(chan struct{}, env.ClientLimit)
	accepted := make(chan net.Conn)
	e.slots = slots
	go e.accept(accepted)
	go e.control()
	died := make(chan bool)
	go func() {
		p := []unix.PollFd{{Fd: masterproto.DeadFD}}
		for {
			if n, _ := unix.Poll(p, -1); n > 0 {
				close(died)
				return
			}
		}
	}()
	for {
		select {
		case <-died:
			died = nil
			e.mu.Lock()
			e.dead = true
			for i := range env.Listeners {
				unix.Close(masterproto.FirstListenerFD + i)
			}
			if len(e.clients) == 0 {
				os.Exit(0)
			}
			e.mu.Unlock()
		case s := <-sigs:
			e.mu.Lock()
			switch s {
			case unix.SIGINT:
				if len(e.clients) == 0 {
					os.Exit(0)
				}
				e.reportLocked()
			case unix.SIGTERM:
				for c := range e.clients {
					fmt.Fprintf(c, "421 4.3.2 bye\n")
				}
				os.Exit(0)
			case unix.SIGUSR1:
				e.usr1++
			}
			e.mu.Unlock()
		case c := <-accepted:
			e.mu.Lock()
			e.clients[c] = true
			e.reportLocked()
			e.mu.Unlock()
			go e.serve(c)
		}
	}
}

// accept takes clients while there is room, from whatever listener has one.
func (e *echoProcess) accept(accepted chan<- net.Conn) {
	var fds []unix.PollFd
	for i := range e.env.Listeners {
		fds = append(fds, unix.PollFd{Fd: int32(masterproto.FirstListenerFD + i), Events: unix.POLLIN})
	}
	for {
		e.slots <- struct{}{}
		for taken := false; !taken; {
			unix.Poll(fds, -1)
			for i := range fds {
				if fds[i].Revents == 0 || taken {
					continue
				}
				e.mu.Lock()
				dead := e.dead
				e.mu.Unlock()
				if dead {
					return
				}
				nfd, _, err := unix.Accept4(int(fds[i].Fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
				if err != nil {
					continue
				}
				f := os.NewFile(uintptr(nfd), "client")
				c, err := net.FileConn(f)
				if err != nil {
					panic(err)
				}
				f.Close()
				accepted <- c
				taken = true
			}
		}
	}
}

func (e *echoProcess) reportLocked() {
	avail := int(e.env.ClientLimit)
	if e.left >= 0 {
		avail = min(avail, e.left)
	}
	avail = max(avail-len(e.clients), 0)
	b := masterproto.Status{PID: int32(os.Getpid()), Generation: e.env.Generation, Available: uint32(avail)}.Append(nil)
	unix.Write(masterproto.StatusFD, b)
}

func (e *echoProcess) serve(c net.Conn) {
	sc := bufio.NewScanner(c)
	for sc.Scan() {
		word, arg, _ := strings.Cut(sc.Text(), " ")
		answer := sc.Text()
		switch word {
		case "pid":
			answer = strconv.Itoa(os.Getpid())
		case "env":
			answer = os.Getenv(arg)
		case "full":
			off, _ := unix.Seek(masterproto.LoginNotifyFD, 0, unix.SEEK_CUR)
			e.mu.Lock()
			answer = fmt.Sprintf("%d %v", off, e.usr1 > 0)
			e.mu.Unlock()
		case "log":
			fmt.Fprintf(os.Stderr, "\x01\x02%d %s\n", os.Getpid(), arg)
		case "raw":
			s, _ := strconv.Unquote(arg)
			os.Stderr.WriteString(s)
		case "anvil":
			unix.Write(masterproto.AnvilFD, []byte(arg+"\n"))
		case "exit":
			n, _ := strconv.Atoi(arg)
			os.Exit(n)
		case "kill":
			n, _ := strconv.Atoi(arg)
			unix.Kill(os.Getpid(), unix.Signal(n))
		}
		if _, err := fmt.Fprintln(c, answer); err != nil {
			break
		}
	}
	c.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.clients, c)
	<-e.slots
	if e.left > 0 {
		e.left--
	}
	if e.left == 0 || e.dead && len(e.clients) == 0 {
		os.Exit(0)
	}
	e.reportLocked()
}

// control answers KICK with the number of clients, and closes them.
func (e *echoProcess) control() {
	fd, err := strconv.Atoi(os.Getenv(masterproto.ControlEnv))
	if err != nil {
		return
	}
	unix.SetNonblock(fd, false)
	unix.Write(fd, []byte("READY"))
	for {
		b := make([]byte, masterproto.MaxControl)
		n, err := unix.Read(fd, b)
		if err != nil || n == 0 {
			return
		}
		f := strings.Split(string(b[:n]), "\t")
		if f[0] != "KICK" {
			unix.Write(fd, []byte(f[1]))
			continue
		}
		e.mu.Lock()
		n = len(e.clients)
		for c := range e.clients {
			fmt.Fprintf(c, "421 4.3.2 %s kicked from %s\n", f[2], f[3])
			c.Close()
		}
		e.mu.Unlock()
		unix.Write(fd, fmt.Appendf(nil, "%s\t%d", f[1], n))
	}
}

// anvilChild logs what comes by its two pipes, and where from.
func anvilChild() {
	env, err := masterproto.ParseEnv(os.Environ())
	if err != nil {
		os.Exit(89)
	}
	signal.Ignore(unix.SIGINT)
	b := masterproto.Status{PID: int32(os.Getpid()), Generation: env.Generation, Available: env.ClientLimit}.Append(nil)
	for i, name := range []string{"master", "others"} {
		f := os.NewFile(uintptr(masterproto.FirstListenerFD+i), "")
		go func() {
			sc := bufio.NewScanner(f)
			for sc.Scan() {
				fmt.Fprintf(os.Stderr, "\x01\x02%d from %s: %s\n", os.Getpid(), name, strings.ReplaceAll(sc.Text(), "\t", " "))
			}
		}()
	}
	fmt.Fprintf(os.Stderr, "\x01\x02%d restarted %q\n", os.Getpid(), os.Getenv("ANVIL_RESTARTED"))
	// A new log pipe comes after a reload (descriptor 4).
	go func() {
		oob := make([]byte, unix.CmsgSpace(4))
		var b [1]byte
		for {
			_, n, _, _, err := unix.Recvmsg(masterproto.LoginNotifyFD, b[:], oob, 0)
			if err != nil || n == 0 {
				return
			}
			msgs, _ := unix.ParseSocketControlMessage(oob[:n])
			fds, _ := unix.ParseUnixRights(&msgs[0])
			unix.Dup2(fds[0], 2)
			unix.Close(fds[0])
			fmt.Fprintf(os.Stderr, "\x01\x02%d new log pipe\n", os.Getpid())
		}
	}()
	unix.Write(masterproto.StatusFD, b)
	p := []unix.PollFd{{Fd: masterproto.DeadFD}}
	for {
		if n, _ := unix.Poll(p, -1); n > 0 {
			os.Exit(0)
		}
		time.Sleep(time.Millisecond)
	}
}
