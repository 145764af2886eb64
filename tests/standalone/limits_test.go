//go:build !soak

package standalone

import "dovetail/internal/testkit/dovetail"

// serveAgain bounds the time from the death of a process until a new client is served.
const serveAgain = dovetail.Patience

// perStep is how many connections are opened and closed at each step.
const perStep = 100
