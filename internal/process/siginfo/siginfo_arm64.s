//go:build linux

#include "textflag.h"

#define SYS_write $64

// func handlerAddr() uintptr
TEXT ·handlerAddr(SB), NOSPLIT, $0-8
	MOVD $handler<>(SB), R0
	MOVD R0, ret+0(FP)
	RET

// A signal handler as the kernel calls it: R0 signal, R1 *siginfo_t (8 si_code, 16 si_pid,
// 20 si_uid), the stack is the thread's signal stack, and R30 leads to rt_sigreturn, which
// restores all registers. A full pipe loses the signal.
TEXT handler<>(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	SUB   $16, RSP
	MOVW  R0, 0(RSP)
	MOVWU 8(R1), R3
	MOVW  R3, 4(RSP)
	MOVD  16(R1), R3
	MOVD  R3, 8(RSP)
	MOVWU ·pipeFD(SB), R0
	MOVD  RSP, R1
	MOVD  $16, R2
	MOVD  SYS_write, R8
	SVC
	ADD   $16, RSP
	RET
