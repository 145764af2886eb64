package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"dovetail/internal/smtp"
	"dovetail/internal/splice"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/relay"
)

func target(t testing.TB, text string) *Target {
	t.Helper()
	x, err := Parse(fields(text), "alice", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return &x
}

var offer = Offer{Hostname: "front.test", Helo: "client.test", Esmtp: true, Attrs: []smtp.XclientAttr{
	{Name: "HELO", Value: "client.test"}, {Name: "LOGIN", Value: "alice"}, {Name: "TTL", Value: "4"}, {Name: "ADDR", Value: "192.0.2.7"},
}}

// What is said to backends of either kind.
func TestDial(t *testing.T) {
	named := offer
	named.Name = func(context.Context) ClientName { return ClientName{"host.test", "host.test"} }
	slow := offer
	slow.Name = func(ctx context.Context) ClientName { <-ctx.Done(); return NoName }
	for _, tt := range []struct {
		name, fields string
		offer        Offer
		caps         []string
		heard        string
	}{
		{"Dovecot", "pass=p", offer, []string{"PIPELINING", "AUTH PLAIN", "XCLIENT HELO TTL ADDR"},
			"EHLO front.test|XCLIENT HELO=client.test TTL=4 ADDR=192.0.2.7|EHLO client.test|AUTH PLAIN YWxpY2UAYWxpY2UAcA=="},
		{"untrusting", "pass=p", offer, []string{"AUTH PLAIN"}, "EHLO front.test|AUTH PLAIN YWxpY2UAYWxpY2UAcA=="},
		{"MTA", "proxy_noauth", named, []string{"XCLIENT NAME ADDR LOGIN"},
			"EHLO front.test|XCLIENT NAME=host.test LOGIN=alice ADDR=192.0.2.7|EHLO client.test"},
		{"MTA, nobody knows the name", "proxy_noauth", offer, []string{"XCLIENT NAME REVERSE_NAME"},
			"EHLO front.test|XCLIENT NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]|EHLO client.test"},
		{"MTA, the resolver is slow", "proxy_noauth", slow, []string{"XCLIENT NAME"}, "EHLO front.test|XCLIENT NAME=[UNAVAILABLE]|EHLO client.test"},
		{"MTA without XCLIENT", "proxy_noauth", named, nil, "EHLO front.test|EHLO client.test"},
		{"not trusted", "proxy_noauth proxy_not_trusted", named, []string{"XCLIENT NAME"}, "EHLO front.test|EHLO client.test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			r := relay.Start(t, relay.Options{Caps: append([]string{"ENHANCEDSTATUSCODES"}, tt.caps...)})
			b, err := Dial(t.Context(), netip.MustParseAddrPort(r.Addr), target(t, "host=127.0.0.1 "+tt.fields), &tt.offer, 0)
			if err != nil {
				t.Fatal(err)
			}
			b.End.Sock.Close()
			if got := strings.Join(r.Ended(0).Lines, "|"); got != tt.heard {
				t.Errorf("the backend hears\n     %s\nwant %s", got, tt.heard)
			}
		})
	}
}

// The end of the context ends a login at any step: its deadline is a failure that can be
// tried again, anything else is the caller's own doing.
func TestDialEnds(t *testing.T) {
	leak.Check(t)
	for _, step := range []relay.Step{relay.Banner, relay.EHLO, relay.XCLIENT, relay.AUTH} {
		r := relay.Start(t, relay.Options{Caps: []string{"AUTH PLAIN", "XCLIENT TTL"}, Script: relay.Script{step: {relay.Silence()}}})
		at := netip.MustParseAddrPort(r.Addr)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := Dial(ctx, at, target(t, "host=127.0.0.1 pass=p"), &offer, 0)
		cancel()
		var f *Failure
		if !errors.As(err, &f) || !f.Retry || !strings.HasPrefix(f.After(time.Second, 1), "Login timed out in state=") || !strings.Contains(f.After(time.Second, 1), "(after 1 secs, 1 reconnects, local=127.0.0.1:") {
			t.Errorf("%s: %v", step, err)
		}
		mine := errors.New("the client has left")
		ctx2, cancel2 := context.WithCancelCause(t.Context())
		time.AfterFunc(50*time.Millisecond, func() { cancel2(mine) })
		if _, err := Dial(ctx2, at, target(t, "host=127.0.0.1 pass=p"), &offer, 0); !errors.Is(err, mine) {
			t.Errorf("%s: %v", step, err)
		}
		r.Stop()
	}
}

