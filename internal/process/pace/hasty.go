//go:build hasty

// Package pace, in a hurry: see pace.go.
package pace

// Haste is by how much a timer is shorter than it says.
const Haste = 60
