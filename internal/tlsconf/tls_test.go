package tlsconf

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/conf/settings"
	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/tlsfiles"
)

const testTimeout = 20 * time.Second

// defaults are the settings of a server with pair's certificate, all else as Dovecot has it.
func defaults(pair tlsfiles.Pair) settings.SSL {
	return settings.SSL{SSL: "yes", Cert: string(pair.Cert), Key: string(pair.Key), RequireCRL: true, CertUsernameField: "commonName",
		CipherList: defaultCiphers, MinProtocol: "TLSv1.2", ClientRequireValid: true}
}

func server(t testing.TB, s settings.SSL) *tls.Config {
	t.Helper()
	c, warnings, err := Server(s)
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) > 0 {
		t.Logf("warnings: %q", warnings)
	}
	return c
}

// An outcome is how one handshake ended at the server.
type outcome struct {
	state tls.ConnectionState
	under *Transport
	err   error
}

// handshake gives client a connection to a server with config.
func handshake(t testing.TB, config *tls.Config, client func(addr string)) outcome {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	result := make(chan outcome, 1)
	go func() { // ends after one connection, or when l is closed
		conn, err := l.Accept()
		if err != nil {
			result <- outcome{err: err}
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(testTimeout))
		under := NewTransport(conn)
		c := tls.Server(under, config)
		if err = c.Handshake(); err == nil {
			_, _ = c.Write([]byte("220 hello\r\n"))
			_, _ = io.Copy(io.Discard, c)
		}
		result <- outcome{c.ConnectionState(), under, err}
		_, _ = io.Copy(io.Discard, conn) // no reset before the alert is read
	}()
	client(l.Addr().String())
	select {
	case o := <-result:
		return o
	case <-time.After(testTimeout):
		t.Fatal("the server waits for ever")
		panic("unreachable")
	}
}

// serve gives client as many connections to a server with config as it wants.
func serve(t testing.TB, config *tls.Config, client func(addr string)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() { // ends with l
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { // ends with the connection, at the latest with its deadline
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(testTimeout))
				c := tls.Server(NewTransport(conn), config)
				if c.Handshake() == nil {
					_, _ = c.Write([]byte("220 hello\r\n"))
				}
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	client(l.Addr().String())
	l.Close()
	conns.Wait()
}

// parse reads a few lines of configuration into the settings of a server.
func parse(t testing.TB, conf string) settings.SSL {
	t.Helper()
	s := defaults(tlsfiles.Pair{})
	fields := map[string]*string{"ssl_cert": &s.Cert, "ssl_key": &s.Key, "ssl_alt_cert": &s.AltCert, "ssl_alt_key": &s.AltKey, "ssl_min_protocol": &s.MinProtocol,
		"ssl_cipher_list": &s.CipherList, "ssl_options": &s.Options, "ssl_curve_list": &s.CurveList}
	for l := range strings.Lines(conf) {
		name, value, _ := strings.Cut(strings.TrimSpace(l), " = ")
		if file, ok := strings.CutPrefix(value, "<"); ok {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			value = string(b)
		}
		*fields[name] = value
	}
	return s
}

// dial is a client with config that reads the greeting and leaves.
func dial(config *tls.Config, err *error) func(addr string) {
	return func(addr string) {
		d := tls.Dialer{Config: config}
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		c, e := d.DialContext(ctx, "tcp", addr)
		if e == nil {
			_, e = c.Read(make([]byte, 100))
			c.Close()
		}
		*err = e
	}
}

// sClient is openssl s_client with more arguments.
func sClient(t testing.TB, out *string, args ...string) func(addr string) {
	openssl := need.Program(t, "openssl")
	return func(addr string) {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, openssl, append([]string{"s_client", "-connect", addr}, args...)...)
		b, _ := cmd.CombinedOutput() // without input, it leaves after the handshake
		if out != nil {
			*out = string(b)
		}
	}
}

// raw sends octets, closes the sending side, and waits for the server to close.
func raw(data string) func(addr string) {
	return func(addr string) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, data)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}
}

