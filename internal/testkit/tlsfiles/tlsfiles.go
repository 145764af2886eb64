// Package tlsfiles makes certificates for tests: a CA, what it signs for servers and
// clients, and self-signed ones, in memory and as PEM files. Keys are ECDSA P-256, which
// cost a millisecond to make.
package tlsfiles

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A Request says what is in a certificate. The zero values mean: valid from an hour ago
// for ten years.
type Request struct {
	CN        string
	Names     []string // DNS names and IP addresses of the subject alternative name
	Client    bool     // for a client; otherwise for a server
	NotBefore time.Time
	NotAfter  time.Time
}

// A Pair is a certificate with its key. Leaf is parsed.
type Pair struct {
	Cert, Key []byte // PEM; Cert has the leaf alone
	Leaf      *x509.Certificate
	key       *ecdsa.PrivateKey
}

// TLS returns the pair as crypto/tls wants it.
func (p Pair) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{p.Leaf.Raw}, PrivateKey: p.key, Leaf: p.Leaf}
}

// Pool returns a pool that trusts the certificate, be it a CA or self-signed.
func (p Pair) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.Leaf)
	return pool
}

// Write writes dir/name-cert.pem (mode 0644) and dir/name-key.pem (mode 0600).
func (p Pair) Write(t testing.TB, dir, name string) (cert, key string) {
	t.Helper()
	cert, key = filepath.Join(dir, name+"-cert.pem"), filepath.Join(dir, name+"-key.pem")
	write(t, cert, p.Cert, 0o644)
	write(t, key, p.Key, 0o600)
	return cert, key
}

func write(t testing.TB, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
}

// A CA signs certificates. Its own certificate and key are in the Pair.
type CA struct{ Pair }

// NewCA returns a CA of its own.
func NewCA(t testing.TB, cn string) CA {
	t.Helper()
	template := template(t, Request{CN: cn})
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	template.ExtKeyUsage = nil
	return CA{sign(t, template, nil)}
}

// Issue returns a certificate that the CA signed.
func (ca CA) Issue(t testing.TB, r Request) Pair {
	t.Helper()
	return sign(t, template(t, r), &ca.Pair)
}

// EmptyCRL returns a revocation list of the CA, as PEM, that revokes nothing.
func (ca CA) EmptyCRL(t testing.TB) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().AddDate(10, 0, 0),
	}, ca.Leaf, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// SelfSigned returns a server certificate that nobody else signed.
func SelfSigned(t testing.TB, r Request) Pair {
	t.Helper()
	template := template(t, r)
	template.IsCA, template.BasicConstraintsValid = true, true
	return sign(t, template, nil)
}

func template(t testing.TB, r Request) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: r.CN},
		NotBefore:    r.NotBefore,
		NotAfter:     r.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if r.Client {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	if c.NotBefore.IsZero() {
		c.NotBefore = time.Now().Add(-time.Hour)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().AddDate(10, 0, 0)
	}
	for _, name := range r.Names {
		if ip := net.ParseIP(name); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	return c
}

func sign(t testing.TB, template *x509.Certificate, by *Pair) Pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.Leaf, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}),
		Leaf: leaf,
		key:  key,
	}
}
