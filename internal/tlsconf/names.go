package tlsconf

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"sync"
)

// CleanName returns the server name of a ClientHello in lower case, or "" if no host can
// have it: local_name blocks are asked for what strangers send (clauses P2.3, P2.10).
func CleanName(serverName string) string {
	if len(serverName) > 253 {
		return ""
	}
	for i := range len(serverName) {
		c := serverName[i] | 0x20
		if !(c >= 'a' && c <= 'z' || serverName[i] >= '0' && serverName[i] <= '9' || strings.IndexByte("-._", serverName[i]) >= 0) {
			return ""
		}
	}
	return strings.ToLower(serverName)
}

// Names remembers what lookup says about the names in ClientHellos, whatever that is: a
// tls.Config, settings with one, or nothing (a name without settings of its own is
// remembered just the same). Each name is asked for once at a time. An error is not
// remembered.
//
// Strangers choose the names, so no more than max are held. Those that have been asked for
// again since half of them were new stay.
type Names[V any] struct {
	lookup func(ctx context.Context, name string) (V, error)
	half   int

	mu         sync.Mutex
	young, old map[string]*answer[V] // guarded by mu
}

var errPanicked = errors.New("the lookup of a server name panicked")

// An answer is there when done is closed; then it does not change any more.
type answer[V any] struct {
	done   chan struct{}
	value  V
	err    error
	gaveUp bool // the asker's context ended
}

// NewNames returns an empty Names that holds at most max names (2 at least). lookup is
// called with the context of one of those who ask, and a name from CleanName.
func NewNames[V any](max int, lookup func(ctx context.Context, name string) (V, error)) *Names[V] {
	return &Names[V]{lookup: lookup, half: max / 2, young: map[string]*answer[V]{}}
}

// Get returns what is known of a name, which may be as the client sent it. If someone else
// is just asking for it, Get waits for that, or for the end of ctx.
func (n *Names[V]) Get(ctx context.Context, serverName string) (V, error) {
	name := CleanName(serverName)
	for {
		a, mine := n.answer(name)
		if mine {
			n.ask(ctx, name, a)
			return a.value, a.err
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			var none V
			return none, context.Cause(ctx)
		}
		if a.gaveUp && ctx.Err() == nil {
			continue // whoever asked did not wait for the answer
		}
		return a.value, a.err
	}
}

// answer returns what is known or will be; mine: the caller is to ask.
func (n *Names[V]) answer(name string) (a *answer[V], mine bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a := n.young[name]; a != nil {
		return a, false
	}
	if a = n.old[name]; a == nil {
		a, mine = &answer[V]{done: make(chan struct{})}, true
	}
	n.putLocked(name, a)
	return a, mine
}

// ask fills in a. An error does not stay.
func (n *Names[V]) ask(ctx context.Context, name string, a *answer[V]) {
	a.err = errPanicked
	defer func() {
		a.gaveUp = a.err != nil && ctx.Err() != nil
		if a.err != nil {
			n.mu.Lock()
			for _, m := range []map[string]*answer[V]{n.young, n.old} {
				if m[name] == a {
					delete(m, name)
				}
			}
			n.mu.Unlock()
		}
		close(a.done)
	}()
	a.value, a.err = n.lookup(ctx, name)
}

func (n *Names[V]) putLocked(name string, a *answer[V]) {
	if len(n.young) >= max(n.half, 1) {
		n.old, n.young = n.young, map[string]*answer[V]{}
	}
	n.young[name] = a
}

// ByName returns a copy of base that takes each connection's configuration from choose.
// choose sees the name in hello.ServerName and the connection that was given to tls.Server
// in hello.Conn; nil means base, an error ends the handshake with an alert. Session
// tickets are sealed with base's keys throughout, whatever choose returns, also where each
// connection has a copy of its own.
func ByName(base *tls.Config, choose func(hello *tls.ClientHelloInfo) (*tls.Config, error)) *tls.Config {
	// A configuration makes its ticket keys when they are first needed, which base, used in
	// copies only, would never see.
	_, _ = base.EncryptTicket(tls.ConnectionState{}, &tls.SessionState{})
	c := base.Clone()
	c.GetConfigForClient = choose
	return c
}
