package doveconf

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf"
)

// Exit statuses of check: as those of other linters.
const (
	checkFine     = 0
	checkWarnings = 1
	checkErrors   = 2
)

const checkUsage = `usage: doveconf-lite check [--json] [--standalone] [--dialect 2.3|2.4] FILE...

Reads each configuration file as the server would and says everything that is wrong with
it. Exit status: 0 nothing, 1 warnings, 2 errors.

  --json        for programs: one object with all findings
  --standalone  also what dovetail itself, without Dovecot, does not do
  --dialect     the language; otherwise the files say it
`

// checker is one call of check.
type checker struct {
	env        Env
	json       bool
	standalone bool
	dialect    string
	files      []string
	pipes      conf.Pipes
	now        time.Time
}

// runCheck is `doveconf-lite check`.
func runCheck(args []string, env Env) int {
	c := checker{env: env, now: time.Now()}
	if err := c.options(args); err != nil {
		if errors.Is(err, errHelp) {
			fmt.Fprint(env.Stdout, checkUsage)
			return checkFine
		}
		fmt.Fprintf(env.Stderr, "doveconf-lite check: %v\n%s", err, checkUsage)
		return checkErrors
	}
	var found []finding
	worst := checkFine
	for _, file := range c.files {
		cfg, diags := c.check(file)
		for _, d := range diags {
			if d.Severity == hcl.DiagError {
				worst = checkErrors
			} else {
				worst = max(worst, checkWarnings)
			}
		}
		if c.json {
			found = append(found, findings(file, cfg, diags)...)
		} else if err := conf.Write(env.Stdout, cfg, diags); err != nil {
			return checkErrors
		}
	}
	if c.json {
		if err := writeJSON(env, found); err != nil {
			return checkErrors
		}
	}
	return worst
}

var errHelp = errors.New("help")

func (c *checker) options(args []string) error {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			c.files = append(c.files, args[i+1:]...)
			i = len(args)
		case arg == "--json":
			c.json = true
		case arg == "--standalone":
			c.standalone = true
		case arg == "--help", arg == "-h":
			return errHelp
		case arg == "--dialect" && i+1 < len(args):
			i++
			c.dialect = args[i]
		case strings.HasPrefix(arg, "--dialect="):
			c.dialect = strings.TrimPrefix(arg, "--dialect=")
		case strings.HasPrefix(arg, "-") && arg != "-":
			return fmt.Errorf("unknown option %s", arg)
		default:
			c.files = append(c.files, arg)
		}
	}
	if c.dialect != "" && c.dialect != "2.3" && c.dialect != "2.4" {
		return fmt.Errorf("unknown dialect %s", c.dialect)
	}
	if len(c.files) == 0 {
		return errors.New("no file is named")
	}
	return nil
}

// check reads one configuration and looks at what it says. The Config has the files, for
// showing their lines.
func (c *checker) check(file string) (*conf.Config, hcl.Diagnostics) {
	dialect := c.dialect
	if dialect == "" {
		dialect = DialectOf(file, &c.pipes)
	}
	opt := conf.Options{Expand: true, Env: c.env.LookupEnv, Own: c.standalone, Also: c.env.Also, Pipes: &c.pipes}
	var cfg *conf.Config
	var diags hcl.Diagnostics
	var s subject
	if dialect == "2.4" {
		c24, d := conf.Load24(file, opt)
		cfg, diags, s = &conf.Config{Path: file, Files: c24.Files}, d, subject24(c24)
	} else {
		cfg, diags = conf.Load(file, opt)
		if wantsSieve(diags) {
			opt.Schema = conf.Dovecot23Sieve()
			cfg, diags = conf.Load(file, opt)
		}
		s = subject23(cfg)
	}
	diags = slices.DeleteFunc(diags, func(d *hcl.Diagnostic) bool {
		r, ok := d.Extra.(*conf.Report)
		return ok && r.Only
	})
	c.unreadable(diags)
	l := lint{checker: c, subject: s, diags: diags, files: cfg.Files}
	l.run()
	slices.SortStableFunc(l.diags, byPlace(cfg.Files))
	return cfg, l.diags
}

// unreadable makes warnings of files that this user may not read: the server runs as root.
func (c *checker) unreadable(diags hcl.Diagnostics) {
	if os.Geteuid() == 0 {
		return
	}
	for _, d := range diags {
		if strings.HasSuffix(d.Summary, ": Permission denied") && (strings.Contains(d.Summary, ": Can't open file ") || strings.Contains(d.Summary, ": open(")) {
			d.Severity = hcl.DiagWarning
			d.Detail = "The server reads it as root; you cannot, so it was not looked at."
		}
	}
}

// byPlace sorts by the order of reading and by line; what has no place comes last.
func byPlace(files []*conf.File) func(a, b *hcl.Diagnostic) int {
	place := func(d *hcl.Diagnostic) (file, line int) {
		if d.Subject == nil {
			return len(files) + 1, 0
		}
		file = slices.IndexFunc(files, func(f *conf.File) bool { return f.Path == d.Subject.Filename })
		return file, d.Subject.Start.Line
	}
	return func(a, b *hcl.Diagnostic) int {
		fa, la := place(a)
		fb, lb := place(b)
		return cmp.Or(fa-fb, la-lb, cmp.Compare(a.Summary, b.Summary))
	}
}

// A finding is one object of --json.
type finding struct {
	Config    string `json:"config"` // the main file
	Severity  string `json:"severity"`
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"` // from 1
	Column    int    `json:"column,omitempty"`
	EndLine   int    `json:"end_line,omitempty"`
	EndColumn int    `json:"end_column,omitempty"`
	Setting   string `json:"setting,omitempty"`
	Message   string `json:"message"`
	Hint      string `json:"hint,omitempty"`
	Source    string `json:"source,omitempty"` // the line
}

func findings(main string, cfg *conf.Config, diags hcl.Diagnostics) []finding {
	var out []finding
	for _, d := range diags {
		f := finding{Config: main, Severity: "error", Message: valid(d.Summary), Hint: valid(d.Detail)}
		if d.Severity == hcl.DiagWarning {
			f.Severity = "warning"
		}
		if r := d.Subject; r != nil {
			f.File, f.Line, f.Column, f.EndLine, f.EndColumn = valid(r.Filename), r.Start.Line, r.Start.Column, r.End.Line, r.End.Column
			f.Source = sourceLine(cfg, r)
			f.Setting = settingOf(f.Source)
		}
		out = append(out, f)
	}
	return out
}

func valid(s string) string { return strings.ToValidUTF8(s, "\ufffd") }

// maxSource is how much of a line --json gives, in bytes.
const maxSource = 500

func sourceLine(cfg *conf.Config, r *hcl.Range) string {
	line, _, _ := conf.Excerpt(cfg.Files, r)
	return valid(line[:min(len(line), maxSource)])
}

// settingOf is the name at the start of a line key = value or key {.
func settingOf(line string) string {
	key := strings.TrimLeft(line, " \t")
	if i := strings.IndexAny(key, " \t={"); i >= 0 {
		key = key[:i]
	}
	if key == "" || strings.ContainsAny(key, "}#!\"'") {
		return ""
	}
	return key
}

func writeJSON(env Env, found []finding) error {
	report := struct {
		Errors   int       `json:"errors"`
		Warnings int       `json:"warnings"`
		Findings []finding `json:"findings"`
	}{Findings: found}
	if found == nil {
		report.Findings = []finding{}
	}
	for _, f := range found {
		if f.Severity == "error" {
			report.Errors++
		} else {
			report.Warnings++
		}
	}
	enc := json.NewEncoder(env.Stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(report)
}
