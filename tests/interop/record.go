package interop

import (
	"regexp"
	"slices"
	"strings"

	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// A record is what a run showed, in lines that another run would repeat.
type record struct {
	chapters []chapter
	log      string // as it was, for failures
}

// A chapter is what was seen of one client, or of several that belong together.
type chapter struct {
	name  string
	lines []string
}

// lines returns the lines of all chapters.
func (r *record) lines() (all []string) {
	for _, c := range r.chapters {
		all = append(all, c.lines...)
	}
	return all
}

// normal replaces what varies from run to run by the transcripts' placeholders.
var normal = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`session=<[^>]*>`), "session=<{session}>"},
	{regexp.MustCompile(`session=[^<,\s]+`), "session={session}"},
	{regexp.MustCompile(`auth_pid=\d+`), "auth_pid={pid}"},
	{regexp.MustCompile(`SESSION=\S+`), "SESSION={session}"},
	{regexp.MustCompile(`^(submission\([^)]*\))<\d+><[^>]*>`), "$1<{pid}><{session}>"},
	{regexp.MustCompile(`^submission\(\d+\): `), "submission({pid}): "},
	{regexp.MustCompile(`(auth: \w+: \S+\([^,]*,[^,]*),<[^>]*>`), "$1,<{session}>"},
	{regexp.MustCompile(`\bmpid=\d+`), "mpid={pid}"},
	{regexp.MustCompile(`\b(pid=|child |client-pid=|Child )\d+`), "${1}{pid}"},
	{regexp.MustCompile(`\bPORT=\d+`), "PORT={port}"},
	{regexp.MustCompile(`request \[\d+\]`), "request [{n}]"},
	{regexp.MustCompile(`lookup id=\d+`), "lookup id={n}"},
	{regexp.MustCompile(`\b\d+ (msecs|secs)\b`), "{n} $1"},
	{regexp.MustCompile(`\b\d+\.\d{3} secs`), "{n.nnn} secs"},
	{regexp.MustCompile(`\[[A-Za-z0-9-]+:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\]`), "[{host}:{datetime}]"},
	{regexp.MustCompile(`\b[A-Za-z0-9+/]{22}(:T\d+)?\b`), "{id}$1"},
	{regexp.MustCompile(`\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d [+-]\d{4}`), "{date}"},
	{regexp.MustCompile(`id=[A-Za-z0-9+/]{22}`), "id={id}"},
	{regexp.MustCompile(`^  \tid \S{22}`), "  \tid {id}"},
}

func normalise(line string, r *system.Running) string {
	line = strings.NewReplacer(r.Dir, "{dir}", itoa(r.RelayPort), "{relayport}", itoa(r.Port), "{port}", itoa(r.TLSPort), "{port2}").Replace(line)
	for _, n := range normal {
		line = n.re.ReplaceAllString(line, n.by)
	}
	return line
}

// chapter ends a chapter: the sessions, relay connections and log lines since the last one
// are put together. It waits until the log says that who logged in has logged out.
func (w *world) chapter(name string) {
	w.t.Helper()
	for _, s := range w.sessions[w.told.sessions:] {
		s.c.Close()
	}
	var log []string
	if !w.quietLog {
		// Every session leaves a line of the login process; each login one of the worker, too.
		log = w.inst.WaitFor(func(lines []string) bool {
			return logins(lines) <= logouts(lines) &&
				count(lines, "submission-login: Info: Login: ", "submission-login: Info: Disconnected: ", "submission-login: Error: haproxy: ") >= len(w.sessions)+w.quietLogins
		})
	}
	conns := w.relay.AllEnded()
	c := chapter{name: name}
	add := func(lines ...string) {
		for _, l := range lines {
			c.lines = append(c.lines, normalise(l, w.inst))
		}
	}
	for _, s := range w.sessions[w.told.sessions:] {
		add("client " + s.name + ":")
		add(s.said...)
	}
	for _, x := range conns[w.told.conns:] {
		add(relayed(x)...)
	}
	add(w.notes...)
	for _, group := range w.byProcess(log[min(w.told.log, len(log)):]) {
		c.lines = append(c.lines, "log:")
		c.lines = append(c.lines, group...)
	}
	w.chapters = append(w.chapters, c)
	w.told.sessions, w.told.conns, w.told.log, w.notes = len(w.sessions), len(conns), len(log), nil
}

// relayed shows what a connection to the relay was.
func relayed(c relay.Conn) (lines []string) {
	end := "gone" // with or without a RST is a matter of microseconds
	if c.End == "QUIT" {
		end = c.End
	}
	lines = append(lines, "relay connection: "+end)
	for i, l := range c.Lines {
		switch {
		case !isBinary(l):
			lines = append(lines, "R: "+l)
		case i == 0 || !isBinary(c.Lines[i-1]): // a TLS handshake that nobody asked for
			lines = append(lines, "R: (no text)")
		}
	}
	for _, m := range c.Messages {
		lines = append(lines, "message from "+m.From+" to "+strings.Join(m.Rcpts, " "))
		for _, l := range strings.SplitAfter(string(m.Data), "\r\n") {
			if body, ok := strings.CutSuffix(l, "\r\n"); ok {
				lines = append(lines, "  "+body)
			} else if l != "" {
				lines = append(lines, "  "+l+`\c`)
			}
		}
	}
	for _, v := range c.Violations {
		if !strings.Contains(v, `\x`) {
			lines = append(lines, "violation: "+v)
		}
	}
	return lines
}

func isBinary(line string) bool {
	return strings.IndexFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0xFFFD }) >= 0
}

var whose = regexp.MustCompile(`^([a-z-]+(?:\([^)]*\)(?:<\d+><[^>]*>)?)?): `)

// byProcess groups log lines by their prefix and normalises them; workers of the same user
// are told apart by pid and session. Groups are sorted, since sessions that ran at the
// same time have no order.
func (w *world) byProcess(lines []string) (groups [][]string) {
	at := map[string]int{}
	for _, l := range lines {
		if strings.Contains(l, "client connections are being dropped") {
			continue // the master says so when it happens to look at a full moment
		}
		name := "?"
		if m := whose.FindStringSubmatch(l); m != nil {
			name = m[1]
		}
		i, ok := at[name]
		if !ok {
			i = len(groups)
			at[name] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], normalise(l, w.inst))
	}
	for _, g := range groups {
		if !strings.HasPrefix(g[0], "submission(") {
			slices.Sort(g) // of several processes
		}
	}
	slices.SortFunc(groups, slices.Compare)
	return groups
}
