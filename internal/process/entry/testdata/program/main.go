// Command program is what entry's test builds.
package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	_ "dovetail/internal/process/entry"
)

func main() {
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
