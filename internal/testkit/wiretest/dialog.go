package wiretest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// replayTimeout is how long a replayed peer waits for the client.
const replayTimeout = 20 * time.Second

// A Tape is what passed on a connection to a line protocol's server, one line after the
// other:
//
//	C: "VERSION\t1\t2\n"     from the client
//	S: "DONE\n"              from the server
//
// Its methods are safe for concurrent use.
type Tape struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
	rest [2][]byte    // guarded by mu: octets that end no line yet
}

// String returns the tape's text.
func (t *Tape) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

func (t *Tape) add(who int, b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest[who] = append(t.rest[who], b...)
	for {
		i := bytes.IndexByte(t.rest[who], '\n')
		if i < 0 {
			return
		}
		fmt.Fprintf(&t.text, "%c: %q\n", "CS"[who], t.rest[who][:i+1])
		t.rest[who] = t.rest[who][i+1:]
	}
}

// Record returns nc, which writes what passes to the tape.
func (t *Tape) Record(nc net.Conn) net.Conn { return &taped{nc, t} }

type taped struct {
	net.Conn
	t *Tape
}

func (c *taped) Write(b []byte) (int, error) {
	c.t.add(0, b) // before the answer can come
	return c.Conn.Write(b)
}

func (c *taped) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.t.add(1, b[:n])
	return n, err
}

// Replay returns a connection to a server that says what the tape in the file says, and
// fails the test when the client says something else. Lines that are neither are left out.
func Replay(t testing.TB, path string) net.Conn {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	_ = there.SetDeadline(time.Now().Add(replayTimeout))
	done := make(chan error, 1)
	go func() { done <- play(there, string(text)) }() // ends with the tape, or when the client closes
	t.Cleanup(func() {
		here.Close()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", path, err)
		}
	})
	return here
}

func play(nc net.Conn, text string) error {
	for n, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, "C: ") && !strings.HasPrefix(line, "S: ") {
			continue
		}
		want, err := strconv.Unquote(line[3:])
		if err != nil {
			return fmt.Errorf("line %d: %w", n+1, err)
		}
		if line[0] == 'S' {
			_, err = io.WriteString(nc, want)
		} else {
			got := make([]byte, len(want))
			if _, err = io.ReadFull(nc, got); err == nil && string(got) != want {
				err = fmt.Errorf("the client says %q, want %q", got, want)
			}
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	_, err := nc.Read(make([]byte, 1))
	if err == nil {
		return fmt.Errorf("the client says more than what is on the tape")
	}
	return nil
}
