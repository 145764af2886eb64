//go:build linux

#include "textflag.h"

// func handlerAddr() uintptr
TEXT ·handlerAddr(SB), NOSPLIT, $0-8
	LEAQ handler<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// A signal handler as the kernel calls it: DI signal, SI *siginfo_t, DX context. All
// three, and the stack, are the runtime's handler's.
//
//	siginfo_t: 8 si_code, 16 si_pid, 20 si_uid
TEXT handler<>(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	MOVL 8(SI), AX
	MOVL AX, ·code(SB)
	MOVQ 16(SI), AX
	MOVQ AX, ·sender(SB)
	MOVQ ·next(SB), AX
	JMP  AX
