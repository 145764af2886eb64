// Package master is standalone's master process: it opens the listeners, starts the
// processes of the services on demand and watches over them, as Dovecot 2.3's master does
// (clause P1), so that Dovecot's programs run under it as well as this project's. It reads
// no configuration (its caller makes a Config), nothing from the network, and of what its
// children say only status records. It stays root where everybody else gives that up;
// therefore it imports no parser of anything that strangers send.
//
//	New      directories, pid file, all listeners; every error; nothing is started
//	Run      until SIGTERM: processes, limits, throttling, reload, stop
//
// A generation is what one configuration started; a service one of its services, a
// process a child. All of that belongs to one goroutine, the loop. A service listens
// itself while none of its processes accepts clients; the first connection starts one:
//
//	                     connection, or process_min_avail
//	(no process) master listens ─────────────────────────▶ (avail > 0) processes listen
//	      ▲                                                      │ status record: 0 available,
//	      └──────────────────────────────────────────────────────┘ or it ends
//
// Differences from Dovecot's master: a reload ends no session (see retire), Unix sockets
// are replaced in one step so that no client finds none, several errors at the start are
// shown together, a stop does not reset connections that wait to be accepted, and processes
// of this project have a control channel (masterproto).
package master
