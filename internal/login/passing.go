package login

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dovetail/internal/dovecot/ipc"
	"dovetail/internal/login/proxy"
	"dovetail/internal/rawlog"
	"dovetail/internal/splice"
)

const (
	idleAtEnd = 2 * time.Second // at a shutdown: a proxied session so quiet is cut
	mostAtEnd = 4 * time.Second // ... and any other one after this

	killed       = "Disconnected by proxy: "
	killedAtEnd  = killed + "Process shutting down"
	killedByHand = killed + "Kicked by admin"
)

// proxied is a session that is being logged in at a backend, or passed on to it.
type proxied struct {
	target     *proxy.Target
	began      time.Time
	source     netip.Addr // from which it is reached; invalid: the system chose
	sourcePort uint16     // from which it is reached
	reconnects int
	host       proxy.Login    // of the login that worked
	session    proxy.Session  // ... which this then is
	rawlog     *rawlog.Log    // of what passes between us and the backend; may be nil
	sent       uint64         // to the backend, before octets were passed
	out        uint64         // ... and to the client
	stream     *splice.Stream // set by start
	over       atomic.Bool    // nothing passes any more
	number     uint64         // in the order of registration

	mu    sync.Mutex
	addr  netip.AddrPort // guarded by mu: where it is, or is tried
	ended string         // guarded by mu: why this process ended it
}

func (p *proxied) at() netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}

func (p *proxied) move(addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addr = addr
}

// start makes p a session that is passed on. early is what the client has sent already.
func (p *proxied) start(se *session, b *proxy.Backend, early []byte) {
	p.session, p.sent, p.out = p.host.Passed(), b.Sent, se.c.Stats().Out
	se.events.proxyEstablished(p, b.End.Conn.LocalAddr())
	stream := &splice.Stream{
		Client: se.clientEnd(), Server: b.End, Go: se.client.Go,
		ToServer: early, ToClient: b.Early,
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream = stream
	if p.ended != "" { // just now, by an admin
		stream.Leave()
	}
}

// runProxy makes the stream that passes octets until one side ends, and logs that.
func (se *session) runProxy(ctx context.Context) (stream *splice.Stream, over func()) {
	p := se.passing
	p.target.Forward = nil // what is idle for hours keeps little
	se.s.titles.at(se, proxying)
	se.client.Identify(p.target.User, se.remote.Addr())
	stop := context.AfterFunc(ctx, func() {
		if se.s.proc.Context().Err() == nil { // it is this session alone
			p.kick(se)
			return
		}
		p.shutdown()
	})
	stayed := false
	p.stream.Ended = func(r splice.Result) time.Duration {
		p.over.Store(true)
		se.s.unregister(p)
		stay := se.proxyEnded(r)
		stayed = stay > 0
		return stay
	}
	return p.stream, func() {
		stop()
		p.rawlog.Close()
		if stayed {
			p.session.Left()
		}
	}
}

// proxyEnded logs the end of a session, and says how long its client stays connected.
func (se *session) proxyEnded(r splice.Result) (stay time.Duration) {
	p, st := se.passing, se.passing.stream
	p.mu.Lock()
	text := p.ended
	p.mu.Unlock()
	se.events.proxyFinished(p, text, r)
	if text == killedByHand || text == "" && r.ByServer {
		stay = p.session.Leave(se.view.set.ProxyMaxDisconnect)
	} else {
		p.session.Close()
	}
	if text == "" {
		text = "Disconnected by client"
		if r.ByServer {
			text = "Disconnected by server"
		}
		if r.Err != nil {
			text += ": " + plainError(r.Err)
		}
		client, server := st.Unsent()
		text += fmt.Sprintf(" (%ds idle, in=%d, out=%d", int(st.Idle()/time.Second), p.sent+st.In(), p.out+st.Out())
		if client > 0 {
			text += fmt.Sprintf("+%d, client output blocked", client)
		}
		if server > 0 {
			text += ", server output blocked"
		}
		text += ")"
	}
	if stay > 0 {
		text += fmt.Sprintf(" - disconnecting client in %dms", stay.Milliseconds())
	}
	se.log.line(se.proxyName() + text)
	return stay
}

// shutdown ends a session with the process: at once if nothing passes, or else in a moment.
func (p *proxied) shutdown() {
	end := time.Now().Add(mostAtEnd)
	for !p.over.Load() {
		wait := min(idleAtEnd-p.stream.Idle(), time.Until(end))
		if wait <= 0 {
			p.end(killedAtEnd, (*splice.Stream).Close)
			return
		}
		time.Sleep(min(wait, idleAtEnd/10))
	}
}

// end ends a session that is passed on. how: with its client, or without.
func (p *proxied) end(why string, how func(*splice.Stream)) {
	p.mu.Lock()
	if p.ended == "" {
		p.ended = why
	}
	p.mu.Unlock()
	how(p.stream)
}

// kick ends a session for an admin.
func (p *proxied) kick(se *session) {
	p.mu.Lock()
	if p.ended == "" {
		p.ended = killedByHand
	}
	stream := p.stream
	p.mu.Unlock()
	if stream != nil {
		stream.Leave()
		return
	}
	se.endBare(killedByHand)
}

// register makes a proxied session known to doveadm. The first one connects the process to
// the ipc service (clause P8.3), where there is one.
func (s *process) register(se *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proxied == nil {
		s.proxied = map[*proxied]*session{}
		if _, err := os.Stat(ipc.Path); !errors.Is(err, os.ErrNotExist) {
			srv := ipc.NewServer(s, s.log)
			go srv.Run(s.proc.Context(), ipc.Path, os.Getpid()) // ends with the process
			s.proc.AtExit(srv.Settle)
		}
	}
	s.proxiedEver++
	se.passing.number = s.proxiedEver
	s.proxied[se.passing] = se
	se.events.proxyStarted(se.passing, se.auth.user)
}

func (s *process) unregister(p *proxied) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.proxied, p)
}

