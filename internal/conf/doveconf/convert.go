package doveconf

import (
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

const convertUsage = `usage: doveconf-lite convert --to 2.4 FILE

Writes FILE, for Dovecot 2.3, with all files it includes as one file for Dovecot 2.4 to
standard output. What has no counterpart stays as a comment at its place, and is listed on
standard error. A file that is for 2.4 already is written as it is. Exit status: 0 all was
converted, 1 something was not, 2 the file is not right for 2.3.
`

// runConvert is `doveconf-lite convert`.
func runConvert(args []string, env Env) int {
	file, err := convertOptions(args)
	if errors.Is(err, errHelp) {
		fmt.Fprint(env.Stdout, convertUsage)
		return 0
	}
	if err != nil {
		fmt.Fprintf(env.Stderr, "doveconf-lite convert: %v\n%s", err, convertUsage)
		return 2
	}
	opt := conf.Options{Env: env.LookupEnv, Pipes: &conf.Pipes{}}
	if DialectOf(file, opt.Pipes) == "2.4" {
		text, err := opt.Pipes.ReadFile(file)
		if err == nil {
			_, err = io.WriteString(env.Stdout, text)
		}
		if err != nil {
			fmt.Fprintf(env.Stderr, "doveconf-lite convert: %v\n", err)
			return 2
		}
		return 0
	}
	cfg, diags := conf.Load(file, opt)
	if wantsSieve(diags) {
		opt.Schema = conf.Dovecot23Sieve()
		cfg, diags = conf.Load(file, opt)
	}
	if onLines(diags) {
		_ = conf.Write(env.Stderr, cfg, diags)
		return 2
	}
	out, notes, err := Convert(file, opt)
	if err != nil {
		fmt.Fprintf(env.Stderr, "doveconf-lite convert: %v\n", err)
		return 2
	}
	if _, err := env.Stdout.Write([]byte(out)); err != nil {
		return 2
	}
	for _, n := range notes {
		fmt.Fprintf(env.Stderr, "%s line %d: %s\n", n.File, n.Line, n.Text)
	}
	if len(notes) > 0 {
		return 1
	}
	return 0
}

// onLines says whether a line of the files is wrong, or a brace is missing.
func onLines(diags hcl.Diagnostics) bool {
	return slices.ContainsFunc(diags, func(d *hcl.Diagnostic) bool {
		r, ok := d.Extra.(*conf.Report)
		return d.Severity == hcl.DiagError && (!ok || !r.AtEnd || strings.HasPrefix(d.Summary, "Missing '}'"))
	})
}

func convertOptions(args []string) (file string, err error) {
	to := ""
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--help" || arg == "-h":
			return "", errHelp
		case arg == "--to" && i+1 < len(args):
			i++
			to = args[i]
		case strings.HasPrefix(arg, "--to="):
			to = strings.TrimPrefix(arg, "--to=")
		case strings.HasPrefix(arg, "-"):
			return "", fmt.Errorf("unknown option %s", arg)
		case file != "":
			return "", errors.New("one file at a time")
		default:
			file = arg
		}
	}
	switch {
	case file == "":
		return "", errors.New("no file is named")
	case to == "":
		return "", errors.New("--to 2.4 is missing")
	case to != "2.4":
		return "", fmt.Errorf("%s is no version to convert to", to)
	}
	return file, nil
}

// A Note says what was not converted, or needs a look.
type Note struct {
	File string
	Line int
	Text string
}

// maxRepairs bounds how many lines are taken out because 2.4 does not accept what became
// of them.
const maxRepairs = 1000

// Convert returns the configuration of 2.3 at path for 2.4, and what could not be
// converted. The file must be right for 2.3; if it was read before and is a pipe, opt.Pipes
// has it. The result is right for our parser of 2.4.
func Convert(path string, opt conf.Options) (string, []Note, error) {
	return newConverter(path, opt).proven()
}

