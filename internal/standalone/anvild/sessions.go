package anvild

import (
	"errors"
	"sync"

	"dovetail/internal/dovecot/anvil"
)

// maxSessions bounds the pairs of process and ident: whoever holds the pipe can report
// what he likes.
const maxSessions = 1 << 20

var errFull = errors.New("too many sessions, more are not counted")

// sessions counts the sessions of idents, as whole and by process.
type sessions struct {
	mu     sync.Mutex
	idents map[string]int         // guarded by mu; ident -> sessions, never 0
	pids   map[int]map[string]int // guarded by mu; process -> ident -> sessions, never 0
	pairs  int                    // guarded by mu; of process and ident
	full   bool                   // guarded by mu; errFull was told
}

func (s *sessions) init() {
	s.idents = map[string]int{}
	s.pids = map[int]map[string]int{}
}

// connect counts one more. errFull is returned once, until there is room again.
func (s *sessions) connect(pid int, ident string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.pids[pid]
	if of[ident] == 0 {
		if s.pairs >= maxSessions {
			if s.full {
				return nil
			}
			s.full = true
			return errFull
		}
		s.pairs++
		s.full = false
	}
	if of == nil {
		of = map[string]int{}
		s.pids[pid] = of
	}
	of[ident]++
	s.idents[ident]++
	return nil
}

// disconnect counts one less; false: there was none.
func (s *sessions) disconnect(pid int, ident string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pids[pid][ident] == 0 {
		return false
	}
	s.removeLocked(pid, ident, 1)
	return true
}

// kill forgets all sessions of a process.
func (s *sessions) kill(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ident, n := range s.pids[pid] {
		s.removeLocked(pid, ident, n)
	}
}

func (s *sessions) removeLocked(pid int, ident string, n int) {
	of := s.pids[pid]
	if of[ident] -= n; of[ident] == 0 {
		delete(of, ident)
		s.pairs--
	}
	if len(of) == 0 {
		delete(s.pids, pid)
	}
	if s.idents[ident] -= n; s.idents[ident] == 0 {
		delete(s.idents, ident)
	}
}

// count returns the sessions of an ident.
func (s *sessions) count(ident string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idents[ident]
}

// dump adds all lines and the empty one. They are copied first: out may have to wait.
func (s *sessions) dump(out *answers) {
	s.mu.Lock()
	b := make([]byte, 0, 64*s.pairs)
	for pid, of := range s.pids {
		for ident, n := range of {
			b = anvil.AppendConnection(b, ident, pid, n)
		}
	}
	s.mu.Unlock()
	out.add(func(o []byte) []byte { return append(append(o, b...), '\n') })
}
