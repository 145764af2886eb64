package authd

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// resolver is a Resolver for tests.
type resolver struct {
	mu    sync.Mutex
	asked []string // guarded by mu
	f     func(ctx context.Context, host string) ([]netip.Addr, error)
}

func (r *resolver) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	r.mu.Lock()
	r.asked = append(r.asked, host)
	r.mu.Unlock()
	return r.f(ctx, host)
}

// A proxy's host name is looked up, once a minute, and not for longer than 10 s.
func TestProxyHostIsResolved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		res := &resolver{f: func(ctx context.Context, host string) ([]netip.Addr, error) {
			switch host {
			case "good.example.org":
				time.Sleep(700 * time.Millisecond)
				return []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.7"), netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("2001:db8::8")}, nil
			case "one.example.org":
				return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
			case "self.example.org":
				return []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("192.0.2.100")}, nil
			case "slow.example.org":
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return nil, &net.DNSError{Err: "no such host", Name: host}
		}}
		s, log := newServer(t, Options{Resolver: res}, `
passdb {
  driver = passwd-file
  args = scheme=PLAIN @DIR@/users
}
`, [2]string{"users", `good:x::::::proxy host=good.example.org
one:x::::::proxy host=one.example.org
given:x::::::proxy host=good.example.org dovetail_hostips=192.0.2.66
self:x::::::proxy_maybe host=self.example.org
slow:x::::::proxy host=slow.example.org
short:x::::::proxy host=slow.example.org proxy_timeout=3
none:x::::::proxy host=none.example.org
`})
		defer s.Close()
		c := dial(t, s, "login", 7)
		defer c.close()
		for _, tc := range []struct {
			user string
			secs float64
			want string
		}{
			{"good", 0.7, "user=good\tproxy\thost=good.example.org\thostip=192.0.2.7\tdovetail_hostips=192.0.2.8,2001:db8::8\tpass=x"},
			{"good", 0, "user=good\tproxy\thost=good.example.org\thostip=192.0.2.7\tdovetail_hostips=192.0.2.8,2001:db8::8\tpass=x"},
			{"one", 0, "user=one\tproxy\thost=one.example.org\thostip=192.0.2.1\tpass=x"},
			{"given", 0, "user=given\tproxy\thost=good.example.org\tdovetail_hostips=192.0.2.66\thostip=192.0.2.7\tpass=x"},
			{"self", 0, "user=self\thostip=192.0.2.9"},
			{"slow", 10.5, "user=slow\tcode=temp_fail"}, // and the failure's delay, which is looked at twice a second
			{"short", 3.5, "user=short\tproxy_timeout=3\tcode=temp_fail"},
			{"none", 0.5, "user=none\tcode=temp_fail"},
			{"none", 0.5, "user=none\tcode=temp_fail"},
		} {
			began := time.Now()
			got := c.ask(plainAuth(1, tc.user, "x", "\tlip=192.0.2.100\tlport=587"))
			_, rest, _ := strings.Cut(got, "\t1\t")
			c.write("CANCEL\t1")
			if d := time.Since(began).Seconds(); d != tc.secs {
				t.Errorf("%s took %v s", tc.user, d)
			}
			if sortFields(rest) != sortFields(tc.want) {
				t.Errorf("%s: %q", tc.user, got)
			}
		}
		time.Sleep(61 * time.Second)
		c.ask(plainAuth(2, "good", "x"))
		res.mu.Lock()
		defer res.mu.Unlock()
		asked := strings.Join(res.asked, " ")
		if asked != "good.example.org one.example.org self.example.org slow.example.org slow.example.org none.example.org none.example.org good.example.org" {
			t.Errorf("asked for %s", asked)
		}
		if got := log.get(); got[0] != "Warning: DNS lookup for good.example.org took 0.700 s" || got[1] != "Error: DNS lookup for slow.example.org failed: Timed out" {
			t.Errorf("%q", got)
		}
	})
}

func sortFields(s string) string {
	f := strings.Split(s, "\t")
	for i := range f {
		for j := range i {
			if f[i] < f[j] {
				f[i], f[j] = f[j], f[i]
			}
		}
	}
	return strings.Join(f, "\t")
}