func newConverter(path string, opt conf.Options) *converter {
	c := &converter{t: all.V24(), main: path}
	c.push(&block{kind: inRoot, node: &conf.Node{}})
	c.out("", "dovecot_config_version = 2.4.4", "")
	c.out("", "dovecot_storage_version = 2.4.4", "")
	c.lines = append(c.lines, outLine{})
	conf.Walk(path, opt, c.line)
	for len(c.blocks) > 1 {
		c.close(conf.SourceLine{})
	}
	return c
}

// An outLine is one line of the result, with the place of what it was made of.
type outLine struct {
	text string
	from conf.SourceLine
}

// proven reads the result with the parser of 2.4 and takes out lines that it refuses.
func (c *converter) proven() (string, []Note, error) {
	f, err := os.CreateTemp("", "doveconf-lite-*.conf")
	if err != nil {
		return "", nil, err
	}
	f.Close()
	defer os.Remove(f.Name())
	for range maxRepairs {
		text := c.text()
		if err := os.WriteFile(f.Name(), []byte(text), 0o600); err != nil {
			return "", nil, err
		}
		_, diags := conf.Load24(f.Name(), conf.Options{})
		if !c.repair(diags) {
			return text, c.notes, nil
		}
	}
	return "", nil, errors.New("the result is not right for 2.4")
}

// repair makes comments of the lines that were refused, and says whether there were any.
func (c *converter) repair(diags hcl.Diagnostics) bool {
	done := false
	for _, d := range diags {
		if d.Severity != hcl.DiagError || d.Subject == nil || d.Subject.Start.Line > len(c.lines) {
			continue
		}
		l := &c.lines[d.Subject.Start.Line-1]
		if strings.HasPrefix(strings.TrimSpace(l.text), "#") || strings.HasSuffix(l.text, "{") || strings.TrimSpace(l.text) == "}" {
			continue
		}
		done = true
		c.note(l.from, "not converted: "+oneLine(l.from.Raw)+": "+d.Summary)
		l.text = indentOf(l.text) + "# not converted: " + d.Summary + ": " + strings.TrimSpace(l.text)
	}
	return done
}

func indentOf(s string) string { return s[:len(s)-len(strings.TrimLeft(s, " \t"))] }

func (c *converter) text() string {
	var b strings.Builder
	for _, l := range c.lines {
		b.WriteString(l.text)
		b.WriteByte('\n')
	}
	return b.String()
}

// A blockKind says how what stands in a block is converted.
type blockKind uint8

const (
	inRoot    blockKind = iota
	inFilter            // protocol, local, remote
	inNames             // local_name with several names: written once for each
	inSection           // service, listeners, namespace, mailbox, metric ...
	inAuth              // passdb, userdb: written when complete
	inPlugin            // settings move out of it
	inLost              // has no counterpart: all of it becomes comments
)

// A block is an open section of the input.
type block struct {
	kind   blockKind
	typ    string
	node   *conf.Node // what it is in 2.4, for looking up names
	names  []string   // inNames
	from   int        // inNames, inAuth: index of the first line of its content
	auth   *authBlock
	moved  []string // lines that go behind its closing brace
	note   int      // inLost: index of the note about it, -1 if there is none
	full   bool     // inLost: something is set in it
	indent string
}

// A converter makes a file of 2.4 from lines of 2.3.
type converter struct {
	t      *all.Table24
	lines  []outLine
	notes  []Note
	blocks []*block
	at     conf.SourceLine
	main   string          // the main file
	taken  map[string]bool // names of passdb and userdb blocks, with the block around
}

func (c *converter) top() *block { return c.blocks[len(c.blocks)-1] }

func (c *converter) push(b *block) {
	b.indent, b.from = c.at.Indent, len(c.lines)
	c.blocks = append(c.blocks, b)
}

// out adds a line with the comment of the line it was made of.
func (c *converter) out(indent, text, comment string) {
	if comment != "" {
		text += " " + comment
	}
	c.lines = append(c.lines, outLine{indent + text, c.at})
}

func (c *converter) note(l conf.SourceLine, text string) {
	c.notes = append(c.notes, Note{l.File, l.Line, text})
}

