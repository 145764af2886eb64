package master

import (
	"container/heap"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A loop runs callbacks on one goroutine: when a descriptor is readable, when a timer
// expires, and what other goroutines post. All state of the master belongs to it, so that
// nothing else of the master is locked. Only post and quit may be called from elsewhere.
//
// Timers come before descriptors, as in Dovecot's.
type loop struct {
	watches []*watch
	timers  timerHeap
	polled  []unix.PollFd // reused
	run     []*watch      // reused; polled[i+1] is run[i]'s

	wakeR, wakeW int

	mu     sync.Mutex
	posted []func() // guarded by mu
	done   bool     // guarded by mu
	closed bool     // guarded by mu
}

// A watch calls fn while its descriptor is readable, or broken. The descriptor stays the
// caller's, who stops the watch before closing it.
type watch struct {
	fd     int
	events int16
	fn     func()
	loop   *loop
}

// A timer calls fn once.
type timer struct {
	at    time.Time
	fn    func()
	loop  *loop
	index int // in the heap; -1 once it is due or was stopped

	stopped bool // while others that were due at the same time ran
}

func newLoop() (*loop, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe() failed: %w", err)
	}
	return &loop{wakeR: p[0], wakeW: p[1]}, nil
}

// close ends the loop for good: post does nothing any more.
func (l *loop) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	unix.Close(l.wakeR)
	unix.Close(l.wakeW)
}

// watch calls fn whenever fd is readable.
func (l *loop) watch(fd int, fn func()) *watch {
	w := &watch{fd: fd, events: unix.POLLIN, fn: fn, loop: l}
	l.watches = append(l.watches, w)
	return w
}

// stop ends the watch. It may be called twice, and for nil.
func (w *watch) stop() {
	if w == nil || w.loop == nil {
		return
	}
	for i, x := range w.loop.watches {
		if x == w {
			w.loop.watches = append(w.loop.watches[:i], w.loop.watches[i+1:]...)
			break
		}
	}
	w.loop = nil
}

// after calls fn in d.
func (l *loop) after(d time.Duration, fn func()) *timer {
	t := &timer{at: time.Now().Add(d), fn: fn, loop: l}
	heap.Push(&l.timers, t)
	return t
}

// stop keeps the timer from running. It may be called twice, from fn, and for nil.
func (t *timer) stop() {
	if t == nil {
		return
	}
	t.stopped = true
	if t.index >= 0 {
		heap.Remove(&t.loop.timers, t.index)
	}
}

// pending says whether the timer has still to run.
func (t *timer) pending() bool { return t != nil && t.index >= 0 }

// post runs fn soon. Any goroutine may call it.
func (l *loop) post(fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.posted = append(l.posted, fn)
	l.wakeLocked()
}

// quit makes serve return. Any goroutine may call it.
func (l *loop) quit() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done = true
	l.wakeLocked()
}

func (l *loop) wakeLocked() {
	if !l.closed {
		unix.Write(l.wakeW, []byte{0}) // a full pipe wakes, too
	}
}

// serve runs callbacks until quit.
func (l *loop) serve() error {
	for {
		l.mu.Lock()
		posted, done := l.posted, l.done
		l.posted = nil
		l.mu.Unlock()
		for _, fn := range posted {
			fn()
		}
		if done {
			return nil
		}
		l.expire()
		if err := l.poll(); err != nil {
			return err
		}
	}
}

// expire runs the timers that are due now; not those they start.
func (l *loop) expire() {
	now := time.Now()
	var due []*timer
	for len(l.timers) > 0 && !l.timers[0].at.After(now) {
		due = append(due, heap.Pop(&l.timers).(*timer))
	}
	for _, t := range due {
		if !t.stopped {
			t.fn()
		}
	}
}

// poll waits for what comes next and runs the callbacks of readable descriptors.
func (l *loop) poll() error {
	l.polled = append(l.polled[:0], unix.PollFd{Fd: int32(l.wakeR), Events: unix.POLLIN})
	l.run = append(l.run[:0], l.watches...)
	for _, w := range l.run {
		l.polled = append(l.polled, unix.PollFd{Fd: int32(w.fd), Events: w.events})
	}
	timeout := -1
	if len(l.timers) > 0 {
		timeout = int(max(0, time.Until(l.timers[0].at)+time.Millisecond-1) / time.Millisecond)
	}
	n, err := unix.Poll(l.polled, timeout)
	if err == unix.EINTR {
		return nil
	}
	if err != nil {
		return fmt.Errorf("poll() failed: %w", err)
	}
	if n == 0 {
		return nil
	}
	if l.polled[0].Revents != 0 {
		var b [64]byte
		unix.Read(l.wakeR, b[:])
	}
	for i, w := range l.run {
		if l.polled[i+1].Revents != 0 && w.loop != nil {
			w.fn()
		}
	}
	return nil
}

type timerHeap []*timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *timerHeap) Push(x any) {
	t := x.(*timer)
	t.index = len(*h)
	*h = append(*h, t)
}

func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = -1
	return t
}
