package command

import (
	"dovetail/internal/standalone/logd"
)

// runRole is `dovetail role NAME`: a process that the master starts.
func runRole(c *call, args []string) int {
	if len(args) == 0 {
		c.error("role: which one?")
		return exitUsage
	}
	switch args[0] {
	case "log":
		return logd.Main()
	}
	c.error("role: there is no %q", args[0])
	return exitUsage
}
