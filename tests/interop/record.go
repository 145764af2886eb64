package interop

import (
	"regexp"
	"slices"
	"strings"

	"dovetail/internal/testkit/system"
)

// A record is what a run showed, in lines that another run would repeat.
type record struct {
	lines []string
	log   string // as it was, for failures
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
	{regexp.MustCompile(`^\tid \S{22}`), "\tid {id}"},
}

func normalise(line string, r *system.Running) string {
	line = strings.NewReplacer(r.Dir, "{dir}", itoa(r.RelayPort), "{relayport}", itoa(r.Port), "{port}", itoa(r.TLSPort), "{port2}").Replace(line)
	for _, n := range normal {
		line = n.re.ReplaceAllString(line, n.by)
	}
	return line
}

// record puts everything together. The log is grouped by process, since two processes
// have no order between them.
func (w *world) record(quietLog bool) *record {
	r := &record{}
	add := func(lines ...string) {
		for _, l := range lines {
			r.lines = append(r.lines, normalise(l, w.inst))
		}
	}
	for _, s := range w.sessions {
		add("client " + s.name + ":")
		add(s.said...)
	}
	for _, c := range w.relay.Conns() {
		end := "gone" // with or without a RST is a matter of microseconds
		if c.End == "QUIT" {
			end = c.End
		}
		add("relay connection: " + end)
		for i, l := range c.Lines {
			switch {
			case !isBinary(l):
				add("R: " + l)
			case i == 0 || !isBinary(c.Lines[i-1]): // a TLS handshake that nobody asked for
				add("R: (no text)")
			}
		}
		for _, m := range c.Messages {
			add("message from " + m.From + " to " + strings.Join(m.Rcpts, " "))
			for _, l := range strings.SplitAfter(string(m.Data), "\r\n") {
				if body, ok := strings.CutSuffix(l, "\r\n"); ok {
					r.lines = append(r.lines, "  "+normalise(body, w.inst))
				} else if l != "" {
					r.lines = append(r.lines, "  "+normalise(l, w.inst)+`\c`)
				}
			}
		}
		for _, v := range c.Violations {
			if !strings.Contains(v, `\x`) {
				add("violation: " + v)
			}
		}
	}
	if len(w.notes) > 0 {
		add("notes:")
		add(w.notes...)
	}
	if !quietLog {
		for _, group := range w.byProcess(w.inst.Log()) {
			r.lines = append(r.lines, "log:")
			r.lines = append(r.lines, group...)
		}
	}
	return r
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
