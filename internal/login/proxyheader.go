package login

import (
	"net/netip"
	"time"

	"dovetail/internal/haproxy"
)

// readProxyHeader reads the PROXY header that a load balancer puts before everything
// (clause S1.17). It says false if there is none, or from someone who may not send it.
func (se *session) readProxyHeader() bool {
	fail := func(why string) bool {
		se.s.log.Error("haproxy: %s (rip=%s)", why, se.realRemote.Addr())
		return false
	}
	if !contains(se.view.haproxy, se.realRemote.Addr()) {
		return fail("Client not trusted")
	}
	se.sock.SetReadDeadline(time.Now().Add(se.view.set.HAProxyTimeout))
	h, err := haproxy.Read(se.sock)
	switch {
	case se.ctx.Err() != nil:
		return false
	case haproxy.IsTimeout(err):
		return fail("Client timed out")
	case err != nil:
		return fail("Client disconnected: Failed to read valid HAproxy data")
	}
	se.sock.SetReadDeadline(time.Time{})
	se.byHAProxy = true
	if h.Local {
		return true
	}
	if h.Source.IsValid() {
		se.remote, se.local = h.Source, h.Destination
		se.realRemote, se.realLocal = h.Source, h.Destination
		v, err := se.s.view(addresses{se.local.Addr(), se.remote.Addr()})
		if err != nil {
			return false
		}
		se.view = v
	}
	if h.TLS {
		se.proxiedTLS = true
		se.certOK = h.CertOK
		se.certUser = h.CommonName
		se.localName = h.ServerName
	}
	return true
}

func addrPortFrom(ip netip.Addr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(ip.Unmap(), port)
}
