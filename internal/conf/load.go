package conf

import (
	"fmt"
	"os"
	"os/user"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf/settings/all"
)

// Options say how to load. The zero Options are doveconf's without -x.
type Options struct {
	// Expand puts in all $variables and the contents of <files, as the running server
	// does (clauses C5, C6); otherwise only `key = $key more`.
	Expand bool
	// Env is asked for $ENV:NAME; nil is os.LookupEnv.
	Env func(name string) (string, bool)
	// Schema says which settings there are; nil is Dovecot 2.3's with our own.
	Schema Schema
	// Own adds the checks of standalone: what it cannot serve is an error (Own errors have
	// no Report.Text).
	Own bool
	// Also, with Own, finds what standalone's parts say of a configuration. What it says of
	// a line that already has an error is left out.
	Also func(*Config) hcl.Diagnostics
	// NoChecks leaves out the checks of whole configurations (clause C16, and Own).
	NoChecks bool
	// Only, if not nil, are the settings for which <files are read and checks run (doveconf
	// -m). The files of others are taken for empty.
	Only *all.Selection
	// IgnoreUnknown passes over settings and sections that 2.4 does not know (doveconf -U).
	IgnoreUnknown bool
	// Around: the checks of 2.4 find settings that belong to a named filter by their names
	// around it, not in it. So doveconf has them when it prints single settings.
	Around bool
	// Pipes has what was read of pipes and devices, for further Loads of the same files; nil
	// is for one Load.
	Pipes *Pipes
	// Resolve finds the address of a host name in local and remote; nil asks the system,
	// at most 30 seconds for each.
	Resolve resolver
	// User and Group say whether the system has a user or group. Nil asks the system; but
	// with Own and without root all exist, as nobody changes to them.
	User, Group func(name string) bool
}

// Load reads the file at path with everything it includes. It always returns a Config,
// with what could be understood; it must not be used to serve anyone if the Diagnostics
// have errors. They stand in the order in which Dovecot would find them, warnings among
// them.
func Load(path string, opt Options) (*Config, hcl.Diagnostics) {
	p := newParser(path, opt)
	if p.openMain(path) {
		p.run()
	}
	p.cfg.index = newIndex(p.cfg.Filters)
	if !opt.NoChecks {
		p.check()
	}
	return p.cfg, p.diags
}

func newParser(path string, opt Options) *parser {
	if opt.Env == nil {
		opt.Env = os.LookupEnv
	}
	if opt.Resolve == nil {
		opt.Resolve = lookupHost
	}
	if opt.Own && opt.User == nil && opt.Group == nil && os.Geteuid() != 0 {
		opt.User = func(string) bool { return true }
		opt.Group = opt.User
	}
	if opt.User == nil {
		opt.User = func(name string) bool { _, err := user.Lookup(name); return err == nil }
	}
	if opt.Group == nil {
		opt.Group = func(name string) bool { _, err := user.LookupGroup(name); return err == nil }
	}
	if opt.Schema == nil {
		opt.Schema = Dovecot23()
	}
	if opt.Own {
		opt.Schema = withOwn{opt.Schema}
	}
	if opt.Pipes == nil {
		opt.Pipes = &Pipes{}
	}
	root := &Scope{Block: &Block{}}
	p := &parser{
		opt: opt, schema: opt.Schema,
		cfg:   &Config{Path: path, Root: root, schema: opt.Schema},
		lex:   lexer{d: &dialect23},
		files: map[string]*File{}, seen: map[string]seenAt{},
	}
	p.lex.warn = p.ambiguousHash
	p.open = []frame{{scope: root, block: root.Block, filter: true}}
	return p
}

// A parser reads one configuration.
type parser struct {
	problems
	opt    Options
	schema Schema
	cfg    *Config
	lex    lexer

	onLine24 func(*input, line) // acts on lines in place of apply

	stack   []*input // files being read; the last one is read next (clause C7.6)
	files   map[string]*File
	byMatch map[string][]*Scope // cfg.Filters by Match.key
	bytes   int64               // of all files opened and values made so far
	content map[string]string   // of <files that have been read
	piped   map[string]int      // how many times pipes and devices were read
	// stopped: a bound of source.go was passed, nothing more is included.
	stopped bool

	open     []frame           // sections around the line; open[0] is the root
	sections int               // unnamed sections that are not filters, so far
	seen     map[string]seenAt // clause C10.11: path of a setting in a filter or section -> first place
	headless *headless         // the last line was the head of a section without its brace
	old      obsolete
}

