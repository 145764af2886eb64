package command

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/usermask"
)

// proxyList is the head of the list of proxied sessions. Between the first column and the
// others users' other names may stand.
var proxyList = []string{"username", "service", "src-ip", "dest-ip", "dest-port"}

// askProxies asks all login processes that proxy sessions. ok is false if there are none.
// The last line is without its "+"; an error is what a login process says.
func askProxies(base string, words ...string) (lines []string, last string, ok bool, err error) {
	m, err := askMaster(base)
	if err != nil {
		return nil, "", false, err
	}
	defer m.close()
	if err := m.greeting(); err != nil {
		return nil, "", false, err
	}
	// The first session that is proxied makes its login process connect to the ipc service.
	if rows, err := m.table("PROCESS-STATUS", "ipc"); err != nil || len(rows) == 0 {
		return nil, "", false, err
	}
	c, err := dial(filepath.Join(base, "ipc"), "")
	if err != nil {
		return nil, "", false, err
	}
	defer c.close()
	if err := c.send(append([]string{"proxy", "*"}, words...)...); err != nil {
		return nil, "", false, err
	}
	for {
		line, err := c.line()
		switch {
		case err != nil:
			return nil, "", false, err
		case strings.HasPrefix(line, ":"):
			lines = append(lines, line[1:])
		case strings.HasPrefix(line, "+"):
			return lines, line[1:], true, nil
		default:
			return nil, "", false, fmt.Errorf("ipc: %s", printable(strings.TrimPrefix(line, "-")))
		}
	}
}

// proxied returns the sessions that login processes pass on to other servers.
func proxied(base string) ([]session, error) {
	lines, _, ok, err := askProxies(base, "LIST-FULL")
	if err != nil || !ok || len(lines) == 0 {
		return nil, err
	}
	return parseProxied(lines)
}

func parseProxied(lines []string) (all []session, err error) {
	head := tabline.Split(lines[0])
	var at []int
	for _, name := range proxyList {
		i := slices.Index(head, name)
		if i < 0 {
			return nil, fmt.Errorf("ipc: unknown head %q", lines[0])
		}
		at = append(at, i)
	}
	for _, line := range lines[1:] {
		f := tabline.Split(line)
		if len(f) != len(head) {
			return nil, fmt.Errorf("ipc: unknown line %q", line)
		}
		if slices.Equal(f, head) { // Dovecot's service has one for each login process
			continue
		}
		s := session{user: f[at[0]], service: f[at[1]], count: 1, dest: net.JoinHostPort(f[at[3]], f[at[4]])}
		if addr, err := netip.ParseAddr(f[at[2]]); err == nil {
			s.addr = addr
		}
		all = append(all, s)
	}
	return all, nil
}

// kickProxied ends those sessions of all that m means, if Dovecot's login processes proxy
// them: ours, which are among the pids done, have ended theirs by now. kicked are the users;
// count does not count what others have ended. left are users of whom only some sessions
// are meant, which Dovecot's cannot single out.
func kickProxied(base string, all []session, m usermask.Mask, done []int) (count int, kicked, left []string, err error) {
	for _, s := range all {
		if means(m, s) {
			kicked = append(kicked, s.user)
		} else {
			left = append(left, s.user)
		}
	}
	theirs, err := unasked(base, done)
	if err != nil || !theirs {
		return 0, kicked, nil, err
	}
	left = slices.DeleteFunc(left, func(u string) bool { return !slices.Contains(kicked, u) })
	kicked = slices.DeleteFunc(kicked, func(u string) bool { return slices.Contains(left, u) })
	slices.Sort(kicked)
	kicked = slices.Compact(kicked)
	if len(kicked) == 0 {
		return 0, nil, left, nil
	}
	_, last, ok, err := askProxies(base, append([]string{"KICK"}, kicked...)...)
	if err == nil && ok {
		count, err = strconv.Atoi(last)
	}
	return count, kicked, left, err
}

// unasked says whether there are login processes that are not among the pids done.
func unasked(base string, done []int) (bool, error) {
	pids, err := processes(base, "submission-login")
	return slices.ContainsFunc(pids, func(pid int) bool { return !slices.Contains(done, pid) }), err
}
