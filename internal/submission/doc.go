// Package submission is the role of the per-user half of the service: it takes a client that
// has logged in, becomes the user, and passes the client's messages on to the relay.
//
//	record, client's socket (package handoff)   who is it? The auth service says (authmaster)
//	settings (config), overrides from the userdb
//	setuid, chroot, anvil CONNECT
//	235, then commands                          envelope: sent on as it comes, many at a time
//	DATA, BDAT                                  message: held up to 128 KiB, then streamed
//	logout line, anvil DISCONNECT
//
// What the client hears about a message is what the relay said, or a refusal of ours from
// before the relay took it.
//
// A session has two goroutines: its own, which reads the client and writes to the relay, and
// the relay connection's reader (package smtp/client), which answers the client's commands as
// replies come. What both touch is guarded by session.mu. Timers and the process's shutdown
// end a session through session.end.
package submission
