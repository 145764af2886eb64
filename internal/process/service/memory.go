package service

import (
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

const (
	// memoryShare of RLIMIT_DATA, in percent, is where the garbage collector starts to
	// work harder. The rest is for stacks, the runtime and what is not yet collected.
	memoryShare = 80

	// minMemory is the least limit that the collector can keep without eating all CPU
	// time. With less than that, it is the kernel that says no.
	minMemory = 16 << 20
)

// limitMemory derives the collector's limit from what vsz_limit left in RLIMIT_DATA
// (clause P1.4.7).
func limitMemory() {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_DATA, &limit) == nil && limit.Cur < 1<<50 {
		debug.SetMemoryLimit(max(minMemory, int64(limit.Cur)/100*memoryShare))
	}
}

// limitThreads keeps a process for one client at one running thread, in a build without
// package entry, which does the same before the runtime starts.
func limitThreads(clientLimit uint32) {
	if clientLimit == 1 && runtime.GOMAXPROCS(0) > 1 {
		runtime.GOMAXPROCS(1)
	}
}

// deepen lets the caller's stack grow at once to what TLS needs. By itself it would double
// from 2 KiB on, deep inside calls, and each time all of their frames are looked up: 5 % of
// the life of a process that serves one client. room is never touched.
//
//go:noinline
func deepen(touch bool) (b byte) {
	if touch {
		var room [12 << 10]byte
		fill(room[:])
		b = room[len(room)/2]
	}
	return b
}

//go:noinline
func fill(b []byte) { clear(b) }
