//go:build linux && (amd64 || arm64)

package siginfo

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// The signal handler in assembly notes what the kernel says and goes on to the runtime's
// handler. It touches nothing but these three.
var (
	sender uint64  // written by the handler: uid in the upper, pid in the lower half
	code   uint32  // written by the handler
	next   uintptr // the runtime's handler, set before ours is installed
)

// handlerAddr returns the address of the handler.
func handlerAddr() uintptr

// A sigaction is the kernel's struct of both architectures.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

func watch(sig syscall.Signal) bool {
	var act sigaction
	if rtSigaction(sig, nil, &act) != 0 || act.handler <= 1 { // SIG_DFL, SIG_IGN: nobody listens
		return false
	}
	next = act.handler
	act.handler = handlerAddr()
	return rtSigaction(sig, &act, nil) == 0
}

func rtSigaction(sig syscall.Signal, act, old *sigaction) syscall.Errno {
	_, _, e := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(act.mask), 0, 0)
	return e
}

func last() (Sender, bool) {
	s := atomic.LoadUint64(&sender)
	return Sender{PID: int32(uint32(s)), UID: uint32(s >> 32), Code: int32(atomic.LoadUint32(&code))}, s != 0
}
