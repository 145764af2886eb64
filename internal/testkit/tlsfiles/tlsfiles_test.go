package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"testing"
	"time"
)

// handshake returns the errors of both sides.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() { // ends with the handshake
		nc, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer nc.Close()
		done <- tls.Server(nc, server).Handshake()
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	clientErr = tls.Client(nc, client).Handshake()
	nc.Close()
	return <-done, clientErr
}

func TestWhatTheCASignedIsTrusted(t *testing.T) {
	ca, other := NewCA(t, "ca"), NewCA(t, "other")
	server := ca.Issue(t, Request{CN: "mx.example", Names: []string{"mx.example", "127.0.0.1"}})
	alice := ca.Issue(t, Request{CN: "alice", Client: true})
	expired := ca.Issue(t, Request{CN: "mx.example", Names: []string{"mx.example"}, NotAfter: time.Now().Add(-time.Minute)})
	for _, c := range []struct {
		what   string
		server Pair
		pool   *x509.CertPool
		name   string
		ok     bool
	}{
		{"by name", server, ca.Pool(), "mx.example", true},
		{"by address", server, ca.Pool(), "127.0.0.1", true},
		{"another name", server, ca.Pool(), "my.example", false},
		{"another CA", server, other.Pool(), "mx.example", false},
		{"expired", expired, ca.Pool(), "mx.example", false},
	} {
		serverErr, clientErr := handshake(t,
			&tls.Config{Certificates: []tls.Certificate{c.server.TLS()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool()},
			&tls.Config{RootCAs: c.pool, ServerName: c.name, Certificates: []tls.Certificate{alice.TLS()}})
		if ok := serverErr == nil && clientErr == nil; ok != c.ok {
			t.Errorf("%s: server %v, client %v", c.what, serverErr, clientErr)
		}
	}
}

func TestFilesLoad(t *testing.T) {
	p := SelfSigned(t, Request{CN: "sub.example.test", Names: []string{"localhost"}})
	cert, key := p.Write(t, t.TempDir(), "server")
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(key); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key: %v %v", st, err)
	}
	if _, err := p.Leaf.Verify(x509.VerifyOptions{Roots: p.Pool(), DNSName: "localhost"}); err != nil {
		t.Error(err)
	}
}
