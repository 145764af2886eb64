package master

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
)

// closed in ProcAttr.Files is a descriptor that the child does not have.
const closed = ^uintptr(0)

// A process is a child.
type process struct {
	service     *service
	pid         int
	uid         uint32 // GENERATION: tells its records from those of one with the same pid
	initialized bool   // has reported
	firstStatus *timer
	available   uint32 // clients it would take, as far as is known
	total       uint64 // clients it took
	idle        *timer
	idleStart   time.Time // zero: it is not idle
	lastStatus  time.Time
	lastKill    time.Time
	started     time.Time
	control     *control // nil for programs that are not the project's own
}

// startProcess starts one process of s. False: it could not be, which has been said, or
// the service is throttled.
func (s *service) startProcess() bool {
	m := s.gen.m
	if s.throttled.pending() || s.gen.destroying {
		return false
	}
	if s.Type == Anvil && m.anvil.pid != 0 {
		s.adoptAnvil()
		return true
	}
	m.lastUID++
	p := &process{service: s, uid: m.lastUID, available: s.ClientLimit, started: time.Now()}
	child := child{s: s, p: p}
	pid, err := child.start()
	s.gen.forks++
	if err != nil {
		s.errorf("starting %s failed: %v", s.Command[0], err)
		return false
	}
	p.pid = pid
	p.firstStatus = m.loop.after(m.times.firstStatus, func() {
		s.errorf("Initial status notification not received in %d seconds, killing the process", m.times.firstStatus/time.Second)
		if err := unix.Kill(p.pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			s.errorf("kill(%d, SIGKILL) failed: %v", p.pid, err)
		}
	})
	s.adopt(p)
	if s.Type == Anvil {
		m.anvil.created(p)
	}
	return true
}

func (s *service) adopt(p *process) {
	s.gen.m.pids[p.pid] = p
	s.processes[p.pid] = p
	s.avail++
	s.total++
	s.gen.refs++
}

// remove forgets a process that ended, or one that belongs to another generation from now
// on. It reports whether the generation ended with it.
func (s *service) remove(p *process) {
	delete(s.gen.m.pids, p.pid)
	delete(s.processes, p.pid)
	if p.available > 0 {
		s.avail--
	}
	p.firstStatus.stop()
	p.idle.stop()
	p.control.close()
	s.gen.sayBye(p)
	if len(s.processes) < int(s.ProcessLimit) && s.Type == Login {
		s.tellFull(false)
	}
	s.gen.refs--
}

// A child collects what a new process gets (clauses P1.1 to P1.4).
type child struct {
	s     *service
	p     *process
	files []uintptr
	close []int // after the start
	names []masterproto.Listener
}

func (c *child) start() (pid int, err error) {
	defer func() {
		for _, fd := range c.close {
			unix.Close(fd)
		}
	}()
	s, m := c.s, c.s.gen.m
	null := uintptr(m.null)
	c.files = []uintptr{null, null, uintptr(s.logPipe.w), uintptr(m.anvil.blocking.w), closed, uintptr(s.status.w), uintptr(s.dead.w)}
	switch s.Type {
	case Log:
		c.files[masterproto.LogFD] = 2 // for log_path = /dev/stderr, and for what goes wrong
		c.files[masterproto.AnvilFD] = null
		c.add(s.gen.masterLog.r, "")
		for _, o := range s.gen.services {
			if o.Type != Log {
				c.add(o.logPipe.r, o.Name)
			}
		}
	case Anvil:
		c.files[masterproto.AnvilFD] = null
		c.files[masterproto.LoginNotifyFD] = uintptr(m.anvil.logPass[0])
		c.files[masterproto.DeadFD] = uintptr(m.dead.w)
		c.add(m.anvil.nonblocking.r, "") // the first is the master's own
		c.add(m.anvil.blocking.r, "")
	case Settings:
		c.files[masterproto.AnvilFD] = null
	case Login:
		c.files[masterproto.LoginNotifyFD] = uintptr(s.notifyFD)
	}
	for _, k := range s.sockets {
		if k.fd < 0 {
			continue
		}
		c.files, c.names = append(c.files, uintptr(k.fd)), append(c.names, k.Listener.Listener)
		if k.ReusePort && k.Kind == Inet {
			// Its own, besides the one that all have: who comes by that is not kept waiting.
			if fd, err := listenInet(k.Addr, k.backlog, true); err == nil {
				c.close = append(c.close, fd)
				c.files, c.names = append(c.files, uintptr(fd)), append(c.names, k.Listener.Listener)
			}
		}
	}
	controlFD := 0
	if s.Own {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return 0, fmt.Errorf("socketpair() failed: %w", err)
		}
		c.close = append(c.close, pair[1])
		controlFD = len(c.files)
		c.files = append(c.files, uintptr(pair[1]))
		c.p.control = newControl(m, pair[0])
	}
	attr := &syscall.ProcAttr{Dir: s.gen.cfg.BaseDir, Env: c.environ(controlFD), Files: c.files, Sys: &syscall.SysProcAttr{}}
	if s.DropPrivBeforeExec && !s.gen.cfg.Unprivileged {
		attr.Sys.Credential = s.credential()
	}
	pid, err = syscall.ForkExec(s.Command[0], s.argv(), attr)
	if err != nil {
		c.p.control.close()
		return 0, err
	}
	if err := s.limit(pid); err != nil && !s.unlimited {
		s.unlimited = true // once is enough
		s.errorf("vsz_limit of child %d: %v", pid, err)
	}
	return pid, nil
}

