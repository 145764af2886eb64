package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"dovetail/internal/smtp"
)

// pair returns both ends of a TCP connection over loopback.
func pair(t testing.TB) (server, client net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	client.SetDeadline(time.Now().Add(20 * time.Second))
	return server, client
}

// echo serves the few commands that the tests use, until the client leaves.
func echo(c *Conn) error {
	for {
		cmd, err := c.Next()
		if err != nil {
			return err
		}
		switch cmd.Name {
		case "NOOP", "AUTH":
			cmd.Reply(smtp.NewReply(250, "2.0.0", fmt.Sprintf("OK %d %.10s", len(cmd.Params), cmd.Params)))
		case "QUIT":
			cmd.Reply(smtp.NewReply(221, "2.0.0", "Bye"))
			return nil
		default:
			cmd.Reply(smtp.NewReply(500, "5.5.1", "Unknown command"))
		}
	}
}

// dialog sends input in one write and returns all replies.
func dialog(t testing.TB, o Options, input string) string {
	t.Helper()
	server, client := pair(t)
	c := New(server, o)
	done := make(chan struct{})
	go func() { // ends when echo does
		defer close(done)
		echo(c)
		c.Close()
	}()
	io.WriteString(client, input)
	client.(*net.TCPConn).CloseWrite()
	out, err := io.ReadAll(client)
	if err != nil {
		t.Fatal(err)
	}
	<-done
	return string(out)
}

var options = Options{Hostname: "mx.test", MaxParams: 1025, MaxAuthParams: 12288}

const (
	ok     = "250 2.0.0 OK 0 \r\n"
	syntax = "500 5.5.2 Invalid command syntax\r\n"
	unk    = "500 5.5.1 Unknown command\r\n"
	long   = "500 5.5.2 Line too long\r\n"
)

// The answers were seen from Dovecot 2.3.19.1 (clauses S1.11, S1.12).
var lines = []struct{ in, out string }{
	{"NOOP\r\n", ok},
	{"noop\n", ok},
	{"NOOP  \t \r\n", ok},
	{"NOOP\rNOOP\r\n", syntax},
	{"NOOP\r\r\n", syntax},
	{"NOOP\x00\r\n", syntax},
	{" NOOP\r\n", unk},
	{"  NOOP\r\n", syntax},
	{" \r\n", unk},
	{"  \r\n", unk},
	{"\r\n", unk},
	{"\n", unk},
	{"\r\r\n", syntax},
	{"\t\r\n", syntax},
	{"NOOP\t\r\n", syntax},
	{"NOOP\ta\r\n", syntax},
	{"NOOP  a\r\n", syntax},
	{"NOOP \ta\r\n", "250 2.0.0 OK 2 \ta\r\n"},
	{"NO1OP\r\n", syntax},
	{"FOO-BAR\r\n", syntax},
	{"NOOP \x7f\r\n", syntax},
	{"NOOP a \x01\r\n", syntax},
	{"NOOP \xc3\xa4\r\n", "250 2.0.0 OK 2 \xc3\xa4\r\n"},
	{"\xc3\xa4\r\n", syntax},
	{"FOO \xc3\r\n", syntax},
	{"NOOP \xed\xa0\x80\r\n", syntax},
	{strings.Repeat("A", 32) + "\r\n", unk},
	{strings.Repeat("A", 33) + "\r\n", syntax},
	{"NOOP " + strings.Repeat("a", 1025) + "\r\n", "250 2.0.0 OK 1025 aaaaaaaaaa\r\n"},
	{"NOOP " + strings.Repeat("a", 1026) + "\r\n", long},
	{"NOOP " + strings.Repeat("a", 1026) + "\n", long},
	{"NOOP " + strings.Repeat("a", 100000) + "\n", long},
	{"AUTH " + strings.Repeat("a", 12288) + "\r\n", "250 2.0.0 OK 12288 aaaaaaaaaa\r\n"},
	{"AUTH " + strings.Repeat("a", 12289) + "\r\n", long},
}

func TestLines(t *testing.T) {
	for _, l := range lines {
		if got := dialog(t, options, l.in+"NOOP\r\n"); got != l.out+ok {
			t.Errorf("%.60q: %q, want %q", l.in, got, l.out+ok)
		}
	}
}

// Wherever packets end, the replies are the same.
func TestLinesInPieces(t *testing.T) {
	for _, size := range []int{1, 2, 3, 7, 1000} {
		server, client := pair(t)
		c := New(server, Options{Hostname: "mx.test", MaxParams: 1025, ReadSize: size})
		go func() { echo(c); c.Close() }() // ends when the client has closed
		br := bufio.NewReader(client)
		for i, l := range lines[:31] {
			io.WriteString(client, l.in)
			if got, err := br.ReadString('\n'); got != l.out {
				t.Fatalf("pieces of %d, %.60q: %q, %v, want %q", size, l.in, got, err, l.out)
			}
			if i%5 == 4 {
				io.WriteString(client, "NOOP\r\n") // so that bad commands do not add up
				br.ReadString('\n')
			}
		}
		client.Close()
	}
}

