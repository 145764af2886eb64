// Package fakemaster starts one process as Dovecot's master does, for tests: with the
// descriptors and the environment of package masterproto. It shows the status records and
// log lines of the process, and can take back what a master takes back.
package fakemaster

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/log"
	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/privs"
)

// Patience is how long anything is waited for before the test fails.
const Patience = 20 * time.Second

// A Service is one service block and the master's side of it. Fields may be changed
// until the first Start.
type Service struct {
	Path    string   // executable
	Args    []string // with argv[0]
	Env     masterproto.Env
	Environ []string // besides Env
	Dir     string   // working directory; "" is a directory of the test's
	Login   bool     // pass the full flag
	Control bool     // be our own master: pass a control channel

	t         testing.TB
	listeners []*os.File
	notify    *os.File // with Login; its offset is the flag
	deadR     *os.File
	deadW     *os.File
	statusR   *os.File
	statusW   *os.File
	logR      *os.File
	logW      *os.File

	mu      sync.Mutex
	changed *sync.Cond
	records []masterproto.Status // guarded by mu
	paused  bool                 // guarded by mu; status records are not read
	lines   []string             // guarded by mu
	ended   bool                 // guarded by mu
}

// New returns a service of this program with client_limit 1, no service_count and no
// listeners. It ends with the test, and its processes with it.
func New(t testing.TB, path string, args ...string) *Service {
	t.Helper()
	s := &Service{
		Path: path, Args: append([]string{"dovecot/" + filepath.Base(path)}, args...), t: t,
		Env: masterproto.Env{
			Generation: 77, ServiceName: "echo", ClientLimit: 1, ProcessLimit: 100, IdleKill: 60,
			Version: "2.3.19.1", Hostname: "mx", HostDomain: "mx.example.org", LogService: true,
			Restrict: privs.Restrict{UID: privs.Unset, GID: privs.Unset, PrivGID: privs.Unset},
		},
		Dir: t.TempDir(),
	}
	s.changed = sync.NewCond(&s.mu)
	s.deadR, s.deadW = pipe(t, false)
	s.statusR, s.statusW = pipe(t, true)
	s.logR, s.logW = pipe(t, true)
	s.logW.Write(log.AppendHandshake(nil, s.Env.ServiceName+": "))
	t.Cleanup(func() {
		for _, f := range []*os.File{s.deadR, s.deadW, s.statusR, s.statusW, s.logR, s.logW} {
			f.Close()
		}
	})
	go s.readLog()    // ends with the last writer: the processes, and Cleanup
	go s.readStatus() // the same
	return s
}

// pipe returns a pipe whose write end is non-blocking or not, and stays so: a file that
// os made non-blocking by itself would become blocking when it is passed on.
func pipe(t testing.TB, nonblock bool) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fds[0], true)
	unix.SetNonblock(fds[1], nonblock)
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
}

// TCP adds a TCP listener on a port of the kernel's choice and returns its address.
func (s *Service) TCP(l masterproto.Listener) string {
	s.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	s.add(ln, l)
	return ln.Addr().String()
}

// Unix adds a Unix listener and returns its path.
func (s *Service) Unix(l masterproto.Listener) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), l.Name)
	ln, err := net.Listen("unix", path)
	if err != nil {
		s.t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	s.add(ln, l)
	return path
}

func (s *Service) add(ln net.Listener, l masterproto.Listener) {
	s.t.Helper()
	raw, err := ln.(syscall.Conn).SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	fd := -1
	raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		s.t.Fatal(err)
	}
	ln.Close()
	s.Add(os.NewFile(uintptr(fd), l.Name), l)
}

// Add adds a non-blocking descriptor of any kind as a listener. It takes f.
func (s *Service) Add(f *os.File, l masterproto.Listener) {
	s.listeners = append(s.listeners, f)
	s.Env.Listeners = append(s.Env.Listeners, l)
	s.t.Cleanup(func() { f.Close() })
}

// A Child is one process of the service.
type Child struct {
	PID int

	s    *Service
	ctl  *os.File // our end of the control channel; nil without
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait; read after done
}

