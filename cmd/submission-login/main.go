// Command submission-login is the network-facing half of the submission service: it takes
// a client until it has logged in, and hands it to a worker or a backend.
//
// Started by:   a Dovecot-compatible master, as root: Dovecot's, or `dovetail run`.
// Descriptors:  2 log, 3 anvil, 4 full flag, 5 status, 6 dead pipe, 7... listeners.
// Privileges:   root while it reads settings and keys and connects to anvil; then
// $RESTRICT_SETUID in $RESTRICT_CHROOT, before it says that it is ready.
// Exit status:  0 stopped or served enough; 89 fatal error, already logged.
package main

import (
	"dovetail/internal/login"
	"dovetail/internal/process/entry" // runs before the runtime, too
	"dovetail/internal/process/service"
)

func main() {
	entry.Restore()
	service.Main(login.Program())
}
