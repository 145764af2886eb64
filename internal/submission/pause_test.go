package submission

import (
	"strings"
	"testing"

	"dovetail/internal/testkit/relay"
)

// What goes to the relay is not held back by what stands behind it: by half a line, by a
// line that is no command, by more commands than may wait.
func TestNothingIsHeldBack(t *testing.T) {
	for name, behind := range map[string]string{
		"half a line":       "NOO",
		"no command":        "\x00\r\n",
		"too long a line":   "VRFY " + strings.Repeat("x", 5000) + "\r\n",
		"too many commands": strings.Repeat("XCLIENT\r\n", 250),
		"much of them":      strings.Repeat("XCLIENT "+strings.Repeat("x", 4000)+"\r\n", 50),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			c := w.open(relay.Start(t, relay.Options{}))
			c.Write("RSET\r\n" + behind)
			c.Expect("250 2.0.0 Ok")
		})
	}
}
