// Command submission is the per-user half of the submission service: it takes a client that
// has logged in, becomes the user, and passes the client's messages on to the relay.
//
// Started by:   a Dovecot-compatible master, as root: Dovecot's, or `dovetail run`.
// Descriptors:  2 log, 3 anvil, 5 status, 6 dead pipe, 7... listeners, on which login processes call.
// Privileges:   root until the auth service has said who the first client is; then that
// user's, in the user's chroot if there is one.
// Exit status:  0 stopped or served enough; 89 fatal error, already logged.
package main

import (
	"dovetail/internal/process/entry" // runs before the runtime, too
	"dovetail/internal/process/service"
	"dovetail/internal/submission"
)

func main() {
	entry.Restore()
	service.Main(submission.Program())
}
