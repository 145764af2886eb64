package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dovetail/internal/conf/settings"
	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/tlsfiles"
)

// connect shakes hands with a server that has cert and returns the client's error.
func connect(t testing.TB, cert tls.Certificate, client *tls.Config) (err error) {
	t.Helper()
	handshake(t, &tls.Config{Certificates: []tls.Certificate{cert}}, dial(client, &err))
	return err
}

// outgoing are the settings of a client.
func outgoing(t testing.TB, change func(s *settings.SSL)) *Outgoing {
	t.Helper()
	s := settings.SSL{CipherList: defaultCiphers, MinProtocol: "TLSv1.2"}
	change(&s)
	o, warnings, err := NewOutgoing(s)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v %q", err, warnings)
	}
	return o
}

func writeFile(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// A server is accepted if its certificate leads to a known authority, wherever that
// stands, and is for the host that was asked for; with any-cert in any case.
func TestOutgoing(t *testing.T) {
	dir := t.TempDir()
	ca, other := tlsfiles.NewCA(t, "Test  CA"), tlsfiles.NewCA(t, "test ca") // one name for OpenSSL
	good := ca.Issue(t, tlsfiles.Request{CN: "ignored.example", Names: []string{"mx.example", "*.wild.example", "127.0.0.1", "::1"}}).TLS()
	cnOnly := ca.Issue(t, tlsfiles.Request{CN: "cn.example"}).TLS()
	ipCN := ca.Issue(t, tlsfiles.Request{CN: "192.0.2.1"}).TLS()
	expired := ca.Issue(t, tlsfiles.Request{CN: "mx.example", NotAfter: time.Now().Add(-time.Minute)}).TLS()
	forClients := ca.Issue(t, tlsfiles.Request{CN: "mx.example", Client: true}).TLS()
	self := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "self.example", Names: []string{"self.example"}})
	hash := fmt.Sprintf("%08x", nameHash(ca.Leaf.RawSubject))
	if hash != fmt.Sprintf("%08x", nameHash(other.Leaf.RawSubject)) {
		t.Fatal("names differ")
	}
	writeFile(t, dir, hash+".0", string(other.Cert))
	writeFile(t, dir, hash+".1", "some text\n"+string(ca.Cert))
	gap := t.TempDir()
	writeFile(t, gap, hash+".1", string(ca.Cert)) // never looked at: there is no .0
	file := writeFile(t, dir, "bundle.pem", string(other.Cert)+string(ca.Cert)+string(self.Cert))

	byFile := outgoing(t, func(s *settings.SSL) { s.ClientCAFile = file })
	byDir := outgoing(t, func(s *settings.SSL) { s.ClientCADir = dir })
	byGap := outgoing(t, func(s *settings.SSL) { s.ClientCADir = gap })
	byCA := outgoing(t, func(s *settings.SSL) { s.CA, s.RequireCRL = string(ca.Cert), true })
	byOther := outgoing(t, func(s *settings.SSL) { s.CA = string(other.Cert) })
	bySystem := outgoing(t, func(s *settings.SSL) {})

	invalid := func(why, subject string) string {
		return "Received invalid SSL certificate: " + why + ": /CN=" + subject + " (check ssl_client_ca_* settings?)"
	}
	wrong := func(host string) string {
		return "SSL certificate doesn't match expected host name " + host + ": did not match to any IP or DNS fields"
	}
	for _, c := range []struct {
		what string
		o    *Outgoing
		cert tls.Certificate
		host string
		err  string
	}{
		{"file", byFile, good, "mx.example", ""},
		{"dir", byDir, good, "mx.example", ""},
		{"dir with a gap", byGap, good, "mx.example", invalid("unable to get local issuer certificate", "ignored.example")},
		{"ssl_ca", byCA, good, "mx.example", ""},
		{"system", bySystem, good, "mx.example", invalid("unable to get local issuer certificate", "ignored.example")},
		{"CA of the same name", byOther, good, "mx.example", invalid("unable to get local issuer certificate", "ignored.example")},
		{"case, dot", byFile, good, "MX.Example.", ""},
		{"wildcard", byFile, good, "a.wild.example", ""},
		{"wildcard, two labels", byFile, good, "a.b.wild.example", wrong("a.b.wild.example")},
		{"wildcard, no label", byFile, good, "wild.example", wrong("wild.example")},
		{"address", byFile, good, "127.0.0.1", ""},
		{"IPv6", byFile, good, "0:0::1", ""},
		{"wrong address", byFile, good, "127.0.0.2", wrong("127.0.0.2")},
		{"common name beside others", byFile, good, "ignored.example", wrong("ignored.example")},
		{"common name alone", byFile, cnOnly, "cn.example", ""},
		{"address as common name", byFile, ipCN, "192.0.2.1", ""},
		{"expired", byFile, expired, "mx.example", invalid("certificate has expired", "mx.example")},
		{"for clients", byFile, forClients, "mx.example", invalid("unsuitable certificate purpose", "mx.example")},
		{"self-signed and known", byFile, self.TLS(), "self.example", ""},
		{"self-signed", byDir, self.TLS(), "self.example", invalid("self-signed certificate", "self.example")},
	} {
		got := ""
		if err := connect(t, c.cert, c.o.To(c.host, true)); err != nil {
			got = HandshakeError(err, "SSL_connect", nil)
		}
		if got != c.err {
			t.Errorf("%s: %q, want %q", c.what, got, c.err)
		}
	}
	if c, _, err := Client(settings.SSL{CA: string(ca.Cert), CipherList: defaultCiphers, MinProtocol: "TLSv1.2"}, "mx.example", true); err != nil || connect(t, good, c) != nil {
		t.Errorf("Client: %v", err)
	}
	for _, cert := range []tls.Certificate{good, expired, self.TLS()} {
		if err := connect(t, cert, byDir.To("any.example", false)); err != nil {
			t.Errorf("any-cert: %v", err)
		}
	}
}