func (c *child) add(fd int, name string) {
	c.files, c.names = append(c.files, uintptr(fd)), append(c.names, masterproto.Listener{Name: name})
}

// environ is the whole environment of the child (clause P1.2).
func (c *child) environ(controlFD int) []string {
	s, m, cfg := c.s, c.s.gen.m, c.s.gen.cfg
	preserved, names := m.imported(cfg)
	e := masterproto.Env{
		Generation: c.p.uid, ServiceName: s.Name,
		ClientLimit: s.ClientLimit, ProcessLimit: s.ProcessLimit, ProcessMinAvail: s.ProcessMinAvail,
		ServiceCount: s.ServiceCount, IdleKill: seconds(s.IdleKill),
		Version: cfg.Version, Hostname: cfg.Hostname, HostDomain: cfg.HostDomain,
		LogDebug: cfg.LogDebug, LogService: s.Type != Log,
		Listeners: c.names, Restrict: s.restrict(cfg.Unprivileged), PreserveEnvs: names,
		ControlFD: controlFD,
	}
	switch s.Type {
	case Settings:
		e.ConfigFile = cfg.ConfigFile
	default:
		e.ConfigFile = cfg.configSocket()
	}
	env := e.Append(preserved)
	switch s.Type {
	case Log: // does not depend on the config service
		env = slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, "CONFIG_FILE=") })
		env = append(append(env, "DOVECONF_ENV=1"), cfg.LogEnv...)
	case Anvil:
		if m.anvil.restarted {
			env = append(env, "ANVIL_RESTARTED=1")
		}
	}
	return env
}

func seconds(d time.Duration) uint32 {
	if d == Never || d/time.Second >= math.MaxUint32 {
		return masterproto.Never
	}
	return uint32(d / time.Second)
}

// imported are the variables that import_environment lets through, and their names.
func (m *Master) imported(cfg *Config) (environ, names []string) {
	names = []string{"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"} // as a Dovecot built for systemd
	values := map[string]string{}
	for _, word := range cfg.ImportEnvironment {
		name, value, set := strings.Cut(word, "=")
		if set {
			values[name] = value
		}
		names = append(names, name)
	}
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		value, ok := values[name]
		if !ok {
			value, ok = os.LookupEnv(name)
		}
		if ok {
			environ = append(environ, name+"="+value)
		}
	}
	return environ, names
}

// argv is what the program is started with: argv[0] says whose it is (clause P1.1.2).
func (s *service) argv() []string {
	name := s.gen.cfg.InstanceName + "/" + filepath.Base(s.Command[0])
	if !strings.HasPrefix(name, "dovecot") {
		name = "dovecot-" + name
	}
	return append([]string{name}, s.Command[1:]...)
}

// credential is for drop_priv_before_exec.
func (s *service) credential() *syscall.Credential {
	r := s.restrict(false)
	c := &syscall.Credential{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid()), Groups: []uint32{}}
	if r.GID != noID {
		c.Gid = r.GID
		c.Groups = append(c.Groups, r.GID)
	}
	if r.UID != noID {
		c.Uid = r.UID
	}
	c.Groups = append(c.Groups, r.ExtraGroups...)
	return c
}

// limit sets the limit of memory (clause P1.4.5). It comes after exec: a program has
// taken next to nothing by then. For the project's own programs it is about data only, as
// the address space that Go reserves says nothing about the memory it uses.
func (s *service) limit(pid int) error {
	if s.VSZLimit == 0 {
		return nil
	}
	lim := unix.Rlimit{Cur: s.VSZLimit, Max: s.VSZLimit}
	resources := []int{unix.RLIMIT_DATA, unix.RLIMIT_AS}
	if s.Own {
		resources = resources[:1]
	}
	for _, r := range resources {
		if err := unix.Prlimit(pid, r, &lim, nil); err != nil && err != unix.ESRCH {
			return fmt.Errorf("prlimit() failed: %w", err)
		}
	}
	return nil
}

// exitText is what is said of a process that did not exit with 0 (clause P1.9.1), and
// whether the process may have said it itself.
func (s *service) exitText(pid int, st unix.WaitStatus) (text string, isFatal bool) {
	text = fmt.Sprintf("service(%s): child %d ", s.Name, pid)
	switch {
	case st.Signaled():
		text += fmt.Sprintf("killed with signal %d", st.Signal())
		switch {
		case st.CoreDump():
			text += " (core dumped)"
		case st.Signal() == unix.SIGABRT || st.Signal() == unix.SIGSEGV || st.Signal() == unix.SIGBUS:
			text += " (core not dumped)"
		}
		return text, false
	case !st.Exited():
		return text + fmt.Sprintf("died with status %d", st), false
	}
	text += fmt.Sprintf("returned error %d", st.ExitStatus())
	if why := masterproto.ExitText(st.ExitStatus()); why != "" {
		if st.ExitStatus() == masterproto.ExitOutOfMemory && s.VSZLimit > 0 {
			why += fmt.Sprintf(" (service %s { vsz_limit=%d MB }, you may need to increase it)", s.Name, s.VSZLimit>>20)
		}
		text += " (" + why + ")"
	}
	return text, st.ExitStatus() == masterproto.ExitFatal
}
