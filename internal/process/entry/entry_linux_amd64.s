#include "textflag.h"

#define NEED_AS   $0x50000000 // 1280 MiB: what the runtime reserves (1240 MiB) and a little heap
#define NEED_DATA $0x06000000 // 96 MiB: what it maps to write (72 MiB) and a little heap

#define RLIMIT_DATA $2
#define RLIMIT_NOFILE $7
#define RLIMIT_AS     $9

#define PR_SET_TIMERSLACK $29
#define SLACK             $10000000 // ns

#define SYS_writev     $20
#define SYS_nanosleep  $35
#define SYS_getpid     $39
#define SYS_prctl      $157
#define SYS_exit_group $231
#define SYS_prlimit64  $302

// The kernel enters here: argc at 0(SP), then argv, NULL, envp, NULL. There is no stack
// for Go yet, and nobody to return to. What lies below SP is free: no signal handler
// exists. Registers that stay: R12 SP, R13 scratch memory, R14 service name, R15 log flag.
//
// Scratch: 0 struct rlimit, 64 struct iovec[6], 192 decimal pid, 200 head of the line.
TEXT dovetail_entry(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	MOVQ SP, R12
	LEAQ -512(SP), R13

	// Address space.
	MOVQ RLIMIT_AS, SI
	XORL DX, DX
	MOVQ R13, R10
	CALL prlimit<>(SB)
	JNE  start              // no such call: the runtime will tell
	MOVQ NEED_AS, BX
	MOVQ 0(R13), R8         // soft
	MOVQ 8(R13), R9         // hard
	CMPQ R8, BX
	JCC  data
	CMPQ R9, BX
	JCS  both
	MOVQ R9, 0(R13)         // the soft limit is the obstacle
	MOVQ RLIMIT_AS, SI
	MOVQ R13, DX
	XORL R10, R10
	CALL prlimit<>(SB)
	JEQ  data
	JMP  low

both:
	MOVQ $-1, AX
	MOVQ AX, 0(R13)
	MOVQ AX, 8(R13)
	MOVQ RLIMIT_AS, SI
	MOVQ R13, DX
	XORL R10, R10
	CALL prlimit<>(SB)
	JNE  low

data:
	MOVQ RLIMIT_DATA, SI
	XORL DX, DX
	MOVQ R13, R10
	CALL prlimit<>(SB)
	JNE  start
	MOVQ NEED_DATA, BX
	MOVQ 0(R13), R8
	MOVQ 8(R13), R9
	CMPQ R8, BX
	JCC  start
	CMPQ R9, BX
	JCS  low
	MOVQ R9, 0(R13)
	MOVQ RLIMIT_DATA, SI
	MOVQ R13, DX
	XORL R10, R10
	CALL prlimit<>(SB)
	JNE  low

start:
	MOVQ SYS_prctl, AX
	MOVQ PR_SET_TIMERSLACK, DI
	MOVQ SLACK, SI
	SYSCALL                 // an error changes nothing

	// Is there CLIENT_LIMIT=1 in the environment?
	MOVQ 0(R12), AX
	LEAQ 16(R12)(AX*8), BX
	XORL R8, R8

limit:
	MOVQ (BX), SI
	TESTQ SI, SI
	JEQ  limits
	ADDQ $8, BX
	MOVQ $0x4c5f544e45494c43, CX // "CLIENT_L"
	CMPQ 0(SI), CX
	JNE  limit
	CMPL 8(SI), $0x54494d49      // "IMIT"
	JNE  limit
	CMPW 12(SI), $0x313d         // "=1"
	JNE  limit
	CMPB 14(SI), $0
	JNE  limit
	MOVQ $1, R8
	JMP  limit

limits:
	// Everything up to the NULL of envp, at BX, moves down to make room for two words,
	// which keeps the stack aligned.
	TESTQ R8, R8
	JEQ  runtime
	MOVQ R12, SI
	SUBQ $16, R12

shift:
	MOVQ (SI), AX
	MOVQ AX, -16(SI)
	ADDQ $8, SI
	CMPQ SI, BX
	JNE  shift
	MOVQ ·oneThread(SB), AX
	MOVQ AX, -16(BX)
	MOVQ AX, -8(BX)
	MOVQ R12, SP

	// No file is opened until package syscall raises the limit again, which it does because
	// it finds soft and hard limit apart.
	LEAQ -512(SP), R13
	MOVQ RLIMIT_NOFILE, SI
	XORL DX, DX
	MOVQ R13, R10
	CALL prlimit<>(SB)
	JNE  runtime
	MOVQ 0(R13), R8
	CMPQ R8, 8(R13)
	JNE  runtime            // what children get would be lost
	MOVQ $0, 0(R13)
	MOVQ RLIMIT_NOFILE, SI
	MOVQ R13, DX
	XORL R10, R10
	CALL prlimit<>(SB)
	JNE  runtime
	MOVB $1, ·lowered(SB)

runtime:
	XORL DX, DX
	JMP  _rt0_amd64_linux(SB)

low:
	// The environment: is there LOG_SERVICE, and which SERVICE_NAME.
	XORL R14, R14
	XORL R15, R15
	MOVQ 0(R12), AX
	LEAQ 16(R12)(AX*8), BX

env:
	MOVQ (BX), SI
	ADDQ $8, BX
	TESTQ SI, SI
	JEQ  line
	MOVQ 0(SI), AX
	MOVQ $0x565245535f474f4c, CX // "LOG_SERV"
	CMPQ AX, CX
	JNE  name
	CMPL 8(SI), $0x3d454349      // "ICE="
	JNE  env
	MOVQ $1, R15
	JMP  env

name:
	MOVQ $0x5f45434956524553, CX // "SERVICE_"
	CMPQ AX, CX
	JNE  env
	CMPL 8(SI), $0x454d414e      // "NAME"
	JNE  env
	CMPB 12(SI), $0x3d           // "="
	JNE  env
	LEAQ 13(SI), R14
	JMP  env

line:
	LEAQ 64(R13), BX             // the next struct iovec
	XORL R9, R9                  // how many
	TESTQ R15, R15
	JEQ  plain

	// 0x01 5 pid SP
	MOVW $0x0501, 200(R13)
	MOVQ SYS_getpid, AX
	SYSCALL
	MOVB $0x20, 199(R13)         // " ", and the digits before it, last one first
	LEAQ 199(R13), DI
	MOVQ $10, CX

digit:
	XORL DX, DX
	DIVQ CX
	ADDB $0x30, DX
	DECQ DI
	MOVB DX, (DI)
	TESTQ AX, AX
	JNE  digit
	LEAQ 200(R13), AX
	MOVQ AX, 0(BX)
	MOVQ $2, 8(BX)
	MOVQ DI, 16(BX)
	LEAQ 200(R13), AX
	SUBQ DI, AX
	MOVQ AX, 24(BX)
	ADDQ $32, BX
	MOVQ $2, R9
	JMP  text

plain:
	MOVQ ·plainPrefix(SB), AX
	MOVQ AX, 0(BX)
	MOVQ ·plainPrefix+8(SB), AX
	MOVQ AX, 8(BX)
	ADDQ $16, BX
	INCQ R9

text:
	MOVQ ·lowText(SB), AX
	MOVQ AX, 0(BX)
	MOVQ ·lowText+8(SB), AX
	MOVQ AX, 8(BX)
	ADDQ $16, BX
	INCQ R9
	TESTQ R14, R14
	JEQ  end
	MOVQ ·lowService(SB), AX
	MOVQ AX, 0(BX)
	MOVQ ·lowService+8(SB), AX
	MOVQ AX, 8(BX)
	XORL CX, CX

length:
	CMPB (R14)(CX*1), $0x20      // up to a control character, or 200
	JCS  named
	INCQ CX
	CMPQ CX, $200
	JNE  length

named:
	MOVQ R14, 16(BX)
	MOVQ CX, 24(BX)
	ADDQ $32, BX
	ADDQ $2, R9

end:
	MOVB $0x0a, 202(R13)
	LEAQ 202(R13), AX
	MOVQ AX, 0(BX)
	MOVQ $1, 8(BX)
	INCQ R9
	MOVQ $2, DI
	LEAQ 64(R13), SI
	MOVQ R9, DX
	MOVQ SYS_writev, AX
	SYSCALL

	// With a log service: 50 ms later, 0x01 8 pid SP prefix=<service>: SP
	TESTQ R15, R15
	JEQ  exit
	TESTQ R14, R14
	JEQ  exit
	MOVQ $0, 0(R13)
	MOVQ $50000000, 8(R13)
	MOVQ R13, DI
	XORL SI, SI
	MOVQ SYS_nanosleep, AX
	SYSCALL
	MOVB $8, 201(R13)
	LEAQ 96(R13), BX             // behind head and pid
	MOVQ ·optionText(SB), AX
	MOVQ AX, 0(BX)
	MOVQ ·optionText+8(SB), AX
	MOVQ AX, 8(BX)
	MOVQ 32(BX), CX              // the name stands behind lowText and lowService
	MOVQ 40(BX), DX
	MOVQ CX, 16(BX)
	MOVQ DX, 24(BX)
	MOVQ ·optionEnd(SB), AX
	MOVQ AX, 32(BX)
	MOVQ ·optionEnd+8(SB), AX
	MOVQ AX, 40(BX)
	MOVQ $2, DI
	LEAQ 64(R13), SI
	MOVQ $5, DX
	MOVQ SYS_writev, AX
	SYSCALL

exit:
	MOVQ $89, DI
	MOVQ SYS_exit_group, AX
	SYSCALL
	INT  $3

// prlimit is prlimit64(0, SI, DX, R10). Its flags are those of the result.
TEXT prlimit<>(SB), NOSPLIT|NOFRAME, $0
	XORL DI, DI
	MOVQ SYS_prlimit64, AX
	SYSCALL
	TESTQ AX, AX
	RET
