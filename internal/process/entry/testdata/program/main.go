// Command program is what entry's test builds.
package main

import (
	"fmt"
	"os"
	"runtime"

	_ "dovetail/internal/process/entry"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "threads" {
		fmt.Println(runtime.GOMAXPROCS(0), os.Args, os.Environ())
		return
	}
	fmt.Println("started", os.Args[1:])
}
