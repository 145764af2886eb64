package login

import (
	"fmt"
	"sync"
)

// A stage is where a session is, as the process's title counts them (clause S10.11).
type stage uint8

const (
	preLogin stage = iota
	proxying       // passed on to a backend
	tlsProxy       // between a client with TLS and its worker
	stages         // how many there are
)

var stageNames = [stages]string{"pre-login", "proxy", "TLS proxy"}

// titles shows in ps what the process does, with verbose_proctitle: "[192.0.2.7 TLS proxy]",
// or "[3 pre-login + 10 proxies + 2 TLS proxies]". Any goroutine may call its methods; for
// the nil titles they do nothing.
type titles struct {
	show func(string)

	mu    sync.Mutex
	all   map[*session]titled // guarded by mu
	count [stages]int         // guarded by mu
}

type titled struct {
	stage stage
	ip    string
}

func newTitles(show func(string)) *titles { return &titles{show: show, all: map[*session]titled{}} }

// at says where a session is now.
func (t *titles) at(se *session, s stage) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(se)
	t.all[se] = titled{s, ipText(se.remote)}
	t.count[s]++
	t.show(t.textLocked())
}

// gone says that a session is over.
func (t *titles) gone(se *session) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(se)
	t.show(t.textLocked())
}

func (t *titles) removeLocked(se *session) {
	if old, ok := t.all[se]; ok {
		t.count[old.stage]--
		delete(t.all, se)
	}
}

func (t *titles) textLocked() string {
	switch len(t.all) {
	case 0:
		return ""
	case 1:
		for _, x := range t.all {
			if x.ip == "" {
				return stageNames[x.stage]
			}
			return x.ip + " " + stageNames[x.stage]
		}
	}
	text := fmt.Sprintf("%d pre-login", t.count[preLogin])
	if n := t.count[proxying]; n > 0 {
		text += fmt.Sprintf(" + %d proxies", n)
	}
	if n := t.count[tlsProxy]; n > 0 {
		text += fmt.Sprintf(" + %d TLS proxies", n)
	}
	return text
}
