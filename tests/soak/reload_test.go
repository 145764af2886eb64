package soak

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// How often, and the limits for what is left of an old generation (clause P1.6): Dovecot
// sends SIGTERM 6 s after a reload; without a master processes end what they have after
// 30 s. Then a session has 5 s to say so.
const (
	afterReload  = 6*time.Second + 6*time.Second
	afterRestart = 30*time.Second + 6*time.Second
	late         = 20 * time.Second // on a busy machine
)

// A master is one that can be told to reload, and be restarted.
type master interface {
	reload()
	restart()
	pids() []int // of the two halves' processes

	atRestart() []string // what else clients may see then
}

// Under fifty busy clients, and some that are idle, the master reloads and is restarted. No
// message that was answered with 250 is lost; clients see 421 or a clean end; of what there
// was before nothing is left when its time is over.
func stir(t *testing.T, s *server, m master, r *relay.Relay, endsIdle bool, pass string, users ...string) {
	reloads, restarts, clients := 3, 1, 50
	if long {
		reloads, restarts = 24, 3
	}
	c := gather(t, s, clients, pass, users...)
	c.round()
	c.allow("before")
	for n := range reloads {
		idle := c.idle(3)
		old := m.pids()
		began := time.Now()
		m.reload()
		c.round()
		c.allow(fmt.Sprintf("reload %d", n), "421", "closed")
		if endsIdle { // the reload ends them
			c.end(idle, "")
		} else { // they go on
			c.end(idle, "QUIT\r\n")
		}
		c.gone(old, began, afterReload)
	}
	for n := range restarts {
		idle := c.idle(3)
		old := m.pids()
		began := time.Now()
		m.restart()
		c.round()
		c.allow(fmt.Sprintf("restart %d", n), append(m.atRestart(), "421", "closed", refused)...)
		if long {
			c.end(idle, "")
		} else {
			c.end(idle, "QUIT\r\n")
		}
		c.gone(old, began, afterRestart)
	}
	c.stop()
	c.allow("at the end", "421", "closed")
	sent, delivered := c.o.check(t, r)
	if delivered < sent*8/10 || sent < 10*clients {
		t.Errorf("%d of %d messages delivered", delivered, sent)
	}
	t.Logf("%d messages, %d answered with 250", sent, delivered)
}

// idle logs clients in that do nothing, in each way.
func (c *crowd) idle(n int) (all []*peer) {
	c.t.Helper()
	for i := range n {
		p, err := c.s.connect(dovetail.Way(i % 3))
		if err != nil || p.say("AUTH PLAIN "+plain(c.users[0], c.pass)+"\r\n") != "235" || p.say("NOOP\r\n") != "250" {
			c.t.Fatalf("an idle client: %v %+v", err, p)
		}
		all = append(all, p)
	}
	return all
}

// end lets idle clients say something, if it is not "", and wants their sessions to end as
// they should.
func (c *crowd) end(idle []*peer, says string) {
	c.t.Helper()
	for i, p := range idle {
		want := "421"
		if says != "" {
			want = "221"
			p.write(says)
		}
		code := p.reply()
		if end := p.ended(); code != want || end != "closed" && end != "421" {
			c.t.Errorf("the idle client %v got %q, and the end: %s", dovetail.Way(i%3), p.last, end)
		}
		p.drop(false)
	}
}

