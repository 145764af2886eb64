package conf

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// programOptions are the options of the two programs (clause P1.1.4): those that stand
// alone, and those with a value.
var programOptions = map[string]struct{ alone, valued string }{
	"submission":       {"DkOL", "atcio"},
	"submission-login": {"DkOLS", "lRcio"},
}

// commandLine checks what stands behind the program in `executable`: a program that does
// not know an option would fail at every start, and a socket that nobody listens at would
// fail every login.
func (p *parser) commandLine(v *View, s Service) {
	words := strings.Split(s.Executable, " ") // clause P1.1.1
	known, ok := programOptions[filepath.Base(words[0])]
	if !ok || s.Name != filepath.Base(words[0]) {
		return
	}
	fail := func(detail, format string, args ...any) {
		p.ownFail(s.At("executable"), fmt.Sprintf("service(%s): ", s.Name)+fmt.Sprintf(format, args...), detail)
	}
	values, operands, unknown := getopt(words[1:], known.alone, known.valued)
	if unknown != "" {
		fail(fmt.Sprintf("It has -%s, and with a value -%s. Arguments are separated by single spaces; there is no quoting.",
			strings.Join(strings.Split(known.alone, ""), " -"), strings.Join(strings.Split(known.valued, ""), " -")),
			"%s has no option %s", words[0], unknown)
		return
	}
	// listens says whether a service listens at a socket, or it is not for us to know.
	listens := func(service, path string) bool {
		if filepath.IsAbs(path) {
			return true
		}
		for _, other := range v.Services() {
			if other.Name == service {
				return slices.ContainsFunc(other.Unix, func(l SocketListener) bool { return l.Mode != 0 && l.Path == path })
			}
		}
		return false
	}
	socket := func(option byte, service, dir string) {
		if name, ok := values[option]; ok && !listens(service, dir+name) {
			fail(fmt.Sprintf("`unix_listener %s%s` in `service %s` makes one.", dir, name, service), "-%c: there is no socket %s%s of service %s", option, dir, name, service)
		}
	}
	switch s.Name {
	case "submission":
		socket('a', "auth", "")
		if t, ok := values['t']; ok {
			if n, err := strconv.ParseUint(t, 10, 31); err != nil || n == 0 {
				fail("Seconds, as in -t 60.", "-t: %q is not a time", t)
			}
		}
		if len(operands) > 0 {
			fail("That is the socket of a post-login script, and standalone starts none.", "%s is started with %s", words[0], operands[0])
		}
	case "submission-login":
		socket('l', "submission", "login/")
		switch {
		case len(operands) > 1:
			fail("Behind the options there is at most one word, the auth service's socket.", "%s is started with %s", words[0], strings.Join(operands, " "))
		case len(operands) == 1 && !listens("auth", "login/"+operands[0]):
			fail(fmt.Sprintf("`unix_listener login/%s` in `service auth` makes one.", operands[0]), "there is no socket login/%s of service auth", operands[0])
		}
	}
}

// getopt splits arguments as the C function does: -D, -Dt9, -t9, -t 9. unknown is the first
// option that is none, or that lacks its value.
func getopt(args []string, alone, valued string) (values map[byte]string, operands []string, unknown string) {
	values = map[byte]string{}
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			return values, args[i+1:], ""
		}
		if len(a) < 2 || a[0] != '-' {
			return values, args[i:], ""
		}
		if strings.HasPrefix(a, "--") {
			return values, nil, a
		}
		for rest := a[1:]; rest != ""; {
			c := rest[0]
			rest = rest[1:]
			switch {
			case strings.IndexByte(alone, c) >= 0:
				continue
			case strings.IndexByte(valued, c) < 0:
				return values, nil, "-" + string(rune(c))
			case rest != "":
				values[c] = rest
			case i+1 < len(args):
				i++
				values[c] = args[i]
			default:
				return values, nil, "-" + string(rune(c)) + " without a value"
			}
			rest = ""
		}
	}
	return values, nil, ""
}
