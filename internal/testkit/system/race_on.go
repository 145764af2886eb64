//go:build race

package system

// Race says that this test was built with the race detector; then so are the programs.
const Race = true
