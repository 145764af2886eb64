//go:build !linux || !(amd64 || arm64)

package siginfo

import (
	"os"
	"os/signal"
	"syscall"
)

func notify(f func(Signal), signals []syscall.Signal) error {
	ch := make(chan os.Signal, 16)
	for _, s := range signals {
		signal.Notify(ch, s)
	}
	go func() { // ends with the process
		for s := range ch {
			f(Signal{Number: s.(syscall.Signal)})
		}
	}()
	return nil
}