func TestShort(t *testing.T) {
	for in, want := range map[string]string{
		strings.Repeat("x", 160):                                strings.Repeat("x", 160),
		strings.Repeat("x", 161):                                strings.Repeat("x", 157) + "...",
		strings.Repeat("x", 156) + "ü" + "yyyyy":                strings.Repeat("x", 156) + "...",
		strings.Repeat("x", 155) + "ü" + strings.Repeat("y", 9): strings.Repeat("x", 155) + "ü...",
	} {
		if got := short(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	if got := clean("a\tb\x00c\x7f\xffü\u0085"); got != "a\tb?c??ü?" {
		t.Errorf("%q", got)
	}
}

// canned is a backend that says something whatever it hears.
type canned struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *canned) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c *canned) Write(b []byte) (int, error)      { return c.out.Write(b) }
func (c *canned) Close() error                     { return nil }
func (c *canned) SetDeadline(time.Time) error      { return nil }
func (c *canned) SetReadDeadline(time.Time) error  { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }

// one gives its octets one at a time.
type one struct{ *canned }

func (o one) Read(b []byte) (int, error) { return o.canned.Read(b[:min(1, len(b))]) }

// Whatever a backend says: the login works, if it said 235, or fails with a text that can
// be logged; no error tells the password.
func FuzzBackend(f *testing.F) {
	greeting := "220 x\r\n250-x\r\n250-AUTH PLAIN LOGIN SCRAM-SHA-1\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 XCLIENT NAME ADDR TTL\r\n"
	f.Add("", greeting+"220 y\r\n250-x\r\n250 AUTH PLAIN\r\n235 2.7.0 ok\r\n")
	f.Add("proxy_noauth", greeting+"220 y\r\n250 x\r\nrest")
	f.Add("proxy_mech=LOGIN", "220 x\r\n250-x\r\n250 AUTH LOGIN\r\n334 VXNlcg==\r\n334 UGFzcw==\r\n535-5.7.8 no\r\n535 5.7.8 never\r\n")
	f.Add("proxy_mech=SCRAM-SHA-1", "220 x\r\n250-x\r\n250 AUTH PLAIN\r\n334 cj14LHM9eCxpPTE=\r\n")
	f.Add("starttls=any-cert", greeting+"220 go\r\n\x15\x03\x01\x00\x02\x02\x28")
	f.Add("", "220-a\r\n554 b\r\n")
	f.Add("", "250")
	f.Fuzz(func(t *testing.T, text, said string) {
		x, err := Parse(fields("host=192.0.2.1 proxy_timeout=5 pass=Sesame "+text), "alice", time.Second)
		if err != nil || x.TLS != NoTLS || x.StartTLS != NoTLS || x.Password != "Sesame" {
			return // handshakes are crypto/tls's
		}
		for _, byteByByte := range []bool{false, true} {
			c := &canned{in: bytes.NewReader([]byte(said))}
			var nc net.Conn = c
			if byteByByte {
				nc = one{c}
			}
			d := &dialog{t: &x, o: &offer, addr: x.Addrs[0], began: time.Now(), sock: splice.NewSocket(nc)}
			d.use(d.sock)
			b, err := d.login(context.Background())
			var f *Failure
			switch {
			case err == nil && !x.NoAuth && (b.Reply.Code != 235 || !strings.Contains(said, "235")):
				t.Errorf("logged in by %v", b.Reply)
			case err == nil && len(b.Early) > 0 && !strings.HasSuffix(said, string(b.Early)) && !byteByByte:
				t.Errorf("early %q", b.Early)
			case errors.As(err, &f):
				if strings.Contains(f.Text, "Sesame") || strings.ContainsAny(f.Text, "\r\n") || f.IsAuth() && f.Reply.Class() != 4 && f.Reply.Class() != 5 {
					t.Errorf("%q, %v", f.Text, f.Reply)
				}
			case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, os.ErrDeadlineExceeded):
				t.Errorf("%v", err)
			}
		}
	})
}
