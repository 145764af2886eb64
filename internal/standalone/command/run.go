package command

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"syscall"

	"github.com/hashicorp/hcl/v2"
	"golang.org/x/sys/unix"

	"dovetail/internal/conf"
	"dovetail/internal/process/event"
	"dovetail/internal/standalone/logd"
	"dovetail/internal/standalone/master"
)

// readyEnv names the descriptor on which a server in the background tells the process
// that started it that it runs.
const (
	readyEnv = "DOVETAIL_READY_FD"
	readyFD  = 3
)

// runRun is `dovetail run`. Everything that can be wrong is found, and all of it shown,
// before anything is started; then the exit status is 89.
func runRun(c *call) int {
	foreground := c.flags.Bool("F", false, "stay in the foreground")
	if _, err := c.parse(0); err != nil {
		return usage(err)
	}
	if !*foreground && os.Getenv(readyEnv) == "" {
		return c.background()
	}
	sys, err := thisSystem()
	if err != nil {
		c.error("%v", err)
		return exitFatal
	}
	if c.config, err = filepath.Abs(c.config); err != nil { // the master changes its directory
		c.error("%v", err)
		return exitFatal
	}
	r := &runner{call: c, sys: sys}
	return r.run(*foreground)
}

// A runner is a master's process.
type runner struct {
	*call
	sys System
	out atomic.Pointer[logd.Output] // where lines go, after the configuration is known
	set logd.Settings
}

// log is the master's own log.
func (r *runner) log() *event.Log {
	sink := event.SinkFunc(func(l event.Level, prefix, text string) {
		if o := r.out.Load(); o != nil {
			o.Sink("master").Log(l, prefix, text)
		}
	})
	return event.New(sink, "master: ", false)
}

func (r *runner) run(foreground bool) int {
	setup, diags := r.sys.Load(r.config)
	if !diags.HasErrors() {
		var err error
		var out *logd.Output
		r.set = setup.Log
		if out, err = logd.Open(setup.Log); err != nil {
			diags = append(diags, problem(setup.view.Range("log_path"), err.Error(), ""))
		} else {
			r.out.Store(out)
		}
	}
	log := r.log()
	var m *master.Master
	if !diags.HasErrors() {
		r.logDiags(log, diags)
		if !r.sys.Root {
			log.Warning("%s", unprivileged())
		}
		var errs []error
		m, errs = master.New(setup.Master, master.Options{
			Load: r.load, Log: log, ReopenLogs: r.reopen, Name: "Dovetail", Version: Version,
			Started: func() { r.ready(foreground) },
		})
		for _, err := range errs {
			d := atStart(err)
			diags = append(diags, d)
			log.Error("%s", d.Summary)
		}
		if len(errs) > 0 {
			log.Fatal("Failed to start")
		}
	}
	if err := conf.Write(r.stderr, setup.conf(), diags); err != nil {
		return exitFatal
	}
	if diags.HasErrors() {
		return exitFatal
	}
	setup = nil
	debug.FreeOSMemory() // of reading the configuration
	if !foreground {
		r.detach()
	}
	if err := m.Run(); err != nil {
		log.Fatal("%v", err)
		r.error("%v", err)
		return exitFatal
	}
	return exitOK
}

// conf is nil-safe access to the configuration's files, for messages.
func (s *Setup) conf() *conf.Config {
	if s == nil {
		return nil
	}
	return s.Conf
}

// atStart makes a diagnostic of an error of master.New.
func atStart(err error) *hcl.Diagnostic {
	var le *master.ListenError
	if !errors.As(err, &le) {
		return problem(hcl.Range{}, err.Error(), "")
	}
	at, _ := le.Listener.Ref.(hcl.Range)
	detail := ""
	if errors.Is(err, syscall.EADDRINUSE) {
		detail = fmt.Sprintf("Another program listens there. inet_listener %s is to listen at %s, port %d.",
			le.Listener.Name, le.Listener.Address, le.Listener.Addr.Port())
	}
	if errors.Is(err, syscall.EACCES) && le.Listener.Kind == master.Inet {
		detail = "Ports below 1024 are for root."
	}
	return problem(at, err.Error(), detail)
}

