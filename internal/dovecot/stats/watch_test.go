package stats

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"dovetail/internal/process/event"
	"dovetail/internal/testkit/leak"
)

// A connection to the auth service is told of twice, whoever ends it.
func TestWatch(t *testing.T) {
	leak.Check(t)
	s := newService(t)
	c, p := s.dial(nil)
	p.say(greeting, "FILTER\t(event=\"*\")")
	until(t, "there is a filter", func() bool { return !waits(c) })
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "login"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	w := c.Watch(conn, "login")
	if _, err := w.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	far.Write([]byte("hi"))
	if n, err := w.Read(make([]byte, 9)); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	w.Close()
	w.Close()
	c.Close()
	who := "\tSsocket_path\tlogin\tIremote_pid\t" + strconv.Itoa(os.Getpid()) + "\tIremote_uid\t" + strconv.Itoa(os.Getuid())
	p.want("BEGIN\t1\t0\t0\tT\tsauth-client\t1\tcservice:submission\tcauth-client",
		"EVENT\t0\t1\t0\tT\tsauth-client\t1\tlT\tnserver_connection_connected"+who,
		"EVENT\t0\t1\t0\tT\tsauth-client\t1\tlT\tnserver_connection_disconnected\tSreason\tConnection closed"+who+"\tIbytes_in\t2\tIbytes_out\t5",
		"END\t1")
}

// Without a client a connection stays what it is.
func TestWatchWithoutClient(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if (*Client)(nil).Watch(near, "x") != near {
		t.Error("it is another one")
	}
}

// A program starts without the service, and says so where that is not usual.
func TestOpen(t *testing.T) {
	leak.Check(t)
	var out bytes.Buffer
	log := event.New(event.SinkFunc(func(level event.Level, prefix, text string) { out.WriteString(text + "\n") }), "", false)
	dir := t.TempDir()
	for _, path := range []string{"", dir + "/nothing"} {
		if c := Open(t.Context(), path, "submission", log); c != nil || out.Len() > 0 {
			t.Errorf("%q: a client, or %s", path, out.String())
		}
	}
	file := dir + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if c := Open(t.Context(), file+"/x", "submission", log); c != nil || out.Len() == 0 {
		t.Error("a client, or no line")
	}
	s := newService(t)
	c := Open(t.Context(), s.l.Addr().String(), "submission", log)
	if c == nil {
		t.Fatal("no client")
	}
	s.accept().say(greeting, "FILTER\t")
	until(t, "nothing is wanted", func() bool { return !c.Wants(ClientConnected) })
	c.Close()
}
