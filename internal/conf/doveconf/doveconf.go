// Package doveconf is what doveconf-lite does: it prints configurations as Dovecot's
// doveconf does (clauses C17 and C18), checks and converts them. The language itself is
// package conf's.
//
// It stands in for doveconf of 2.3 except that it does not run commands (-e) and knows no
// instances (-i) (clause C23.2).
package doveconf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf"
	"dovetail/internal/conf/settings/all"
)

// Version and revision in the first line of a dump: those of the Dovecot whose language
// and output these are.
const version23 = "2.3.19.1 (9b53102964)"

const (
	exitFatal   = 89
	exitConfig  = 78 // hosts with the same hash
	exitSysexit = 75 // with USE_SYSEXITS (clause C17.3)
)

// Main is doveconf of 2.3 or 2.4, or what the first argument says: check, convert. It returns the
// exit status.
func Main(args []string, env Env) int {
	if len(args) > 0 {
		switch args[0] {
		case "check":
			return runCheck(args[1:], env)
		case "convert":
			return runConvert(args[1:], env)
		case "--help":
			fmt.Fprint(env.Stdout, usage)
			return 0
		}
	}
	r := run24{run: run{env: env, out: output{w: env.Stdout, terminal: env.Terminal}, warned: map[string]bool{}}}
	dialect, args, err := chooseDialect(args, env, &r.pipes)
	switch {
	case err != nil:
	case dialect == "2.4":
		r.later = true
		err = r.main(args)
	default:
		err = r.run.run(args)
	}
	r.out.flush()
	if usage := usageError(""); errors.As(err, &usage) {
		fmt.Fprintf(env.Stderr, "doveconf: %s\n", usage)
		return exitFatal
	}
	switch {
	case err == errSaid:
		return exitConfig
	case err == errQuiet, err == nil && r.out.err != nil:
		return exitFatal
	}
	if err != nil {
		r.say("Fatal", err.Error())
		if _, ok := env.LookupEnv("USE_SYSEXITS"); ok {
			return exitSysexit
		}
		return exitFatal
	}
	return 0
}

const usage = `usage: doveconf-lite [options] [setting...]     prints, as doveconf does
       doveconf-lite check [--json] FILE...     says what is wrong
       doveconf-lite convert --to 2.4 FILE      makes a file for Dovecot 2.4 of one for 2.3

  -n  what differs from the defaults    -c FILE  the main file
  -N  what the files set                -f K=V   for one client: protocol, local, remote, lname
  -a  everything                        -h       values without names
  -s  hidden settings, too              -P       secrets, too
  -d  the defaults                      -x       variables and <files put in
  -S  key=value lines (2.3)             -m NAME  one module's settings (2.3)
  --dialect 2.3|2.4                     the language; otherwise the file says it
`

// A fatal is an error whose text is Dovecot's, capital letter and all.
type fatal string

func (f fatal) Error() string { return string(f) }

func fatalf(format string, args ...any) error { return fatal(fmt.Sprintf(format, args...)) }

// errSaid ends the program after everything has been said; errQuiet without a word.
var errSaid, errQuiet = errors.New("said"), errors.New("quiet")

// Env is what the process around gives.
type Env struct {
	Stdout, Stderr io.Writer
	LookupEnv      func(string) (string, bool)
	Terminal       bool                               // Stdout is one
	Also           func(*conf.Config) hcl.Diagnostics // conf.Options.Also, for check
}

// System is the Env of this process.
func System() Env {
	return Env{Stdout: os.Stdout, Stderr: os.Stderr, LookupEnv: os.LookupEnv, Terminal: conf.IsTerminal(os.Stdout)}
}

// A run is one call of the program.
type run struct {
	env Env
	out output
	o   options
	opt conf.Options // as the configuration was loaded with
	// pipes are those among the files.
	pipes conf.Pipes
	// later: the dialect is that of 2.4.
	later bool
	// warned are the warnings of checks that have been said and are not repeated.
	warned map[string]bool
}

func (r *run) say(level, text string) {
	if r.later { // 2.4 begins each line anew
		text = strings.ReplaceAll(text, "\n", "\ndoveconf: "+level+": ")
	}
	fmt.Fprintf(r.env.Stderr, "doveconf: %s: %s\n", level, text)
}

