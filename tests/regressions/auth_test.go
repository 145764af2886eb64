package regressions

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/testkit/authserver"
	"dovetail/internal/testkit/client"
)

// Tabs and other control octets inside base64 never reach the auth service, where a TAB
// would begin another field (CVE-2026-33603).
func TestControlOctetsInsideBase64(t *testing.T) {
	t.Parallel()
	f := newFront(t, nil, authserver.Options{})
	c := f.Open(t)
	good := base64.StdEncoding.EncodeToString([]byte("\x00alice\x00x"))
	attempts := 0
	for _, evil := range []string{"\tuser=bob", "\x01t", "\x01", "\x00", "\x7f", " user=bob", "\r", "\x0b", "\xc3\xa9", "=user"} {
		for _, at := range []int{1, 4, len(good)} {
			ir := good[:at] + evil + good[at:]
			c.Send("AUTH PLAIN " + ir)
			if code := c.Reply()[0][:3]; code != "501" && code != "500" && code != "535" {
				t.Errorf("%q: %s", ir, code)
			}
			c.Do("NOOP", "250") // or too many are bad
			c.Send("AUTH PLAIN")
			c.ExpectCode("334")
			attempts++
			c.Send(ir)
			if code := c.Reply()[0][:3]; code != "501" && code != "500" && code != "535" {
				t.Errorf("continued %q: %s", ir, code)
			}
			c.Do("NOOP", "250")
		}
	}
	c.Do("AUTH PLAIN "+good, "535") // and an honest one arrives
	attempts++
	f.Auth.Wait("AUTH", attempts)
	for _, r := range append(f.Auth.Requests("AUTH"), f.Auth.Requests("CONT")...) {
		for _, a := range r.Args {
			if strings.HasPrefix(a, "user=") || a == "user" {
				t.Errorf("%s %q", r.Verb, r.Args)
			}
			if resp, ok := strings.CutPrefix(a, "resp="); ok && resp != good && resp != "" {
				t.Errorf("%s %q", r.Verb, r.Args)
			}
		}
	}
}

// One client's bad base64 does not fail the attempts of others, which share the connection
// to the auth service.
func TestBadBase64OfAnotherClient(t *testing.T) {
	t.Parallel()
	f := newFront(t, nil, authserver.Options{})
	var waiting []*client.Client
	for range 5 {
		c := f.Open(t)
		c.Do("AUTH LOGIN", "334")
		waiting = append(waiting, c)
	}
	for _, line := range []string{"!!!", "====", "AAA", "A\tA", strings.Repeat("A", 9000)} {
		bad := f.Open(t)
		bad.Send("AUTH PLAIN " + line)
		bad.Reply()
		bad.Do("AUTH LOGIN", "334")
		bad.Send(line)
		bad.Reply()
		bad.Do("NOOP", "250")
	}
	for _, c := range waiting {
		c.Do(base64.StdEncoding.EncodeToString([]byte("alice")), "334")
		c.Do(base64.StdEncoding.EncodeToString([]byte("wrong")), "535 5.7.8")
	}
	if n := len(f.Auth.Requests("VERSION")); n != 1 {
		t.Errorf("the auth service was connected %d times", n)
	}
}

// What a trusted client says in FORWARD stays what it is: fields under their own names, with
// no octet that is something else on the way (CVE-2026-42395: NUL; CVE-2026-42008: names).
func TestForwardFields(t *testing.T) {
	t.Parallel()
	f := newFront(t, map[string]string{"login_trusted_networks": "127.0.0.0/8"}, authserver.Options{})
	for _, x := range []struct {
		name, forward string
		want          []string // what the auth service gets as forward_fields; nil: none
	}{
		{"plain", "a=b\tc=d", []string{"a=b", "c=d"}},
		{"a value with an escaped TAB", "a=b\x01tuser=evil", []string{"a=b\tuser=evil"}},
		{"a NUL", "a=b\x00c\td=e", []string{"d=e"}},
		{"a NUL at the end", "a=b\x00", nil},
		{"only a NUL", "\x00", nil},
		{"an escaped NUL", "a=b\x010c\td=e", []string{"d=e"}},
		{"no name", "=x\ta=b", []string{"a=b"}},
		{"empty", "", nil},
		{"line ends", "a=b\r\nAUTH\t7", []string{"a=b\r\nAUTH", "7"}},
		{"an open escape", "a=b\x01", []string{"a=b"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := f.Open(t)
			had := len(f.Auth.Requests("AUTH"))
			encoded := strings.ReplaceAll(strings.ReplaceAll(base64.StdEncoding.EncodeToString([]byte(x.forward)), "+", "+2B"), "=", "+3D")
			c.Do("XCLIENT FORWARD="+encoded, "220")
			c.Do("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00alice\x00wrong")), "535")
			r := f.Auth.Wait("AUTH", had+1)[had]
			got, has := r.Get("forward_fields")
			t.Logf("forward_fields: %q %v", got, has)
			var fields []string
			if got != "" {
				fields = strings.Split(got, "\t")
			}
			for i := range fields {
				fields[i] = unescape(fields[i])
			}
			if !slices.Equal(fields, x.want) {
				t.Errorf("fields %q, want %q", fields, x.want)
			}
			// It is one field of the request, and brings no other.
			for _, a := range r.Args {
				if k, _, _ := strings.Cut(a, "="); k == "user" || k == "a" || k == "7" {
					t.Errorf("%q", r.Args)
				}
			}
		})
	}
}

// unescape reverses the escaping of package tabline.
func unescape(s string) string {
	return strings.NewReplacer("\x011", "\x01", "\x01t", "\t", "\x01r", "\r", "\x01n", "\n", "\x010", "\x00").Replace(s)
}