// A headless is the head of a section without its brace, and where it stands.
type headless struct {
	line
	text   string
	pieces []piece
}

// A seenAt is a place as Dovecot names it in a warning.
type seenAt struct {
	file *File
	line int
}

func (s seenAt) String() string { return fmt.Sprintf("%s line %d", s.file.Path, s.line) }

// A frame is one open section.
type frame struct {
	key    string // the type
	scope  *Scope
	block  *Block // nil: nothing is known in it
	filter bool
	// quiet: the head was wrong, and what stands inside is not looked at.
	quiet bool
	auth  authPart
	// prefix is the path Dovecot puts before keys: "service/submission/".
	prefix string
	at     Range
	file   string // that Dovecot would name for at
}

// An input is a file being read.
type input struct {
	file  *File
	text  string // content not yet read
	off   int    // of text in the file
	line  int    // last physical line read
	by    *input // the file that includes it
	depth int    // how many files led here
	stat  os.FileInfo
}

func (p *parser) top() *frame { return &p.open[len(p.open)-1] }

// run reads all lines.
func (p *parser) run() {
	for len(p.stack) > 0 && !p.full {
		in := p.stack[len(p.stack)-1]
		if in.text == "" {
			p.stack = p.stack[:len(p.stack)-1]
			continue
		}
		phys, rest, ended := strings.Cut(in.text, "\n")
		off := in.off
		in.off += len(phys)
		if ended {
			in.off++
		}
		in.text = rest
		in.line++
		phys = strings.TrimSuffix(phys, "\r")
		l := p.lex.next(phys, in.file, in.line, off)
		if l.kind != lineContinued {
			if p.onLine24 != nil {
				p.onLine24(in, l)
			} else {
				p.apply(in, l)
			}
			p.lex.done()
		}
	}
	if len(p.lex.full) > 0 {
		p.lostLine()
	}
	if f := p.top(); len(p.open) > 1 {
		text := fmt.Sprintf("Missing '}' (section started at %s:%d)", f.file, f.at.Line)
		p.atEnd(f.at, text, "Every section ends with a line that has nothing but `}`.")
		if f.auth == authNone { // Dovecot does not notice those
			p.cfg.Checked = append(p.cfg.Checked, Remark{Level: "Error", Text: text})
		}
	}
}

// here is the input whose line is being looked at. Includes push onto the stack, but only
// as their line's last act.
func (p *parser) here() *input { return p.stack[len(p.stack)-1] }

// fail notes an error of the current line at the given part of it.
func (p *parser) fail(r Range, text, detail string) {
	in := p.here()
	p.onLine(r, in.file.Path, in.line, text, detail)
}

// failQuoting is fail with a text in which quoted is from the line's value. If that is a
// secret, only Dovecot's words have it.
func (p *parser) failQuoting(r Range, before, quoted, after, detail string) {
	n := len(p.diags)
	p.fail(r, before+quoted+after, detail)
	if len(p.diags) > n && Veil(p.lex.text) != p.lex.text {
		p.diags[n].Summary = before + "..." + after
	}
}

func (p *parser) ambiguousHash(at int) {
	in := p.here()
	const text = "Ambiguous '#' character in line, treating it as comment. Add a space before it to remove this warning."
	p.warn(p.lex.rang(at, at+1), fmt.Sprintf("Configuration file %s line %d: %s", in.file.Path, in.line, text), text,
		"If the # belongs to the value, put the value in quotes.")
}

// apply acts on a line (clause C1.5).
func (p *parser) apply(in *input, l line) {
	if l.kind == lineSkip {
		if p.lex.lost() {
			p.lostLine()
		}
		return
	}
	head := p.headless
	p.headless = nil
	if head != nil && p.lex.text == "{" {
		p.lex.text, p.lex.pieces = head.text, head.pieces // messages point there
		p.openSection(head.line)                          // it has been reported
		return
	}
	if p.top().quiet {
		p.applyQuiet(l)
		return
	}
	if p.obsoleteLine(&l) {
		return
	}
	switch l.kind {
	case lineSet:
		p.set(l)
	case lineOpen:
		p.openSection(l)
	case lineClose:
		p.closeSection()
	case lineInclude, lineIncludeTry:
		p.include(in, l)
	case lineBad:
		p.bad(l)
	}
}

// lostLine says that a continued line is gone (clause C3.4). Dovecot does not.
func (p *parser) lostLine() {
	at := p.lex.rang(0, len(p.lex.full))
	p.add(&hcl.Diagnostic{
		Severity: hcl.DiagWarning, Summary: "The continued line is ignored",
		Detail:  "A comment or an empty line follows its backslash, which drops what has been collected so far.",
		Subject: subject(at), Extra: &Report{Level: "Warning"},
	})
}

