package logd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/log"
	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/event"
)

const (
	maxErrorClients = 16
	errorTimeout    = 10 * time.Second // for a client of log-errors to take its answer
	maxControl      = 4096
	maxControlFDs   = 3
)

// A role is the log process. It does not use package service as the others do: its
// descriptors are pipes that everybody writes to, it is what the others log with, and it
// ends after all of them.
type role struct {
	env     masterproto.Env
	out     *Output
	log     *event.Log
	recent  recent
	readers map[int]*reader // by descriptor
	orders  *source
	errors  net.Listener // log-errors; nil without
}

// A reader is one service's pipe.
type reader struct {
	*source
	service string
	lines   *log.Reader // belongs to the goroutine that reads
}

// Main is the log process: started by a master as service log, as root or as the user of
// everything. It returns the exit status.
//
// Its listeners 7 and up are the pipe for the master's orders, one pipe for each other
// service, and the socket log-errors. As Dovecot's it is told its settings in the
// environment (FromEnv), and its descriptor 2 is the master's.
func Main() int {
	fatal := func(status int, err error) int {
		fmt.Fprintf(os.Stderr, "log(%d): Fatal: %v\n", os.Getpid(), err)
		return status
	}
	env, err := masterproto.ParseEnv(os.Environ())
	if err != nil {
		return fatal(masterproto.ExitFatal, err)
	}
	r := &role{env: env, readers: map[int]*reader{}}
	_ = time.Now().Local().String() // reads the time zone, which may be out of reach later
	if r.out, err = Open(FromEnv(os.Getenv)); err != nil {
		return fatal(masterproto.ExitLogOpen, err)
	}
	defer r.out.Close()
	r.log = event.New(event.SinkFunc(r.own), fmt.Sprintf("log(%d): ", os.Getpid()), false)
	if err := env.Restrict.Apply(); err != nil {
		r.log.Fatal("%v", err)
		return masterproto.ExitFatal
	}
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP, unix.SIGALRM, unix.SIGUSR2)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1)
	if err := r.listeners(); err != nil {
		r.log.Fatal("%v", err)
		return masterproto.ExitFatal
	}
	if err := r.control(); err != nil {
		r.log.Error("control channel: %v", err)
	}
	var all sync.WaitGroup
	for _, rd := range r.readers {
		all.Go(func() { r.read(rd) }) // ends with the last writer, or with end
	}
	go r.obey()          // ends with the process
	go r.signal(signals) // ends with the process
	if r.errors != nil {
		go r.serveErrors() // ends when the listener is closed
	}
	if err := r.report(r.env.ClientLimit); err != nil {
		r.log.Error("writing status: %v", err)
	}
	if err := r.watchMaster(); err != nil {
		r.log.Error("dead pipe: %v", err)
	}
	all.Wait()
	return masterproto.ExitOK
}

// own writes a line of the log process itself.
func (r *role) own(level event.Level, prefix, text string) {
	r.write("log", log.Record{Level: level, Prefix: prefix, Text: string(log.AppendSanitised(nil, text)), PID: os.Getpid()})
}

func (r *role) write(service string, rec log.Record) {
	now := time.Now()
	r.recent.add(rec, now)
	r.out.Write(service, rec, now)
}

// listeners sorts the descriptors.
func (r *role) listeners() error {
	for i, l := range r.env.Listeners {
		fd := masterproto.FirstListenerFD + i
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			f := os.NewFile(uintptr(fd), l.Name)
			ln, err := net.FileListener(f)
			if err != nil {
				return fmt.Errorf("listener %s: %w", l.Name, err)
			}
			f.Close()
			r.errors = ln
			continue
		}
		src, err := newSource(fd, l.Name+": ")
		if err != nil {
			return err
		}
		if i == 0 {
			r.orders = src
			continue
		}
		r.readers[fd] = &reader{source: src, service: l.Name}
	}
	if r.orders == nil {
		return errors.New("there is no pipe for the master's orders")
	}
	return nil
}

// report is a status record: the process is ready, and stays so until the master goes.
func (r *role) report(available uint32) error {
	b := masterproto.Status{PID: int32(os.Getpid()), Generation: r.env.Generation, Available: available}.Append(nil)
	_, err := unix.Write(masterproto.StatusFD, b)
	return err
}

// read writes what one service says, until nobody can say more.
func (r *role) read(rd *reader) {
	defer rd.close()
	lines, err := log.NewReader(rd.source)
	if err != nil {
		r.log.Error("service %s: %v", rd.service, err)
		return
	}
	rd.lines = lines
	for {
		rec, err := lines.Next()
		if err != nil {
			if err != io.EOF {
				r.log.Error("read(log %s) failed: %v", lines.Service(), err)
			}
			return
		}
		r.write(rd.service, rec)
	}
}

// forget returns what a process had told. Only the goroutine that reads calls it.
func (rd *reader) forget(pid int) log.Last {
	if rd.lines == nil {
		return log.Last{Prefix: rd.service + ": "}
	}
	return rd.lines.Forget(pid)
}

