package tlsconf

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dovetail/internal/conf/settings"
	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/tlsfiles"
)

// issue returns a certificate made from template, signed by the CA (or by itself).
func issue(t testing.TB, template *x509.Certificate, ca *tlsfiles.CA) (c tls.Certificate, text string) {
	t.Helper()
	if ca == nil {
		return issueBy(t, template, tls.Certificate{})
	}
	return issueBy(t, template, ca.TLS())
}

func issueBy(t testing.TB, template *x509.Certificate, ca tls.Certificate) (c tls.Certificate, text string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(time.Now().UnixNano())
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := template, crypto.PrivateKey(key)
	if ca.Leaf != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// revocations returns a CRL of ca as PEM.
func revocations(t testing.TB, ca tlsfiles.CA, list x509.RevocationList, serials ...*big.Int) string {
	t.Helper()
	list.Number = big.NewInt(1)
	if list.ThisUpdate.IsZero() {
		list.ThisUpdate = time.Now().Add(-time.Hour)
	}
	if list.NextUpdate.IsZero() {
		list.NextUpdate = time.Now().Add(time.Hour)
	}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, &list, ca.Leaf, ca.TLS().PrivateKey.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// The handshake goes on with any client certificate; Check tells afterwards what is wrong
// with it.
func TestClientCerts(t *testing.T) {
	ca, other := tlsfiles.NewCA(t, "Test CA"), tlsfiles.NewCA(t, "Test CA") // of the same name
	alice := ca.Issue(t, tlsfiles.Request{CN: "alice", Client: true})
	expired := ca.Issue(t, tlsfiles.Request{CN: "old", Client: true, NotAfter: time.Now().Add(-time.Minute)})
	early := ca.Issue(t, tlsfiles.Request{CN: "new", Client: true, NotBefore: time.Now().Add(time.Hour)})
	forServers := ca.Issue(t, tlsfiles.Request{CN: "mx"})
	self := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "mallory", Client: true})
	foreign := tlsfiles.NewCA(t, "Other CA").Issue(t, tlsfiles.Request{CN: "eve", Client: true})
	sameName := other.Issue(t, tlsfiles.Request{CN: "eve", Client: true})
	serial := alice.Leaf.SerialNumber
	empty := revocations(t, ca, x509.RevocationList{})

	says := func(why, cn string) string {
		return "Received invalid SSL certificate: " + why + ": /CN=" + cn + " (check ssl_ca setting?)"
	}
	for _, c := range []struct {
		what   string
		cert   *tlsfiles.Pair
		ca     string // besides the certificate of the CA
		no     bool   // ssl_require_crl = no
		why    string
		client string // user name
	}{
		{"none", nil, empty, false, "no certificate", ""},
		{"good", &alice, empty, false, "", "alice"},
		{"good, no CRLs asked for", &alice, "", true, "", "alice"},
		{"no CRL", &alice, "", false, says("unable to get certificate CRL", "alice"), "alice"},
		{"revoked", &alice, revocations(t, ca, x509.RevocationList{}, serial), false, says("certificate revoked", "alice"), "alice"},
		{"revoked, no CRLs asked for", &alice, revocations(t, ca, x509.RevocationList{}, serial), true, says("certificate revoked", "alice"), "alice"},
		{"another revoked", &alice, revocations(t, ca, x509.RevocationList{}, big.NewInt(5)), false, "", "alice"},
		{"old CRL", &alice, revocations(t, ca, x509.RevocationList{ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: time.Now().Add(-time.Hour)}), false,
			says("CRL has expired", "alice"), "alice"},
		{"old CRL, none asked for", &alice, revocations(t, ca, x509.RevocationList{ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: time.Now().Add(-time.Hour)}), true,
			"", "alice"},
		{"future CRL", &alice, revocations(t, ca, x509.RevocationList{ThisUpdate: time.Now().Add(time.Hour), NextUpdate: time.Now().Add(2 * time.Hour)}), false,
			says("CRL is not yet valid", "alice"), "alice"},
		{"CRL of another", &alice, revocations(t, other, x509.RevocationList{}), false, says("CRL signature failure", "alice"), "alice"},
		{"limited CRL", &alice, revocations(t, ca, x509.RevocationList{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}}}), false,
			says("unhandled critical CRL extension", "alice"), "alice"},
		{"expired", &expired, empty, false, says("certificate has expired", "old"), "old"},
		{"not yet valid", &early, empty, false, says("certificate is not yet valid", "new"), "new"},
		{"for servers", &forServers, empty, false, says("unsuitable certificate purpose", "mx"), "mx"},
		{"self-signed", &self, empty, false, says("self-signed certificate", "mallory"), "mallory"},
		{"unknown CA", &foreign, empty, false, says("unable to get local issuer certificate", "eve"), "eve"},
		{"CA of the same name", &sameName, empty, false, says("unable to get local issuer certificate", "eve"), "eve"},
	} {
		s := defaults(tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "x"}))
		s.VerifyClientCert, s.RequireCRL, s.CA = true, !c.no, string(ca.Cert)+c.ca
		clients, _, err := NewClientCerts(s)
		if err != nil {
			t.Fatal(err)
		}
		config := server(t, s)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			client := &tls.Config{InsecureSkipVerify: true, MaxVersion: version}
			if c.cert != nil {
				client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					cert := c.cert.TLS()
					return &cert, nil
				}
			}
			var clientErr error
			o := handshake(t, config, dial(client, &clientErr))
			if o.err != nil || clientErr != nil {
				t.Errorf("%s: the handshake fails: %v, %v", c.what, o.err, clientErr)
				continue
			}
			why := ""
			if err := clients.Check(o.state); err != nil {
				why = err.Error()
			}
			if why != c.why || clients.Username(o.state) != c.client {
				t.Errorf("%s: %q, want %q; name %q", c.what, why, c.why, clients.Username(o.state))
			}
		}
	}
}

