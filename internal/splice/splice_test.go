package splice

import (
	"bytes"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"dovetail/internal/testkit/tlsfiles"
)

func pair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return s.(*net.TCPConn), c.(*net.TCPConn)
}

// run passes between two fresh connections and returns their far ends.
func run(t testing.TB, s *Stream) (client, server *net.TCPConn, result <-chan Result) {
	cn, client := pair(t)
	sn, server := pair(t)
	s.Client, s.Server = Plain(NewSocket(cn)), Plain(NewSocket(sn))
	done := make(chan Result, 1)
	go func() { done <- s.Run() }() // ends when one of the far ends does
	return client, server, done
}

// Whatever one side sends arrives at the other, by copying and by splice(2).
func TestBothWays(t *testing.T) {
	s := &Stream{ToServer: []byte("first "), ToClient: []byte("hello ")}
	client, server, done := run(t, s)
	up, down := make([]byte, 5<<20), make([]byte, 3<<20)
	for i := range up {
		up[i] = byte(rand.Uint32())
	}
	copy(down, up[1<<20:])
	go func() { client.Write(up); client.CloseWrite() }() // ends when all is written
	go func() { server.Write(down) }()                    // ends when all is written
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, append([]byte("first "), up...)) {
		t.Fatalf("server got %d octets, %v", len(got), err)
	}
	back := make([]byte, len(down)+6)
	if _, err := io.ReadFull(client, back); err != nil || !bytes.Equal(back, append([]byte("hello "), down...)) {
		t.Fatalf("client got something else, %v", err)
	}
	server.Close() // after the client has finished sending: it gets the end, too
	if n, err := client.Read(back); n != 0 || err != io.EOF {
		t.Errorf("%d, %v, want the end", n, err)
	}
	if r := <-done; r.ByServer || r.Err != nil {
		t.Errorf("%+v, want an end by the client", r)
	}
	if s.In() != uint64(len(up)+6) || s.Out() != uint64(len(down)+6) {
		t.Errorf("counted %d and %d octets", s.In(), s.Out())
	}
}

func TestServerEnds(t *testing.T) {
	told := make(chan Result, 1)
	client, server, done := run(t, &Stream{Ended: func(r Result) time.Duration { told <- r; return 0 }})
	server.Close()
	if got, err := io.ReadAll(client); len(got) != 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if r := <-done; !r.ByServer || r.Err != nil || r != <-told {
		t.Errorf("%+v", r)
	}
}

func TestClientIsReset(t *testing.T) {
	client, server, done := run(t, &Stream{})
	client.SetLinger(0)
	client.Close()
	if _, err := io.ReadAll(server); err != nil {
		t.Error(err)
	}
	if r := <-done; r.ByServer || r.Err == nil {
		t.Errorf("%+v, want a reset by the client", r)
	}
}

// A TLS client whose records come in pieces.
func TestTLS(t *testing.T) {
	cert := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "mx.test"}).TLS()
	cn, client := pair(t)
	sn, server := pair(t)
	sock := NewSocket(cn)
	conn := tls.Server(sock, &tls.Config{Certificates: []tls.Certificate{cert}})
	tc := tls.Client(slow{client}, &tls.Config{InsecureSkipVerify: true})
	go tc.Handshake() // ends with the handshake
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	s := &Stream{Client: End{conn, sock}, Server: Plain(NewSocket(sn))}
	done := make(chan Result, 1)
	go func() { done <- s.Run() }() // ends when the client does
	text := bytes.Repeat([]byte("some text "), 5000)
	go func() { tc.Write(text); tc.CloseWrite() }() // ends when all is written
	server.SetDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, text) {
		t.Fatalf("server got %d octets, %v", len(got), err)
	}
	server.Write([]byte("bye"))
	server.Close()
	if got, err := io.ReadAll(tc); string(got) != "bye" || err != nil {
		t.Errorf("client got %q, %v", got, err)
	}
	<-done
}

// slow writes in small pieces.
type slow struct{ net.Conn }