func unprivileged() string {
	name := fmt.Sprintf("uid %d", os.Geteuid())
	if u, err := user.Current(); err == nil {
		name = "user " + u.Username
	}
	return "Not started as root: everything runs as " + name + ", without chroot, and all mail users share it"
}

// logDiags writes diagnostics to the log.
func (r *runner) logDiags(log *event.Log, diags hcl.Diagnostics) {
	for _, d := range diags {
		text := d.Summary
		if d.Subject != nil {
			text = fmt.Sprintf("%s line %d: %s", d.Subject.Filename, d.Subject.Start.Line, text)
		}
		if d.Severity == hcl.DiagError {
			log.Error("%s", text)
		} else {
			log.Warning("%s", text)
		}
	}
}

// load is for a reload: nil, and lines in the log, if anything is wrong.
func (r *runner) load() *master.Config {
	defer debug.FreeOSMemory()
	setup, diags := r.sys.Load(r.config)
	log := r.log()
	if !diags.HasErrors() {
		out, err := logd.Open(setup.Log)
		if err != nil {
			diags = append(diags, problem(setup.view.Range("log_path"), err.Error(), ""))
		} else {
			out.Close()
		}
	}
	r.logDiags(log, diags)
	if diags.HasErrors() {
		log.Error("Configuration not taken into use: the old one goes on")
		return nil
	}
	r.set = setup.Log
	return setup.Master
}

// reopen opens the log files anew: the same ones, or after a reload what is set now.
func (r *runner) reopen(*master.Config) {
	out, err := logd.Open(r.set)
	if err != nil {
		r.log().Error("%v", err)
		return
	}
	if old := r.out.Swap(out); old != nil {
		old.Close()
	}
}

// background starts the server in a session of its own, and returns when it runs.
func (c *call) background() int {
	if os.Getenv("LISTEN_PID") == fmt.Sprint(os.Getpid()) {
		c.error("descriptors of systemd (LISTEN_FDS) need `dovetail run -F`")
		return exitFatal
	}
	rd, wr, err := os.Pipe()
	if err != nil {
		c.error("%v", err)
		return exitFatal
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		c.error("%v", err)
		return exitFatal
	}
	self, err := os.Executable()
	if err != nil {
		c.error("%v", err)
		return exitFatal
	}
	p, err := os.StartProcess(self, append([]string{os.Args[0], c.word.name}, c.args...), &os.ProcAttr{
		Env:   append(os.Environ(), readyEnv+"=3"),
		Files: []*os.File{null, os.Stdout, os.Stderr, wr},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	wr.Close()
	if err != nil {
		c.error("%v", err)
		return exitFatal
	}
	var b [1]byte
	if n, _ := rd.Read(b[:]); n == 1 {
		return exitOK
	}
	st, err := p.Wait()
	if err != nil || st.ExitCode() <= 0 {
		return exitFatal
	}
	return st.ExitCode()
}

// detach lets go of the terminal, but for descriptors that are logged to.
func (r *runner) detach() {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(null)
	for fd := range 3 {
		if fd == 0 || !logsTo(r.set, fd) {
			_ = unix.Dup2(null, fd)
		}
	}
	unix.CloseOnExec(readyFD)
}

// ready is called when everything runs.
func (r *runner) ready(foreground bool) {
	if !foreground {
		_, _ = unix.Write(readyFD, []byte{1})
		unix.Close(readyFD)
	}
}

// logsTo says whether lines go to a standard descriptor.
func logsTo(s logd.Settings, fd int) bool {
	for _, p := range []string{s.Path, s.InfoPath, s.DebugPath} {
		if fd == 1 && p == "/dev/stdout" || fd == 2 && p == "/dev/stderr" {
			return true
		}
	}
	return false
}
