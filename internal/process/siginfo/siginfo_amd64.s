//go:build linux

#include "textflag.h"

#define SYS_write $1

// func handlerAddr() uintptr
TEXT ·handlerAddr(SB), NOSPLIT, $0-8
	LEAQ handler<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// A signal handler as the kernel calls it: DI signal, SI *siginfo_t (8 si_code, 16 si_pid,
// 20 si_uid), the stack is the thread's signal stack, and the return address leads to
// rt_sigreturn, which restores all registers. A full pipe loses the signal.
TEXT handler<>(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	SUBQ $24, SP
	MOVL DI, 0(SP)
	MOVL 8(SI), AX
	MOVL AX, 4(SP)
	MOVQ 16(SI), AX
	MOVQ AX, 8(SP)
	MOVL ·pipeFD(SB), DI
	MOVQ SP, SI
	MOVL $16, DX
	MOVL SYS_write, AX
	SYSCALL
	ADDQ $24, SP
	RET
