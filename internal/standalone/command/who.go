package command

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"dovetail/internal/usermask"
)

// A session is one line of anvil's table: sessions of one user, from one address, in one
// process.
type session struct {
	service, user string
	addr          netip.Addr // the zero Addr if it is not known
	pid, count    int
	dest          string // where a proxied session goes, "192.0.2.9:587"; it has no pid then
}

// sessions asks the anvil process of the server for its table.
func sessions(baseDir string) ([]session, error) {
	a, err := dial(filepath.Join(baseDir, "anvil"), "VERSION\tanvil\t1\t0\n")
	if err != nil {
		return nil, err
	}
	defer a.close()
	rows, err := a.table("CONNECT-DUMP")
	if err != nil {
		return nil, err
	}
	var all []session
	for _, row := range rows {
		s, err := parseSession(row)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b session) int {
		if n := strings.Compare(a.user, b.user); n != 0 {
			return n
		}
		return a.pid - b.pid
	})
	return all, nil
}

// parseSession parses a line of the table, <ident> <pid> <count>. ident is
// <service>/<address>/<user>, or without an address <service>/<user>.
func parseSession(row []string) (session, error) {
	bad := fmt.Errorf("anvil: unknown line %q", row)
	if len(row) != 3 {
		return session{}, bad
	}
	service, rest, ok := strings.Cut(row[0], "/")
	pid, err1 := strconv.Atoi(row[1])
	count, err2 := strconv.Atoi(row[2])
	if !ok || err1 != nil || err2 != nil || pid <= 0 || count < 0 {
		return session{}, bad
	}
	s := session{service: service, user: rest, pid: pid, count: count}
	if ip, user, ok := strings.Cut(rest, "/"); ok {
		if addr, err := netip.ParseAddr(ip); err == nil {
			s.addr = addr
		}
		s.user = user
	}
	return s, nil
}

// means says whether m means s.
func means(m usermask.Mask, s session) bool { return m.Matches(s.user, s.addr) }

// runWho is `dovetail who`, in the form of doveadm's.
func runWho(c *call) int {
	separate := c.flags.Bool("1", false, "one line for each session")
	args, err := c.parse(2)
	if err != nil {
		return usage(err)
	}
	m, err := usermask.Parse(args)
	if err != nil {
		c.error("%v", err)
		return exitUsage
	}
	base, err := c.baseDir()
	var all, passing []session
	if err == nil {
		all, err = sessions(base)
	}
	if err == nil {
		passing, err = proxied(base)
		all = append(all, passing...)
		slices.SortStableFunc(all, func(a, b session) int { return strings.Compare(a.user, b.user) })
	}
	if err != nil {
		c.error("%v", err)
		if errors.Is(err, errNotRunning) {
			return exitNotRunning
		}
		return exitFailed
	}
	tw := tabwriter.NewWriter(c.stdout, 0, 8, 1, ' ', 0)
	if *separate {
		fmt.Fprintln(tw, "username\tproto\tpid\tip")
		for _, s := range all {
			for range s.count {
				if means(m, s) {
					fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", printable(s.user), printable(s.service), s.where(), ip(s.addr))
				}
			}
		}
	} else {
		fmt.Fprintln(tw, "username\t#\tproto\t(pids)\t(ips)")
		for _, u := range byUser(all) {
			if slices.ContainsFunc(u, func(s session) bool { return means(m, s) }) {
				fmt.Fprintln(tw, u.line())
			}
		}
	}
	if err := tw.Flush(); err != nil {
		return exitFailed
	}
	return exitOK
}

// where is the process that serves a session, or where it is passed on to.
func (s session) where() string {
	if s.dest != "" {
		return "->" + printable(s.dest)
	}
	return strconv.Itoa(s.pid)
}

// userSessions are the sessions of one user with one service.
type userSessions []session

func byUser(all []session) []userSessions {
	var out []userSessions
	for _, s := range all {
		i := slices.IndexFunc(out, func(u userSessions) bool { return u[0].user == s.user && u[0].service == s.service })
		if i < 0 {
			out = append(out, userSessions{s})
		} else {
			out[i] = append(out[i], s)
		}
	}
	return out
}

func (u userSessions) line() string {
	count := 0
	var pids, ips []string
	for _, s := range u {
		count += s.count
		if p := s.where(); !slices.Contains(pids, p) {
			pids = append(pids, p)
		}
		if a := ip(s.addr); a != "" && !slices.Contains(ips, a) {
			ips = append(ips, a)
		}
	}
	return fmt.Sprintf("%s\t%d\t%s\t(%s)\t(%s)", printable(u[0].user), count, printable(u[0].service),
		strings.Join(pids, " "), strings.Join(ips, " "))
}

func ip(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// printable makes a name that came from outside fit for a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x202e || r == 0xfffd {
			return '?'
		}
		return r
	}, s)
}

// runKick is `dovetail kick`. Processes of this project end just the sessions that are
// meant; others are ended as a whole, by SIGTERM, if they carry no other user.
func runKick(c *call) int {
	force := c.flags.Bool("f", false, "end processes that other users share, too")
	args, err := c.parse(2)
	if err != nil {
		return usage(err)
	}
	m, err := usermask.Parse(args)
	if err == nil && len(args) == 0 {
		err = errors.New("a user, a network, or both must be given")
	}
	if err != nil {
		c.error("%v", err)
		return exitUsage
	}
	n, err := c.kick(m, *force)
	if err != nil {
		c.error("%v", err)
		return exitFailed
	}
	if n == 0 {
		c.say("no users kicked")
		return exitNotFound
	}
	return exitOK
}

