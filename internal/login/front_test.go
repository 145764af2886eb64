package login

import (
	"encoding/base64"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/dovecot/config"
	"dovetail/internal/process/service"
	"dovetail/internal/smtp/server"
	"dovetail/internal/testkit/authserver"
	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/front"
)

// The test binary is the program that the fake master starts.
func TestMain(m *testing.M) {
	if slices.Contains(os.Environ(), "DOVECOT_CHILD_PROCESS=1") {
		row := grammar["NOOP"]
		row.run = func(*session, *server.Command) error { panic("asked for") }
		grammar["PANIC"] = row
		service.Main(Program())
	}
	os.Exit(m.Run())
}

// newFront makes ready what a process of this test binary needs.
func newFront(t *testing.T, conf map[string]string, args ...string) *front.Front {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return front.New(t, path, conf, authserver.Options{Users: map[string]authserver.User{"alice": {Password: "pw", Userdb: []string{}}}}, args...)
}

// A bug ends a session with a reply and a line in the log, and the process when the others
// have left.
func TestPanic(t *testing.T) {
	f := newFront(t, nil)
	f.Service.Start()
	other, c := f.Open(t), f.Open(t)
	c.Send("PANIC")
	c.Expect("421 4.3.0 front.test Internal error occurred. Refer to server log for more information.")
	c.ExpectGone()
	f.Service.AwaitLog("Panic: panic in a session: asked for")
	f.Service.AwaitLog("Info: Disconnected: Internal error (no auth attempts")
	other.Do("NOOP", "250")
}

// Who has settings of his own is not served by the general ones when those cannot be had:
// they may allow more. The next process can ask again.
func TestNoSettings(t *testing.T) {
	f := newFront(t, nil)
	f.Config.Answer(func(config.Request) config.Answer {
		return config.Answer{Values: f.Values, ServiceUsesRemote: true}
	})
	child := f.Service.Start()
	f.Open(t) // its settings are remembered
	f.Config.Drop()
	c := client.Dial(t, f.Addr, client.Options{From: "127.0.0.2"})
	c.Expect("421 4.3.0 front.test Internal error occurred. Refer to server log for more information.")
	c.ExpectGone()
	f.Service.AwaitLog("Error: settings for lip=127.0.0.1 rip=127.0.0.2: config service: ")
	child.AwaitNoListeners()
	f.Service.Start()
	f.Open(t)
}

// What a client is refused without the auth service costs it nothing: it cannot fill the
// log.
func TestManyAttempts(t *testing.T) {
	f := newFront(t, map[string]string{"auth_verbose": "yes"})
	f.Service.Start()
	c := f.Open(t)
	const n = 500
	c.Write(strings.Repeat("AUTH FOO\r\n", n) + "QUIT\r\n")
	for range n {
		c.Expect("504 5.5.4 Unsupported authentication mechanism.")
	}
	c.ExpectCode("221")
	f.Service.AwaitLog("(tried to use unsupported auth mechanism)")
	told := 0
	for _, l := range f.Service.Log() {
		if strings.Contains(l, " failed: ") {
			told++
		}
	}
	if told != 2*maxAttempts { // with auth_verbose's own
		t.Errorf("%d lines", told)
	}
}

// The title of the process stands where its arguments were, which are not lost by that.
func TestTitleOverArguments(t *testing.T) {
	f := newFront(t, map[string]string{"verbose_proctitle": "yes"}, "-l", "workers")
	f.Service.Start()
	l, err := net.Listen("unix", filepath.Join(f.Dir, "workers"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(filepath.Join(f.Dir, "workers"), 0o777); err != nil {
		t.Fatal(err)
	}
	came := make(chan error, 1)
	go func() { // ends with the first hand-over, or the listener
		conn, err := l.Accept()
		if err == nil {
			conn.Close()
		}
		came <- err
	}()
	c := f.Open(t)
	c.Send("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00alice\x00pw")))
	select {
	case err := <-came:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the hand-over went elsewhere")
	}
}
