package master

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/event"
	"dovetail/internal/process/siginfo"
)

const firstListener = masterproto.FirstListenerFD

// lingerAsInit is how long a master that is process 1 waits for its children's last
// sessions: when it exits the kernel kills them.
const lingerAsInit = 32 * time.Second

// Options are what a master needs besides its configuration.
type Options struct {
	// Load reads the configuration anew, for a reload. What is wrong with it, it says
	// itself; nil means that the old one goes on.
	Load func() *Config
	// Log is where the master's own lines go.
	Log *event.Log
	// ReopenLogs is called at SIGUSR1, and after a reload.
	ReopenLogs func(*Config)
	// Started is called once when everything runs.
	Started func()
	// Name and Version stand in the first line of the log.
	Name, Version string
}

// times are constants but for tests.
type times struct {
	firstStatus, throttleMin, throttleMax, drop, quit time.Duration
}

var realTimes = times{firstStatusTimeout, throttleMin, throttleMax, dropTimeout, quitTime}

// A Master is a master process. New makes it, Run uses it up.
type Master struct {
	opt   Options
	log   *event.Log
	times times

	loop    *loop
	cfg     *Config
	gen     *generation   // the current one
	old     []*generation // that have processes left
	pids    map[int]*process
	anvil   *anvil
	dead    pipe // of anvil, which lives through reloads
	null    int  // /dev/null
	lastUID uint32
	started time.Time

	pidFile *pidFile
	admin   *admin
	in      *inherited
	notify  notifier
}

// New prepares a master for cfg: it makes the directories, takes the pid file's lock and
// opens all listeners. It returns everything that is wrong, and then nothing is left open;
// a *ListenError says which listener it is about. Nothing is started.
func New(cfg *Config, opt Options) (*Master, []error) {
	return newMaster(cfg, opt, realTimes)
}

func newMaster(cfg *Config, opt Options, t times) (m *Master, errs []error) {
	if err := cfg.check(); err != nil {
		return nil, []error{err}
	}
	m = &Master{opt: opt, log: opt.Log, times: t, cfg: cfg, pids: map[int]*process{}, null: -1}
	defer func() {
		if len(errs) > 0 {
			m.abandon()
			m = nil
		}
	}()
	one := func(err error) (*Master, []error) { return m, []error{err} }
	if err := makeBase(cfg, m.log); err != nil {
		return one(err)
	}
	var err error
	if m.pidFile, err = lockPIDFile(cfg.BaseDir); err != nil {
		return one(err)
	}
	if m.null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return one(err)
	}
	if m.loop, err = newLoop(); err != nil {
		return one(err)
	}
	if m.dead, err = makePipe(0); err != nil {
		return one(err)
	}
	if m.anvil, err = newAnvil(m); err != nil {
		return one(err)
	}
	m.in = takeInherited(os.Getenv, m.log)
	if m.pidFile.stale {
		awaitOrphans(cfg, m.in)
	}
	errs = makeDirs(cfg, m.log)
	for i := range cfg.Services {
		if err := unix.Access(cfg.Services[i].Command[0], unix.X_OK); err != nil {
			errs = append(errs, failed("service("+cfg.Services[i].Name+"): access("+cfg.Services[i].Command[0]+")", err))
		}
	}
	if len(errs) > 0 {
		return m, errs
	}
	m.gen = m.newGeneration(cfg)
	if errs = m.gen.open(nil, m.in); len(errs) > 0 {
		return m, errs
	}
	if m.admin, err = openAdmin(m); err != nil {
		m.gen.undo()
		return one(err)
	}
	return m, nil
}

// abandon closes what New has opened.
func (m *Master) abandon() {
	if m.anvil != nil {
		m.anvil.close()
	}
	m.dead.close()
	if m.loop != nil {
		m.loop.close()
	}
	if m.null >= 0 {
		unix.Close(m.null)
	}
	if m.pidFile != nil {
		m.pidFile.remove()
	}
}

