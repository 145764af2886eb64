package mailbox

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// A Fake is an IMAP server that knows logins and URLFETCH, and does at these what a test
// says.
type Fake struct {
	Addr string
	Port uint16

	mu     sync.Mutex
	lines  []string // guarded by mu: what clients sent, but for passwords
	logins int      // guarded by mu
}

// A FakeBehaviour is what a Fake does otherwise than an honest server.
type FakeBehaviour struct {
	Greeting string // with its line end; "" is the usual one
	Caps     string // "" is "IMAP4rev1 SASL-IR AUTH=PLAIN URLAUTH URLAUTH=BINARY"
	Login    string // what stands behind the tag in answer to a login; "" is OK

	// Fetch answers the nth URLFETCH, from 1; "" as tag closes. Nil answers NIL.
	Fetch func(n int, tag, url string, w io.Writer) (goOn bool)
}

// StartFake runs a server until the test ends.
func StartFake(t testing.TB, b FakeBehaviour) *Fake {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &Fake{Addr: l.Addr().String(), Port: uint16(l.Addr().(*net.TCPAddr).Port)}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	fetches := 0
	wg.Go(func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() { // ends with c
				defer c.Close()
				f.serve(b, c, func() int {
					mu.Lock()
					defer mu.Unlock()
					fetches++
					return fetches
				})
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return f
}

func (f *Fake) serve(b FakeBehaviour, c net.Conn, count func() int) {
	if b.Greeting == "" {
		b.Greeting = "* OK ready\r\n"
	}
	if b.Caps == "" {
		b.Caps = "IMAP4rev1 SASL-IR AUTH=PLAIN URLAUTH URLAUTH=BINARY"
	}
	if b.Login == "" {
		b.Login = "OK in"
	}
	_, _ = io.WriteString(c, b.Greeting)
	for lines := bufio.NewScanner(c); lines.Scan(); {
		tag, rest, _ := strings.Cut(lines.Text(), " ")
		word, args, _ := strings.Cut(rest, " ")
		f.note(word)
		switch word {
		case "CAPABILITY":
			fmt.Fprintf(c, "* CAPABILITY %s\r\n%s OK\r\n", b.Caps, tag)
		case "AUTHENTICATE", "LOGIN":
			fmt.Fprintf(c, "%s %s\r\n", tag, b.Login)
		case "URLFETCH":
			url := strings.Trim(strings.TrimSuffix(args, " BODY)"), `("`)
			if b.Fetch == nil {
				fmt.Fprintf(c, "* URLFETCH %q NIL\r\n%s OK\r\n", url, tag)
			} else if !b.Fetch(count(), tag, url, c) {
				return
			}
		case "LOGOUT":
			fmt.Fprintf(c, "* BYE\r\n%s OK\r\n", tag)
			return
		default:
			fmt.Fprintf(c, "%s BAD unknown\r\n", tag)
		}
	}
}

func (f *Fake) note(word string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lines = append(f.lines, word)
	if word == "AUTHENTICATE" || word == "LOGIN" {
		f.logins++
	}
}

// Logins is how many there were.
func (f *Fake) Logins() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.logins
}

// Commands are the words of all commands so far.
func (f *Fake) Commands() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.lines, " ")
}

// Answer sends data as the answer to a URLFETCH, to one who asks for BODY, in a literal
// that says it has size octets.
func Answer(w io.Writer, tag, url string, size int, data []byte) {
	fmt.Fprintf(w, "* URLFETCH %q (BODY {%d}\r\n", url, size)
	_, _ = w.Write(data)
	fmt.Fprintf(w, ")\r\n%s OK done\r\n", tag)
}
