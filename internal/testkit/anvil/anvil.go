// Package anvil is an anvil service for tests: a socket that answers LOOKUP with what the
// test sets (and counts CONNECT and DISCONNECT, as the real one does), and the pipe that
// programs have as descriptor 3 (clause P6). It keeps every line.
package anvil

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const waitTimeout = 10 * time.Second

// A Server is a running service. Its methods are safe for concurrent use.
type Server struct {
	Path string   // of the socket
	Pipe *os.File // write end of the pipe, for descriptor 3 of a child; lent

	t testing.TB

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at each change; guarded by mu, like all below
	counts   map[string]int
	mute     bool
	lines    []string
	conns    map[net.Conn]bool
	listener net.Listener
	wg       sync.WaitGroup
}

// Start runs the service in dir until the test ends.
func Start(t testing.TB, dir string) *Server {
	t.Helper()
	s := &Server{Path: filepath.Join(dir, "anvil"), t: t, counts: map[string]int{}, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.Pipe = w
	if s.listener, err = net.Listen("unix", s.Path); err != nil {
		t.Fatal(err)
	}
	s.wg.Add(2)
	go func() { // ends when the last write end of the pipe is closed
		defer s.wg.Done()
		defer r.Close()
		s.read(r, func(string) {})
	}()
	go s.accept() // ends with the listener
	t.Cleanup(s.Stop)
	return s
}

// Stop closes the socket, its connections and our end of the pipe. It waits for the other
// ends: programs that hold the pipe have to be gone.
func (s *Server) Stop() {
	s.Pipe.Close()
	s.Drop()
	s.listener.Close()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }() // ends with the goroutines above
	select {
	case <-done:
	case <-time.After(waitTimeout):
		s.t.Error("anvil: somebody still holds the pipe")
	}
}

// Drop closes the connections.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Set makes LOOKUP of "submission/192.0.2.1/alice" answer n.
func (s *Server) Set(ident string, n int) { s.change(func() { s.counts[ident] = n }) }

// Count returns what LOOKUP would answer.
func (s *Server) Count(ident string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[ident]
}

// Mute makes the service answer nothing any more.
func (s *Server) Mute() { s.change(func() { s.mute = true }) }

// Lines returns what came so far, by socket and pipe, versions left out.
func (s *Server) Lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

// Wait waits for a line that begins with prefix and returns the first one.
func (s *Server) Wait(prefix string) string {
	s.t.Helper()
	timer := time.NewTimer(waitTimeout)
	defer timer.Stop()
	for {
		s.mu.Lock()
		changed := s.changed
		for _, l := range s.lines {
			if strings.HasPrefix(l, prefix) {
				s.mu.Unlock()
				return l
			}
		}
		s.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			s.t.Fatalf("anvil: no line %q came: %q", prefix, s.Lines())
		}
	}
}

func (s *Server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		nc, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[nc] = true
		s.mu.Unlock()
		s.wg.Add(1)
		go func() { // ends with the connection
			defer s.wg.Done()
			defer nc.Close()
			s.read(nc, func(answer string) { _, _ = io.WriteString(nc, answer) })
		}()
	}
}

// read takes lines until the end.
func (s *Server) read(r io.Reader, answer func(string)) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line := sc.Text()
		verb, rest, _ := strings.Cut(line, "\t")
		if verb == "VERSION" {
			continue
		}
		s.change(func() {
			s.lines = append(s.lines, line)
			_, ident, _ := strings.Cut(rest, "\t")
			switch verb {
			case "CONNECT":
				s.counts[ident]++
			case "DISCONNECT":
				s.counts[ident] = max(0, s.counts[ident]-1)
			}
		})
		s.mu.Lock()
		n, mute := s.counts[rest], s.mute
		s.mu.Unlock()
		if verb == "LOOKUP" && !mute {
			answer(fmt.Sprintf("%d\n", n))
		}
	}
}
