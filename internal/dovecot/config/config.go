// Package config speaks the protocol of Dovecot's config service, major version 2: a
// process asks for settings by module and client, and gets those that the configuration
// sets (clause P2). What is not set is missing, and the asker knows the defaults; what
// settings mean is package settings' business.
//
//	C: VERSION config 2 0
//	C: REQ module=submission-login module=ssl-server service=submission lip=192.0.2.1
//	S: service-uses-local <TAB> used-local <TAB>        header: words, each with a TAB, or nothing
//	S: login_greeting=Ready.                            any number of key=value
//	S:                                                  an empty line
//	C: FILTERS
//	S: FILTER local-net=192.0.2.0/24                    any number, then an empty line
//
// The server sends no greeting. Fields of a request are separated by TAB and escaped as in
// package tabline. In a value LF is the byte 0x03, and nothing else is escaped. A request
// has at most 1024 bytes; a longer one, like another major version, ends the connection.
package config

import (
	"net/netip"
	"strings"
)

const (
	major      = "2"
	versionCmd = "VERSION\tconfig\t2\t0\n"

	// MaxRequest is the length of a request line with its LF.
	MaxRequest = 1024

	lf = 0x03 // stands for LF in values
)

// A Request says which settings are wanted, for which client. Everything may be left out.
type Request struct {
	Modules   []string // "submission-login"; none: every module's settings
	Exclude   []string // names of settings that are not wanted
	Service   string   // the protocol's name, such as "submission"
	User      string   // not looked at by the server
	LocalName string   // TLS server name, as the client sent it
	LocalIP   netip.Addr
	RemoteIP  netip.Addr
}

// An Answer is what the config service said. The flags tell whether it can be used for
// other clients: without ServiceUsesLocal and ServiceUsesRemote for all of them.
type Answer struct {
	Values            map[string]string // what the configuration sets
	ServiceUsesLocal  bool              // some filter for this service asks for a local address or name
	ServiceUsesRemote bool              // some filter for this service asks for a remote address
	UsedLocal         bool              // such a filter is in this answer
	UsedRemote        bool
	Services          []string // only if the request named no service: those with filters of their own
}

// Get returns the value of a setting, and whether it is set.
func (a Answer) Get(name string) (string, bool) {
	v, ok := a.Values[name]
	return v, ok
}

// A Pair is one line of an answer.
type Pair struct{ Key, Value string }

// header are the words of the first line, in the order of the server.
func (a *Answer) header() []struct {
	word string
	flag *bool
} {
	return []struct {
		word string
		flag *bool
	}{
		{"service-uses-local", &a.ServiceUsesLocal},
		{"service-uses-remote", &a.ServiceUsesRemote},
		{"used-local", &a.UsedLocal},
		{"used-remote", &a.UsedRemote},
	}
}

// parseHeader reads the first line of an answer, without its LF. Unknown words are
// ignored.
func (a *Answer) parseHeader(line string) {
	for _, word := range strings.Split(line, "\t") {
		if s, ok := strings.CutPrefix(word, "service="); ok {
			a.Services = append(a.Services, s)
			continue
		}
		for _, h := range a.header() {
			if h.word == word {
				*h.flag = true
			}
		}
	}
}

// decode puts back the line ends of a value.
func decode(v string) string { return strings.ReplaceAll(v, "\x03", "\n") }
