package command

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Version of the project. The Makefile sets it.
var Version = "0.1.0"

// Exit statuses.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 64 // EX_USAGE, as doveadm
	exitNotFound   = 68 // nobody matched, as doveadm
	exitNotRunning = 3  // of status, as init scripts have it
	exitFatal      = 89
)

// errUsage says that the arguments are wrong; what was to be said has been.
var errUsage = errors.New("usage")

// A word is one word of dovetail.
type word struct {
	name, args, help string
	run              func(*call) int
}

// words are in the order of the help.
func words() []word {
	return []word{
		{"run", "[-c FILE] [-F]", "start the server; -F: stay in the foreground", runRun},
		{"reload", "[-c FILE]", "take a changed configuration into use; sessions go on", runReload},
		{"stop", "[-c FILE]", "stop the server", runStop},
		{"status", "[-c FILE]", "show the services and their processes", runStatus},
		{"who", "[-c FILE] [-1] [USER] [ADDRESS[/BITS]]", "show who is logged in", runWho},
		{"kick", "[-c FILE] [-f] USER [ADDRESS[/BITS]]", "end sessions of a user, of an address, or both", runKick},
		{"check", "[-c FILE] [--json]", "say everything that is wrong with a configuration", runCheck},
		{"demo", "[-once]", "run a server to try things with, without root or configuration", runDemo},
		{"version", "", "show the version", runVersion},
		{"help", "", "show this", runHelp},
	}
}

// A call is one call of the program.
type call struct {
	word   word
	args   []string // behind the word
	stdout io.Writer
	stderr io.Writer
	flags  *flag.FlagSet
	config string
}

// Main runs `dovetail args...` and returns its exit status.
func Main(args []string) int {
	c := &call{stdout: os.Stdout, stderr: os.Stderr}
	if len(args) == 0 {
		runHelp(c)
		return exitUsage
	}
	if args[0] == "role" { // for the master, not for people
		return runRole(c, args[1:])
	}
	name := strings.TrimLeft(args[0], "-") // --help, --version
	if name == "h" {
		name = "help"
	}
	all := words()
	i := slices.IndexFunc(all, func(w word) bool { return w.name == name })
	if i < 0 {
		fmt.Fprintf(c.stderr, "dovetail: unknown word %q; `dovetail help` shows what there is\n", args[0])
		return exitUsage
	}
	c.word, c.args = all[i], args[1:]
	c.flags = flag.NewFlagSet("dovetail "+c.word.name, flag.ContinueOnError)
	c.flags.SetOutput(c.stderr)
	c.flags.Usage = func() { fmt.Fprintf(c.stderr, "usage: dovetail %s %s\n", c.word.name, c.word.args) }
	return c.word.run(c)
}

// parse parses the arguments, with -c, into flags. It returns what is not an option, at
// most most of them.
func (c *call) parse(most int) ([]string, error) {
	c.flags.StringVar(&c.config, "c", DefaultConfig, "configuration `file`")
	err := c.flags.Parse(c.args)
	if errors.Is(err, flag.ErrHelp) {
		return nil, err
	}
	if err != nil {
		return nil, errUsage
	}
	if c.flags.NArg() > most {
		c.flags.Usage()
		return nil, errUsage
	}
	return c.flags.Args(), nil
}

// usage is the exit status for an error of parse.
func usage(err error) int {
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	return exitUsage
}

func (c *call) say(format string, args ...any) { fmt.Fprintf(c.stdout, format+"\n", args...) }
func (c *call) error(format string, args ...any) {
	fmt.Fprintf(c.stderr, "Error: "+format+"\n", args...)
}

func runVersion(c *call) int {
	c.say("%s", Version)
	return exitOK
}

func runHelp(c *call) int {
	c.say("Dovetail: a submission server. Usage:")
	for _, w := range words() {
		c.say("  dovetail %-46s %s", strings.TrimSpace(w.name+" "+w.args), w.help)
	}
	c.say("FILE is a configuration of Dovecot 2.3, by default %s.", DefaultConfig)
	return exitOK
}
