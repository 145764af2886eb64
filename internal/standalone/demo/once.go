package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/smtp"
	"os"
	"path/filepath"
	"time"
)

const certLife = 30 * 24 * time.Hour

// makeCertificate makes cert.pem and key.pem in dir, for localhost.
func makeCertificate(dir string) (cert string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return "", err
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "localhost", Organization: []string{"Dovetail demo"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLife),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.ParseIP(host), net.IPv6loopback},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	cert = filepath.Join(dir, "cert.pem")
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return "", err
	}
	return cert, os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600)
}

// body is what once sends.
const body = "From: Demo <" + sender + ">\r\nTo: <" + rcpt + ">\r\nSubject: Hello from Dovetail\r\n\r\n" +
	"This message went from a client over STARTTLS and AUTH PLAIN to submission-login,\r\n" +
	"with its connection to submission, and on to the relay, which wrote it here.\r\n"

// once sends one message and prints it as the relay got it.
func (d *demo) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, mailTimeout)
	defer cancel()
	if err := d.send(ctx); err != nil {
		return fmt.Errorf("%w; the server's log:\n%s", err, d.log.all())
	}
	select {
	case m := <-d.relay.messages:
		text, err := os.ReadFile(m.path)
		if err != nil {
			return err
		}
		fmt.Fprintf(d.Stdout, "The relay got, from <%s> for <%s>:\n\n%s", m.from, m.to[0], text)
		return nil
	case <-ctx.Done():
		return errors.New("the relay got nothing; the server's log:\n" + d.log.all())
	}
}

// send sends body, as a mail program would.
func (d *demo) send(ctx context.Context) error {
	ca, err := os.ReadFile(d.cert)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.addr())
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	c, err := smtp.NewClient(conn, host)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return c.StartTLS(&tls.Config{RootCAs: roots, ServerName: "localhost"}) },
		func() error { return c.Auth(smtp.PlainAuth("", login, d.password, host)) },
		func() error { return c.Mail(sender) },
		func() error { return c.Rcpt(rcpt) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte(body)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}
