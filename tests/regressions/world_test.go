// Package regressions has a test for each fault of this kind of server that was once made:
// those of Dovecot's own history that touch the submission service, by its changelogs and
// advisories, and our own. history_test.go looks at whole sessions, auth_test.go at what
// reaches the auth service.
package regressions

import (
	"os"
	"testing"

	"dovetail/internal/testkit/authserver"
	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/front"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

func TestMain(m *testing.M) { os.Exit(dovetail.Main(m, 8)) }

// serve starts a server for alice and bob, whose relay is r, with more lines of
// configuration.
func serve(t *testing.T, r *relay.Relay, shared bool, config string) *dovetail.Server {
	t.Helper()
	var users []dovetail.User
	for _, name := range []string{"alice", "bob"} {
		users = append(users, dovetail.User{Name: name, Fields: []string{dovetail.Relay(r.Port)}})
	}
	return dovetail.Start(t, dovetail.Setup{Users: users, Shared: shared, Config: config})
}

func newRelay(t *testing.T, o relay.Options) *relay.Relay {
	t.Helper()
	o.Timeout = dovetail.Patience
	return relay.Start(t, o)
}

// envelope begins a message.
func envelope(c *client.Client) {
	c.Do("MAIL FROM:<alice@example.test>", "250")
	c.Do("RCPT TO:<bob@dest.test>", "250")
}

// message sends one.
func message(c *client.Client) {
	envelope(c)
	c.Do("DATA", "354")
	c.Send("hello", ".")
	c.ExpectCode("250")
}

// newFront starts a login process alone, with an auth service that keeps what it hears.
func newFront(t *testing.T, conf map[string]string, o authserver.Options) *front.Front {
	t.Helper()
	return front.Start(t, system.Binary(t, "submission-login"), conf, o)
}
