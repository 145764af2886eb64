package master

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/privs"
)

// The admin socket base_dir/master speaks Dovecot's master protocol (clause P1.11), so that
// `doveadm service status` and its like work, and some words more. Lines end in LF, fields
// are separated by TAB and escaped.
//
//	S: VERSION master-server 1 0
//	C: VERSION master-client 1 0
//	C: SERVICE-STATUS                   S: one line a service, an empty line
//	C: PROCESS-STATUS [<service>...]    S: one line a process, an empty line
//	C: STOP <service>...                S: +   or   -<text>
//	C: DOVETAIL-STATUS                  S: lines <name> <value>, an empty line
//	C: RELOAD                           S: +   or   -<text>
//	C: KICK <user mask> <network>       S: +<count> <pid>...    the pids that were asked; the
//	                                       others can only be ended as a whole

// AdminSocket is the name of the socket in base_dir.
const AdminSocket = "master"

const (
	adminBacklog    = 16
	maxAdminClients = 64
	maxAdminLine    = 1024
	adminTimeout    = time.Minute // for a client to say something, or to take an answer
)

// An admin is the admin socket.
type admin struct {
	m       *Master
	socket  *socket
	clients int // the loop's
}

func openAdmin(m *Master) (*admin, error) {
	a := &admin{m: m, socket: &socket{
		Listener: Listener{Kind: Unix, Path: filepath.Join(m.cfg.BaseDir, AdminSocket), Mode: 0o600, UID: privs.Unset, GID: privs.Unset},
		backlog:  adminBacklog, fd: -1,
	}}
	return a, a.socket.open(true)
}

func (a *admin) start() {
	a.socket.watch = a.m.loop.watch(a.socket.fd, a.accept)
}

func (a *admin) close() {
	a.socket.close()
	unix.Unlink(a.socket.Path)
}

func (a *admin) accept() {
	fd, _, err := unix.Accept4(a.socket.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	if a.clients >= maxAdminClients {
		unix.Close(fd)
		return
	}
	a.clients++
	f := os.NewFile(uintptr(fd), AdminSocket)
	go func() { // ends with the client, or with adminTimeout
		defer a.m.loop.post(func() { a.clients-- })
		defer f.Close()
		a.serve(f)
	}()
}

// serve talks to one client, on its own goroutine: what it wants is done in the loop.
func (a *admin) serve(f *os.File) {
	br := bufio.NewReaderSize(f, maxAdminLine)
	answer := "VERSION\tmaster-server\t1\t0\n"
	for first := true; ; {
		if f.SetDeadline(time.Now().Add(adminTimeout)) != nil {
			return
		}
		if _, err := f.WriteString(answer); err != nil {
			return
		}
		line, err := br.ReadSlice('\n')
		if err != nil {
			return
		}
		words := tabline.Split(strings.TrimSuffix(string(line[:len(line)-1]), "\r"))
		if first {
			if len(words) < 3 || words[0] != "VERSION" || words[1] != "master-client" || words[2] != "1" {
				return
			}
			first, answer = false, ""
			continue
		}
		do := adminWords[words[0]]
		if do == nil {
			a.m.log.Error("master-client: Unknown command: %s", strings.ToValidUTF8(words[0], "?"))
			return
		}
		answers := make(chan string, 1)
		a.m.loop.post(func() { do(a.m, words[1:], func(s string) { answers <- s }) })
		select {
		case answer = <-answers:
		case <-time.After(adminTimeout): // the loop has ended
			return
		}
	}
}

// adminWords are the commands. Each calls its last argument once, in the loop.
var adminWords = map[string]func(m *Master, args []string, answer func(string)){
	"SERVICE-STATUS":  func(m *Master, _ []string, answer func(string)) { answer(m.serviceStatus()) },
	"PROCESS-STATUS":  func(m *Master, args []string, answer func(string)) { answer(m.processStatus(args)) },
	"STOP":            func(m *Master, args []string, answer func(string)) { answer(m.stopServices(args)) },
	"DOVETAIL-STATUS": func(m *Master, _ []string, answer func(string)) { answer(m.status()) },
	"RELOAD": func(m *Master, _ []string, answer func(string)) {
		if err := m.reload(); err != nil {
			answer("-" + tabline.Escape(err.Error()) + "\n")
			return
		}
		answer("+\n")
	},
	"KICK": (*Master).kick,
}

func unixTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func (m *Master) serviceStatus() string {
	yn := func(b bool) string {
		if b {
			return "y"
		}
		return "n"
	}
	var b strings.Builder
	for _, s := range m.gen.services {
		throttle := 0
		if s.throttled.pending() {
			throttle = int((s.throttle + time.Second - 1) / time.Second)
		}
		fmt.Fprintf(&b, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%d\n", tabline.Escape(s.Name),
			len(s.processes), s.avail, s.ProcessLimit, s.ClientLimit, throttle, s.failedIn, s.failures,
			unixTime(s.lastDropWarn), yn(s.pending), yn(s.listening), yn(s.stopped), s.total)
	}
	return b.String() + "\n"
}

func (m *Master) processStatus(services []string) string {
	var b strings.Builder
	for _, g := range append([]*generation{m.gen}, m.old...) {
		for _, s := range g.services {
			if len(services) > 0 && !slices.Contains(services, s.Name) {
				continue
			}
			for _, p := range s.processes {
				fmt.Fprintf(&b, "%s\t%d\t%d\t%d\t%d\t%d\t%d\n", tabline.Escape(s.Name),
					p.pid, p.available, p.total, unixTime(p.idleStart), unixTime(p.lastStatus), unixTime(p.lastKill))
			}
		}
	}
	return b.String() + "\n"
}

func (m *Master) stopServices(names []string) string {
	for _, name := range names {
		i := slices.IndexFunc(m.gen.services, func(s *service) bool { return s.Name == name })
		if i < 0 {
			return "-Unknown service: " + tabline.Escape(name) + "\n"
		}
		m.gen.services[i].stopAndClose()
	}
	return "+\n"
}

// status is what only this master has to say of itself.
func (m *Master) status() string {
	left := 0
	for _, g := range m.old {
		left += g.refs
	}
	return fmt.Sprintf("version\t%s\npid\t%d\nstarted\t%d\nconfig\t%s\nold-processes\t%d\n\n",
		tabline.Escape(m.opt.Version), os.Getpid(), m.started.Unix(), tabline.Escape(m.cfg.ConfigFile), left)
}

// kick asks all processes that have a control channel to end the sessions that match.
func (m *Master) kick(args []string, answer func(string)) {
	if len(args) != 2 {
		answer("-KICK: two parameters are needed\n")
		return
	}
	var asked []*process
	for _, p := range m.pids {
		if p.control != nil && p.control.ready && (p.service.Type == Login || p.service.Name == "submission") {
			asked = append(asked, p)
		}
	}
	count, left := 0, len(asked)
	var pids strings.Builder
	if left == 0 {
		answer("+0\n")
		return
	}
	for _, p := range asked {
		p.control.ask(masterproto.ControlKick, args, nil, func(fields []string, err error) {
			var n int
			if err == nil && len(fields) > 0 {
				if _, err := fmt.Sscanf(fields[0], "%d", &n); err == nil && n >= 0 {
					count += n
					fmt.Fprintf(&pids, "\t%d", p.pid)
				}
			}
			if left--; left == 0 {
				answer(fmt.Sprintf("+%d%s\n", count, pids.String()))
			}
		})
	}
}