// gone waits for the end of old processes, which must not take longer than limit since
// began.
func (c *crowd) gone(old []int, began time.Time, limit time.Duration) {
	c.t.Helper()
	for {
		var left []int
		for _, pid := range old {
			if syscall.Kill(pid, 0) == nil && !zombie(pid) {
				left = append(left, pid)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Since(began) > limit+late {
			c.t.Fatalf("after %v the old processes %v are there", time.Since(began), left)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	return err != nil || strings.HasPrefix(rest, "Z")
}

// models says whether all clients share a process of each half. Otherwise each has its own,
// which takes long to show the same.
func models() []bool {
	if long {
		return []bool{true, false}
	}
	return []bool{true}
}

// ours is our own master.
type ours struct {
	t  *testing.T
	sv *dovetail.Server
}

func (m ours) reload() {
	if out, status := m.sv.Ask(m.t, "reload"); status != 0 {
		m.t.Fatalf("reload: %d\n%s", status, out)
	}
}

func (m ours) restart() {
	_ = syscall.Kill(m.sv.PID(), syscall.SIGTERM)
	m.sv.Restart()
}

func (m ours) atRestart() []string { return nil }

func (m ours) pids() []int {
	p := m.sv.Processes()
	return append(p["submission"], p["submission-login"]...)
}

func TestReloadsOfOurMaster(t *testing.T) {
	t.Parallel()
	for _, shared := range models() {
		t.Run(map[bool]string{true: "shared processes", false: "a process for each"}[shared], func(t *testing.T) {
			t.Parallel()
			r := relay.Start(t, relay.Options{})
			sv := dovetail.Start(t, dovetail.Setup{Shared: shared, Users: []dovetail.User{{Name: "alice", Fields: []string{dovetail.Relay(r.Port)}}, {Name: "bob", Fields: []string{dovetail.Relay(r.Port)}}}})
			stir(t, &server{clear: sv.Addr, tls: sv.TLSAddr, trust: sv.TLSConfig()}, ours{t, sv}, r, false, dovetail.Password, "alice", "bob")
		})
	}
}

// theirs is Dovecot's master, with both of our halves.
type theirs struct {
	t    *testing.T
	inst *system.Running
	pid  int
}

func (m *theirs) reload() { _ = syscall.Kill(m.pid, syscall.SIGHUP) }

// restart stops the master and starts another one in its place, which ends with the test.
func (m *theirs) restart() {
	t := m.t
	t.Helper()
	_ = syscall.Kill(m.pid, syscall.SIGTERM)
	m.until("the master's end", func() bool { return zombie(m.pid) })
	cmd := exec.Command(need.Dovecot(t).Dovecot, "-F", "-c", m.inst.Conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.pid = cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	m.until("the new master", func() bool {
		pid, _ := os.ReadFile(m.inst.Dir + "/run/master.pid")
		return strings.TrimSpace(string(pid)) == strconv.Itoa(m.pid)
	})
}

func (m *theirs) until(what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("not in time: %s", what)
		}
	}
}

// atRestart: the listeners are Dovecot's own, and who waits there to be accepted when it ends
// is not ours yet.
func (m *theirs) atRestart() []string { return []string{unaccepted} }

func (m *theirs) pids() (pids []int) {
	for _, pid := range leak.Tree(m.pid) {
		if cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(cmd), "/submission") {
			pids = append(pids, pid)
		}
	}
	return pids
}

const wide = `service submission-login {
  service_count = 0
  client_limit = 1000
  process_min_avail = 1
}
service submission {
  service_count = 0
  client_limit = 1000
  process_limit = 2
}`

func TestReloadsOfDovecot(t *testing.T) {
	t.Parallel()
	for _, shared := range models() {
		t.Run(map[bool]string{true: "shared processes", false: "a process for each"}[shared], func(t *testing.T) {
			t.Parallel()
			limits := ""
			if shared {
				limits = wide
			}
			r := relay.Start(t, relay.Options{})
			inst := system.OursBoth.Start(t, system.Setup{RelayPort: r.Port, Config: []string{"mail_max_userip_connections = 0", limits}})
			m := &theirs{t: t, inst: inst, pid: inst.PID()}
			if len(m.pids()) == 0 && shared {
				t.Fatal("the processes of the two halves are not found")
			}
			stir(t, &server{clear: inst.Addr(), tls: inst.TLSAddr(), trust: inst.TLS()}, m, r, true, "wonder", "alice")
		})
	}
}
