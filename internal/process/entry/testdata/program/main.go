// Command program is what entry's test builds.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"dovetail/internal/process/entry"
)

func main() {
	entry.Restore()
	if len(os.Args) > 1 && os.Args[1] == "files" {
		out, err := exec.Command("sh", "-c", "ulimit -Sn; ulimit -Hn").Output()
		var l syscall.Rlimit
		syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l)
		fmt.Println(l.Cur, l.Max, strings.Fields(string(out)), err)
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "threads" {
		fmt.Println(runtime.GOMAXPROCS(0), os.Args, os.Environ())
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "slack" {
		slack, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_GET_TIMERSLACK, 0, 0)
		fmt.Println(slack, errno)
		return
	}
	fmt.Println("started", os.Args[1:])
}
