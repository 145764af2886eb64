package master

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// A notifier tells systemd how the service is (sd_notify). The zero notifier tells nobody.
type notifier struct{ addr string }

// newNotifier takes the address from NOTIFY_SOCKET; get is os.Getenv.
func newNotifier(get func(string) string) notifier {
	addr := get("NOTIFY_SOCKET")
	if !strings.HasPrefix(addr, "/") && !strings.HasPrefix(addr, "@") {
		return notifier{}
	}
	return notifier{addr}
}

// send sends a message of lines NAME=value. It is lost if it cannot be sent at once.
func (n notifier) send(message string) {
	if n.addr == "" {
		return
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	unix.Sendmsg(fd, []byte(message), nil, &unix.SockaddrUnix{Name: n.addr}, unix.MSG_NOSIGNAL)
}

// reloading announces a reload, with the time that systemd wants for Type=notify-reload.
func (n notifier) reloading() {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return
	}
	n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", ts.Nano()/1000))
}
