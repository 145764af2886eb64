//go:build !linux || !(amd64 || arm64)

package siginfo

import "syscall"

func watch(syscall.Signal) bool { return false }

func last() (Sender, bool) { return Sender{}, false }