// Start starts a process.
func (s *Service) Start() *Child {
	s.t.Helper()
	if s.Login && s.notify == nil {
		f, err := os.CreateTemp(s.t.TempDir(), "notify")
		if err != nil {
			s.t.Fatal(err)
		}
		os.Remove(f.Name())
		s.notify = f
		s.t.Cleanup(func() { f.Close() })
	}
	var ctl, theirs *os.File
	if s.Control {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		ctl, theirs = os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control of the child")
		defer theirs.Close()
		s.t.Cleanup(func() { ctl.Close() })
		s.Env.ControlFD = masterproto.FirstListenerFD + len(s.listeners)
	}
	cmd := exec.Command(s.Path)
	cmd.Args = s.Args
	cmd.Env = append(s.Env.Append(nil), s.Environ...)
	cmd.Dir = s.Dir
	cmd.Stderr = s.logW
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer null.Close()
	// Descriptor 3 is anvil's, which has a test of its own; 4 is closed without Login.
	cmd.ExtraFiles = append([]*os.File{null, s.notify, s.statusW, s.deadW}, s.listeners...)
	if theirs != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	c := &Child{PID: cmd.Process.Pid, s: s, ctl: ctl, cmd: cmd, done: make(chan struct{})}
	go func() { // ends with the process
		c.err = cmd.Wait()
		close(c.done)
		s.mu.Lock()
		s.changed.Broadcast()
		s.mu.Unlock()
	}()
	s.t.Cleanup(func() {
		cmd.Process.Kill()
		<-c.done
		if s.t.Failed() {
			s.t.Logf("log:\n%s", strings.Join(s.Log(), "\n"))
		}
	})
	return c
}

// Hear returns the next packet of the control channel.
func (c *Child) Hear() string {
	c.s.t.Helper()
	b := make([]byte, masterproto.MaxControl)
	if err := c.ctl.SetReadDeadline(time.Now().Add(Patience)); err != nil {
		c.s.t.Fatal(err)
	}
	n, err := c.ctl.Read(b)
	if err != nil {
		c.s.t.Fatalf("control channel: %v", err)
	}
	return string(b[:n])
}

// Tell sends a packet by the control channel.
func (c *Child) Tell(packet string) {
	c.s.t.Helper()
	if _, err := c.ctl.Write([]byte(packet)); err != nil {
		c.s.t.Fatalf("control channel: %v", err)
	}
}

// Ask sends a packet by the control channel, and returns the answer.
func (c *Child) Ask(packet string) string {
	c.s.t.Helper()
	c.Tell(packet)
	return c.Hear()
}

// Orphan closes the control channel, as the end of our master does.
func (c *Child) Orphan() { c.ctl.Close() }

// Die closes the dead pipe, as a reload or stop does.
func (s *Service) Die() { s.deadR.Close() }

// CloseStatus closes the master's end of the status pipe.
func (s *Service) CloseStatus() {
	s.statusR.Close()
}

// SetFull sets the full flag and tells the processes.
func (s *Service) SetFull(full bool, children ...*Child) {
	s.t.Helper()
	at := int64(0)
	if full {
		at = 1
	}
	if _, err := s.notify.Seek(at, 0); err != nil {
		s.t.Fatal(err)
	}
	for _, c := range children {
		c.Signal(masterproto.SignalFull)
	}
}

func (s *Service) readLog() {
	r, err := log.NewReader(s.logR)
	for err == nil {
		var rec log.Record
		if rec, err = r.Next(); err == nil {
			s.mu.Lock()
			s.lines = append(s.lines, rec.Prefix+rec.Level.String()+": "+rec.Text)
			s.changed.Broadcast()
			s.mu.Unlock()
		}
	}
	s.mu.Lock()
	s.ended = true
	s.changed.Broadcast()
	s.mu.Unlock()
}

// PauseStatus fills the status pipe, which is then not read until ResumeStatus.
func (s *Service) PauseStatus() {
	s.t.Helper()
	s.mu.Lock()
	s.paused = true
	s.mu.Unlock()
	nobody := masterproto.Status{PID: 1}.Append(nil)
	for n := 0; ; n++ {
		if _, err := syscall.Write(int(s.statusW.Fd()), nobody); err != nil {
			if n == 0 || err != syscall.EAGAIN {
				s.t.Fatal(err)
			}
			return
		}
	}
}

// ResumeStatus reads the status pipe again.
func (s *Service) ResumeStatus() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = false
	s.changed.Broadcast()
}

