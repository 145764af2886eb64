package standalone

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Under systemd: a listener that was opened before is used, and systemd is told when the
// server is ready.
func TestSystemd(t *testing.T) {
	w := lay(t, 0, base+users)
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 0})
	if err != nil {
		t.Fatal(err)
	}
	w.port = ln.Addr().(*net.TCPAddr).Port
	w.write("dovecot.conf", base+users)
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer ln.Close()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: w.dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	w.cmd = exec.Command("/bin/sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec "+w.bin+" run -F -c "+w.dir+"/dovecot.conf")
	w.cmd.Env = []string{"NOTIFY_SOCKET=" + w.dir + "/notify"}
	w.cmd.ExtraFiles = []*os.File{f}
	w.cmd.Stdout, w.cmd.Stderr = &w.out, &w.out
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.done = make(chan struct{})
	go func() { // ends with the server
		_ = w.cmd.Wait()
		close(w.done)
	}()
	t.Cleanup(w.stop)
	var b [1000]byte
	n, err := notify.Read(b[:])
	if err != nil || !strings.HasPrefix(string(b[:n]), "READY=1\n") {
		t.Fatalf("systemd hears %q %v\n%s", b[:n], err, w.log())
	}
	// Nobody else could listen at this port: it is the descriptor that is used.
	s := w.login("alice")
	if got := s.say("QUIT"); !strings.HasPrefix(got, "221 ") {
		t.Errorf("QUIT: %q", got)
	}
	if strings.Contains(w.log(), "Error") {
		t.Errorf("log:\n%s", w.log())
	}
}
