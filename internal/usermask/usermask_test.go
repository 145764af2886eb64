package usermask

import (
	"net/netip"
	"strings"
	"testing"
)

func TestWildcard(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "abc", true}, {"a*", "abc", true}, {"*c", "abc", true},
		{"a*c", "abc", true}, {"a*d", "abc", false}, {"?", "", false}, {"?", "a", true}, {"a?c", "abc", true},
		{"*@example.org", "alice@example.org", true}, {"*a*b*", "xaxbx", true}, {"*a*b*", "xbxax", false}, {"**", "x", true},
		{"a*a*a*a*a*a*a*b", strings.Repeat("a", 200), false},
	} {
		if got := wildcard(c.pattern, c.s); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.s, got)
		}
	}
}

func TestMatches(t *testing.T) {
	m, err := Parse([]string{"Ali*", "192.0.2.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	for user, want := range map[string]bool{"alice": true, "ALINA": true, "bob": false} {
		if got := m.Matches(user, netip.MustParseAddr("192.0.2.7")); got != want {
			t.Errorf("%s: %v", user, got)
		}
	}
	if m.Matches("alice", netip.MustParseAddr("198.51.100.1")) || m.Matches("alice", netip.Addr{}) {
		t.Error("another network, or none, matches")
	}
	if !(Mask{}).Matches("anybody", netip.Addr{}) {
		t.Error("the zero mask is not everybody")
	}
}

func TestParse(t *testing.T) {
	if m, err := Parse([]string{"12345"}); err != nil || m.User != "12345" {
		t.Errorf("digits: %+v %v", m, err)
	}
	if m, err := Parse([]string{"2001:db8::1"}); err != nil || m.Net.String() != "2001:db8::1/128" {
		t.Errorf("an address: %+v %v", m, err)
	}
	for _, args := range [][]string{{"a", "b"}, {"10.0.0.0/8", "::1"}} {
		if _, err := Parse(args); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
}

// What Parse understands comes through the wire as it was; nothing else is a network.
func FuzzWire(f *testing.F) {
	for _, s := range []string{"", "10.0.0.0/8", "10.1.2.3/8", "::1", "fe80::1%eth0", "fe80::1%eth0/64", "x", "1.2.3.4/33", "1.2.3.4/"} {
		f.Add("ali*", s)
	}
	f.Fuzz(func(t *testing.T, user, net string) {
		m, err := FromWire(user, net)
		if err != nil {
			return
		}
		again, err := FromWire(m.User, m.Network())
		if err != nil || again != m {
			t.Fatalf("%q %q: %+v, again %+v %v", user, net, m, again, err)
		}
	})
}
