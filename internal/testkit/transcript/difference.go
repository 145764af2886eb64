package transcript

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"dovetail/internal/testkit/system"
)

// A Rule changes what a case expects of a system, in one named way.
type Rule struct {
	ID string // of a difference, or of a peculiarity of the other side
	// Applies says whether the rule is about the system at all.
	Applies func(system.System) bool
	// Change changes the case and says whether there was something to change.
	Change func(*Case, system.System) bool
}

// With returns a copy of the case as the rules want it for the system. Used names those
// that changed it.
func (c *Case) With(sys system.System, rules []Rule) *Case {
	x := *c
	x.Events, x.Log, x.Extra, x.Used = slices.Clone(c.Events), slices.Clone(c.Log), nil, nil
	for _, r := range rules {
		if r.Applies(sys) && r.Change(&x, sys) {
			x.Used = append(x.Used, r.ID)
		}
	}
	return &x
}

// For says whether a variant is about one of the system's own parts.
func (c *Case) For(sys system.System) bool {
	return slices.Contains(c.Sides, "login") && sys.Login == system.Ours ||
		slices.Contains(c.Sides, "worker") && sys.Worker == system.Ours
}

// RemoveServerLines removes the lines from the server that drop names, and corrects the
// out= counts of the worker's log lines. It returns how many there were.
func (c *Case) RemoveServerLines(drop func(line string, loggedIn bool) bool) (n int) {
	loggedIn, octets := [3]bool{}, 0
	var kept []Event
	for _, e := range c.Events {
		if e.Kind == Server && !e.Action {
			loggedIn[e.Conn] = loggedIn[e.Conn] || strings.HasPrefix(e.Text.Source, "235 ")
			if drop(e.Text.Source, loggedIn[e.Conn]) {
				n++
				if loggedIn[e.Conn] {
					octets += len(e.Text.Source) + len("\r\n")
				}
				// The line below it still stands directly behind the one above.
				continue
			}
		}
		kept = append(kept, e)
	}
	c.Events = kept
	if octets > 0 {
		c.ChangeOut(-octets)
	}
	return n
}

var outCount = regexp.MustCompile(`(: Disconnected: .* out=)(\d+)$`)

// ChangeOut adds to the out= counts of the worker's log lines.
func (c *Case) ChangeOut(octets int) {
	for i, l := range c.Log {
		m := outCount.FindStringSubmatch(l.Text.Source)
		if m == nil || !strings.HasPrefix(l.Text.Source, "submission(") {
			continue
		}
		n, _ := strconv.Atoi(m[2])
		c.Log[i].Text = must(strings.Replace(l.Text.Source, m[0], m[1]+strconv.Itoa(n+octets), 1))
	}
}

// ReplaceInLog replaces text in the expected log lines and says how often.
func (c *Case) ReplaceInLog(old, by string) (n int) {
	for i, l := range c.Log {
		if strings.Contains(l.Text.Source, old) {
			c.Log[i].Text = must(strings.ReplaceAll(l.Text.Source, old, by))
			n++
		}
	}
	return n
}

// ExtraLog expects count log lines of a form besides those of the case.
func (c *Case) ExtraLog(form string, count int) {
	if count > 0 {
		c.Extra = append(c.Extra, ExtraLines{must(form), count})
	}
}

// FailedAttempts counts the replies that refuse a login attempt: to AUTH or its lines,
// but not to an AUTH whose form was wrong or that came too early. The 451 and 421 of a
// worker are no refusals of the login.
func (c *Case) FailedAttempts() (n int) {
	asked, challenged := false, false
	for _, e := range c.Events {
		switch s := e.Text.Source; {
		case e.Action:
		case e.Kind == Client:
			if strings.HasPrefix(s, "AUTH") {
				asked, challenged = true, false
			}
		case e.Kind == Server && asked && strings.HasPrefix(s, "334"):
			challenged = true
		case e.Kind == Server && asked:
			asked = false
			if !challenged && s == "500 5.5.2 Line too long" {
				continue // no AUTH yet
			}
			refused := strings.HasPrefix(s, "4") || strings.HasPrefix(s, "5")
			if refused && !strings.HasPrefix(s, "421 ") && !strings.HasPrefix(s, "451 ") && !strings.HasPrefix(s, "530 ") && !strings.HasPrefix(s, "503 ") &&
				s != "501 5.5.4 Missing SASL mechanism parameter" && s != "501 5.5.4 Invalid parameters" {
				n++
			}
		}
	}
	return n
}

func must(s string) Text {
	t, err := ParseText(s)
	if err != nil {
		panic(err) // a rule's own text, or one that was parsed before
	}
	return t
}

// A Difference is one row of the manual's table.
type Difference struct {
	ID      string
	Subject string
	Theirs  string   // what Dovecot 2.3 does
	Ours    string   // what we do instead
	Clauses []string // S13.1
	Shown   []string // variants/FILE, own/FILE, "rule", "test PACKAGE TestName", "open"
}

// LoadDifferences reads a list: paragraphs of "id: ...", "subject: ...", "dovecot: ...",
// "here: ...", "clauses: ..." and one or more "shown: ..." lines; "#" begins a comment line,
// and an indented line continues the one before.
func LoadDifferences(path string) ([]Difference, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	text := strings.ReplaceAll(string(data), "\n  ", " ")
	var out []Difference
	for n, line := range strings.Split(text, "\n") {
		key, value, ok := strings.Cut(line, ": ")
		if line == "" || line[0] == '#' {
			continue
		}
		if !ok || value == "" || key != "id" && len(out) == 0 {
			return nil, fmt.Errorf("%s: paragraph line %d: %q", path, n+1, line)
		}
		if key == "id" {
			out = append(out, Difference{ID: value})
			continue
		}
		d := &out[len(out)-1]
		switch key {
		case "subject":
			d.Subject = value
		case "dovecot":
			d.Theirs = value
		case "here":
			d.Ours = value
		case "clauses":
			d.Clauses = strings.Fields(value)
		case "shown":
			d.Shown = append(d.Shown, value)
		default:
			return nil, fmt.Errorf("%s: unknown key %q", path, key)
		}
	}
	for _, d := range out {
		if d.Subject == "" || d.Theirs == "" || d.Ours == "" || len(d.Shown) == 0 {
			return nil, fmt.Errorf("%s: %s lacks subject, dovecot, here or shown", path, d.ID)
		}
	}
	return out, nil
}

// Markdown returns the differences as a table.
func Markdown(ds []Difference) string {
	cell := func(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
	var b strings.Builder
	b.WriteString("| subject | Dovecot 2.3 | here |\n| --- | --- | --- |\n")
	for _, d := range ds {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", cell(d.Subject), cell(d.Theirs), cell(d.Ours))
	}
	return b.String()
}
