// Package matrix holds the programs against peers that do anything at any point of the
// dialogue: relays (relay_test.go) and clients (client_test.go). Each cell of the tables is
// a session of its own on one long-lived server, and in the end that server must hold what
// it held in the beginning: the same processes with the same descriptors, and no goroutine
// of a client.
package matrix

import (
	"os"
	"testing"

	"dovetail/internal/testkit/dovetail"
)

func TestMain(m *testing.M) { os.Exit(dovetail.Main(m, 24)) }
