package submission

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dovetail/internal/dovecot/authmaster"
	"dovetail/internal/dovecot/handoff"
	"dovetail/internal/dovecot/stats"
)

// userGone tells of the end of a user's session, and what the process has used.
func (w *worker) userGone(u *user, began time.Time) {
	if !w.stats.Wants(stats.UserSessionFinished) {
		return
	}
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	var scope stats.Scope
	scope.Begin(w.stats, nil, stats.MailUser, nil)
	ev := scope.Event(stats.UserSessionFinished)
	num := func(key string, n int64) {
		if n != 0 {
			ev.Int(key, n)
		}
	}
	num("utime", ru.Utime.Nano()/1000)
	num("stime", ru.Stime.Nano()/1000)
	num("minor_faults", ru.Minflt)
	num("major_faults", ru.Majflt)
	rss, vsz := memory()
	num("rss", rss)
	num("vsz", vsz)
	num("in_blocks", ru.Inblock)
	num("out_blocks", ru.Oublock)
	num("volcs", ru.Nvcsw)
	num("involcs", ru.Nivcsw)
	ev.Str("user", u.name).Str("session", u.session).Send(began)
	scope.End()
}

// memory returns the octets that the process has in memory, and of address space.
func memory() (rss, vsz int64) {
	b, err := os.ReadFile("/proc/self/statm")
	f := strings.Fields(string(b))
	if err != nil || len(f) < 2 {
		return 0, 0
	}
	page := int64(os.Getpagesize())
	vsz, _ = strconv.ParseInt(f[0], 10, 64)
	rss, _ = strconv.ParseInt(f[1], 10, 64)
	return rss * page, vsz * page
}

// masterEvents tell of the requests to the auth service.
type masterEvents struct {
	stats *stats.Client

	mu    sync.Mutex
	scope stats.Scope // guarded by mu
}

func (m *masterEvents) begin(c *stats.Client) {
	m.stats = c
	m.scope.Begin(c, nil, stats.AuthClient, nil)
}

// tell tells of a login that a login process sent; err is why it did not work.
func (m *masterEvents) tell(n stats.Name, began time.Time, login *handoff.Login, answer *authmaster.User, err error) {
	if !m.stats.Wants(n) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	ev := m.scope.Event(n)
	switch {
	case err != nil:
		ev.Str("error", err.Error())
	case answer != nil:
		ev.Str("user", answer.Name)
	}
	ev.Int("id", int64(login.AuthID)).
		Addr("local_ip", login.Local.Addr()).Int("local_port", int64(login.Local.Port())).
		Addr("remote_ip", login.Remote.Addr()).Int("remote_port", int64(login.Remote.Port())).Send(began)
}
