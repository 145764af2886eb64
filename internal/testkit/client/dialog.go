package client

import (
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A dialog remembers the last lines of both sides.
type dialog struct {
	lines   []string
	skipped int
}

const (
	dialogLines = 60
	dialogWidth = 200
)

func (d *dialog) add(side byte, data string) {
	for _, line := range strings.SplitAfter(data, "\n") {
		if line == "" {
			continue
		}
		if body, ok := strings.CutSuffix(line, "\r\n"); ok {
			line = body
		} else {
			line += `\c` // no CRLF
		}
		if len(line) > dialogWidth {
			line = fmt.Sprintf("%s... (%d octets)", line[:dialogWidth], len(line))
		}
		d.push(fmt.Sprintf("  %c: %s", side, printable(line)))
	}
}

func (d *dialog) note(format string, args ...any) {
	d.push("  (" + fmt.Sprintf(format, args...) + ")")
}

func (d *dialog) push(line string) {
	if len(d.lines) == dialogLines {
		d.lines, d.skipped = d.lines[1:], d.skipped+1
	}
	d.lines = append(d.lines, line)
}

func (d *dialog) String() string {
	s := strings.Join(d.lines, "\n")
	if d.skipped > 0 {
		s = fmt.Sprintf("  (%d lines before)\n%s", d.skipped, s)
	}
	return s
}

// printable shows control and 8-bit octets as \xHH.
func printable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' {
			fmt.Fprintf(&b, `\x%02X`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// waitSent waits until the peer's kernel has all that was written to a TCP connection, so
// that the next write is another segment.
func waitSent(conn net.Conn, timeout time.Duration) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
		left := 0
		if err := raw.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) }); err != nil || left == 0 {
			return
		}
	}
}