// lost keeps a line as a comment that says why it was not converted.
func (c *converter) lost(l conf.SourceLine, why string) {
	c.note(l, "not converted: "+oneLine(l.Raw)+": "+why)
	c.out(l.Indent, "# not converted: "+why, "")
	for raw := range strings.Lines(strings.TrimRight(l.Raw, "\r\n")) {
		c.out(l.Indent, "#   "+strings.TrimSpace(raw), "")
	}
}

// oneLine is a line as notes show it.
func oneLine(raw string) string { return strings.Join(strings.Fields(conf.Veil(raw)), " ") }

// noCounterpart says why what has the % sequences bad is lost. Those of a secret are not named.
func noCounterpart(raw string, bad []string) string {
	if conf.Veil(raw) != raw {
		return "2.4 has no counterpart of a % in it"
	}
	return "2.4 has no counterpart of " + strings.Join(bad, ", ")
}

// look says that a converted line needs a look.
func (c *converter) look(l conf.SourceLine, what string) {
	c.note(l, "look at this: "+what)
	c.out(l.Indent, "# look at this: "+what, "")
}

// line converts one line.
func (c *converter) line(l conf.SourceLine) {
	c.at = l
	b := c.top()
	if b.kind == inLost {
		c.lostLine(l)
		return
	}
	switch l.Kind {
	case conf.SourceBlank:
		text := strings.TrimRight(l.Raw, "\r\n")
		if b.auth != nil {
			b.auth.comments = append(b.auth.comments, strings.TrimSpace(text))
			return
		}
		c.out("", text, "")
	case conf.SourceInclude:
		c.include(l)
	case conf.SourceSet:
		c.set(l)
	case conf.SourceOpen:
		c.open(l)
	case conf.SourceClose:
		c.close(l)
	case conf.SourceBad:
		c.lost(l, "not a line of Dovecot's language")
	}
}

// include becomes a comment; what was included follows.
func (c *converter) include(l conf.SourceLine) {
	if b := c.top(); b.auth != nil {
		b.auth.comments = append(b.auth.comments, "# "+strings.TrimSpace(l.Raw))
		return
	}
	c.out(l.Indent, "# "+strings.TrimSpace(l.Raw), "")
}

// lostLine is a line in a block without counterpart.
func (c *converter) lostLine(l conf.SourceLine) {
	c.out("", "#   "+strings.TrimRight(l.Raw, "\r\n"), "")
	switch l.Kind {
	case conf.SourceOpen:
		c.push(&block{kind: inLost, node: c.top().node, note: -1})
	case conf.SourceSet:
		for _, b := range c.blocks {
			b.full = true
		}
	case conf.SourceClose:
		b := c.top()
		c.blocks = c.blocks[:len(c.blocks)-1]
		if b.note >= 0 && !b.full { // nothing is lost with an empty block
			c.notes = slices.Delete(c.notes, b.note, b.note+1)
		}
	}
}

// loseBlock begins a block without counterpart.
func (c *converter) loseBlock(l conf.SourceLine, why string) {
	c.note(l, "not converted: "+oneLine(l.Raw)+" ... }: "+why)
	c.out(l.Indent, "# not converted: "+why, "")
	c.out("", "#   "+strings.TrimRight(l.Raw, "\r\n"), "")
	c.push(&block{kind: inLost, node: c.top().node, note: len(c.notes) - 1})
}

// goneServices are those that 2.4 does not have.
var goneServices = []string{"tcpwrap", "director", "ipc", "replicator", "aggregator", "old-stats"}

