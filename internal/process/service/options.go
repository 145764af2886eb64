package service

import (
	"flag"
	"fmt"
	"io"
	"strings"
)

// Options are the ones that all of Dovecot's programs take (clause P1.1.4). Under a master
// they say nothing that the environment does not; they are accepted, and kept for the
// program.
type Options struct {
	ConfigFile      string   // -c
	Instance        string   // -i
	KeepEnvironment bool     // -k
	Override        []string // -o name=value, each one
	NoConfig        bool     // -O
	LogDirectly     bool     // -L
	CoreDumps       bool     // -D
}

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// options parses the command line. Options may be put together and values may follow
// without a space, as getopt allows: -DS, -t60.
func (p *Process) options(args []string) error {
	fs := flag.NewFlagSet(p.program.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	o := &p.Options
	fs.StringVar(&o.ConfigFile, "c", "", "")
	fs.StringVar(&o.Instance, "i", "", "")
	fs.BoolVar(&o.KeepEnvironment, "k", false, "")
	fs.Var((*list)(&o.Override), "o", "")
	fs.BoolVar(&o.NoConfig, "O", false, "")
	fs.BoolVar(&o.LogDirectly, "L", false, "")
	fs.BoolVar(&o.CoreDumps, "D", false, "")
	if p.program.Flags != nil {
		p.program.Flags(fs)
	}
	if err := fs.Parse(getopt(fs, args)); err != nil {
		return fmt.Errorf("command line: %v", err)
	}
	p.Args = fs.Args()
	return nil
}

// getopt rewrites single-letter options to what package flag understands.
func getopt(fs *flag.FlagSet, args []string) []string {
	var out []string
	for i, arg := range args {
		if len(arg) < 2 || arg[0] != '-' || arg[1] == '-' {
			return append(out, args[i:]...) // operands, or "--"
		}
		if name, _, _ := strings.Cut(arg[1:], "="); len(name) > 1 && fs.Lookup(name) != nil {
			out = append(out, arg) // a long option of the program
			continue
		}
		valueFollows := false
		for rest := arg[1:]; rest != ""; {
			f := fs.Lookup(rest[:1])
			if f == nil {
				out = append(out, "-"+rest) // an error, or a long option
				break
			}
			b, ok := f.Value.(interface{ IsBoolFlag() bool })
			out = append(out, "-"+rest[:1])
			if !ok || !b.IsBoolFlag() {
				if rest[1:] != "" {
					out = append(out, rest[1:])
				} else {
					valueFollows = true
				}
				break
			}
			rest = rest[1:]
		}
		if valueFollows {
			if i+1 < len(args) {
				out = append(out, args[i+1])
				return append(out, getopt(fs, args[i+2:])...)
			}
		}
	}
	return out
}