// each calls f with the proxied sessions, newest first.
func (s *process) each(f func(*proxied, *session)) {
	s.mu.Lock()
	all := maps.Clone(s.proxied)
	s.mu.Unlock()
	list := slices.SortedFunc(maps.Keys(all), func(a, b *proxied) int { return cmp.Compare(b.number, a.number) })
	for _, p := range list {
		f(p, all[p])
	}
}

// List implements ipc.Sessions.
func (s *process) List() (list []ipc.Session) {
	s.each(func(p *proxied, se *session) { list = append(list, p.ipc(se)) })
	return list
}

// Kick implements ipc.Sessions.
func (s *process) Kick(match func(ipc.Session) bool) (count int) {
	s.each(func(p *proxied, se *session) {
		if match(p.ipc(se)) {
			p.kick(se)
			count++
		}
	})
	return count
}

func (p *proxied) ipc(se *session) ipc.Session {
	s := ipc.Session{User: p.target.User, Service: "submission", Source: se.remote.Addr(), Dest: p.at()}
	for _, f := range p.target.Alt {
		s.Alt = append(s.Alt, ipc.Field{Name: f.Key, Value: f.Value})
	}
	return s
}

// sourceIPs reads login_source_ips. With a ? before them, addresses that are not this
// machine's are left out.
func sourceIPs(setting string) (ips []netip.Addr, err error) {
	list, onlyOurs := strings.CutPrefix(strings.TrimSpace(setting), "?")
	for _, w := range strings.Fields(strings.ReplaceAll(list, ",", " ")) {
		ip, perr := netip.ParseAddr(w)
		if perr != nil {
			return nil, fmt.Errorf("login_source_ips: %q is not an IP address", w)
		}
		if onlyOurs && !canBind(ip) {
			continue
		}
		ips = append(ips, ip.Unmap())
	}
	return ips, nil
}
