// Package entry runs before the Go runtime, and sees to it that the runtime can start. It
// is linked in by a blank import and by
//
//	go build -ldflags "-E dovetail_entry"    on linux/amd64 and linux/arm64, CGO_ENABLED=0
//
// which makes it the program's first code. Without the flag, and on other platforms, it
// does nothing.
//
// It has two more tasks. A process for one client (CLIENT_LIMIT=1) needs one running thread,
// whose goroutines wait for each other; each further one costs time at the start, 0.4 of
// 2.4 ms on a machine with two CPUs. GOMAXPROCS=1 is added to the end of the environment,
// where another GOMAXPROCS counts before it. And timers may be late by 10 ms: the runtime's
// monitor, which asks to be woken after 20 µs whenever something happens, sleeps as long.
// And the runtime cannot open files, as it would do to find out about control groups and
// huge pages, of which it needs to know nothing for one client: 0.13 of 1.3 ms.
//
// A Go program reserves about 1.2 GiB of address space at once, of which it uses little.
// Dovecot's master limits address space (RLIMIT_AS) to vsz_limit, 256 MiB by default, and
// the runtime would die of that with a page of text (clause P1.4.7). So:
//
//   - an RLIMIT_AS that is too low is raised: the soft limit to the hard one if that is
//     enough, both to infinity if the process may (CAP_SYS_RESOURCE);
//   - RLIMIT_DATA, which vsz_limit sets as well, stays and bounds what is really used; only
//     a soft limit that is too low to start is raised to the hard one;
//   - when that does not help, one line goes to descriptor 2, in the log protocol if
//     LOG_SERVICE is in the environment (clause P1.8), and the exit status is 89.
package entry