// kick returns how many sessions were ended.
func (c *call) kick(m usermask.Mask, force bool) (int, error) {
	base, err := c.baseDir()
	if err != nil {
		return 0, err
	}
	all, err := sessions(base)
	if err != nil {
		return 0, err
	}
	passing, err := proxied(base)
	if err != nil {
		return 0, err
	}
	count, done, err := askKick(base, m)
	if err != nil {
		return 0, err
	}
	ours, err := processes(base, "submission", "submission-login")
	if err != nil {
		return 0, err
	}
	var kicked []string
	plan, shared := planKick(all, m, done, force)
	plan, strangers := known(plan, ours)
	for _, s := range strangers {
		c.error("not kicked: anvil has process %d for %s, but that is no process of submission", s.pid, printable(s.user))
	}
	for _, s := range all {
		if means(m, s) && slices.Contains(done, s.pid) {
			kicked = append(kicked, printable(s.user))
		}
	}
	for _, s := range plan {
		if err := unix.Kill(s.pid, unix.SIGTERM); err == nil {
			count += s.count
			kicked = append(kicked, printable(s.user))
		} else if err != unix.ESRCH {
			c.error("kill(%d, SIGTERM) failed: %v", s.pid, err)
		}
	}
	n, users, left, err := kickProxied(base, passing, m, done)
	if err != nil {
		c.error("proxied sessions: %v", err)
	}
	count += n
	for _, u := range users {
		kicked = append(kicked, printable(u))
	}
	for _, u := range left {
		c.say("not kicked, as only some proxied sessions of theirs are meant: %s", printable(u))
	}
	slices.Sort(kicked)
	if count > 0 {
		word := "sessions"
		if count == 1 {
			word = "session"
		}
		c.say("kicked %d %s of: %s", count, word, strings.Join(slices.Compact(kicked), " "))
	}
	if len(shared) > 0 {
		c.say("not kicked, as these users share a process with them: %s (-f ends theirs, too)", strings.Join(shared, " "))
	}
	return count, nil
}

// planKick returns the sessions, one for a pid, whose processes are to be ended as a
// whole, and the users who keep others from being ended. done are the pids that have been
// taken care of.
func planKick(all []session, m usermask.Mask, done []int, force bool) (plan []session, shared []string) {
	for i, s := range all {
		first := slices.IndexFunc(all, func(o session) bool { return o.pid == s.pid && means(m, o) })
		if first != i || slices.Contains(done, s.pid) {
			continue
		}
		var others []string
		whole := s
		whole.count = 0
		for _, o := range all {
			if o.pid != s.pid {
				continue
			}
			whole.count += o.count
			if !means(m, o) {
				others = append(others, printable(o.user))
			}
		}
		if len(others) > 0 && !force {
			shared = append(shared, others...)
		} else {
			plan = append(plan, whole)
		}
	}
	slices.Sort(shared)
	return plan, slices.Compact(shared)
}

// known returns those sessions of a plan whose processes are among ours, and those of
// which that is not so, though there is such a process. Any worker can tell anvil any
// process ID: one that a stranger has taken over must not choose whom root ends.
func known(plan []session, ours []int) (in, out []session) {
	for _, s := range plan {
		switch {
		case slices.Contains(ours, s.pid):
			in = append(in, s)
		case unix.Kill(s.pid, 0) == nil:
			out = append(out, s)
		}
	}
	return in, out
}

// processes returns the process IDs that the master has for services.
func processes(base string, services ...string) (pids []int, err error) {
	m, err := askMaster(base)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if err := m.greeting(); err != nil {
		return nil, err
	}
	rows, err := m.table(append([]string{"PROCESS-STATUS"}, services...)...)
	for _, row := range rows {
		if len(row) < 2 || !slices.Contains(services, row[0]) {
			continue
		}
		if pid, err := strconv.Atoi(row[1]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// askKick has the master ask its processes. It returns the number of sessions ended, and
// the pids that could be asked.
func askKick(base string, m usermask.Mask) (count int, pids []int, err error) {
	c, err := askMaster(base)
	if err != nil {
		return 0, nil, err
	}
	defer c.close()
	if err := c.greeting(); err != nil {
		return 0, nil, err
	}
	if err := c.send("KICK", m.User, m.Network()); err != nil {
		return 0, nil, err
	}
	line, err := c.line()
	if err != nil {
		return 0, nil, err
	}
	text, ok := strings.CutPrefix(line, "+")
	if !ok {
		return 0, nil, fmt.Errorf("the server says %q", printable(line))
	}
	for i, f := range strings.Split(text, "\t") {
		n, err := strconv.Atoi(f)
		if err != nil || n < 0 {
			return 0, nil, fmt.Errorf("the server says %q", printable(line))
		}
		if i == 0 {
			count = n
		} else {
			pids = append(pids, n)
		}
	}
	return count, pids, nil
}
