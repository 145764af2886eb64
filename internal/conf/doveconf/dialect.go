package doveconf

import (
	"io"
	"os"
	"strings"
	"syscall"

	"dovetail/internal/conf"
)

// chooseDialect takes --dialect out of args. Without it the main file says: one that sets
// dovecot_config_version or dovecot_storage_version is for 2.4.
func chooseDialect(args []string, env Env, pipes *conf.Pipes) (dialect string, rest []string, err error) {
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
		dialect = DialectOf(file, pipes)
	}
	return dialect, rest, nil
}

// dialectScan is how much of a file is searched for its version.
const dialectScan = 1 << 20

// DialectOf says whether the file at path is for 2.3 or 2.4. One that cannot be read counts
// as 2.3. What it takes out of a pipe stays in pipes, for the Loads that follow.
func DialectOf(path string, pipes *conf.Pipes) string {
	if conf.SetsVersion(beginning(path, pipes)) {
		return "2.4"
	}
	return "2.3"
}

// beginning is the first dialectScan bytes of a file, "" if it cannot be read.
func beginning(path string, pipes *conf.Pipes) string {
	st, err := os.Stat(path)
	if err != nil {
		return ""
	}
	if !st.Mode().IsRegular() {
		text, _ := pipes.ReadFile(path)
		return text[:min(len(text), dialectScan)]
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, dialectScan))
	return string(b)
}
