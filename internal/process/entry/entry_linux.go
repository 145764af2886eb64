//go:build linux && (amd64 || arm64)

package entry

import "syscall"

//lint:file-ignore U1000 the assembly reads these

// lowered says that the assembly has taken the limit of open files.
var lowered bool

// Restore gives back what was taken for the start of the runtime. It is the first thing that
// main does: until then the process has one open file less, and its children would have none.
func Restore() {
	if !lowered {
		return
	}
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil {
		l.Cur = l.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
	}
}

// oneThread goes into the environment of a process for one client.
var oneThread = "GOMAXPROCS=1\x00"

// The line's text, before and after the name of the service. The assembly reads them as
// they lie in the data section, before anything of Go has run.
var (
	lowText     = "The address space limit is too low to start: this program reserves more than 1 GiB, and uses little of it. Set vsz_limit = 0"
	lowService  = " in service "
	plainPrefix = "Fatal: "

	// A second line that changes nothing makes the log service handle the first, see
	// Nudge of package log.
	optionText = "prefix="
	optionEnd  = ": \n"
)
