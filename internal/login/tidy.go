package login

import (
	"runtime/debug"
	"sync"
	"time"
)

const (
	tidyQuiet = 500 * time.Millisecond // without a login
	tidyMost  = 15 * time.Second       // with logins all the time
	tidyAfter = 16                     // logins for which it is worth while
)

// A tidier gives memory back to the system when many have logged in whose sessions go on in
// this process: what logins leave behind would otherwise stay until the next ones, twice
// as much as the sessions themselves keep. The zero value is ready.
type tidier struct {
	free func() // nil: debug.FreeOSMemory

	mu     sync.Mutex
	logins int         // guarded by mu: since it was done
	first  time.Time   // guarded by mu: of these
	timer  *time.Timer // guarded by mu
}

// login says that somebody has logged in and stays.
func (t *tidier) login() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.logins++; t.logins == 1 {
		t.first = now
	}
	switch {
	case t.logins < tidyAfter:
	case t.timer == nil:
		t.timer = time.AfterFunc(tidyQuiet, t.tidy)
	default:
		t.timer.Reset(min(tidyQuiet, max(0, tidyMost-now.Sub(t.first))))
	}
}

func (t *tidier) tidy() {
	t.mu.Lock()
	if t.logins < tidyAfter { // somebody else has just done it
		t.mu.Unlock()
		return
	}
	t.logins = 0
	t.mu.Unlock()
	if t.free != nil {
		t.free()
		return
	}
	debug.FreeOSMemory()
}