// obey carries out the master's orders, lines "<descriptor> <pid> <order>".
func (r *role) obey() {
	br := bufio.NewReaderSize(r.orders, log.MaxLine)
	if _, err := log.NewReader(br); err != nil { // it reads by br, and only the handshake
		r.log.Error("pipe of the master: %v", err)
		return
	}
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		if err := r.order(strings.TrimSuffix(line, "\n")); err != nil {
			r.log.Error("Received invalid input from master: %v", err)
		}
	}
}

func (r *role) order(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	pidWord, order, ok := strings.Cut(rest, " ")
	fd, err := strconv.Atoi(word)
	pid, err2 := strconv.Atoi(pidWord)
	if !ok || err != nil || err2 != nil {
		return fmt.Errorf("%q", line)
	}
	rd := r.readers[fd]
	if rd == nil {
		return fmt.Errorf("no service has descriptor %d: %q", fd, line)
	}
	name, text, _ := strings.Cut(order, " ")
	switch name {
	case "BYE":
		rd.do(func() { rd.forget(pid) })
	case "FATAL", "DEFAULT-FATAL":
		rd.do(func() {
			last := rd.forget(pid)
			if name == "DEFAULT-FATAL" && last.FatalLogged {
				return
			}
			if last.IP != "" {
				text += " [last ip=" + last.IP + "]"
			}
			r.write(rd.service, log.Record{
				Level: event.Fatal, Prefix: last.Prefix, PID: pid,
				Text: string(log.AppendSanitised(nil, "master: "+text)),
			})
		})
	default:
		return fmt.Errorf("unknown order %q", name)
	}
	return nil
}

// signal acts on signals.
func (r *role) signal(signals <-chan os.Signal) {
	for s := range signals {
		switch s {
		case unix.SIGUSR1:
			if err := r.out.Reopen(); err != nil {
				r.log.Error("%v", err)
			}
		case unix.SIGTERM:
			r.log.Warning("Killed with signal %d", s)
			for _, rd := range r.readers {
				rd.end()
			}
			r.closeErrors()
		case unix.SIGQUIT:
			r.closeErrors()
		case unix.SIGINT: // idle kill, which is for others
			_ = r.report(r.env.ClientLimit)
		}
	}
}

func (r *role) closeErrors() {
	if r.errors != nil {
		r.errors.Close()
	}
}

// watchMaster closes the listener when the master does not want it any more (clause
// P1.6.2). The pipes are read to their end.
func (r *role) watchMaster() error {
	if err := unix.SetNonblock(masterproto.DeadFD, true); err != nil {
		return err
	}
	raw, err := os.NewFile(masterproto.DeadFD, "dead pipe").SyscallConn()
	if err != nil {
		return err
	}
	go func() { // ends with the master
		_ = raw.Read(func(fd uintptr) bool {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, 0)
			return n > 0
		})
		r.closeErrors()
		_ = r.report(0)
	}()
	return nil
}

// serveErrors answers on log-errors: all recent errors, and the end.
func (r *role) serveErrors() {
	slots := make(chan struct{}, maxErrorClients)
	for {
		conn, err := r.errors.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Second) // no descriptors
			continue
		}
		slots <- struct{}{}
		go func() { // ends with errorTimeout
			defer func() { conn.Close(); <-slots }()
			if conn.SetDeadline(time.Now().Add(errorTimeout)) == nil {
				_, _ = io.WriteString(conn, r.recent.all())
			}
		}()
	}
}

// control serves the control channel of our master (package masterproto): after SIGUSR1 the
// master opens the log files, as this process has no right to, and sends them.
func (r *role) control() error {
	fd := r.env.ControlFD
	if fd == 0 {
		return nil // another master
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	raw, err := os.NewFile(uintptr(fd), "control").SyscallConn()
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte(masterproto.ControlReady)); err != nil {
		return err
	}
	go func() { // ends with the master
		b := make([]byte, masterproto.MaxControl+1)
		oob := make([]byte, unix.CmsgSpace(maxControlFDs*4))
		for {
			var n, oobn int
			rerr := raw.Read(func(fd uintptr) bool {
				n, oobn, _, _, err = unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC)
				return err != unix.EAGAIN
			})
			if err == unix.EINTR {
				continue
			}
			if rerr != nil || n <= 0 || err != nil {
				return
			}
			fds := rights(oob[:oobn])
			if o, err := masterproto.ParseOrder(b[:n]); err != nil {
				r.log.Error("%v", err)
			} else {
				var fields []string
				if o.Word == masterproto.ControlLogs && len(o.Args) == len(fds) {
					r.replace(o.Args, fds)
					fds, fields = nil, []string{"1"}
				}
				if _, err := unix.Write(fd, masterproto.AppendAnswer(nil, o.Tag, fields...)); err != nil {
					r.log.Error("control channel: %v", err)
				}
			}
			for _, f := range fds {
				unix.Close(f)
			}
		}
	}()
	return nil
}

// replace takes the log files into use that the master has opened.
func (r *role) replace(paths []string, fds []int) {
	for i, path := range paths {
		if !r.out.Replace(path, fds[i]) {
			r.log.Error("%s is none of the log files", path)
		}
	}
}

// rights returns the descriptors that came with a message.
func rights(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for _, m := range msgs {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}
