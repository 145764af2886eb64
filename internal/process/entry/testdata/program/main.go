// Command program is what entry's test builds.
package main

import (
	"fmt"
	"os"

	_ "dovetail/internal/process/entry"
)

func main() { fmt.Println("started", os.Args[1:]) }
