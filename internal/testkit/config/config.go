// Package config is a config service for tests: a socket that answers requests from a map
// (clause P2). It keeps every request.
package config

import (
	"bufio"
	"net"
	"sync"
	"testing"

	"dovetail/internal/dovecot/config"
)

// A Server is a running service. Its methods are safe for concurrent use.
type Server struct {
	Path string

	t testing.TB
	l net.Listener

	mu       sync.Mutex
	answer   func(config.Request) config.Answer // guarded by mu, like all below
	requests []config.Request
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
}

// Start serves values on a socket at path until the test ends, whatever is asked.
func Start(t testing.TB, path string, values map[string]string) *Server {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Path: path, t: t, l: l, conns: map[net.Conn]bool{}}
	s.Set(values)
	s.wg.Add(1)
	go s.accept() // ends with the listener
	t.Cleanup(s.Stop)
	return s
}

// Set makes later answers have these values.
func (s *Server) Set(values map[string]string) {
	s.Answer(func(config.Request) config.Answer { return config.Answer{Values: values} })
}

// Answer makes f give later answers: by local name, with header words.
func (s *Server) Answer(f func(config.Request) config.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

// Requests returns what was asked so far.
func (s *Server) Requests() []config.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]config.Request(nil), s.requests...)
}

// Drop closes the connections, as a config process does after a reload.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Stop closes the socket and the connections.
func (s *Server) Stop() {
	s.l.Close()
	s.Drop()
	s.wg.Wait()
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		nc, err := s.l.Accept()
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
			s.serve(nc)
		}()
	}
}

func (s *Server) serve(nc net.Conn) {
	sc := bufio.NewScanner(nc)
	for first := true; sc.Scan(); first = false {
		cmd, req, err := config.ParseLine(sc.Text(), first)
		if err != nil {
			return
		}
		switch cmd {
		case config.Ask:
			s.mu.Lock()
			s.requests = append(s.requests, req)
			answer := s.answer
			s.mu.Unlock()
			_, err = nc.Write(answer(req).Append(nil))
		case config.Filters:
			_, err = nc.Write([]byte("\n"))
		}
		if err != nil {
			return
		}
	}
}