// mainFile is the main file if no option names one.
func mainFile(env Env) string {
	if f, ok := env.LookupEnv("CONFIG_FILE"); ok {
		return f
	}
	return "/etc/dovecot/dovecot.conf"
}

func (r *run) run(args []string) error {
	o := &r.o
	if err := parseOptions(args, o); err != nil {
		return err
	}
	if o.instance != "" {
		return fatalf("Unknown instance name: %s", o.instance)
	}
	if o.hash {
		return r.hostHashes(o.names)
	}
	if o.command != nil {
		if len(o.command) == 0 {
			return fatal("Missing command for -e")
		}
		return fatal("-e is not supported")
	}
	if !o.fileGiven {
		o.file = mainFile(r.env)
	}
	if len(o.names) == 0 && !o.simple {
		r.out.line(fmt.Sprintf("# %s: %s\n", version23, o.file))
		r.out.flush()
	}
	c, diags, table := r.load()
	if err := r.report(diags); err != nil {
		return err
	}
	last := r.checked(c.Checked)
	if len(o.names) > 0 && o.scope == visible {
		o.scope = full
	}
	switch {
	case o.simple:
		return r.simple(c, table, last)
	case len(o.names) > 0:
		return r.queries(c, table)
	}
	return r.dump(c, table, last)
}

// load reads the configuration, with the settings of the managesieve plug-in if it is
// installed, or if the files use them.
func (r *run) load() (*conf.Config, hcl.Diagnostics, *all.Table) {
	o := &r.o
	r.opt = conf.Options{Expand: o.expand, Env: r.env.LookupEnv, Pipes: &r.pipes}
	if !o.everything {
		r.opt.Only = selection(all.V23Sieve(), o.modules)
	}
	if o.defaults {
		return conf.Defaults(r.opt), nil, all.V23()
	}
	if _, err := os.Stat(sievePlugin); err != nil {
		c, diags := conf.Load(o.file, r.opt)
		if !wantsSieve(diags) {
			return c, diags, all.V23()
		}
	}
	r.opt.Schema = conf.Dovecot23Sieve()
	c, diags := conf.Load(o.file, r.opt)
	return c, diags, all.V23Sieve()
}

const sievePlugin = "/usr/lib/dovecot/modules/settings/libmanagesieve_settings.so"

func wantsSieve(diags hcl.Diagnostics) bool {
	for _, d := range diags {
		if strings.Contains(d.Summary, "Unknown setting: managesieve_") || d.Summary == "protocols: Unknown protocol: sieve" {
			return true
		}
	}
	return false
}

// report says the warnings of lines and the first error, as far as Dovecot says them; the
// error is returned.
func (r *run) report(diags hcl.Diagnostics) error {
	for _, d := range diags {
		rep, ok := d.Extra.(*conf.Report)
		if !ok || rep.Text == "" || rep.AtEnd {
			continue
		}
		if d.Severity == hcl.DiagError {
			return errors.New(rep.Text)
		}
		r.say(rep.Level, rep.Text)
	}
	return nil
}

// checked says the warnings of the checks, and returns the error that is said last.
func (r *run) checked(remarks []conf.Remark) error {
	for _, m := range remarks {
		if m.Level == "Error" {
			return fatalf("Error in configuration file %s: %s", r.o.file, m.Text)
		}
		r.say(m.Level, m.Text)
		r.warned[m.Text] = r.warned[m.Text] || m.Once
	}
	return nil
}

// recheck makes the checks anew on what is printed. It says the warnings and returns the
// errors.
func (r *run) recheck(v *conf.View, only *all.Selection) []conf.Remark {
	opt := r.opt
	opt.Only = only
	var errs []conf.Remark
	for _, m := range v.Checks(opt) {
		switch {
		case m.Level == "Error":
			errs = append(errs, m)
			if r.o.simple {
				return errs
			}
		case !r.warned[m.Text]:
			r.say(m.Level, m.Text)
			r.warned[m.Text] = m.Once
		}
	}
	return errs
}

// failed says the errors of checks.
func (r *run) failed(errs []conf.Remark) {
	for _, m := range errs {
		r.say(m.Level, m.Text)
	}
}