func (s slow) Write(b []byte) (int, error) {
	for i := 0; i < len(b); i += 1000 {
		if _, err := s.Conn.Write(b[i:min(len(b), i+1000)]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

func BenchmarkBulk(b *testing.B) {
	client, server, done := run(b, &Stream{})
	chunk := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	go func() { // ends when all is written
		for range b.N {
			client.Write(chunk)
		}
		client.CloseWrite()
	}()
	io.Copy(io.Discard, server)
	server.Close()
	<-done
}

// A client whose server has gone stays for a while, and what it still sends is dropped.
func TestStays(t *testing.T) {
	ended := make(chan struct{})
	client, server, done := run(t, &Stream{Ended: func(Result) time.Duration { close(ended); return time.Hour }})
	server.Close()
	<-ended
	for range 3 { // more than what the closed server would take without an error
		if _, err := client.Write(make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case r := <-done:
		t.Fatalf("over: %+v", r)
	case <-time.After(20 * time.Millisecond):
	}
	client.Close()
	if r := <-done; !r.ByServer || r.Err != nil {
		t.Errorf("%+v", r)
	}
}

// ... but not for ever.
func TestStaysNoLonger(t *testing.T) {
	client, server, done := run(t, &Stream{Ended: func(Result) time.Duration { return 10 * time.Millisecond }})
	server.Close()
	if got, err := io.ReadAll(client); len(got) != 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	<-done
}

// Leave ends it on the server's side, Close on both, whatever they are doing.
func TestEndedFromOutside(t *testing.T) {
	for name, end := range map[string]func(*Stream){"Leave": (*Stream).Leave, "Close": (*Stream).Close} {
		s := &Stream{}
		client, server, done := run(t, s)
		client.Write([]byte("x"))
		io.ReadFull(server, make([]byte, 1))
		end(s)
		<-done
		if _, err := io.ReadAll(client); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A client that is still sending when the server says its last word is not reset before it
// has read that.
func TestLastWords(t *testing.T) {
	client, server, done := run(t, &Stream{})
	io.WriteString(server, "421 bye\r\n")
	server.CloseWrite()
	for range 50 {
		if _, err := client.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	got, err := io.ReadAll(client)
	if string(got) != "421 bye\r\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	client.CloseWrite()
	if r := <-done; !r.ByServer || r.Err != nil {
		t.Errorf("%+v", r)
	}
}

// What a client does not take is known.
func TestUnsent(t *testing.T) {
	s := &Stream{}
	client, server, done := run(t, s)
	server.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for {
		if _, err := server.Write(make([]byte, 64<<10)); err != nil {
			break // nobody takes more
		}
	}
	time.Sleep(blockedAfter)
	if toClient, toServer := s.Unsent(); toClient == 0 || toServer != 0 {
		t.Errorf("%d and %d octets wait", toClient, toServer)
	}
	client.SetLinger(0)
	client.Close()
	if r := <-done; r.ByServer || r.Err == nil {
		t.Errorf("%+v, want the client's reset", r)
	}
}

// The deadline of a write that had to wait does not end a later one; a side that takes
// nothing for so long ends the session.
func TestWriteTimeout(t *testing.T) {
	defer func(d time.Duration) { writeTimeout = d }(writeTimeout)
	writeTimeout = 300 * time.Millisecond
	s := &Stream{}
	client, server, done := run(t, s)
	go server.Write(make([]byte, 16<<20)) // ends when the client has taken all
	for s.since[toClient].Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := io.ReadFull(client, make([]byte, 16<<20)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * writeTimeout)
	server.Write([]byte("later"))
	if _, err := io.ReadFull(client, make([]byte, 5)); err != nil {
		t.Fatalf("after the time of the first write: %v", err)
	}
	server.Write(make([]byte, 16<<20))
	if r := <-done; r.ByServer || r.Err == nil {
		t.Errorf("%+v, want an end by the client, who takes nothing", r)
	}
}

// Which side it was: a server that resets while the client sends has ended, not the client.
func TestServerIsReset(t *testing.T) {
	client, server, done := run(t, &Stream{})
	server.SetLinger(0)
	server.Close()
	client.Write([]byte("x"))
	if r := <-done; !r.ByServer || r.Err == nil {
		t.Errorf("%+v, want a reset by the server", r)
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	client, server, done := run(b, &Stream{})
	buf := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		client.Write(buf)
		io.ReadFull(server, buf)
		server.Write(buf)
		io.ReadFull(client, buf)
	}
	server.Close()
	client.Close()
	<-done
}