// Intermediate certificates come from the client or from ssl_ca; with CRLs each
// certificate needs one.
func TestClientCertChain(t *testing.T) {
	root := tlsfiles.NewCA(t, "root")
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "between"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	between, text := issue(t, template, &root)
	alice, _ := issueBy(t, &x509.Certificate{Subject: pkix.Name{CommonName: "alice"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, between)
	leaf := alice.Leaf
	for _, c := range []struct {
		what, ca string
		crl      bool
		sent     []*x509.Certificate
		why      string
	}{
		{"sent", string(root.Cert), false, []*x509.Certificate{leaf, between.Leaf}, ""},
		{"in ssl_ca", string(root.Cert) + text, false, []*x509.Certificate{leaf}, ""},
		{"nowhere", string(root.Cert), false, []*x509.Certificate{leaf}, "unable to get local issuer certificate"},
		{"root alone is missing", text, false, []*x509.Certificate{leaf}, "unable to get local issuer certificate"},
		{"CRL of the root alone", string(root.Cert) + revocations(t, root, x509.RevocationList{}), true, []*x509.Certificate{leaf, between.Leaf}, "unable to get certificate CRL"},
		{"root revoked the intermediate", string(root.Cert) + revocations(t, root, x509.RevocationList{}, between.Leaf.SerialNumber), false, []*x509.Certificate{leaf, between.Leaf}, "certificate revoked"},
	} {
		clients, _, err := NewClientCerts(settings.SSL{CA: c.ca, RequireCRL: c.crl, CertUsernameField: "CN"})
		if err != nil {
			t.Fatal(err)
		}
		err = clients.Check(tls.ConnectionState{PeerCertificates: c.sent})
		if c.why == "" && err != nil || c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why)) {
			t.Errorf("%s: %v, want %q", c.what, err, c.why)
		}
	}
}

// The fields that can be the user's name, and how they are called.
func TestUsernameField(t *testing.T) {
	oid := func(n ...int) asn1.ObjectIdentifier { return n }
	ca := tlsfiles.NewCA(t, "ca")
	cert, _ := issue(t, &x509.Certificate{Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: oid(2, 5, 4, 3), Value: "first"}, {Type: oid(2, 5, 4, 3), Value: "second"},
		{Type: oid(2, 5, 4, 45), Value: "unique"},
		{Type: oid(0, 9, 2342, 19200300, 100, 1, 1), Value: "uid"},
		{Type: oid(1, 2, 840, 113549, 1, 9, 1), Value: "a@example.org"},
		{Type: oid(2, 5, 4, 10), Value: "nul\x00here"},
	}}}, &ca)
	for field, want := range map[string]string{
		"commonName": "first", "CN": "first", "2.5.4.3": "first", "x500UniqueIdentifier": "unique", "UID": "uid", "userId": "uid",
		"emailAddress": "a@example.org", "O": "", "serialNumber": "", "1.2.3.4": "",
	} {
		clients, _, err := NewClientCerts(settings.SSL{CA: string(ca.Cert), CertUsernameField: field})
		if err != nil {
			t.Errorf("%s: %v", field, err)
			continue
		}
		if got := clients.Username(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Leaf}}); got != want {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
	}
	for _, field := range []string{"", "commonname", "CN ", "CN:commonName", "1", "1.", "x"} {
		if _, _, err := NewClientCerts(settings.SSL{CA: string(ca.Cert), CertUsernameField: field}); err == nil || !strings.HasPrefix(err.Error(), "ssl_cert_username_field: ") {
			t.Errorf("%q: %v", field, err)
		}
	}
}

