//go:build linux

#include "textflag.h"

// func handlerAddr() uintptr
TEXT ·handlerAddr(SB), NOSPLIT, $0-8
	MOVD $handler<>(SB), R0
	MOVD R0, ret+0(FP)
	RET

// A signal handler as the kernel calls it: R0 signal, R1 *siginfo_t, R2 context. All
// three, and the stack, are the runtime's handler's.
//
//	siginfo_t: 8 si_code, 16 si_pid, 20 si_uid
TEXT handler<>(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	MOVWU 8(R1), R3
	MOVW  R3, ·code(SB)
	MOVD  16(R1), R3
	MOVD  R3, ·sender(SB)
	MOVD  ·next(SB), R3
	JMP   (R3)
