//go:build linux && (amd64 || arm64)

package siginfo

import (
	"encoding/binary"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pipeFD is the descriptor that the handler, in assembly, writes to: 16 octets a signal,
// in host byte order.
//
//	0 4 signal  4 4 si_code  8 4 si_pid  12 4 si_uid
//
// It is set before the handler is installed, and constant then.
//
//lint:ignore U1000 the assembly reads it
var pipeFD uint32

const recordSize = 16

// handlerAddr returns the address of the handler.
func handlerAddr() uintptr

// A sigaction is the kernel's struct of both architectures.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

func notify(f func(Signal), signals []syscall.Signal) error {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	pipeFD = uint32(fds[1])
	for _, s := range signals {
		// The runtime's own handler is there already. Ours takes its place, with the
		// same flags: the signal stack, and restarted system calls.
		var act sigaction
		err := rtSigaction(s, nil, &act)
		if err == 0 {
			act.handler = handlerAddr()
			err = rtSigaction(s, &act, nil)
		}
		if err != 0 {
			return os.NewSyscallError("rt_sigaction", err)
		}
	}
	r := os.NewFile(uintptr(fds[0]), "signals")
	go func() { // ends with the process
		var b [recordSize]byte
		for {
			if n, err := r.Read(b[:]); err != nil || n != recordSize {
				return
			}
			u32 := binary.NativeEndian.Uint32
			f(Signal{
				Number: syscall.Signal(u32(b[0:])), Known: true,
				Code: int32(u32(b[4:])), PID: int(int32(u32(b[8:]))), UID: u32(b[12:]),
			})
		}
	}()
	return nil
}

func rtSigaction(sig syscall.Signal, act, old *sigaction) syscall.Errno {
	_, _, e := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(act.mask), 0, 0)
	return e
}
