//go:build !soak

package standalone

import "dovetail/internal/testkit/dovetail"

// serveAgain bounds the time from the death of a process until a new client is served.
const serveAgain = dovetail.Patience
