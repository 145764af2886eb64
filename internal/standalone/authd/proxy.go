package authd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	resolveTimeout = 10 * time.Second // unless the field proxy_timeout says another
	resolveSlow    = 500 * time.Millisecond
	resolveKeep    = time.Minute
	resolveEntries = 1024
)

// A Resolver finds addresses, as net.Resolver does.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// A hostCache remembers addresses for a minute. Several who ask for the same host wait for
// one answer.
type hostCache struct {
	resolver Resolver
	mu       sync.Mutex
	hosts    map[string]*host // guarded by mu
}

type host struct {
	done  chan struct{} // closed when ips and err are set
	ips   []netip.Addr
	err   error
	until time.Time
}

var errTimedOut = dovecots("Timed out")

func newHostCache(r Resolver) *hostCache {
	if r == nil {
		r = net.DefaultResolver
	}
	return &hostCache{resolver: r, hosts: map[string]*host{}}
}

func (c *hostCache) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	c.mu.Lock()
	h := c.hosts[name]
	if h != nil {
		select {
		case <-h.done:
			if time.Now().After(h.until) {
				h = nil
			}
		default:
		}
	}
	if h == nil {
		for old := range c.hosts { // any one: it is asked for again
			if len(c.hosts) < resolveEntries {
				break
			}
			delete(c.hosts, old)
		}
		h = &host{done: make(chan struct{})}
		c.hosts[name] = h
		go c.fill(h, name) // ends with the resolver's answer, after resolveTimeout at the latest
	}
	c.mu.Unlock()
	select {
	case <-h.done:
		return h.ips, h.err
	case <-ctx.Done():
		return nil, errTimedOut
	}
}

func (c *hostCache) fill(h *host, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	h.ips, h.err = c.resolver.LookupNetIP(ctx, "ip", name)
	if h.err == nil && len(h.ips) == 0 {
		h.err = errors.New("no addresses")
	}
	var dns *net.DNSError
	switch {
	case h.err != nil && ctx.Err() != nil:
		h.err = errTimedOut
	case errors.As(h.err, &dns):
		h.err = errors.New(dns.Err) // without the name, which the log line has
	}
	h.until = time.Now().Add(resolveKeep)
	if h.err != nil {
		h.until = time.Now() // the next one asks again
	}
	close(h.done)
}

// finishProxy finds the address of a proxied login, and whether it is our own. An error
// was logged; temporary says that it may go away.
func (r *request) finishProxy() (temporary bool, err error) {
	if !r.pend.conn.kind.claims {
		return false, nil
	}
	return r.resolveProxy()
}

func (r *request) resolveProxy() (temporary bool, err error) {
	if !r.extra.has("proxy") && !r.extra.has("proxy_maybe") {
		return false, nil
	}
	name, ok := r.extra.get("host")
	if !ok {
		if r.localIP.IsValid() {
			r.extra.add("lip", r.localIP.String(), false)
		}
		if r.localPort != 0 {
			r.extra.add("lport", strconv.Itoa(int(r.localPort)), false)
		}
		r.proxyMaybe(false)
		return false, nil
	}
	ip, err := netip.ParseAddr(name)
	if err != nil {
		if text, ok := r.extra.get("hostip"); ok {
			if ip, err = netip.ParseAddr(text); err != nil {
				r.logError("Invalid hostip in passdb: %s", text)
				return false, err
			}
		}
	}
	if err == nil {
		r.proxyMaybe(r.isSelf(ip))
		return false, nil
	}
	timeout := resolveTimeout
	if text, ok := r.extra.get("proxy_timeout"); ok {
		if n, err := strconv.ParseUint(text, 10, 31); err != nil {
			r.logError("Invalid proxy_timeout value: %s", text)
		} else {
			timeout = time.Duration(n) * time.Second
		}
	}
	ctx, cancel := context.WithTimeout(r.ctx, timeout)
	defer cancel()
	began := time.Now()
	ips, err := r.srv.resolve.lookup(ctx, name)
	if err != nil {
		r.logError("DNS lookup for %s failed: %s", name, err)
		return true, err
	}
	if took := time.Since(began); took > resolveSlow {
		r.logWarning("DNS lookup for %s took %d.%03d s", name, int(took.Seconds()), took.Milliseconds()%1000)
	}
	r.extra.add("hostip", ips[0].Unmap().String(), false)
	self := false
	for _, ip := range ips {
		self = self || r.isSelf(ip)
	}
	r.proxyMaybe(self)
	if r.extra.has("proxy") && !r.extra.has(moreIPs) {
		r.addOthers(ips[1:])
	}
	return false, nil
}

// moreIPs is the field with the further addresses of a proxy's host, for when the first
// does not answer. Dovecot has one address, and its login process leaves the field alone.
const moreIPs = "dovetail_hostips"

const maxOthers = 7 // addresses that it has

func (r *request) addOthers(ips []netip.Addr) {
	var texts []string
	for _, ip := range ips[:min(len(ips), maxOthers)] {
		texts = append(texts, ip.Unmap().String())
	}
	if len(texts) > 0 {
		r.extra.add(moreIPs, strings.Join(texts, ","), false)
	}
}

// isSelf says whether ip is an address of ours.
func (r *request) isSelf(ip netip.Addr) bool {
	ip = ip.Unmap()
	if ip == r.realLocalIP {
		return true
	}
	for _, a := range r.auth.set.proxySelf {
		if a == ip {
			return true
		}
	}
	return false
}

// proxyMaybe settles proxy_maybe: another host is proxied to, we ourselves are not.
func (r *request) proxyMaybe(self bool) {
	if !r.extra.has("proxy_maybe") {
		return
	}
	if self {
		if p, ok := r.extra.get("port"); ok {
			n, err := strconv.ParseUint(p, 10, 16)
			self = err == nil && uint16(n) == r.localPort
		}
	}
	if !self {
		r.extra.remove("proxy_maybe")
		r.extra.add("proxy", "", false)
		return
	}
	always := r.extra.has("proxy_always")
	r.dropProxy()
	if always {
		r.extra.add("proxy", "", false)
	}
}

// dropProxy removes what makes a login a proxied one.
func (r *request) dropProxy() {
	for _, k := range []string{"proxy", "proxy_maybe", "proxy_always", "host", "port", "destuser"} {
		r.extra.remove(k)
	}
}
