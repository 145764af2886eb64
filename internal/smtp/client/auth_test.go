package client

import (
	"slices"
	"strings"
	"testing"

	"dovetail/internal/smtp"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/relay"
)

func TestAuth(t *testing.T) {
	long := strings.Repeat("p", 400)
	for name, tt := range map[string]struct {
		caps                   string
		user, master, password string
		want                   string // as the relay decodes it
		lines                  []string
	}{
		"plain":   {"AUTH PLAIN LOGIN", "u", "", "p", "\x00u\x00p", []string{"AUTH PLAIN AHUAcA=="}},
		"master":  {"AUTH LOGIN PLAIN", "u", "m", "p", "u\x00m\x00p", []string{"AUTH PLAIN dQBtAHA="}},
		"unknown": {"AUTH GSSAPI", "u", "", "p", "\x00u\x00p", []string{"AUTH PLAIN AHUAcA=="}},
		"long":    {"AUTH PLAIN", "u", "", long, "\x00u\x00" + long, []string{"AUTH PLAIN"}},
		"login":   {"AUTH LOGIN", "u", "", "p", "u\x00p", []string{"AUTH LOGIN"}},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			r := relay.Start(t, relay.Options{Caps: []string{"PIPELINING", tt.caps}})
			cfg := config(r)
			cfg.User, cfg.MasterUser, cfg.Password = tt.user, tt.master, tt.password
			dial(t, cfg)
			lines := r.Commands(0, 3)
			if lines[0] != "EHLO host.test" || lines[1] != tt.lines[0] || lines[len(lines)-1] != "EHLO host.test" {
				t.Errorf("%q", lines)
			}
			if got := r.Conn(0).Auth; len(got) == 0 || got[len(got)-1] != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
	t.Run("not offered", func(t *testing.T) {
		r := relay.Start(t, relay.Options{})
		cfg := config(r)
		cfg.User = "u"
		if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != ConnectFailed || e.Log != "Authentication not supported" {
			t.Errorf("%v", e)
		}
	})
	t.Run("refused", func(t *testing.T) {
		r := relay.Start(t, relay.Options{Caps: []string{"AUTH PLAIN"}, Script: relay.Script{relay.AUTH: {relay.Reply("535 5.7.8 bad")}}})
		cfg := config(r)
		cfg.User = "u"
		if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != Refused || e.Log != "Authentication failed: 535 5.7.8 bad" || e.Reply.Code != 535 {
			t.Errorf("%v", e)
		}
	})
}

// The tap, whose file the user may read, has nothing of what logs in.
func TestTapHasNoPassword(t *testing.T) {
	for name, tt := range map[string]struct {
		password  string
		challenge string // what it has of those
	}{
		"PLAIN":      {"p", ""},
		"PLAIN long": {strings.Repeat("p", 400), "334 <hidden>\r\n"},
		"LOGIN":      {"p", "334 <hidden>\r\n334 <hidden>\r\n"},
		"CRAM-MD5":   {"p", "334 <hidden>\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			mech, _, _ := strings.Cut(name, " ")
			script := relay.Script{}
			if mech == "CRAM-MD5" { // the relay takes its response for a command
				script[relay.AUTH] = []relay.Behaviour{relay.Reply("334 PDE+")}
				script[relay.Other] = []relay.Behaviour{relay.Reply("235 2.7.0 Authentication successful")}
			}
			r := relay.Start(t, relay.Options{Caps: []string{"AUTH " + mech}, Script: script})
			cfg := config(r)
			cfg.User, cfg.Password = "u", tt.password
			var tapped [2]strings.Builder
			cfg.Tap = func(in bool, b []byte) {
				if in {
					tapped[0].Write(b)
				} else {
					tapped[1].Write(b)
				}
			}
			o := dial(t, cfg)
			o.do("NOOP")
			o.c.Close()
			o.ends.Wait()
			ehlo := "250-relay.test\r\n250 AUTH " + mech + "\r\n"
			in := "220 relay.test ESMTP ready\r\n" + ehlo + tt.challenge + "235 2.7.0 Authentication successful\r\n" + ehlo + "250 2.0.0 Ok\r\n"
			out := "EHLO host.test\r\nAUTH " + mech + " <hidden>\r\nEHLO host.test\r\nNOOP\r\nQUIT\r\n"
			if got := strings.TrimSuffix(tapped[0].String(), "221 2.0.0 Bye\r\n"); got != in {
				t.Errorf("in:\n%s\nwant\n%s", got, in)
			}
			if got := tapped[1].String(); got != out {
				t.Errorf("out:\n%s\nwant\n%s", got, out)
			}
		})
	}
}

// A relay that does not know the password may not just say that all is well.
func TestScramWithoutProof(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{Caps: []string{"AUTH SCRAM-SHA-256"}, Script: relay.Script{relay.AUTH: {relay.Reply("235 2.7.0 welcome")}}})
	cfg := config(r)
	cfg.User, cfg.Password = "u", "p"
	if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != ConnectFailed || !strings.Contains(e.Log, "has not proved that it knows the password") {
		t.Errorf("%v", e)
	}
}

// XCLIENT with a user comes before AUTH; without, when Introduce says so.
func TestXclient(t *testing.T) {
	attrs := []smtp.XclientAttr{{Name: "HELO", Value: "h"}, {Name: "ADDR", Value: "192.0.2.1"}}
	caps := []string{"PIPELINING", "XCLIENT HELO ADDR", "AUTH PLAIN"}
	leak.Check(t)
	r := relay.Start(t, relay.Options{Caps: caps})
	cfg := config(r)
	cfg.User, cfg.Xclient = "u", attrs
	dial(t, cfg)
	want := []string{"EHLO host.test", "XCLIENT HELO=h ADDR=192.0.2.1", "EHLO host.test", "AUTH PLAIN AHUA", "EHLO host.test"}
	if got := r.Commands(0, 5); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}

	r = relay.Start(t, relay.Options{Caps: caps, Script: relay.Script{relay.XCLIENT: {relay.Reply("550 5.7.1 no")}, relay.EHLO: {relay.Reply("250-relay.test", "250-PIPELINING", "250 XCLIENT HELO"), relay.Reply("550 5.7.1 gone")}}})
	o := dial(t, config(r))
	o.c.Send([]byte("NOOP"), func(smtp.Reply) {})
	refused, e := o.c.Introduce(attrs)
	if e != nil || refused.String() != "550 5.7.1 gone" {
		t.Errorf("%v, %v", refused, e)
	}
	if got, want := r.Commands(0, 4), []string{"EHLO host.test", "NOOP", "XCLIENT HELO=h", "EHLO host.test"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
