package doveconf

import (
	"fmt"
	"strings"

	"dovetail/internal/conf"
)

// options are the command line of doveconf 2.3 (clause C17.1).
type options struct {
	scope                                      scope
	defaults, hideKey, secrets, simple, expand bool
	command                                    []string // of -e: what follows it; nil without it
	hash, everything                           bool     // -H, -p
	all, ignoreUnknown                         bool     // -a, -U: of 2.4
	file                                       string   // -c
	fileGiven                                  bool
	modules                                    []string
	instance                                   string
	filter                                     filter
	names                                      []string
}

// takesArgument are the options with an argument; knownOptions all of them.
const (
	takesArgument = "fmcio"
	knownOptions  = "adefhHmnNpPxsScikoOL"
)

// A usageError is a bad command line; its text is getopt's.
type usageError string

func (e usageError) Error() string { return string(e) }

// parseOptions reads args as getopt does: options may follow names, letters combine, --
// ends them. The error is a usageError, or else fatal.
func parseOptions(args []string, o *options) error {
	return parseLetters(args, o, knownOptions, takesArgument, o.option)
}

// parseLetters does that for the given letters; act is called for each with its argument.
func parseLetters(args []string, o *options, known, argument string, act func(byte, string) error) error {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			o.names = append(o.names, args...)
			return nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			o.names = append(o.names, arg)
			continue
		}
		for letters := arg[1:]; letters != ""; {
			c := letters[0]
			letters = letters[1:]
			if strings.IndexByte(known, c) < 0 {
				return usageError(fmt.Sprintf("invalid option -- '%c'", c))
			}
			value := ""
			if strings.IndexByte(argument, c) >= 0 {
				switch {
				case letters != "":
					value, letters = letters, ""
				case len(args) > 0:
					value, args = args[0], args[1:]
				default:
					return usageError(fmt.Sprintf("option requires an argument -- '%c'", c))
				}
			}
			if err := act(c, value); err != nil {
				return err
			}
			if c == 'e' { // ends the options; getopt has not stepped over the word yet
				if letters != "" {
					args = append([]string{arg}, args...)
				}
				o.command = append([]string{}, args...)
				return nil
			}
		}
	}
	return nil
}

func (o *options) option(c byte, value string) error {
	switch c {
	case 'd':
		o.defaults = true
	case 'f':
		return o.filter.set(value)
	case 'h':
		o.hideKey = true
	case 'H':
		o.hash = true
	case 'm':
		o.modules = append(o.modules, value)
	case 'n':
		o.scope = changed
	case 'N':
		o.scope = set
	case 'p':
		o.everything = true
	case 'P':
		o.secrets = true
	case 's':
		o.scope = full
	case 'S':
		o.simple = true
	case 'x':
		o.expand = true
	case 'c':
		o.file, o.fileGiven = value, true
	case 'i':
		o.instance = value
	}
	return nil // -a and those common to all of Dovecot's programs change nothing here
}

// A filter is what -f gives.
type filter struct {
	conf.Filter
	local, remote *conf.Net
	service, name bool
}

// set reads one -f KEY=VALUE.
func (f *filter) set(arg string) error {
	key, value, _ := strings.Cut(arg, "=")
	net := func() (*conf.Net, error) {
		n, err := conf.ParseNet(value)
		if err != nil {
			return nil, fmt.Errorf("%s filter: %w", key, err)
		}
		return &n, nil
	}
	var err error
	switch {
	case key == "service", key == "protocol":
		f.Service, f.EmptyService, f.service = value, value == "", true
	case key == "lname":
		f.LocalName, f.EmptyName, f.name = value, value == "", true
	case key == "local":
		if f.local, err = net(); err == nil && f.local.Bits > 0 {
			f.LocalIP = f.local.Addr
		}
	case key == "remote":
		if f.remote, err = net(); err == nil && f.remote.Bits > 0 {
			f.RemoteIP = f.remote.Addr
		}
	default:
		return fatalf("Unknown filter argument: %s", arg)
	}
	return err
}

// given says whether any -f was.
func (f *filter) given() bool { return f.service || f.name || f.local != nil || f.remote != nil }

// compatible says whether a filter of the files agrees with what was given (clause C17.14).
func (f *filter) compatible(m conf.Match) bool {
	if m.Protocol != nil && !f.service {
		m.Protocol = nil
	}
	if m.LocalName != nil && !f.name {
		m.LocalName = nil
	}
	if !f.LocalIP.IsValid() {
		m.Local = conf.Net{}
	}
	if !f.RemoteIP.IsValid() {
		m.Remote = conf.Net{}
	}
	return m.Matches(f.Filter)
}