func TestTooManyBadCommands(t *testing.T) {
	got := dialog(t, options, strings.Repeat("FOO\r\n", 10)+"NOOP\r\n"+strings.Repeat("\r\n", 20))
	want := strings.Repeat(unk, 10) + ok + strings.Repeat(unk, 10) + "421 4.7.0 mx.test Too many invalid commands.\r\n"
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Replies given in any order leave in the order of the commands.
func TestRepliesKeepTheirOrder(t *testing.T) {
	server, client := pair(t)
	c := New(server, options)
	io.WriteString(client, "A\r\nB\r\nC\r\n\r\n")
	var cmds []*Command
	for range 4 {
		cmd, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	if got := c.Unfinished(); got != "A" {
		t.Errorf("oldest command: %q", got)
	}
	for _, i := range []int{2, 0, 3, 1} {
		cmds[i].Reply(smtp.NewReply(250+i, "", cmds[i].Name))
		cmds[i].Reply(smtp.NewReply(599, "", "a second reply"))
	}
	c.Close()
	out, _ := io.ReadAll(client)
	if want := "250 A\r\n251 B\r\n252 C\r\n253 \r\n"; string(out) != want {
		t.Errorf("%q, want %q", out, want)
	}
}

// A hundred commands may wait; the next is not taken before one of them is answered.
func TestQueueIsBounded(t *testing.T) {
	server, client := pair(t)
	c := New(server, options)
	io.WriteString(client, strings.Repeat("X\r\n", maxQueued+1))
	var cmds []*Command
	for range maxQueued {
		cmd, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	next := make(chan error)
	go func() { // ends with the answer below
		_, err := c.Next()
		next <- err
	}()
	select {
	case <-next:
		t.Fatal("took one more command than may wait")
	case <-time.After(20 * time.Millisecond):
	}
	cmds[0].Reply(smtp.NewReply(250, "", "ok"))
	if err := <-next; err != nil {
		t.Fatal(err)
	}
}

func TestIdleTimeout(t *testing.T) {
	server, client := pair(t)
	c := New(server, Options{MaxParams: 100, IdleTimeout: 50 * time.Millisecond})
	io.WriteString(client, "A\r\n")
	cmd, err := c.Next()
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan error)
	go func() { _, err := c.Next(); next <- err }() // ends by the timeout
	select {
	case err := <-next:
		t.Fatalf("%v while a command waits for its reply", err)
	case <-time.After(150 * time.Millisecond):
	}
	cmd.Reply(smtp.NewReply(250, "", "ok"))
	c.Flush()
	if err := <-next; err != ErrIdle {
		t.Errorf("%v, want ErrIdle", err)
	}
}

// Terminate answers the oldest command, ends the read, and the client gets to see it.
func TestTerminate(t *testing.T) {
	server, client := pair(t)
	c := New(server, options)
	io.WriteString(client, "A\r\nB\r\n")
	a, _ := c.Next()
	c.Next()
	next := make(chan error)
	go func() { _, err := c.Next(); next <- err }() // ended by Terminate
	c.Terminate(c.Reply421("4.3.2", "Shutting down"))
	if err := <-next; err != ErrTerminated {
		t.Errorf("%v, want ErrTerminated", err)
	}
	a.Reply(smtp.NewReply(250, "", "too late"))
	go c.Close() // ends when the client has closed
	out, _ := io.ReadAll(client)
	if want := "421 4.3.2 mx.test Shutting down\r\n"; string(out) != want {
		t.Errorf("%q, want %q", out, want)
	}
}

// A client that takes no replies stops the session, and then the reading ends.
func TestClientTakesNoReplies(t *testing.T) {
	server, client := pair(t)
	c := New(server, Options{MaxParams: 1025, WriteTimeout: 50 * time.Millisecond})
	go func() { // ends with an error when the session is over
		for {
			if _, err := io.WriteString(client, strings.Repeat("X\r\n", 10000)); err != nil {
				return
			}
		}
	}()
	text := strings.Repeat("t", 500)
	for {
		cmd, err := c.Next()
		if err != nil {
			break
		}
		cmd.Reply(smtp.NewReply(250, "", text))
	}
	c.Close()
}

func TestBodyAndCommandsBehindIt(t *testing.T) {
	server, client := pair(t)
	c := New(server, Options{MaxParams: 100, ReadSize: 8})
	io.WriteString(client, "DATA\r\nhello world, this is more than one read\r\n.\r\nNOOP\r\n")
	cmd, err := c.Next()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Interim(smtp.NewReply(354, "", "go"))
	var body []byte
	for !strings.HasSuffix(string(body), "\r\n.\r\n") {
		b, err := c.Input(large)
		if err != nil {
			t.Fatal(err)
		}
		n := min(len(b), 1)
		body = append(body, b[:n]...)
		c.Discard(n)
	}
	cmd.Reply(smtp.NewReply(250, "", "done"))
	if cmd, err = c.Next(); err != nil || cmd.Name != "NOOP" {
		t.Fatalf("%v, %v", cmd, err)
	}
	cmd.Reply(smtp.NewReply(250, "", "noop"))
	c.Close()
	out, _ := io.ReadAll(client)
	if want := "354 go\r\n250 done\r\n250 noop\r\n"; string(out) != want {
		t.Errorf("%q, want %q", out, want)
	}
}

func TestLine(t *testing.T) {
	server, client := pair(t)
	c := New(server, Options{MaxParams: 100})
	io.WriteString(client, "abc\r\nd\n"+strings.Repeat("x", 9000)+"\r\n"+strings.Repeat("y", 8192)+"\r\n\xff\r\nNOOP\r\n")
	for _, want := range []struct {
		line     string
		long, ok bool
	}{{"abc", false, true}, {"d", false, true}, {"", true, true}, {strings.Repeat("y", 8192), false, true}, {"\xff", false, false}} {
		line, long, ok, err := c.Line(8192)
		if err != nil || line != want.line || long != want.long || ok != want.ok {
			t.Errorf("%.20q %v %v %v, want %.20q %v %v", line, long, ok, err, want.line, want.long, want.ok)
		}
	}
	if cmd, err := c.Next(); err != nil || cmd.Name != "NOOP" {
		t.Errorf("%v, %v", cmd, err)
	}
}

func TestWaitingHoldsNoBuffer(t *testing.T) {
	server, client := pair(t)
	c := New(server, options)
	done := make(chan bool)
	go func() { // ends when the client has closed
		c.Next()
		done <- c.buf == nil && c.out == nil
	}()
	for blocked := false; !blocked; {
		c.mu.Lock()
		blocked = c.blocked
		c.mu.Unlock()
	}
	client.Close()
	if !<-done {
		t.Error("a buffer was held while nothing came")
	}
}

func FuzzNext(f *testing.F) {
	for _, l := range lines {
		f.Add([]byte(l.in), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		run := func(size int) string {
			server, client := net.Pipe()
			c := New(server, Options{Hostname: "h", MaxParams: 60, MaxAuthParams: 100, ReadSize: size})
			go func() { // ends when all is written, or the session is over
				client.Write(in)
				client.Write([]byte("\nQUIT\r\n"))
			}()
			go func() { echo(c); c.Close() }() // ends with QUIT or by too many bad commands
			client.SetReadDeadline(time.Now().Add(10 * time.Second))
			out, err := io.ReadAll(client)
			if err != nil {
				t.Errorf("%q: %v after %q", in, err, out)
			}
			client.Close()
			return string(out)
		}
		if a, b := run(lineBuffer), run(max(1, size&0xff)); a != b {
			t.Errorf("%q in one read: %q, in pieces of %d: %q", in, a, size&0xff, b)
		}
	})
}

func BenchmarkCommands(b *testing.B) {
	server, client := pair(b)
	c := New(server, options)
	go func() { echo(c); c.Close() }() // ends when the client has closed
	client.SetDeadline(time.Time{})
	in := []byte(strings.Repeat("RCPT TO:<someone@example.org>\r\n", 8))
	out := make([]byte, 8*len(unk))
	b.ReportAllocs()
	for range b.N {
		client.Write(in)
		io.ReadFull(client, out)
		io.WriteString(client, "NOOP\r\n")
		io.ReadFull(client, out[:len(ok)])
	}
	client.Close()
}

func TestWatch(t *testing.T) {
	server, client := pair(t)
	c := New(server, options)
	gone := make(chan bool, 1)
	stop := c.Watch(func() { gone <- true })
	io.WriteString(client, "NOOP\r\n") // input alone is not what is watched for
	select {
	case <-gone:
		t.Fatal("gone, by input")
	case <-time.After(20 * time.Millisecond):
	}
	stop()
	if cmd, err := c.Next(); err != nil || cmd.Name != "NOOP" {
		t.Fatalf("%v, %v", cmd, err)
	}
	stop = c.Watch(func() { gone <- true })
	client.Close()
	<-gone
	stop()
	if _, err := c.Next(); err != io.EOF {
		t.Fatalf("%v, want EOF", err)
	}
}

// What a client that leaves inside a line has sent counts as Dovecot 2.3.19.1 counts it
// (clause S10.8).
func TestOctetsOfUnfinishedLines(t *testing.T) {
	for in, want := range map[string]uint64{
		"": 0, "MAI": 0, "MAIL FROM:<a@b": 5, "NOOP\r\nMAI": 6, "NOOP\r\nMAIL FR": 11, "NOOP\r": 5, "NOOP ": 5, "NOOP\r\n": 6, "QUIT\r\nNOOP\r\n": 12,
	} {
		server, client := pair(t)
		c := New(server, options)
		io.WriteString(client, in)
		client.(*net.TCPConn).CloseWrite()
		echo(c)
		before := c.Stats().In
		c.Close()
		if after := c.Stats().In; before != want || after != want {
			t.Errorf("%q: %d octets, %d after Close, want %d", in, before, after, want)
		}
	}
}