func (s *Service) readStatus() {
	buf := make([]byte, 64*masterproto.StatusSize)
	for {
		s.mu.Lock()
		for s.paused && !s.ended {
			s.changed.Wait()
		}
		s.mu.Unlock()
		n, err := s.statusR.Read(buf)
		if err != nil {
			return
		}
		s.mu.Lock()
		for b := buf[:n]; len(b) > 0; {
			size := min(len(b), masterproto.StatusSize)
			rec, err := masterproto.ParseStatus(b[:size])
			if err != nil {
				s.lines = append(s.lines, fmt.Sprintf("partial status record: %x", b))
			}
			s.records = append(s.records, rec)
			b = b[size:]
		}
		s.changed.Broadcast()
		s.mu.Unlock()
	}
}

// wait waits until cond, called with mu held, holds.
func (s *Service) wait(what string, cond func() bool) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	end := time.Now().Add(Patience)
	timer := time.AfterFunc(Patience, func() { s.mu.Lock(); s.changed.Broadcast(); s.mu.Unlock() })
	defer timer.Stop()
	for !cond() {
		if time.Now().After(end) {
			s.t.Fatalf("%s did not happen; log:\n%s\nrecords: %v", what, strings.Join(s.lines, "\n"), s.records)
		}
		s.changed.Wait()
	}
}

// Log returns the lines so far: prefix, severity, text.
func (s *Service) Log() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

// AwaitLog waits for a line that contains text, and returns it.
func (s *Service) AwaitLog(text string) (line string) {
	s.t.Helper()
	s.wait("a log line with "+text, func() bool {
		for _, l := range s.lines {
			if strings.Contains(l, text) {
				line = l
				return true
			}
		}
		return false
	})
	return line
}

// Records returns the counts of the child's status records so far.
func (c *Child) Records() []uint32 {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.recordsLocked()
}

func (c *Child) recordsLocked() []uint32 {
	var counts []uint32
	for _, r := range c.s.records {
		if int(r.PID) == c.PID {
			if r.Generation != c.s.Env.Generation {
				c.s.t.Errorf("record of generation %d, want %d", r.Generation, c.s.Env.Generation)
			}
			counts = append(counts, r.Available)
		}
	}
	return counts
}

// AwaitCount waits until the latest status record of the child says n.
func (c *Child) AwaitCount(n uint32) {
	c.s.t.Helper()
	c.s.wait(fmt.Sprintf("a status record with %d", n), func() bool {
		r := c.recordsLocked()
		return len(r) > 0 && r[len(r)-1] == n
	})
}

// Signal sends a signal.
func (c *Child) Signal(sig syscall.Signal) {
	c.s.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		c.s.t.Fatal(err)
	}
}

// AwaitExit waits for the child's end and returns its exit status; -1 after a signal.
func (c *Child) AwaitExit() int {
	c.s.t.Helper()
	select {
	case <-c.done:
	case <-time.After(Patience):
		c.s.t.Fatalf("process %d did not end; log:\n%s", c.PID, strings.Join(c.s.Log(), "\n"))
	}
	var ee *exec.ExitError
	if c.err != nil && !errors.As(c.err, &ee) {
		c.s.t.Fatal(c.err)
	}
	return c.cmd.ProcessState.ExitCode()
}

// CPU returns the processor time that the child used. It has ended.
func (c *Child) CPU() time.Duration {
	return c.cmd.ProcessState.UserTime() + c.cmd.ProcessState.SystemTime()
}

// Running says whether the child has not ended yet.
func (c *Child) Running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// AwaitNoListeners waits until the child has closed all listeners.
func (c *Child) AwaitNoListeners() {
	c.s.t.Helper()
	inodes := map[string]bool{}
	for _, f := range c.s.listeners {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			c.s.t.Fatal(err)
		}
		inodes[fmt.Sprintf("socket:[%d]", st.Ino)] = true
	}
	for end := time.Now().Add(Patience); ; time.Sleep(time.Millisecond) { // nothing tells
		open := 0
		dir := fmt.Sprintf("/proc/%d/fd", c.PID)
		names, err := os.ReadDir(dir)
		if err != nil {
			return // the process has ended
		}
		for _, n := range names {
			if l, _ := os.Readlink(filepath.Join(dir, n.Name())); inodes[l] {
				open++
			}
		}
		if open == 0 {
			return
		}
		if time.Now().After(end) {
			c.s.t.Fatalf("%d listeners are open", open)
		}
	}
}

// Cmdline returns what ps shows of the child.
func (c *Child) Cmdline() string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.PID))
	if err != nil {
		c.s.t.Fatal(err)
	}
	return string(bytes.ReplaceAll(bytes.TrimRight(b, "\x00"), []byte{0}, []byte{' '}))
}
