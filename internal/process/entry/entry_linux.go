//go:build linux && (amd64 || arm64)

package entry

//lint:file-ignore U1000 the assembly reads these

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