func (r *run) exporter(table *all.Table) *exporter {
	return &exporter{
		table: table, scope: r.o.scope, modules: selection(table, r.o.modules),
		// The worker's own default shows only where the login program's is left out.
		worker: slices.Contains(r.o.modules, "submission") && !slices.Contains(r.o.modules, "submission-login"),
	}
}

// view makes the entries of v.
func (r *run) view(x *exporter, v *conf.View) []entry {
	x.lost = findLost(v.Merged(), builtinServices(x.table))
	return x.export(v.Root())
}

// selection is what the modules show; nil, for all, if there are none.
func selection(table *all.Table, modules []string) *all.Selection {
	if len(modules) == 0 {
		return nil
	}
	return table.Select(modules...)
}

// dump is the whole configuration.
func (r *run) dump(c *conf.Config, table *all.Table, last error) error {
	r.out.line(header())
	if r.o.scope == visible {
		r.out.line("# NOTE: Send doveconf -n output instead when asking for help.\n")
	}
	r.out.flush()
	p := &printer{out: &bytes.Buffer{}, hide: !r.o.secrets}
	x := r.exporter(table)
	v, err := c.View(r.o.filter.Filter)
	if err != nil {
		r.say("Error", err.Error())
	} else {
		errs := r.recheck(v, x.modules)
		p.dump(r.view(x, v))
		r.out.block(p.out.Bytes())
		p.out.Reset()
		r.failed(errs)
	}
	sections := 0
	for _, s := range c.Sorted() {
		if !r.o.filter.compatible(s.Match) {
			continue
		}
		x := r.exporter(table)
		x.scope = set
		before := p.out.Len()
		p.filter(s.Match, x.export(s.Block))
		if p.out.Len() > before {
			sections++
		}
	}
	r.out.block(p.out.Bytes())
	if last == nil && err != nil && sections == 0 {
		last = fatal("Errors in configuration")
	}
	return last
}

// queries are single settings and sections (clauses C17.16, C17.17).
func (r *run) queries(c *conf.Config, table *all.Table) error {
	v, err := c.View(r.o.filter.Filter)
	if err != nil {
		for range r.o.names {
			r.say("Error", err.Error())
		}
		return fatal("Errors in configuration")
	}
	x := r.exporter(table)
	x.modules = nil // -m does not matter here
	entries := r.view(x, v)
	index := make(map[string]*entry, len(entries))
	for i := range entries {
		if e := &entries[i]; e.dump {
			index[e.path] = e
		}
	}
	for _, name := range r.o.names {
		e := index[name]
		switch {
		case name == "":
		case e == nil:
			if !slices.ContainsFunc(entries, func(e entry) bool { return (e.dump || e.heading) && e.path != name && under(e.path, name) }) {
				continue
			}
			p := &printer{out: &bytes.Buffer{}, hide: !r.o.secrets, query: name}
			p.dump(entries)
			r.out.block(p.out.Bytes())
			r.failed(r.recheck(v, nil)) // a failing check is not fatal here
		case r.o.hideKey:
			r.out.line(e.value + "\n")
		default:
			r.out.line(name + " = " + e.value + "\n")
		}
	}
	return nil
}

// simple is -S (clause C17.18).
func (r *run) simple(c *conf.Config, table *all.Table, last error) error {
	v, err := c.View(r.o.filter.Filter)
	if err != nil {
		r.say("Error", err.Error())
		return fatal("Errors in configuration")
	}
	x := r.exporter(table)
	errs := r.recheck(v, x.modules)
	if x.modules == nil {
		x.modules = table.Select()
	}
	if len(errs) > 0 {
		x.last = errs[0].Root() // Dovecot stops after the group that fails
	}
	for _, e := range r.view(x, v) {
		if !e.simple {
			continue
		}
		l := e.path + "=" + e.value + "\n"
		if len(r.o.names) == 0 {
			r.out.line(l)
		}
		for _, name := range r.o.names {
			if under(e.path, name) {
				r.out.line(l)
			}
		}
	}
	r.failed(errs)
	if last == nil && len(errs) > 0 {
		last = fatal("Errors in configuration")
	}
	return last
}
