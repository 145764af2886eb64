//go:build soak

package standalone

import "time"

// serveAgain bounds the time from the death of a process until a new client is served.
const serveAgain = 3 * time.Second

// perStep is how many connections are opened and closed at each step.
const perStep = 1000
