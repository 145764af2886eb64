package login

import (
	"net/netip"
	"testing"
)

// The title is as Dovecot writes it, whatever sessions come and go.
func TestTitles(t *testing.T) {
	shown := "nothing"
	ts := newTitles(func(s string) { shown = s })
	a := &session{remote: netip.MustParseAddrPort("192.0.2.7:1")}
	b := &session{remote: netip.MustParseAddrPort("[2001:db8::7]:1")}
	c := &session{}
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() { ts.at(a, preLogin) }, "192.0.2.7 pre-login"},
		{func() { ts.at(a, proxying) }, "192.0.2.7 proxy"},
		{func() { ts.at(a, proxying) }, "192.0.2.7 proxy"},
		{func() { ts.at(b, preLogin) }, "1 pre-login + 1 proxies"},
		{func() { ts.at(b, tlsProxy) }, "0 pre-login + 1 proxies + 1 TLS proxies"},
		{func() { ts.gone(a) }, "2001:db8::7 TLS proxy"},
		{func() { ts.at(c, preLogin) }, "1 pre-login + 1 TLS proxies"},
		{func() { ts.gone(b) }, "pre-login"},
		{func() { ts.gone(b) }, "pre-login"},
		{func() { ts.gone(c) }, ""},
	} {
		step.do()
		if shown != step.want {
			t.Errorf("%q, want %q", shown, step.want)
		}
	}
	var none *titles
	none.at(a, preLogin)
	none.gone(a)
}
