package doveconf

import (
	"bufio"
	"io"
	"os"
	"strings"
	"syscall"
)

// chooseDialect takes --dialect out of args. Without it the main file says: a file that
// sets dovecot_config_version or dovecot_storage_version is for 2.4.
func chooseDialect(args []string, env Env) (dialect string, rest []string, err error) {
	file := mainFile(env)
	for i := 0; i < len(args); i++ {
		arg := args[i]
		value, found := strings.CutPrefix(arg, "--dialect=")
		switch {
		case arg == "--":
			rest = append(rest, args[i:]...)
			i = len(args)
			continue
		case arg == "--dialect" && i+1 < len(args):
			i++
			value, found = args[i], true
		case arg == "-c" && i+1 < len(args):
			file = args[i+1]
		case strings.HasPrefix(arg, "-c"):
			file = arg[2:]
		}
		if !found {
			rest = append(rest, arg)
			continue
		}
		if value != "2.3" && value != "2.4" {
			return "", nil, fatalf("Unknown dialect: %s (use 2.3 or 2.4)", value)
		}
		dialect = value
	}
	if dialect == "" {
		dialect = DialectOf(file)
	}
	return dialect, rest, nil
}

// dialectScan is how much of a file is searched for its version.
const dialectScan = 1 << 20

// DialectOf says whether the file at path is for 2.3 or 2.4. One that cannot be read, or
// is no plain file, counts as 2.3.
func DialectOf(path string) string {
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return "2.3" // who opens a pipe takes what is in it
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "2.3"
	}
	defer f.Close()
	r := bufio.NewReader(io.LimitReader(f, dialectScan))
	for {
		l, err := r.ReadString('\n')
		l = strings.TrimLeft(l, " \t\r\v\f")
		for _, key := range []string{"dovecot_config_version", "dovecot_storage_version"} {
			if rest, ok := strings.CutPrefix(l, key); ok && strings.HasPrefix(strings.TrimLeft(rest, " \t"), "=") {
				return "2.4"
			}
		}
		if err != nil {
			return "2.3"
		}
	}
}
