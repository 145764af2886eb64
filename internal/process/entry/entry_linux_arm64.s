#include "textflag.h"

#define NEED_AS   $0x50000000 // 1280 MiB: what the runtime reserves (1240 MiB) and a little heap
#define NEED_DATA $0x06000000 // 96 MiB: what it maps to write (72 MiB) and a little heap

#define RLIMIT_DATA $2
#define RLIMIT_NOFILE $7
#define RLIMIT_AS     $9

#define PR_SET_TIMERSLACK $29
#define SLACK             $10000000 // ns

#define SYS_writev     $66
#define SYS_exit_group $94
#define SYS_nanosleep  $101
#define SYS_prctl      $167
#define SYS_getpid     $172
#define SYS_prlimit64  $261

// The kernel enters here: argc at 0(RSP), then argv, NULL, envp, NULL. There is no stack
// for Go yet, and nobody to return to. What lies below RSP is free: no signal handler
// exists. Registers that stay: R20 RSP, R21 scratch memory, R22 service name, R23 log
// flag.
//
// Scratch: 0 struct rlimit, 64 struct iovec[6], 192 decimal pid, 200 head of the line.
TEXT dovetail_entry(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	MOVD RSP, R20
	SUB  $512, R20, R21

	// Address space.
	MOVD RLIMIT_AS, R1
	MOVD $0, R2
	MOVD R21, R3
	BL   prlimit<>(SB)
	CBNZ R0, start          // no such call: the runtime will tell
	MOVD NEED_AS, R11
	MOVD 0(R21), R9         // soft
	MOVD 8(R21), R10        // hard
	CMP  R11, R9
	BHS  data
	CMP  R11, R10
	BLO  both
	MOVD R10, 0(R21)        // the soft limit is the obstacle
	MOVD RLIMIT_AS, R1
	MOVD R21, R2
	MOVD $0, R3
	BL   prlimit<>(SB)
	CBZ  R0, data
	B    low

both:
	MOVD $-1, R9
	MOVD R9, 0(R21)
	MOVD R9, 8(R21)
	MOVD RLIMIT_AS, R1
	MOVD R21, R2
	MOVD $0, R3
	BL   prlimit<>(SB)
	CBNZ R0, low

data:
	MOVD RLIMIT_DATA, R1
	MOVD $0, R2
	MOVD R21, R3
	BL   prlimit<>(SB)
	CBNZ R0, start
	MOVD NEED_DATA, R11
	MOVD 0(R21), R9
	MOVD 8(R21), R10
	CMP  R11, R9
	BHS  start
	CMP  R11, R10
	BLO  low
	MOVD R10, 0(R21)
	MOVD RLIMIT_DATA, R1
	MOVD R21, R2
	MOVD $0, R3
	BL   prlimit<>(SB)
	CBNZ R0, low

start:
	MOVD PR_SET_TIMERSLACK, R0
	MOVD SLACK, R1
	MOVD SYS_prctl, R8
	SVC                     // an error changes nothing

	// Is there CLIENT_LIMIT=1 in the environment?
	MOVD 0(R20), R9
	ADD  $16, R20, R10
	ADD  R9<<3, R10, R10
	MOVD $0, R14

limit:
	MOVD (R10), R11
	CBZ  R11, limits
	ADD  $8, R10
	MOVD 0(R11), R12
	MOVD $0x4c5f544e45494c43, R13 // "CLIENT_L"
	CMP  R13, R12
	BNE  limit
	MOVWU 8(R11), R12
	MOVD $0x54494d49, R13         // "IMIT"
	CMP  R13, R12
	BNE  limit
	MOVHU 12(R11), R12
	MOVD $0x313d, R13             // "=1"
	CMP  R13, R12
	BNE  limit
	MOVBU 14(R11), R12
	CBNZ R12, limit
	MOVD $1, R14
	B    limit

limits:
	// Everything up to the NULL of envp, at R10, moves down to make room for two words,
	// which keeps the stack aligned.
	CBZ  R14, runtime
	MOVD R20, R11
	SUB  $16, R20

shift:
	MOVD (R11), R9
	MOVD R9, -16(R11)
	ADD  $8, R11
	CMP  R10, R11
	BNE  shift
	MOVD ·oneThread(SB), R9
	MOVD R9, -16(R10)
	MOVD R9, -8(R10)
	MOVD R20, RSP

	// No file is opened until package syscall raises the limit again, which it does because
	// it finds soft and hard limit apart.
	SUB  $512, R20, R21
	MOVD RLIMIT_NOFILE, R1
	MOVD $0, R2
	MOVD R21, R3
	BL   prlimit<>(SB)
	CBNZ R0, runtime
	MOVD 0(R21), R9
	MOVD 8(R21), R10
	CMP  R10, R9
	BNE  runtime            // what children get would be lost
	MOVD $0, R9
	MOVD R9, 0(R21)
	MOVD RLIMIT_NOFILE, R1
	MOVD R21, R2
	MOVD $0, R3
	BL   prlimit<>(SB)
	CBNZ R0, runtime
	MOVD $1, R9
	MOVB R9, ·lowered(SB)

runtime:
	MOVD $0, R30
	JMP  _rt0_arm64_linux(SB)

low:
	// The environment: is there LOG_SERVICE, and which SERVICE_NAME.
	MOVD $0, R22
	MOVD $0, R23
	MOVD 0(R20), R9
	ADD  $16, R20, R10
	ADD  R9<<3, R10, R10

env:
	MOVD.P 8(R10), R11
	CBZ  R11, line
	MOVD 0(R11), R12
	MOVD $0x565245535f474f4c, R13 // "LOG_SERV"
	CMP  R13, R12
	BNE  name
	MOVWU 8(R11), R12
	MOVD $0x3d454349, R13         // "ICE="
	CMP  R13, R12
	BNE  env
	MOVD $1, R23
	B    env

name:
	MOVD $0x5f45434956524553, R13 // "SERVICE_"
	CMP  R13, R12
	BNE  env
	MOVWU 8(R11), R12
	MOVD $0x454d414e, R13         // "NAME"
	CMP  R13, R12
	BNE  env
	MOVBU 12(R11), R12
	CMP  $0x3d, R12               // "="
	BNE  env
	ADD  $13, R11, R22
	B    env

line:
	ADD  $64, R21, R24            // the next struct iovec
	MOVD $0, R25                  // how many
	CBZ  R23, plain

	// 0x01 5 pid SP
	MOVD $0x0501, R9
	MOVH R9, 200(R21)
	MOVD SYS_getpid, R8
	SVC
	MOVD $0x20, R9
	MOVB R9, 199(R21)             // " ", and the digits before it, last one first
	ADD  $199, R21, R10
	MOVD $10, R11

digit:
	UDIV R11, R0, R12
	MSUB R11, R0, R12, R13        // R0 - R11*R12
	ADD  $0x30, R13
	SUB  $1, R10
	MOVB R13, (R10)
	MOVD R12, R0
	CBNZ R0, digit
	ADD  $200, R21, R9
	MOVD R9, 0(R24)
	MOVD $2, R11
	MOVD R11, 8(R24)
	MOVD R10, 16(R24)
	SUB  R10, R9, R9
	MOVD R9, 24(R24)
	ADD  $32, R24
	MOVD $2, R25
	B    text

plain:
	MOVD ·plainPrefix(SB), R9
	MOVD R9, 0(R24)
	MOVD ·plainPrefix+8(SB), R9
	MOVD R9, 8(R24)
	ADD  $16, R24
	ADD  $1, R25

text:
	MOVD ·lowText(SB), R9
	MOVD R9, 0(R24)
	MOVD ·lowText+8(SB), R9
	MOVD R9, 8(R24)
	ADD  $16, R24
	ADD  $1, R25
	CBZ  R22, end
	MOVD ·lowService(SB), R9
	MOVD R9, 0(R24)
	MOVD ·lowService+8(SB), R9
	MOVD R9, 8(R24)
	MOVD $0, R11

length:
	MOVBU (R22)(R11), R9
	CMP  $0x20, R9                // up to a control character, or 200
	BLO  named
	ADD  $1, R11
	CMP  $200, R11
	BNE  length

named:
	MOVD R22, 16(R24)
	MOVD R11, 24(R24)
	ADD  $32, R24
	ADD  $2, R25

end:
	MOVD $0x0a, R9
	MOVB R9, 202(R21)
	ADD  $202, R21, R9
	MOVD R9, 0(R24)
	MOVD $1, R9
	MOVD R9, 8(R24)
	ADD  $1, R25
	MOVD $2, R0
	ADD  $64, R21, R1
	MOVD R25, R2
	MOVD SYS_writev, R8
	SVC

	// With a log service: 50 ms later, 0x01 8 pid SP prefix=<service>: SP
	CBZ  R23, exit
	CBZ  R22, exit
	MOVD $0, R9
	MOVD R9, 0(R21)
	MOVD $50000000, R9
	MOVD R9, 8(R21)
	MOVD R21, R0
	MOVD $0, R1
	MOVD SYS_nanosleep, R8
	SVC
	MOVD $8, R9
	MOVB R9, 201(R21)
	ADD  $96, R21, R24            // behind head and pid
	MOVD ·optionText(SB), R9
	MOVD R9, 0(R24)
	MOVD ·optionText+8(SB), R9
	MOVD R9, 8(R24)
	MOVD 32(R24), R10             // the name stands behind lowText and lowService
	MOVD 40(R24), R11
	MOVD R10, 16(R24)
	MOVD R11, 24(R24)
	MOVD ·optionEnd(SB), R9
	MOVD R9, 32(R24)
	MOVD ·optionEnd+8(SB), R9
	MOVD R9, 40(R24)
	MOVD $2, R0
	ADD  $64, R21, R1
	MOVD $5, R2
	MOVD SYS_writev, R8
	SVC

exit:
	MOVD $89, R0
	MOVD SYS_exit_group, R8
	SVC
	UNDEF

// prlimit is prlimit64(0, R1, R2, R3), with its result in R0.
TEXT prlimit<>(SB), NOSPLIT|NOFRAME, $0
	MOVD $0, R0
	MOVD SYS_prlimit64, R8
	SVC
	RET