// Run starts the services and serves until SIGTERM or SIGINT, or until Stop. When it
// returns the listeners are closed; processes may still be ending their sessions (clause
// P1.6.5).
func (m *Master) Run() error {
	unix.Umask(0o077)
	if err := os.Chdir(m.cfg.BaseDir); err != nil { // for core files
		return err
	}
	if err := m.takeSignals(); err != nil {
		return err
	}
	defer signalled.Store(nil)
	m.notify = newNotifier(os.Getenv)
	m.started = time.Now()
	m.log.Info("%s v%s starting up for %s", m.opt.Name, m.opt.Version, strings.Join(m.cfg.Protocols, ", "))
	if err := m.pidFile.write(); err != nil {
		return err
	}
	m.linkConfig()
	m.gen.settle()
	m.admin.socket.settle()
	m.in.closeRest(m.log)
	if err := m.gen.start(); err != nil {
		return err
	}
	m.admin.start()
	m.notify.send(fmt.Sprintf("READY=1\nSTATUS=v%s running\nMAINPID=%d", m.opt.Version, os.Getpid()))
	if m.opt.Started != nil {
		m.opt.Started()
	}
	err := m.loop.serve()
	m.stop()
	return err
}

// signalled is the master that gets the signals of this process; catching says that they
// are caught, which package siginfo does once and for all.
var (
	signalled atomic.Pointer[Master]
	catching  = sync.OnceValue(func() error {
		return siginfo.Notify(func(s siginfo.Signal) {
			if m := signalled.Load(); m != nil {
				m.loop.post(func() { m.signal(s) })
			}
		}, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGCHLD)
	})
)

// takeSignals brings signals into the loop.
func (m *Master) takeSignals() error {
	signal.Ignore(unix.SIGPIPE, unix.SIGALRM)
	signalled.Store(m)
	if err := catching(); err != nil {
		return fmt.Errorf("signals: %w", err)
	}
	return nil
}

func (m *Master) signal(s siginfo.Signal) {
	switch s.Number {
	case unix.SIGCHLD:
		m.reap()
	case unix.SIGHUP:
		m.log.Warning("SIGHUP received - reloading configuration")
		_ = m.reload() // it has said what is wrong
	case unix.SIGUSR1:
		m.reopenLogs()
	default:
		from := ""
		if s.Known {
			from = fmt.Sprintf(" (by pid=%d uid=%d code=%s)", s.PID, s.UID, s.CodeText())
		}
		m.log.Warning("Killed with signal %d%s", s.Number, from)
		m.beginStop()
	}
}

// Stop makes Run return. Any goroutine may call it.
func (m *Master) Stop() { m.loop.post(m.beginStop) }

func (m *Master) beginStop() {
	if m.gen.destroying {
		return
	}
	m.gen.destroying = true
	m.notify.send("STOPPING=1\nSTATUS=stopping")
	m.loop.quit()
}

// stop ends everything, in the order of Dovecot's.
func (m *Master) stop() {
	m.admin.close()
	m.dead.close()
	m.gen.stop()
	if err := m.gen.removeFiles(); err != nil {
		m.log.Error("%v", err)
	}
	unix.Unlink(filepath.Join(m.cfg.BaseDir, configLink))
	m.pidFile.remove()
	if os.Getpid() == 1 {
		for end := time.Now().Add(lingerAsInit); len(m.pids) > 0 && time.Now().Before(end); time.Sleep(stopPoll) {
			m.reap()
		}
	}
	m.anvil.close()
	m.loop.close()
	unix.Close(m.null)
	m.notify.send("STATUS=stopped")
}

// reap takes leave of the processes that have ended (clause P1.9).
func (m *Master) reap() {
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		p := m.pids[pid]
		if p == nil {
			if os.Getpid() != 1 { // which gets everybody's orphans
				m.log.Error("waitpid() returned unknown PID %d", pid)
			}
			continue
		}
		m.ended(p, st)
	}
}

func (m *Master) ended(p *process, st unix.WaitStatus) {
	s := p.service
	throttle := false
	if st.Exited() && st.ExitStatus() == 0 {
		s.everSucceeded, s.failures, s.throttle = true, 0, m.times.throttleMin
	} else {
		throttle = s.failed(p, st)
	}
	if s.Type == Anvil {
		m.anvil.ended(p)
	}
	s.remove(p)
	if s.gen.destroying {
		if s.gen.refs == 0 && s.gen != m.gen {
			s.gen.end()
		}
		return
	}
	if throttle {
		s.throttleNow()
	}
	if s.reader == nil { // stopped
		return
	}
	if s.throttled.pending() {
		return
	}
	s.startExtra()
	if s.Type == Log && len(s.processes) == 0 { // must always run
		if !s.startProcess() {
			s.throttleNow()
		}
		return
	}
	s.listen()
}

