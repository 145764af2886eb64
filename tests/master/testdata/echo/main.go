// Command echo is the smallest program on package service, built as the programs are.
package main

import (
	_ "dovetail/internal/process/entry"
	"dovetail/internal/process/service"
	"dovetail/internal/testkit/echo"
)

func main() { service.Main(echo.Program()) }
