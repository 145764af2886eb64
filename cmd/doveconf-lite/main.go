// Command doveconf-lite prints, checks and converts Dovecot configuration files.
//
// Started by:   a person or a script, as any user.
// Descriptors:  0, 1, 2.
// Privileges:   the caller's. It reads files and writes only to 1 and 2.
// Exit status:  as doveconf (0, 89); of check 0 fine, 1 warnings, 2 errors.
package main

import (
	"os"

	"dovetail/internal/conf/doveconf"
)

func main() { os.Exit(doveconf.Main(os.Args[1:], doveconf.System())) }
