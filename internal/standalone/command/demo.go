package command

import (
	"context"
	"os/signal"
	"syscall"

	"dovetail/internal/standalone/demo"
)

// runDemo is `dovetail demo`.
func runDemo(c *call) int {
	once := c.flags.Bool("once", false, "send one message, show it, and end")
	if _, err := c.parse(0); err != nil {
		return usage(err)
	}
	sys, err := thisSystem()
	if err != nil {
		c.error("%v", err)
		return exitFailed
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := demo.Run(ctx, demo.Options{Self: sys.Self, Once: *once, Stdout: c.stdout, Stderr: c.stderr}); err != nil {
		c.error("%v", err)
		return exitFailed
	}
	return exitOK
}
