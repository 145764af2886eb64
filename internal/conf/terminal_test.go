package conf

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"golang.org/x/sys/unix"

	"dovetail/internal/testkit/need"
)

// On a terminal there are colours, unless NO_COLOR or TERM is against them.
func TestTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		need.Missing(t, "a pseudo-terminal: "+err.Error())
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		need.Missing(t, "a pseudo-terminal: "+err.Error())
	}
	defer tty.Close()
	buf := make([]byte, 1000)
	for _, x := range []struct {
		noColor, term string
		colours       bool
	}{{"", "xterm", true}, {"1", "xterm", false}, {"", "dumb", false}} {
		t.Setenv("NO_COLOR", x.noColor)
		t.Setenv("TERM", x.term)
		if err := Write(tty, nil, hcl.Diagnostics{hclError("x", "y")}); err != nil {
			t.Fatal(err)
		}
		n, err := master.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got := string(buf[:n])
		if strings.Contains(got, "\x1b[1;31merror\x1b[0m") != x.colours || !x.colours && strings.Contains(got, "\x1b") {
			t.Errorf("NO_COLOR=%s TERM=%s: %q", x.noColor, x.term, got)
		}
	}
}
