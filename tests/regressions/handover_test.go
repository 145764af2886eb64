package regressions

import (
	"encoding/base64"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/handoff"
	"dovetail/internal/testkit/authserver"
	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/front"
)

// workers listens at the socket of the workers.
func workers(t *testing.T, f *front.Front) *net.UnixListener {
	t.Helper()
	path := filepath.Join(f.Dir, "submission")
	aside := path + "~" // who finds it may use it
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: aside, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	t.Cleanup(func() { l.Close() })
	if err := errors.Join(os.Chmod(aside, 0o777), os.Rename(aside, path)); err != nil {
		t.Fatal(err)
	}
	return l
}

// At a reload a new socket takes the place of the workers' old one. Who waited there, and who
// comes while there is none, gets to a worker all the same.
func TestHandOverDuringAReload(t *testing.T) {
	t.Parallel()
	f := newFront(t, nil, authserver.Options{Users: map[string]authserver.User{"alice": {Password: "pw", Userdb: []string{}}}})
	auth := "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00alice\x00pw"))
	old := workers(t, f)
	waits := f.Open(t)
	waits.Send(auth)
	raw, err := old.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	queued := 0
	err = raw.Control(func(fd uintptr) {
		queued, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(dovetail.Patience/time.Millisecond))
	})
	if queued != 1 || err != nil {
		t.Fatalf("nobody waits at the socket: %v", err)
	}
	old.Close()
	if err := os.Remove(filepath.Join(f.Dir, "submission")); err != nil {
		t.Fatal(err)
	}
	comes := f.Open(t)
	comes.Send(auth)
	f.Auth.Wait("AUTH", 2)
	fresh := workers(t, f)
	if err := fresh.SetDeadline(time.Now().Add(dovetail.Patience)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		conn, err := fresh.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		login, err := handoff.Receive(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := login.Client.Write([]byte("235 2.7.0 Logged in.\r\n")); err != nil {
			t.Error(err)
		}
		if err := login.Reply(handoff.OK, os.Getpid()); err != nil {
			t.Error(err)
		}
		login.Client.Close()
		conn.Close()
	}
	waits.Expect("235 2.7.0 Logged in.")
	comes.Expect("235 2.7.0 Logged in.")
}
