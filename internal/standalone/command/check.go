package command

import (
	"errors"
	"flag"

	"dovetail/internal/conf/doveconf"
)

// runCheck is `dovetail check`: what `doveconf-lite check --standalone` finds, with its
// exit statuses.
func runCheck(c *call) int {
	json := c.flags.Bool("json", false, "for programs")
	files, err := c.parse(100)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		return exitUsage
	}
	if len(files) == 0 {
		files = []string{c.config}
	}
	args := []string{"check", "--standalone"}
	if *json {
		args = append(args, "--json")
	}
	env := doveconf.System()
	env.Also = CheckAuth
	return doveconf.Main(append(append(args, "--"), files...), env)
}
