//go:build !hasty

// Package pace lets tests have timers that are minutes long in programs for people: those
// that the protocol fixes, and that no setting changes. A program for such a test is built
// with the tag hasty; there a minute of these timers is a second.
//
//	const idleTimeout = 10 * time.Minute / pace.Haste
package pace

// Haste is by how much such a timer is shorter than it says.
const Haste = 1
