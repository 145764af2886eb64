package tlsconf

import (
	"crypto"
	"os"
	"strings"
	"testing"

	"dovetail/internal/conf/settings"
	"dovetail/internal/testkit/tlsfiles"
)

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Keys as OpenSSL writes them, encrypted in all the ways that it still reads without its
// legacy provider, or refused with a word about what to do.
func TestPrivateKeys(t *testing.T) {
	plain, err := privateKey(source{"ssl_key", read(t, "keys/ec-pkcs8.pem")}, "")
	if err != nil {
		t.Fatal(err)
	}
	const (
		wrong     = "ssl_key: the private key cannot be decrypted (is ssl_key_password wrong?)"
		encrypted = "ssl_key: the private key is encrypted, but ssl_key_password is not set"
		anew      = "write it anew with: openssl pkcs8 -topk8 -v2 aes256"
	)
	for _, c := range []struct {
		file, password string
		fails          string // all or part of the error
	}{
		{"ec-sec1.pem", "", ""},
		{"ec-sec1.pem", "not needed", ""},
		{"pbes2-default.pem", "opensesame", ""},
		{"pbes2-default.pem", "", encrypted},
		{"pbes2-default.pem", "opensesam", wrong},
		{"pbes2-aes128-sha1.pem", "opensesame", ""},
		{"pbes2-aes192-sha512.pem", "opensesame", ""},
		{"pbes2-des3.pem", "opensesame", ""},
		{"pbes2-scrypt.pem", "opensesame", anew},
		{"pbes1.pem", "opensesame", anew},
		{"legacy-aes256.pem", "opensesame", ""},
		{"legacy-aes256.pem", "", encrypted},
		{"legacy-aes256.pem", "x", wrong},
		{"legacy-des3.pem", "opensesame", ""},
		{"ec-brainpool.pem", "", "ssl_key: the private key cannot be read: x509: unknown elliptic curve"},
	} {
		key, err := privateKey(source{"ssl_key", read(t, "keys/"+c.file)}, c.password)
		switch {
		case c.fails == "" && err != nil:
			t.Errorf("%s: %v", c.file, err)
		case c.fails == "" && !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(plain.Public()):
			t.Errorf("%s: another key came out", c.file)
		case c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails) || !strings.HasPrefix(err.Error(), "ssl_key: ")):
			t.Errorf("%s with %q: %v, want %s", c.file, c.password, err, c.fails)
		}
	}
	for _, file := range []string{"rsa-legacy-aes128.pem", "ed25519.pem"} {
		if _, err := privateKey(source{"ssl_key", read(t, "keys/"+file)}, "opensesame"); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// What is wrong with certificate or key is told by the setting's name, without showing
// any of a key.
func TestServerCertificateErrors(t *testing.T) {
	pair, other := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "a"}), tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "b"})
	cert, key := string(pair.Cert), string(pair.Key)
	damaged := strings.Replace(cert, "MII", "M!I", 1)
	for _, c := range []struct{ cert, key, err string }{
		{"", key, "ssl_cert: no certificate is set"},
		{cert, "", "ssl_key: is not set"},
		{"/etc/dovecot/cert.pem", key, "ssl_cert: there is no PEM certificate (is the < missing before the file name?)"},
		{cert, "/etc/dovecot/key.pem", "ssl_key: there is no PEM private key (is the < missing before the file name?)"},
		{"hello\nthere\n", key, "ssl_cert: there is no PEM certificate"},
		{key, cert, "ssl_cert: there is a private key instead of a certificate (are certificate and key swapped?)"},
		{cert, cert, "ssl_key: there is a certificate instead of a private key (are certificate and key swapped?)"},
		{cert, string(other.Key), "ssl_key: the key belongs to another certificate than that in ssl_cert"},
		{damaged, key, "ssl_cert: PEM block 1 is damaged"},
		{cert + damaged, key, "ssl_cert: PEM block 2 is damaged"},
		{cert + strings.Replace(cert, "-----END CERTIFICATE-----\n", "", 1), key, "ssl_cert: PEM block 2 is damaged"},
		{cert, strings.Replace(key, "MI", "M!", 1), "ssl_key: PEM block 1 is damaged"},
		{cert, "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n", "ssl_key: the private key cannot be read: asn1: syntax error: sequence truncated"},
		{cert, "-----BEGIN DSA PRIVATE KEY-----\nMAA=\n-----END DSA PRIVATE KEY-----\n", "ssl_key: a dsa private key cannot be used here (want RSA, ECDSA or Ed25519)"},
	} {
		_, _, err := Server(settings.SSL{Cert: c.cert, Key: c.key, MinProtocol: "TLSv1.2", CipherList: defaultCiphers})
		if err == nil || err.Error() != c.err {
			t.Errorf("%.40q, %.40q: %v, want %s", c.cert, c.key, err, c.err)
		}
	}
}

// A chain is sent as it stands in ssl_cert, and text between the blocks does not matter.
func TestChain(t *testing.T) {
	ca := tlsfiles.NewCA(t, "ca")
	leaf := ca.Issue(t, tlsfiles.Request{CN: "leaf"})
	c, _, err := Server(settings.SSL{Cert: "subject=leaf\r\n" + string(leaf.Cert) + "\n\nissuer\n" + string(ca.Cert) + string(leaf.Key),
		Key: string(leaf.Cert) + string(leaf.Key), MinProtocol: "TLSv1.2", CipherList: defaultCiphers})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Certificates[0].Certificate; len(got) != 2 || string(got[0]) != string(leaf.Leaf.Raw) || string(got[1]) != string(ca.Leaf.Raw) {
		t.Errorf("%d certificates", len(got))
	}
}

func FuzzPEM(f *testing.F) {
	for _, file := range []string{"ec-sec1", "pbes2-default", "pbes1", "legacy-des3"} {
		b, err := os.ReadFile("testdata/keys/" + file + ".pem")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add(string(tlsfiles.SelfSigned(f, tlsfiles.Request{CN: "x"}).Cert))
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "ENCRYPTED") { // the cost is the file's to choose
			text = strings.ReplaceAll(text, "ENCRYPTED", "")
		}
		if key, err := privateKey(source{"ssl_key", text}, "x"); (key == nil) == (err == nil) {
			t.Error("neither key nor error, or both")
		}
		if certs, err := certificates(source{"ssl_cert", text}); (len(certs) == 0) == (err == nil) {
			t.Error("neither certificates nor error, or both")
		}
	})
}

// ssl_dh, which Debian sets, must be what it says, and a warning tells that it does nothing.
func TestDH(t *testing.T) {
	const params = "-----BEGIN DH PARAMETERS-----\nMAA=\n-----END DH PARAMETERS-----\n"
	pair := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "a"})
	for dh, want := range map[string][2]string{
		params:                {"ssl_dh: there are no DHE ciphers here; the setting does nothing", ""},
		"/usr/share/x/dh.pem": {"", "ssl_dh: there are no PEM DH parameters"},
		string(pair.Cert):     {"", "ssl_dh: there are no PEM DH parameters"},
	} {
		s := defaults(pair)
		s.DH = dh
		_, warnings, err := Server(s)
		if strings.Join(warnings, "|") != want[0] || want[1] != "" && (err == nil || err.Error() != want[1]) {
			t.Errorf("%.20q: %q, %v", dh, warnings, err)
		}
	}
}
