// Command dovetail is a submission server of its own: the master that starts
// submission-login and submission, the processes they need (config, auth, anvil, log), and
// the words to look after it.
//
// Started by:   a person, a script or systemd; as `dovetail role NAME` by its own master.
// Descriptors:  0, 1, 2; a role those of a Dovecot service: 2 log, 3 anvil, 5 status, 6 dead pipe, 7... listeners.
// Privileges:   run: the caller's, if root it stays root. Roles: RESTRICT_* after opening their files; config stays root.
// Exit status:  0 fine; 89 fatal error, already said; others as `dovetail help WORD` has it.
package main

import (
	"os"

	"dovetail/internal/standalone/command"
)

func main() { os.Exit(command.Main(os.Args[1:])) }