// failed notes a failure, and says whether the service is to be throttled for it: it
// failed before it reported, or it never succeeded and fails all the time.
func (s *service) failed(p *process, st unix.WaitStatus) bool {
	s.gen.logExit(s, p.pid, st)
	s.gen.m.anvil.kill(p.pid)
	if !p.initialized {
		return true
	}
	if s.everSucceeded {
		return false // so that nobody can stop the service by crashing his own sessions
	}
	if now := time.Now().Unix(); s.failedIn != now {
		s.failedIn, s.failures = now, 0
	}
	s.failures++
	return s.failures > maxExitFailures
}

// reload takes a new configuration into use. If anything is wrong with it, which is
// logged, the old one goes on, untouched.
func (m *Master) reload() error {
	if m.gen.destroying {
		return errors.New("the server is being stopped")
	}
	m.notify.reloading()
	defer m.notify.send("READY=1")
	cfg := m.opt.Load()
	if cfg == nil {
		return errors.New("the configuration has errors; the log tells them")
	}
	err := m.reloadTo(cfg)
	if err != nil {
		m.log.Error("Config reload failed: %v", err)
	}
	return err
}

func (m *Master) reloadTo(cfg *Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	if cfg.BaseDir != m.cfg.BaseDir {
		return fmt.Errorf("base_dir can't be changed by a reload (%s to %s)", m.cfg.BaseDir, cfg.BaseDir)
	}
	for i := range cfg.Services {
		if err := unix.Access(cfg.Services[i].Command[0], unix.X_OK); err != nil {
			return failed("service("+cfg.Services[i].Name+"): access("+cfg.Services[i].Command[0]+")", err)
		}
	}
	next := m.newGeneration(cfg)
	if m.anvil.pid != 0 && !sameSockets(m.gen.anvil, next.anvil) {
		return errors.New("service(anvil): its listeners can't be changed by a reload")
	}
	if errs := next.open(m.gen, nil); len(errs) > 0 {
		return errors.Join(errs...)
	}
	if err := next.makeLogPipes(); err != nil {
		next.closeLog()
		next.undo()
		return err
	}
	old := m.gen
	next.settle()
	old.dropFiles(next)
	m.anvil.release(old)
	m.gen, m.cfg = next, cfg
	m.old = append(m.old, old)
	old.retire()
	if m.opt.ReopenLogs != nil {
		m.opt.ReopenLogs(cfg)
	}
	return next.start()
}

// sameSockets says whether two services have the same Unix sockets.
func sameSockets(a, b *service) bool {
	if a == nil || b == nil {
		return a == b
	}
	if len(a.Listeners) != len(b.Listeners) {
		return false
	}
	for i := range a.Listeners {
		x, y := a.Listeners[i], b.Listeners[i]
		if x.Kind != y.Kind || x.Path != y.Path || x.Mode != y.Mode || x.UID != y.UID || x.GID != y.GID {
			return false
		}
	}
	return true
}

// reopenLogs is SIGUSR1. The log processes have given up the right to make files, so the
// master opens them; Dovecot's opens them itself.
func (m *Master) reopenLogs() {
	if m.opt.ReopenLogs != nil {
		m.opt.ReopenLogs(m.cfg)
	}
	for _, g := range append([]*generation{m.gen}, m.old...) {
		if !g.log.Own {
			g.log.signal(unix.SIGUSR1)
			continue
		}
		for _, p := range g.log.processes {
			m.sendLogs(g, p)
		}
	}
}

func (m *Master) sendLogs(g *generation, p *process) {
	var paths []string
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, path := range g.cfg.LogFiles {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOCTTY, 0o600)
		if err != nil {
			m.log.Error("open(%s) failed: %v", path, err)
			continue
		}
		paths, fds = append(paths, path), append(fds, fd)
	}
	if len(fds) == 0 {
		return
	}
	p.control.ask(masterproto.ControlLogs, paths, fds, func(_ []string, err error) {
		if err != nil {
			m.log.Error("log process %d did not take the log files: %v", p.pid, err)
		}
	})
}

// configLink is a symbolic link in base_dir to the configuration file, for tools that are
// told the directory only.
const configLink = "dovecot.conf"

func (m *Master) linkConfig() {
	link := filepath.Join(m.cfg.BaseDir, configLink)
	unix.Unlink(link)
	if err := os.Symlink(m.cfg.ConfigFile, link); err != nil {
		m.log.Error("symlink(%s, %s) failed: %v", m.cfg.ConfigFile, link, err)
	}
}
