package authclient

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

func TestServerLines(t *testing.T) {
	for line, want := range map[string]bool{"VERSION\t1\t2": true, "VERSION\t1\t99": true, "VERSION\t2\t0": false, "VERSION\t1": false, "VERSION\tx\t1": false, "": false} {
		if _, err := ParseVersion(line); (err == nil) != want {
			t.Errorf("%q: %v", line, err)
		}
	}
	for line, want := range map[string]bool{"1": true, "0": false, "-1": false, "4294967296": false, "": false, "+1": false, "1\t": false} {
		if _, err := ParseCPID(line); (err == nil) != want {
			t.Errorf("%q: %v", line, err)
		}
	}
	if _, err := ParseAuth("1\tPLAIN\tresp=\tx"); !errors.Is(err, ErrAuthTrailer) {
		t.Errorf("trailer: %v", err)
	}
	a, err := ParseAuth("1\tPLAIN\tservice=a\x01tb\tresp=AA==")
	if s, _ := a.Fields.Get("service"); err != nil || s != "a\tb" || a.Initial != "AA==" || !a.HasInitial {
		t.Errorf("%+v, %v", a, err)
	}
}

// Whatever the server sends, a reader goes on or fails; what it takes for a challenge can
// be sent on to a client.
func FuzzReply(f *testing.F) {
	for _, l := range []string{
		"OK\t1\tuser=alice\tproxy\thost=127.0.0.1\tport=12599\tdestuser=dest\tproxy_mech=PLAIN\tssl=any-cert\tpass=pp",
		"OK\t9\tuser=plog\t", "FAIL\t3\tuser=bob\tcode=temp_fail", "CONT\t2\tPDEyMz4=", "CONT\t1\t", "CONT\t1\tAA==\tchannel_binding=tls-exporter", "FAIL\tx", "",
	} {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if strings.Contains(line, "\n") {
			return
		}
		_, r, err := parseReply(line)
		if err != nil {
			return
		}
		if r.Kind == Continue && (checkBase64([]byte(r.Challenge)) != nil || r.Fields() != nil) {
			t.Fatalf("%q: challenge %q", line, r.Challenge)
		}
		_ = r.Fields()
	})
}

// A greeting of any kind ends the handshake, one way or the other.
func FuzzGreeting(f *testing.F) {
	f.Add(greeting)
	f.Add("VERSION\t1\t2\nMECH\tA\x01\nSPID\t\x00\nCOOKIE\t0\nDONE\n")
	f.Fuzz(func(t *testing.T, text string) {
		here, there := net.Pipe()
		go func() { // ends with the pipe
			defer there.Close()
			go io.Copy(io.Discard, there) //nolint:errcheck // ends with the pipe
			_, _ = io.WriteString(there, text)
		}()
		if c, err := NewConn(context.Background(), here, 1); err == nil {
			c.Close()
		}
	})
}

func FuzzServerLine(f *testing.F) {
	for _, l := range []string{"1\tPLAIN\tservice=submission\tresp=AGFsaWNlAGFwYXNz", "1\tX\tresp==\ta", "0\tX", "1\t", "", "7\tAAAA"} {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, args string) {
		if a, err := ParseAuth(args); err == nil && (a.ID == 0 || a.Fields.Has("resp")) {
			t.Fatalf("%q: %+v", args, a)
		}
		_, _, _ = ParseCont(args)
		_, _ = ParseCancel(args)
		_, _ = ParseCPID(args)
		_, _ = ParseVersion(args)
	})
}

// One login: AUTH, OK, handed over.
func BenchmarkExchange(b *testing.B) {
	path := filepath.Join(b.TempDir(), "login")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with the connection
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		br := bufio.NewReader(nc)
		_, _ = io.WriteString(nc, greeting)
		var out []byte
		for {
			line, err := br.ReadSlice('\n')
			if err != nil {
				return
			}
			if id, ok := strings.CutPrefix(string(line), "AUTH\t"); ok {
				id, _, _ = strings.Cut(id, "\t")
				out = append(append(append(out[:0], "OK\t"...), id...), "\tuser=alice\n"...)
				if _, err := nc.Write(out); err != nil {
					return
				}
			}
		}
	}()
	c, err := Dial(context.Background(), path, 1)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	r := &Request{Mechanism: "PLAIN", Service: "submission", Session: "Mea0le9g8Ot/AAAB", LocalIP: netip.MustParseAddr("127.0.0.1"),
		RemoteIP: netip.MustParseAddr("127.0.0.1"), LocalPort: 587, RemotePort: 40000, HasInitial: true, Initial: []byte("AGFsaWNlAGFwYXNz")}
	b.ReportAllocs()
	for b.Loop() {
		ex, err := c.Begin(r)
		if err != nil {
			b.Fatal(err)
		}
		if r, err := ex.Next(context.Background()); err != nil || r.Kind != OK {
			b.Fatal(r, err)
		}
		ex.HandedOver()
		ex.Close()
	}
}