// Which version a client gets with each ssl_min_protocol.
func TestMinProtocol(t *testing.T) {
	pair := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "x"})
	for _, c := range []struct {
		setting string
		lowest  uint16
		warning string
	}{
		{"ANY", tls.VersionTLS10, ""}, {"TLSv1", tls.VersionTLS10, ""}, {"TLSv1.1", tls.VersionTLS11, ""}, {"tlsv1.2", tls.VersionTLS12, ""},
		{"TLSv1.2", tls.VersionTLS12, ""}, {"TLSv1.3", tls.VersionTLS13, ""}, {"LATEST", tls.VersionTLS13, ""},
		{"SSLv3", tls.VersionTLS10, "ssl_min_protocol: there is no SSLv3; the lowest version is TLSv1"},
	} {
		s := defaults(pair)
		s.MinProtocol = c.setting
		config, warnings, err := Server(s)
		if err != nil || strings.Join(warnings, "|") != c.warning {
			t.Errorf("%s: %v %q", c.setting, err, warnings)
			continue
		}
		for v := uint16(tls.VersionTLS10); v <= tls.VersionTLS13; v++ {
			var clientErr error
			o := handshake(t, config, dial(&tls.Config{InsecureSkipVerify: true, MinVersion: v, MaxVersion: v}, &clientErr))
			if ok := o.err == nil && clientErr == nil; ok != (v >= c.lowest) || ok && o.state.Version != v {
				t.Errorf("%s with a client of %s: %v, %v", c.setting, tls.VersionName(v), o.err, clientErr)
			}
		}
	}
	s := defaults(pair)
	s.MinProtocol = "TLSv1.4"
	if _, _, err := Server(s); err == nil || err.Error() != `ssl_min_protocol: unknown protocol "TLSv1.4" (want TLSv1, TLSv1.1, TLSv1.2, TLSv1.3, LATEST or ANY)` {
		t.Error(err)
	}
}

// What ssl_options does, and says.
func TestOptions(t *testing.T) {
	pair := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "x"})
	for _, c := range []struct {
		options       string
		resumes       bool
		warnings, err string
	}{
		{"", true, "", ""},
		{"no_compression", true, "", ""},
		{"no_ticket", false, "", ""},
		{"no_compression, NO_TICKET", false, "", ""},
		{"compression", true, "ssl_options: there is no compression, so connections are not compressed", ""},
		{"no_ticket no_ticets", false, "", "ssl_options: unknown flag: 'no_ticets'"},
	} {
		s := defaults(pair)
		s.Options = c.options
		config, warnings, err := Server(s)
		if err != nil || c.err != "" {
			if err == nil || err.Error() != c.err {
				t.Errorf("%s: %v", c.options, err)
			}
			continue
		}
		if strings.Join(warnings, "|") != c.warnings {
			t.Errorf("%s: warnings %q", c.options, warnings)
		}
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			client := &tls.Config{InsecureSkipVerify: true, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
			for i, resumed := range []bool{false, c.resumes} {
				var clientErr error
				o := handshake(t, config, dial(client, &clientErr))
				if o.err != nil || clientErr != nil || o.state.DidResume != resumed {
					t.Errorf("%s, connection %d: resumed %v, %v, %v", c.options, i+1, o.state.DidResume, o.err, clientErr)
				}
			}
		}
	}
}

// With an RSA and an ECDSA certificate each client gets the one it can use, and of two
// the one it likes better; names play no part.
func TestAlternativeCertificate(t *testing.T) {
	ec := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "ec", Names: []string{"ec.example"}})
	s := defaults(ec)
	s.AltCert, s.AltKey = s.Cert, s.Key
	s.Cert, s.Key = read(t, "rsa-cert.pem"), read(t, "rsa-key.pem")
	config := server(t, s)
	for _, c := range []struct {
		args []string
		want string // key type that s_client shows; empty: no handshake
	}{
		{[]string{"-tls1_3"}, "ECDSA"},
		{[]string{"-tls1_3", "-servername", "other.example"}, "ECDSA"},
		{[]string{"-tls1_3", "-sigalgs", "RSA-PSS+SHA256:ECDSA+SHA256"}, "RSA-PSS"},
		{[]string{"-tls1_3", "-sigalgs", "RSA-PSS+SHA256", "-servername", "ec.example"}, "RSA-PSS"},
		{[]string{"-tls1_2"}, "ECDSA"},
		{[]string{"-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"}, "RSA-PSS"},
		{[]string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256", "-servername", "rsa.example"}, "ECDSA"},
		{[]string{"-tls1_3", "-sigalgs", "ed25519"}, ""},
	} {
		var out string
		o := handshake(t, config, sClient(t, &out, c.args...))
		_, got, _ := strings.Cut(out, "Peer signature type: ")
		got, _, _ = strings.Cut(got, "\n")
		if got != c.want || (o.err == nil) != (c.want != "") {
			t.Errorf("%q: got %q, want %q (%v)", c.args, got, c.want, o.err)
		}
	}
}