// open is a line type name {.
func (c *converter) open(l conf.SourceLine) {
	b := c.top()
	node := func(typ, name string) *conf.Node {
		return &conf.Node{Kind: conf.ElementNode, Type: typ, Name: name, Parent: b.node}
	}
	switch typ := l.Key; {
	case b.kind == inPlugin:
		c.loseBlock(l, "a section in plugin")
	case typ == "plugin":
		c.out(l.Indent, "# plugin {", l.Comment)
		c.push(&block{kind: inPlugin, typ: typ, node: b.node})
	case typ == "passdb" || typ == "userdb":
		c.push(&block{kind: inAuth, typ: typ, node: b.node, auth: &authBlock{name: l.Value, head: l}})
	case typ == "local_name" && strings.Contains(strings.TrimSpace(l.Value), " "):
		c.push(&block{kind: inNames, typ: typ, node: b.node, names: strings.Fields(l.Value)})
	case slices.Contains([]string{"protocol", "local", "remote", "local_name"}, typ):
		c.out(l.Indent, typ+" "+quoteName24(l.Value)+" {", l.Comment)
		c.push(&block{kind: inFilter, typ: typ, node: b.node})
	case typ == "dict":
		c.loseBlock(l, "2.4 has dict_server { dict NAME { ... } } with settings for each driver")
	case typ == "service" && slices.Contains(goneServices, l.Value):
		c.loseBlock(l, "2.4 does not have this service")
	case typ == "service" && !l.Named:
		c.loseBlock(l, "a service needs a name")
	case typ == "auth":
		c.loseBlock(l, "an auth block of Dovecot 1")
	default:
		row, ok := conf.Resolve24(c.t, b.node, typ)
		if !ok || row.Shape != all.ListFilter {
			c.loseBlock(l, "2.4 does not have this section")
			return
		}
		name := l.Value
		if !l.Named {
			name = c.inventName(typ)
		}
		if typ == "service" && name == "dns_client" {
			name = "dns-client"
		}
		c.out(l.Indent, typ+" "+quoteName24(name)+" {", l.Comment)
		c.push(&block{kind: inSection, typ: typ, node: node(row.Name, name)})
		if typ == "unix_listener" && b.node.Name == "auth" {
			if kind := listenerType(name); kind != "" {
				c.out(l.Indent+"  ", "type = "+kind, "")
			}
		}
	}
}

// listenerType is what 2.3 tells from the name of a socket of service auth, for sockets
// that 2.4 does not have built in.
func listenerType(name string) string {
	base := name[strings.LastIndexByte(name, '/')+1:]
	if slices.Contains([]string{"auth-login", "auth-client", "auth-userdb", "auth-master", "auth-token"}, base) && base == name ||
		name == "login/login" || name == "token-login/tokenlogin" {
		return ""
	}
	for _, kind := range []string{"userdb", "master", "login"} {
		if strings.HasSuffix(base, "-"+kind) || base == kind {
			return kind
		}
	}
	return ""
}

// inventName names a block that had no name.
func (c *converter) inventName(typ string) string {
	for i := 0; ; i++ {
		name := typ
		if typ == "namespace" {
			name = "inbox"
		}
		if i > 0 {
			name += fmt.Sprint(i + 1)
		}
		if key := fmt.Sprintf("%p %s %s", c.top().node, typ, name); !c.take(key) {
			return name
		}
	}
}

// take marks a name as used, and says whether it was.
func (c *converter) take(key string) bool {
	if c.taken == nil {
		c.taken = map[string]bool{}
	}
	was := c.taken[key]
	c.taken[key] = true
	return was
}

// close is a line }.
func (c *converter) close(l conf.SourceLine) {
	if len(c.blocks) == 1 {
		return
	}
	b := c.top()
	c.blocks = c.blocks[:len(c.blocks)-1]
	indent := b.indent
	switch b.kind {
	case inLost:
	case inPlugin:
		c.out(indent, "# }", l.Comment)
	case inAuth:
		c.at = b.auth.head
		c.authBlock(b, l.Comment)
	case inNames:
		body := slices.Clone(c.lines[b.from:])
		c.lines = c.lines[:b.from]
		for _, name := range b.names {
			c.out(indent, "local_name "+quoteName24(name)+" {", "")
			c.lines = append(c.lines, body...)
			c.out(indent, "}", l.Comment)
		}
	default:
		c.out(indent, "}", l.Comment)
	}
	for _, m := range b.moved {
		c.out(indent, m, "")
	}
}
