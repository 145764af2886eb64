package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"dovetail/internal/dovecot/tabline"
)

// A Command is a line that a client sends.
type Command uint8

const (
	Unknown Command = iota // ignored, without a reply
	Version                // right: requests may follow
	Ask                    // REQ
	Filters                // FILTERS
)

// ParseLine reads a line without its LF. An error ends the connection: another major
// version, or no version where first is set.
func ParseLine(line string, first bool) (Command, Request, error) {
	fields := strings.Split(line, "\t")
	if first {
		if len(fields) < 4 || fields[0] != "VERSION" || fields[1] != "config" || fields[2] != major {
			return Unknown, Request{}, fmt.Errorf("not a version line of protocol config %s: %.100q", major, line)
		}
		return Version, Request{}, nil
	}
	switch fields[0] {
	case "REQ":
		r, err := ParseRequest(line)
		return Ask, r, err
	case "FILTERS":
		return Filters, Request{}, nil
	}
	return Unknown, Request{}, nil
}

// ParseRequest reads a REQ line, without its LF. As in Dovecot, unknown keys and addresses
// that are none are ignored.
func ParseRequest(line string) (Request, error) {
	fields := tabline.Split(line)
	if fields[0] != "REQ" {
		return Request{}, fmt.Errorf("config request: %.100q is not REQ", fields[0])
	}
	var r Request
	for _, f := range tabline.ParseFields(fields[1:]) {
		switch f.Key {
		case "module":
			r.Modules = append(r.Modules, f.Value)
		case "exclude":
			r.Exclude = append(r.Exclude, f.Value)
		case "service":
			r.Service = f.Value
		case "user":
			r.User = f.Value
		case "lname":
			r.LocalName = f.Value
		case "lip":
			r.LocalIP = parseIP(f.Value)
		case "rip":
			r.RemoteIP = parseIP(f.Value)
		}
	}
	return r, nil
}

func parseIP(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}
	}
	return a.Unmap()
}

// AppendHeader adds the first line of the answer to b.
func (a Answer) AppendHeader(b []byte) []byte {
	for _, s := range a.Services {
		b = append(b, "service="...)
		b = append(b, s...)
		b = append(b, '\t')
	}
	for _, h := range a.header() {
		if *h.flag {
			b = append(b, h.word...)
			b = append(b, '\t')
		}
	}
	return append(b, '\n')
}

// AppendPair adds one line of an answer to b. Bytes that the protocol has no form for, a
// LF in a key, cannot occur: keys are names of settings.
func AppendPair(b []byte, key, value string) []byte {
	b = append(b, key...)
	b = append(b, '=')
	at := len(b)
	b = append(b, value...)
	for i := at; i < len(b); i++ {
		if b[i] == '\n' {
			b[i] = lf
		}
	}
	return append(b, '\n')
}

// Append adds the whole answer to b: the header, the values sorted by name, the empty line.
func (a Answer) Append(b []byte) []byte {
	pairs := make([]Pair, 0, len(a.Values))
	for k, v := range a.Values {
		pairs = append(pairs, Pair{k, v})
	}
	slices.SortFunc(pairs, func(x, y Pair) int { return strings.Compare(x.Key, y.Key) })
	return a.AppendPairs(b, pairs)
}

// AppendPairs is Append with the values in the order of pairs instead of a.Values.
func (a Answer) AppendPairs(b []byte, pairs []Pair) []byte {
	b = a.AppendHeader(b)
	for _, p := range pairs {
		b = AppendPair(b, p.Key, p.Value)
	}
	return append(b, '\n')
}

// A FilterLine is one line of the reply to FILTERS; empty parts are left out. A name may
// be empty and still asked for, which the protocol cannot say.
type FilterLine struct {
	Service, LocalName string
	LocalNet           netip.Prefix
	RemoteNet          netip.Prefix
}

// AppendFilter adds the line of f to b.
func AppendFilter(b []byte, f FilterLine) []byte {
	b = append(b, "FILTER"...)
	add := func(key, value string) {
		if value != "" {
			b = append(b, '\t')
			b = append(b, key...)
			b = append(b, '=')
			b = tabline.AppendEscaped(b, value)
		}
	}
	add("service", f.Service)
	add("local-name", f.LocalName)
	for _, n := range []struct {
		key string
		net netip.Prefix
	}{{"local-net", f.LocalNet}, {"remote-net", f.RemoteNet}} {
		if n.net.IsValid() {
			add(n.key, n.net.String())
		}
	}
	return append(b, '\n')
}
