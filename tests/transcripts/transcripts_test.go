package transcripts

import (
	"os"
	"testing"

	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/transcript"
)

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }

// The recordings replay against the server they were made with: that proves the replayer.
func TestTheirs(t *testing.T) {
	cases, err := transcript.LoadAll("[0-6]?-*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			transcript.Replay(t, system.Dovecot, c.With(system.Dovecot, Peculiarities))
		})
	}
}
