package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/tlsfiles"
)

type fixedAddrs []netip.Addr

func (a fixedAddrs) Lookup(context.Context, string) ([]netip.Addr, error) {
	if a == nil {
		return nil, errors.New("Name or service not known")
	}
	return a, nil
}

func TestAddresses(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{})
	cfg := config(r)
	cfg.Host = "relay.test"
	// Nobody listens at the first one.
	cfg.Resolver = fixedAddrs{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}
	dial(t, cfg)

	cfg.Resolver = fixedAddrs{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}
	_, e := Dial(t.Context(), cfg)
	if want := fmt.Sprintf("connect(127.0.0.3:%d) failed: Connection refused", r.Port); e == nil || e.Kind != ConnectFailed || e.Log != want {
		t.Errorf("%v, want %s", e, want)
	}
	cfg.Resolver = fixedAddrs(nil)
	_, e = Dial(t.Context(), cfg)
	if want := "dns_lookup(relay.test) failed: Name or service not known"; e == nil || e.Kind != LookupFailed || e.Log != want {
		t.Errorf("%v, want %s", e, want)
	}
	cfg.Host, cfg.Resolver = "[::1]", nil
	_, e = Dial(t.Context(), cfg)
	if want := fmt.Sprintf("connect([::1]:%d) failed: ", r.Port); e == nil || e.Kind != ConnectFailed || !strings.HasPrefix(e.Log, want) {
		t.Errorf("%v, want %s...", e, want)
	}
}

// Each answer to each step of Dial, and what becomes of it (clause S4.6).
func TestHandshakeFailures(t *testing.T) {
	steps := map[relay.Step]func(*Config){
		relay.Banner:   func(*Config) {},
		relay.EHLO:     func(*Config) {},
		relay.STARTTLS: func(cfg *Config) { cfg.Mode = StartTLS },
		relay.AUTH:     func(cfg *Config) { cfg.User, cfg.Password = "u", "secret" },
	}
	ca := tlsfiles.NewCA(t, "test CA")
	server := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, tlsfiles.Request{CN: "relay.test", Names: []string{"127.0.0.1"}}).TLS()}}
	for step, with := range steps {
		for name, tt := range map[string]struct {
			behaviour relay.Behaviour
			want      Kind
		}{
			"450":     {relay.Reply("450 4.0.0 later"), Refused},
			"554":     {relay.Reply("554 5.0.0 no"), Refused},
			"554s":    {relay.Reply("554-5.0.0 no", "554 5.0.0 never"), Refused},
			"421":     {relay.Reply("421 4.3.2 bye"), Closing},
			"530":     {relay.Reply("530 5.7.0 auth"), NeedsAuth},
			"354":     {relay.Reply("354 go"), Refused},
			"garbage": {relay.Raw("\x00\x01\r\n"), BadReply},
			"close":   {relay.Close(), Lost},
			"reset":   {relay.Reset(), Lost},
			"silence": {relay.Silence(), ConnectFailed},
			"half":    {relay.HalfLine("22"), ConnectFailed},
		} {
			t.Run(string(step)+"/"+name, func(t *testing.T) {
				leak.Check(t)
				r := relay.Start(t, relay.Options{TLS: server, Caps: []string{"PIPELINING", "AUTH PLAIN"}, Script: relay.Script{step: {tt.behaviour.Always()}}})
				cfg := config(r)
				cfg.TLS = &tls.Config{ServerName: "127.0.0.1", RootCAs: ca.Pool()}
				with(cfg)
				if tt.want == ConnectFailed {
					cfg.ConnectTimeout = 300 * time.Millisecond
				}
				c, e := Dial(t.Context(), cfg)
				if e == nil {
					c.Abort()
					t.Fatal("it is ready")
				}
				want := tt.want
				if step == relay.Banner && name == "reset" && e.Kind == ConnectFailed {
					want = ConnectFailed // the reset came before connect returned
				}
				if e.Kind != want || strings.Contains(e.Error(), "secret") {
					t.Errorf("%v: kind %d, want %d", e, e.Kind, want)
				}
			})
		}
	}
}

// A relay that always has something more to say, but never all, has the time of a step.
func TestSlowHandshake(t *testing.T) {
	leak.Check(t)
	dribble := relay.Dribble(20*time.Millisecond, "220-more\r\n")
	for step, want := range map[relay.Step]string{relay.Banner: "Connection timed out after 0 seconds", relay.EHLO: "SMTP handshake timed out after 0 seconds"} {
		r := relay.Start(t, relay.Options{Script: relay.Script{step: {dribble}}})
		cfg := config(r)
		cfg.ConnectTimeout = 200 * time.Millisecond
		if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != ConnectFailed || e.Log != want {
			t.Errorf("%s: %v", step, e)
		}
	}
}