// Describe says of a connection what s_client says.
func TestDescribe(t *testing.T) {
	ec, rsa := defaults(tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "x"})), defaults(tlsfiles.Pair{})
	rsa.Cert, rsa.Key = read(t, "rsa-cert.pem"), read(t, "rsa-key.pem")
	for i := range []int{0, 1} {
		s := []*settings.SSL{&ec, &rsa}[i]
		s.CipherList, s.MinProtocol = "ALL:ECDHE-RSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA256:AES128-SHA256", "ANY"
	}
	for _, c := range []struct {
		s    settings.SSL
		args []string
		want string
	}{
		{ec, []string{"-ciphersuites", "TLS_AES_256_GCM_SHA384"}, "TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)"},
		{ec, []string{"-ciphersuites", "TLS_AES_128_GCM_SHA256"}, "TLSv1.3 with cipher TLS_AES_128_GCM_SHA256 (128/128 bits)"},
		{ec, []string{"-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"}, "TLSv1.3 with cipher TLS_CHACHA20_POLY1305_SHA256 (256/256 bits)"},
		{ec, []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"}, "TLSv1.2 with cipher ECDHE-ECDSA-AES256-GCM-SHA384 (256/256 bits)"},
		{ec, []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"}, "TLSv1.2 with cipher ECDHE-ECDSA-CHACHA20-POLY1305 (256/256 bits)"},
		{ec, []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"}, "TLSv1.2 with cipher ECDHE-ECDSA-AES128-SHA256 (128/128 bits)"},
		{ec, []string{"-tls1_1", "-cipher", "ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0"}, "TLSv1.1 with cipher ECDHE-ECDSA-AES256-SHA (256/256 bits)"},
		{rsa, []string{"-tls1", "-cipher", "ECDHE-RSA-AES128-SHA:@SECLEVEL=0"}, "TLSv1 with cipher ECDHE-RSA-AES128-SHA (128/128 bits)"},
		{rsa, []string{"-tls1_2", "-cipher", "AES256-GCM-SHA384"}, "TLSv1.2 with cipher AES256-GCM-SHA384 (256/256 bits)"},
		{rsa, []string{"-tls1_2", "-cipher", "AES128-SHA256"}, "TLSv1.2 with cipher AES128-SHA256 (128/128 bits)"},
	} {
		var out string
		o := handshake(t, server(t, c.s), sClient(t, &out, c.args...))
		if got := Describe(o.state); got != c.want || o.err != nil {
			t.Errorf("%q: %s (%v)\n%s", c.args, got, o.err, out)
			continue
		}
		_, theirs, _ := strings.Cut(out, "Cipher is ")
		theirs, _, _ = strings.Cut(theirs, "\n")
		if words := strings.Fields(c.want); words[3] != theirs {
			t.Errorf("%q: s_client calls it %q", c.args, theirs)
		}
	}
	if s := Describe(tls.ConnectionState{}); s != "" {
		t.Errorf("before the handshake: %q", s)
	}
	state := tls.ConnectionState{HandshakeComplete: true, Version: tls.VersionTLS10, CipherSuite: tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}
	if s := Describe(state); s != "TLSv1 with cipher DES-CBC3-SHA (112/168 bits)" {
		t.Error(s)
	}
}

// The words for failed handshakes. Those with an OpenSSL number are what OpenSSL 3 calls
// the same event; Dovecot logs them so (and some of them as "SSL_accept() syscall failed:
// Invalid argument", which helps nobody).
func TestHandshakeErrors(t *testing.T) {
	s := defaults(tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "x"}))
	config := server(t, s)
	trusting := tlsfiles.NewCA(t, "other")
	ca, _ := trusting.Write(t, t.TempDir(), "ca")
	for _, c := range []struct {
		what   string
		client func(string)
		want   string
	}{
		{"HTTP", raw("GET / HTTP/1.0\r\n\r\n"), "SSL_accept() failed: error:0A00009C:SSL routines::http request"},
		{"HTTP POST", raw("POST / HTTP/1.0\r\n\r\n"), "SSL_accept() failed: error:0A00009C:SSL routines::http request"},
		{"proxy", raw("CONNECT a:1 HTTP/1.0\r\n\r\n"), "SSL_accept() failed: error:0A00009B:SSL routines::https proxy request"},
		{"SMTP", raw("EHLO me\r\n"), "SSL_accept() failed: error:0A00010B:SSL routines::wrong version number"},
		{"short", raw("\x16\x03"), "Connection closed"},
		{"nothing", raw(""), "Connection closed"},
		{"damaged hello", raw("\x16\x03\x01\x00\x10\x01\x00\x00\x0caaaaaaaaaaaa"), "SSL_accept() failed: error decoding message"}, // crypto/tls does not say which
		{"application data", raw("\x17\x03\x03\x00\x05aaaaa"), "SSL_accept() failed: error:0A0000F4:SSL routines::unexpected message"},
		{"long record", raw("\x16\x03\x01\x60\x00" + strings.Repeat("a", 0x6000)), "SSL_accept() failed: error:0A0000C6:SSL routines::packet length too long"},
		{"close notify", raw("\x15\x03\x01\x00\x02\x01\x00"), "Connection closed"},
		{"alert", raw("\x15\x03\x01\x00\x02\x02\x28"), "SSL_accept() failed: error:0A000410:SSL routines::sslv3 alert handshake failure: SSL alert number 40"},
		{"strange alert", raw("\x15\x03\x01\x00\x02\x02\xc8"), "SSL_accept() failed: error:0A0004B0:SSL routines::reason(1200): SSL alert number 200"},
		{"SSLv2", raw("\x80\x2e\x01\x00\x02" + strings.Repeat("x", 41)), "SSL_accept() failed: error:0A000102:SSL routines::unsupported protocol"},
		{"TLSv1.1", sClient(t, nil, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), "SSL_accept() failed: error:0A000102:SSL routines::unsupported protocol"},
		{"cipher", sClient(t, nil, "-tls1_2", "-cipher", "AES128-SHA"), "SSL_accept() failed: error:0A0000C1:SSL routines::no shared cipher"},
		{"suite", sClient(t, nil, "-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"), "SSL_accept() failed: error:0A0000C1:SSL routines::no shared cipher"},
		{"signature", sClient(t, nil, "-tls1_3", "-sigalgs", "ed25519"), "SSL_accept() failed: error:0A000076:SSL routines::no suitable signature algorithm"},
		{"group", sClient(t, nil, "-tls1_3", "-curves", "X448"), "SSL_accept() failed: error:0A000065:SSL routines::no suitable key share"},
		{"fallback", sClient(t, nil, "-tls1_2", "-fallback_scsv"), "SSL_accept() failed: error:0A000175:SSL routines::inappropriate fallback"},
		{"unknown CA", sClient(t, nil, "-tls1_2", "-verify_return_error", "-CAfile", ca), "SSL_accept() failed: error:0A000418:SSL routines::tlsv1 alert unknown ca: SSL alert number 48"},
		{"unknown CA, TLSv1.3", sClient(t, nil, "-tls1_3", "-verify_return_error", "-CAfile", ca), "SSL_accept() failed: error:0A000418:SSL routines::tlsv1 alert unknown ca: SSL alert number 48"},
	} {
		o := handshake(t, config, c.client)
		if got := HandshakeError(o.err, "SSL_accept", o.under); got != c.want {
			t.Errorf("%s: %s\nwant %s (%v)", c.what, got, c.want, o.err)
		}
	}
	for err, want := range map[error]string{
		nil:                  "",
		context.Canceled:     "SSL_accept() failed: context canceled",
		errors.New("tls: x"): "SSL_accept() failed: x",
		fmt.Errorf("read: %w", io.ErrUnexpectedEOF): "Connection closed",
		&HostError{"h"}: "SSL certificate doesn't match expected host name h: did not match to any IP or DNS fields",
	} {
		if got := HandshakeError(err, "SSL_accept", nil); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

func selfSignedTLS(t testing.TB) tls.Certificate {
	return tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "x"}).TLS()
}
