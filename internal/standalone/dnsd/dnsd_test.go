package dnsd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"dovetail/internal/dovecot/dns"
	"dovetail/internal/process/event"
)

// names is a resolver that knows a few.
type names struct{}

func (names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	switch host {
	case "localhost":
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	case "two.test":
		return []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, nil
	case "later.test":
		return nil, &net.DNSError{Err: "server misbehaving", IsTemporary: true}
	case "slow.test":
		return nil, context.DeadlineExceeded
	}
	return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
}

func (names) LookupAddr(_ context.Context, addr string) ([]string, error) {
	if addr == "127.0.0.1" {
		return []string{"localhost", "other"}, nil
	}
	if addr == "192.0.2.3" {
		return []string{"odd\tname.test."}, nil
	}
	return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
}

// serve returns the client's end of a connection.
func serve(t *testing.T) (net.Conn, *[]string) {
	t.Helper()
	var lines []string
	log := event.New(event.SinkFunc(func(_ event.Level, _, text string) { lines = append(lines, text) }), "", false)
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() { // ends when here is closed
		defer close(done)
		defer there.Close()
		New(names{}, log).Serve(context.Background(), there)
	}()
	t.Cleanup(func() { here.Close(); <-done })
	here.SetDeadline(time.Now().Add(10 * time.Second))
	return here, &lines
}

// The questions that were recorded from the real service get the same answers.
func TestAsDovecot(t *testing.T) {
	golden, err := os.ReadFile("../../dovecot/dns/testdata/service.golden")
	if err != nil {
		t.Fatal(err)
	}
	c, _ := serve(t)
	br := bufio.NewReader(c)
	for n, l := range strings.Split(strings.TrimSpace(string(golden)), "\n") {
		text, err := strconv.Unquote(l[3:])
		if err != nil {
			t.Fatal(err)
		}
		if l[0] == 'C' {
			io.WriteString(c, text+"\n")
			continue
		}
		got, err := br.ReadString('\n')
		if err != nil || got != text {
			t.Errorf("line %d: %q, %v, want %q", n+1, got, err, text)
		}
		if n == 0 {
			io.WriteString(c, "VERSION\tdns-client\t1\t0\n")
		}
	}
	io.WriteString(c, "QUIT\n")
	if _, err := br.ReadString('\n'); err != io.EOF {
		t.Errorf("%v, want the end", err)
	}
}

// Our own client understands it.
func TestWithClient(t *testing.T) {
	path := t.TempDir() + "/dns-client"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends when l is closed
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			New(names{}, nil).Serve(context.Background(), c)
			c.Close()
		}
	}()
	c := dns.NewClient(path)
	defer func() { c.Close(); l.Close(); <-done }()
	if addrs, err := c.Lookup(t.Context(), "two.test"); err != nil || len(addrs) != 2 || addrs[0].String() != "192.0.2.1" {
		t.Error(addrs, err)
	}
	for name, code := range map[string]int{"none.test": noName, "later.test": again, "slow.test": again} {
		var no *dns.Error
		if _, err := c.Lookup(t.Context(), name); !errors.As(err, &no) || no.Code != code {
			t.Errorf("%s: %v", name, err)
		}
	}
	if name, err := c.LookupAddr(t.Context(), netip.MustParseAddr("192.0.2.3")); err != nil || name != "odd\tname.test" {
		t.Error(name, err)
	}
}

// Who breaks the rules is left.
func TestRefuses(t *testing.T) {
	for _, said := range []string{
		"VERSION\tdns\t1\t0\n", "VERSION\tdns-client\t2\t0\n", "EHLO x\n", "VERSION\tdns-client\t1\t0\nIP\n",
		"VERSION\tdns-client\t1\t0\nIP\t" + strings.Repeat("x", maxLine) + "\n",
	} {
		c, lines := serve(t)
		br := bufio.NewReader(c)
		br.ReadString('\n')
		io.WriteString(c, said)
		if got, err := br.ReadString('\n'); err == nil {
			t.Errorf("%.40q: answered with %q", said, got)
		}
		c.Close()
		if len(*lines) != 1 {
			t.Errorf("%.40q: log %q", said, *lines)
		}
	}
}

// A process may end with an answer unread: that is nobody's mistake.
func TestLeavesAnswerUnread(t *testing.T) {
	l, err := net.Listen("unix", t.TempDir()+"/dns-client")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	log := event.New(event.SinkFunc(func(_ event.Level, _, text string) { t.Errorf("logged %q", text) }), "", false)
	done := make(chan struct{})
	go func() { // ends when c is closed
		defer close(done)
		New(names{}, log).Serve(context.Background(), there)
	}()
	io.WriteString(c, "VERSION\tdns-client\t1\t0\n")
	br := bufio.NewReader(c)
	br.ReadString('\n')
	io.WriteString(c, "IP\tlocalhost\n")
	br.Peek(1)
	io.WriteString(c, "IP\tlocalhost\n") // whose answer is not read
	time.Sleep(10 * time.Millisecond)
	c.Close()
	<-done
}
