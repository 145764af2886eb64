package submission

import (
	"testing"

	"dovetail/internal/testkit/relay"
)

const connectionLost = "421 4.4.0 host.test Lost connection to relay server (connection lost)"

// A trusted relay that closes right behind its reply to XCLIENT: MAIL is answered. If it
// does so once, that may be by the next connection.
func TestRelayClosesBehindXclient(t *testing.T) {
	w := newWorld(t, map[string]string{"submission_relay_trusted": "yes"})
	closes := relay.Script{relay.XCLIENT: {relay.Close("220 relay.test again")}}
	for range 10 { // sometimes the end is noticed late
		r := relay.Start(t, relay.Options{Caps: []string{"PIPELINING", "XCLIENT ADDR"}, Script: closes})
		c := w.open(r)
		c.Send("MAIL FROM:<a@b>")
		c.Expect(connectionLost)
		c.ExpectEOF()

		r = relay.Start(t, relay.Options{Caps: []string{"PIPELINING", "XCLIENT ADDR"}, Scripts: []relay.Script{closes, {}}})
		c = w.open(r)
		c.Send("MAIL FROM:<a@b>")
		if answer := c.Line(); answer != connectionLost && answer != "250 2.1.0 2.1.0 Ok" {
			t.Errorf("MAIL: %q", answer)
		}
		c.Close()
	}
}