func TestGreetingOtherThan220(t *testing.T) {
	leak.Check(t)
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.Banner: {relay.Reply("250 hello")}}})
	if _, e := Dial(t.Context(), config(r)); e == nil || e.Kind != BadReply {
		t.Errorf("%v", e)
	}
}

func TestHELO(t *testing.T) {
	for _, code := range []string{"500 5.5.1 what", "502 5.5.1 no"} {
		r := relay.Start(t, relay.Options{Script: relay.Script{relay.EHLO: {relay.Reply(code)}}})
		o := dial(t, config(r))
		if o.c.Caps().Set != 0 || !slices.Equal(r.Commands(0, 2), []string{"EHLO host.test", "HELO host.test"}) {
			t.Errorf("%s: %q, capabilities %b", code, r.Commands(0, 2), o.c.Caps().Set)
		}
	}
}

func TestTLS(t *testing.T) {
	ca := tlsfiles.NewCA(t, "test CA")
	server := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, tlsfiles.Request{CN: "relay.test", Names: []string{"127.0.0.1"}}).TLS()}}
	client := func() *tls.Config { return &tls.Config{ServerName: "127.0.0.1", RootCAs: ca.Pool()} }
	for name, mode := range map[string]TLSMode{"starttls": StartTLS, "smtps": ImplicitTLS} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			r := relay.Start(t, relay.Options{TLS: server, Implicit: mode == ImplicitTLS})
			cfg := config(r)
			cfg.Mode, cfg.TLS = mode, client()
			o := dial(t, cfg)
			if got := o.do("NOOP"); got != "250 2.0.0 Ok" {
				t.Error(got)
			}
			o.c.Close()
			if conn := r.Ended(0); conn.TLS == nil || conn.End != "QUIT" {
				t.Errorf("TLS %v, ended by %q", conn.TLS != nil, conn.End)
			}

			cfg.TLS = &tls.Config{ServerName: "other.test", RootCAs: ca.Pool()}
			_, e := Dial(t.Context(), cfg)
			if e == nil || e.Kind != ConnectFailed || !strings.HasPrefix(e.Log, "SSL handshaking with 127.0.0.1:") {
				t.Errorf("wrong name: %v", e)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		r := relay.Start(t, relay.Options{})
		cfg := config(r)
		cfg.Mode, cfg.TLS = StartTLS, client()
		_, e := Dial(t.Context(), cfg)
		if e == nil || e.Kind != ConnectFailed || e.Log != "Requested STARTTLS, but server doesn't support it" {
			t.Errorf("%v", e)
		}
	})
	t.Run("broken", func(t *testing.T) {
		r := relay.Start(t, relay.Options{TLS: server, Script: relay.Script{relay.STARTTLS: {relay.BreakTLS()}}})
		cfg := config(r)
		cfg.Mode, cfg.TLS = StartTLS, client()
		if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != ConnectFailed {
			t.Errorf("%v", e)
		}
	})
	t.Run("injection", func(t *testing.T) {
		r := relay.Start(t, relay.Options{TLS: server, Script: relay.Script{relay.STARTTLS: {relay.Raw("220 go\r\n250 injected\r\n")}}})
		cfg := config(r)
		cfg.Mode, cfg.TLS = StartTLS, client()
		if _, e := Dial(t.Context(), cfg); e == nil || e.Kind != BadReply && e.Kind != ConnectFailed {
			t.Errorf("%v", e)
		}
	})
}

// Dial ends when its context does, at whatever step it is.
func TestDialCancelled(t *testing.T) {
	for _, step := range []relay.Step{relay.Banner, relay.EHLO} {
		leak.Check(t)
		reached := make(chan struct{})
		r := relay.Start(t, relay.Options{Script: relay.Script{step: {relay.Silence()}}})
		ctx, cancel := context.WithCancel(t.Context())
		cfg := config(r)
		go func() { // ends with the connection
			defer close(reached)
			if step == relay.EHLO {
				r.Commands(0, 1)
			} else {
				r.Conn(0)
			}
			cancel()
		}()
		if _, e := Dial(ctx, cfg); e == nil || e.Kind != Cancelled {
			t.Errorf("%s: %v", step, e)
		}
		<-reached
	}
}