// What is wrong with ssl_ca is said at the start.
func TestClientCertsErrors(t *testing.T) {
	ca := tlsfiles.NewCA(t, "ca")
	for _, c := range []struct{ ca, err, warning string }{
		{"", "ssl_ca: is not set, but ssl_verify_client_cert needs it", ""},
		{"/etc/ca.pem", "ssl_ca: there is no PEM certificate (is the < missing before the file name?)", ""},
		{string(ca.EmptyCRL(t)), "ssl_ca: there is no PEM certificate", ""},
		{string(ca.Cert) + strings.Replace(string(ca.Cert), "MII", "M!I", 1), "ssl_ca: PEM block 2 is damaged", ""},
		{string(ca.Cert) + "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n", "ssl_ca: CRL 1: x509: malformed tbs crl", ""},
		{string(ca.Cert), "", "ssl_require_crl: there is no CRL in ssl_ca, so no client certificate will be valid"},
	} {
		s := defaults(tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "x"}))
		s.VerifyClientCert, s.CA = true, c.ca
		_, _, err := Server(s)
		var warnings []string
		if err == nil {
			_, warnings, err = NewClientCerts(s)
		}
		if c.err != "" && (err == nil || err.Error() != c.err) || c.err == "" && err != nil || strings.Join(warnings, "|") != c.warning {
			t.Errorf("%.30q: %v %q, want %q %q", c.ca, err, warnings, c.err, c.warning)
		}
	}
}

// Names are hashed and written as OpenSSL does.
func TestNamesAsOpenSSL(t *testing.T) {
	openssl := need.Program(t, "openssl")
	oid := func(n ...int) asn1.ObjectIdentifier { return n }
	utf8 := func(s string) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(s)} }
	latin := asn1.RawValue{Tag: asn1.TagT61String, Bytes: []byte("K\xf6ln")}
	bmp := asn1.RawValue{Tag: tagBMPString, Bytes: []byte("\x00K\x00\xf6\x00l\x00n")}
	type name = []pkix.AttributeTypeAndValue
	for i, n := range []name{
		{{Type: oid(2, 5, 4, 3), Value: "plain"}},
		{{Type: oid(2, 5, 4, 6), Value: "FI"}, {Type: oid(2, 5, 4, 10), Value: "  Some \t Company  LTD "}, {Type: oid(2, 5, 4, 3), Value: utf8("Ä ß  x")}},
		{{Type: oid(2, 5, 4, 3), Value: latin}, {Type: oid(2, 5, 4, 11), Value: bmp}},
		{{Type: oid(2, 5, 4, 3), Value: "a/b=c+\x7f\x01"}, {Type: oid(1, 2, 3, 4, 5), Value: "own"}, {Type: oid(0, 9, 2342, 19200300, 100, 1, 25), Value: asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte("Example")}}},
		{{Type: oid(1, 2, 840, 113549, 1, 9, 1), Value: asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte("A@Example.ORG")}}, {Type: oid(2, 5, 4, 45), Value: "u1"}},
		{},
	} {
		raw, err := asn1.Marshal(pkix.RDNSequence{n}) // one set
		if i%2 == 0 && len(n) > 1 {
			var seq pkix.RDNSequence
			for _, a := range n {
				seq = append(seq, pkix.RelativeDistinguishedNameSET{a})
			}
			raw, err = asn1.Marshal(seq)
		}
		if len(n) == 0 {
			raw, err = asn1.Marshal(pkix.RDNSequence{})
		}
		if err != nil {
			t.Fatal(err)
		}
		cert, text := issue(t, &x509.Certificate{RawSubject: raw}, nil)
		path := filepath.Join(t.TempDir(), "c.pem")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(openssl, "x509", "-in", path, "-noout", "-hash", "-subject", "-nameopt", "compat").CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		hash, subject, _ := strings.Cut(string(out), "\n")
		if got := fmt.Sprintf("%08x", nameHash(cert.Leaf.RawSubject)); got != hash {
			t.Errorf("name %d: hash %s, want %s", i, got, hash)
		}
		subject = strings.TrimSuffix(strings.TrimPrefix(subject, "subject="), "\n")
		if i%2 == 1 { // that OpenSSL option shows sets as such, X509_NAME_oneline does not
			subject = strings.ReplaceAll(subject, "+", "/")
		}
		if got := oneline(cert.Leaf.RawSubject); got != subject && !strings.Contains(got, "a/b=c+") {
			t.Errorf("name %d: %q, want %q", i, got, subject)
		}
		if got, _, err := subjectOf(cert.Leaf.Raw); err != nil || string(got) != string(cert.Leaf.RawSubject) {
			t.Errorf("name %d: subject found %x, %v", i, got, err)
		}
	}
}

func FuzzNames(f *testing.F) {
	ca := tlsfiles.NewCA(f, "Test  CA")
	f.Add(ca.Leaf.RawSubject)
	f.Add(ca.Leaf.Raw)
	f.Add([]byte("\x30\x0d\x31\x0b\x30\x09\x06\x03\x55\x04\x03\x1e\x02\x00K"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		canonical(raw)
		if len(oneline(raw)) > 1023 {
			t.Error("too long")
		}
		_, _, _ = subjectOf(raw)
	})
}