// applyQuiet follows only the braces in a section that is not looked at. Files are not
// included there, as they may hold anything.
func (p *parser) applyQuiet(l line) {
	switch {
	case l.kind == lineOpen && l.key == "}":
	case l.kind == lineOpen, l.kind == lineBad && strings.HasSuffix(p.lex.text, "{"):
		p.push(frame{key: l.key, scope: p.top().scope, quiet: true})
	case l.kind == lineClose, l.kind == lineBad && strings.HasPrefix(p.lex.text, "}"):
		p.open = p.open[:len(p.open)-1]
	}
}

// push opens a section; its place is the current line.
func (p *parser) push(f frame) {
	in := p.here()
	f.at, f.file = p.lex.rang(0, len(p.lex.text)), in.file.Path
	f.at.Line = in.line
	if f.prefix == "" {
		f.prefix = p.top().prefix
	}
	if len(p.open) > maxDepth {
		if !p.stopped {
			p.fail(f.at, fmt.Sprintf("Sections are nested more than %d deep", maxDepth), "Perhaps braces do not match.")
			p.stopped = true
		}
		f.quiet = true
	}
	p.open = append(p.open, f)
}

func (p *parser) closeSection() {
	if len(p.open) == 1 {
		p.fail(p.lex.rang(0, 1), "Unexpected '}'", "No section is open here.")
		return
	}
	p.open = p.open[:len(p.open)-1]
}

// bad reports a line that is none of the forms, and guesses what was meant so that the
// following lines make sense.
func (p *parser) bad(l line) {
	detail := "A line is `setting = value`, `section name {`, `}` alone, or `!include files`."
	all := p.lex.rang(0, l.end)
	section := p.isSection(l.key)
	switch {
	case l.bad == "Garbage after '{'":
		detail = "The brace must be the last thing on its line; what is inside follows on lines of its own."
		if !strings.HasSuffix(p.lex.text, "}") {
			defer p.push(frame{key: l.key, scope: p.top().scope, quiet: true})
		}
	case strings.HasPrefix(p.lex.text, "}"):
		detail = "`}` must be the only thing on its line."
		defer func() {
			if len(p.open) > 1 {
				p.open = p.open[:len(p.open)-1]
			}
		}()
	case p.lex.text == "{":
		detail = "The brace that opens a section stands on the line of the section's name."
		defer p.push(frame{key: l.key, scope: p.top().scope, quiet: true})
	case section && l.named && strings.HasSuffix(l.value, "{") && l.valueAt+len(l.value) == l.end:
		detail = "There must be a blank before the brace."
		head := line{kind: lineOpen, key: l.key, value: strings.TrimSuffix(l.value, "{"), named: true, valueAt: l.valueAt, end: l.end}
		defer p.openSection(head)
	case section && strings.HasSuffix(p.lex.text, "{"):
		detail = "A section has one name; a name with blanks is written in double quotes."
		defer p.push(frame{key: l.key, scope: p.top().scope, quiet: true})
	case section:
		detail = fmt.Sprintf("The head of a section is `%s name {`, with the brace on the same line.", l.key)
		head := line{kind: lineOpen, key: l.key, value: l.value, named: l.named, valueAt: l.valueAt, end: l.end}
		p.headless = &headless{head, p.lex.text, slices.Clone(p.lex.pieces)}
	case strings.HasSuffix(l.key, "{"):
		detail = "There must be a blank before the brace."
		defer p.push(frame{key: l.key, scope: p.top().scope, quiet: true})
	case l.key == "include" || l.key == "include_try":
		detail = fmt.Sprintf("Including is written `!%s files`.", l.key)
	case p.isSetting(l.key):
		detail = fmt.Sprintf("There is no = between the setting and its value: `%s = ...`.", l.key)
	}
	p.fail(all, l.bad, detail)
}

// isSection says whether key is a type of section here or at the root.
func (p *parser) isSection(key string) bool {
	if filterWords[key] != nil {
		return true
	}
	if _, ok := p.schema.Section(key); ok {
		return true
	}
	b := p.top().block
	if b == nil {
		return false
	}
	_, ok := p.schema.Section(join(b.path, key))
	return ok
}

func (p *parser) isSetting(key string) bool {
	b := p.top().block
	if b == nil {
		return false
	}
	_, ok := p.schema.Setting(join(b.path, key))
	return ok
}