// Authorities that are not their own issuers help, but are not trusted for themselves.
func TestOutgoingIntermediate(t *testing.T) {
	root := tlsfiles.NewCA(t, "root")
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "between"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	between, text := issue(t, template, &root)
	leaf := signedBy(t, between, "mx.example")
	chain := leaf
	chain.Certificate = append(chain.Certificate[:1:1], between.Certificate[0])
	for _, c := range []struct {
		what, ca string
		cert     tls.Certificate
		ok       bool
	}{
		{"chain sent", string(root.Cert), chain, true},
		{"chain known", string(root.Cert) + text, leaf, true},
		{"chain unknown", string(root.Cert), leaf, false},
		{"intermediate alone", text, leaf, false},
	} {
		o := outgoing(t, func(s *settings.SSL) { s.CA = c.ca })
		if err := connect(t, c.cert, o.To("mx.example", true)); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// The server name is sent for names alone, and the client's certificate if it is set.
func TestOutgoingPresents(t *testing.T) {
	pair := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "me", Client: true})
	o := outgoing(t, func(s *settings.SSL) { s.ClientCert, s.ClientKey = string(pair.Cert), string(pair.Key) })
	for host, want := range map[string]string{"mx.example.": "mx.example", "192.0.2.1": "", "::1": "", "": ""} {
		config := &tls.Config{Certificates: []tls.Certificate{selfSignedTLS(t)}, ClientAuth: tls.RequireAnyClientCert}
		var err error
		out := handshake(t, config, dial(o.To(host, false), &err))
		if err != nil || out.err != nil || out.state.ServerName != want || len(out.state.PeerCertificates) != 1 {
			t.Errorf("%s: name %q, %d certificates, %v, %v", host, out.state.ServerName, len(out.state.PeerCertificates), out.err, err)
		}
	}
}

func TestOutgoingErrors(t *testing.T) {
	dir := t.TempDir()
	pair, other := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "a"}), tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "b"})
	empty := writeFile(t, dir, "empty", "")
	broken := writeFile(t, dir, "broken", strings.Replace(string(pair.Cert), "MII", "AII", 1))
	for _, c := range []struct {
		change func(s *settings.SSL)
		err    string
	}{
		{func(s *settings.SSL) { s.ClientCert = string(pair.Cert) }, "ssl_client_key: is not set"},
		{func(s *settings.SSL) { s.ClientKey = string(pair.Key) }, "ssl_client_cert: is not set"},
		{func(s *settings.SSL) { s.ClientCert, s.ClientKey = string(pair.Cert), string(other.Key) },
			"ssl_client_key: the key belongs to another certificate than that in ssl_client_cert"},
		{func(s *settings.SSL) { s.ClientCAFile = dir + "/none" }, "ssl_client_ca_file: open " + dir + "/none: no such file or directory"},
		{func(s *settings.SSL) { s.ClientCAFile = dir }, "ssl_client_ca_file: " + dir + ": not a regular file"},
		{func(s *settings.SSL) { s.ClientCAFile = empty }, "ssl_client_ca_file: " + empty + ": there is no PEM certificate in it"},
		{func(s *settings.SSL) { s.ClientCAFile = broken }, "ssl_client_ca_file: certificate 1: asn1: structure error"},
		{func(s *settings.SSL) { s.CA = "x" }, "ssl_ca: there is no PEM certificate (is the < missing before the file name?)"},
		{func(s *settings.SSL) { s.MinProtocol = "x" }, "ssl_min_protocol: "},
	} {
		s := settings.SSL{CipherList: defaultCiphers, MinProtocol: "TLSv1.2"}
		c.change(&s)
		if _, _, err := NewOutgoing(s); err == nil || !strings.HasPrefix(err.Error(), c.err) {
			t.Errorf("%v, want %s", err, c.err)
		}
	}
}

// The files that a system's OpenSSL trusts are found without reading all of them.
func TestSystemAuthorities(t *testing.T) {
	var tr trust
	tr.system()
	for _, dir := range tr.dirs {
		files, err := filepath.Glob(dir + "/????????.0")
		if err != nil || len(files) == 0 {
			continue
		}
		for _, f := range files {
			var hash uint32
			if _, err := fmt.Sscanf(filepath.Base(f), "%08x.0", &hash); err != nil {
				continue
			}
			if len(tr.named(hash)) == 0 {
				t.Errorf("%s: no certificate whose subject has this hash", f)
			}
		}
		return
	}
	need.Missing(t, "a directory of hashed certificates, as OpenSSL has it")
}

func signedBy(t testing.TB, ca tls.Certificate, host string) tls.Certificate {
	t.Helper()
	cert, _ := issueBy(t, &x509.Certificate{Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}}, ca)
	return cert
}

// matches is what X509_check_host does without partial wildcards.
func TestHostPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, host string
		want          bool
	}{
		{"a.example", "A.EXAMPLE", true}, {"a.example.", "a.example", true}, {"*.example.org", "x.example.org", true},
		{"*.example.org", ".example.org", false}, {"*.org", "example.org", false}, {"*", "x", false}, {"*.*.org", "a.b.org", false},
		{"x*.example.org", "xa.example.org", false}, {"a.*.org", "a.b.org", false}, {"", "", false}, {"*.0.0.1", "127.0.0.1", false},
	} {
		if got := matches(c.pattern, c.host); got != c.want {
			t.Errorf("%s, %s: %v", c.pattern, c.host, got)
		}
	}
}
