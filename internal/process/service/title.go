package service

import (
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

// title is where the kernel finds the command line: the strings of argv and, right behind
// them, of the environment, which the runtime has copied.
var title struct {
	once sync.Once
	mu   sync.Mutex
	name string // argv[0] as it was
	area []byte // guarded by mu; nil if it was not found
	args int    // length of the argv strings with their NULs, constant
}

// SetTitle shows "name [text]" as the process's command line in ps, with verbose_proctitle;
// name is how the master called the program. "" shows name alone. There is no prctl for
// this without rights: like everyone, it writes over argv and the environment, both of
// which the kernel reads when the last byte of argv is no NUL. What does not fit is cut.
func (p *Process) SetTitle(text string) {
	t := &title
	t.once.Do(findTitle)
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.name
	if text != "" {
		s += " [" + text + "]"
	}
	if len(t.area) < 2 {
		return
	}
	n := copy(t.area[:len(t.area)-1], s)
	clear(t.area[n:])
	if n < t.args-1 && t.args < len(t.area) {
		t.area[t.args-1] = ' ' // no NUL: the kernel shows what stands before the first one
	}
}

// findTitle looks for the area. Before it is written to, os.Args, whose strings lie in it,
// are copied.
func findTitle() {
	t := &title
	if len(os.Args) == 0 || len(os.Args[0]) == 0 {
		return
	}
	t.name = strings.Clone(os.Args[0])
	start := unsafe.Pointer(unsafe.StringData(os.Args[0]))
	size := 0
	for _, a := range os.Args {
		if a != "" && unsafe.Pointer(unsafe.StringData(a)) != unsafe.Add(start, size) {
			return // not as the kernel lays them out
		}
		size += len(a) + 1
	}
	t.args = size
	// The environment follows; the runtime keeps its order. Each string is compared
	// before it is counted in, so that nothing else is ever written over.
	for _, e := range syscall.Environ() {
		have := unsafe.Slice((*byte)(unsafe.Add(start, size)), len(e)+1)
		if string(have[:len(e)]) != e || have[len(e)] != 0 {
			break
		}
		size += len(e) + 1
	}
	t.area = unsafe.Slice((*byte)(start), size)
	os.Args = slices.Clone(os.Args)
	for i, a := range os.Args {
		os.Args[i] = strings.Clone(a)
	}
}
