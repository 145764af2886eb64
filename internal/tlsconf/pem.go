package tlsconf

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"dovetail/internal/conf/settings"
)

// A source is a setting that holds PEM text, as the config service sends it: the contents
// of the file (clause P2.8).
type source struct{ setting, text string }

func (s source) errorf(format string, args ...any) error {
	return fmt.Errorf(s.setting+": "+format, args...)
}

// serverCertificates returns the certificate of s and, if there is one, the alternative
// one, usually of another algorithm.
func serverCertificates(s settings.SSL) (certs []tls.Certificate, warnings []string, err error) {
	pairs := []struct{ cert, key source }{{source{"ssl_cert", s.Cert}, source{"ssl_key", s.Key}}}
	if s.AltCert != "" {
		pairs = append(pairs, struct{ cert, key source }{source{"ssl_alt_cert", s.AltCert}, source{"ssl_alt_key", s.AltKey}})
	} else if s.AltKey != "" {
		warnings = append(warnings, "ssl_alt_key: does nothing, because ssl_alt_cert is not set")
	}
	for _, p := range pairs {
		c, w, err := keyPair(p.cert, p.key, s.KeyPassword)
		if err != nil {
			return nil, nil, err
		}
		certs = append(certs, c)
		warnings = append(warnings, w...)
	}
	return certs, warnings, nil
}

// keyPair reads a certificate with what follows it to the root, and its private key,
// which password opens if it is encrypted.
func keyPair(cert, key source, password string) (c tls.Certificate, warnings []string, err error) {
	chain, err := certificates(cert)
	if err != nil {
		return c, nil, err
	}
	leaf := chain[0]
	c.Leaf = leaf
	for _, x := range chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	signer, err := privateKey(key, password)
	if err != nil {
		return c, nil, err
	}
	c.PrivateKey = signer
	pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(leaf.PublicKey) {
		return c, nil, key.errorf("the key belongs to another certificate than that in %s", cert.setting)
	}
	if r, ok := signer.(*rsa.PrivateKey); ok && r.N.BitLen() < 1024 {
		return c, nil, key.errorf("an RSA key of %d bits is too weak to be used (want 2048 or more)", r.N.BitLen())
	}
	if now := time.Now(); now.After(leaf.NotAfter) {
		warnings = append(warnings, cert.setting+": the certificate expired on "+leaf.NotAfter.UTC().Format(time.DateTime)+" UTC")
	} else if now.Before(leaf.NotBefore) {
		warnings = append(warnings, cert.setting+": the certificate is not valid before "+leaf.NotBefore.UTC().Format(time.DateTime)+" UTC")
	}
	return c, warnings, nil
}

// certificates returns all certificates of s, at least one.
func certificates(s source) ([]*x509.Certificate, error) {
	blocks, err := s.blocks()
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, b := range blocks {
		if b.Type != "CERTIFICATE" && b.Type != "X509 CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, s.errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, s.errorf("%s", s.nothing("certificate"))
	}
	return certs, nil
}

// nothing says why s may hold none of what was looked for. It does not show the text,
// which may be a key.
func (s source) nothing(want string) string {
	switch {
	case s.text == "":
		return "is not set"
	case want == "certificate" && strings.Contains(s.text, "PRIVATE KEY---"):
		return "there is a private key instead of a certificate (are certificate and key swapped?)"
	case want == "private key" && strings.Contains(s.text, "CERTIFICATE---"):
		return "there is a certificate instead of a private key (are certificate and key swapped?)"
	case !strings.Contains(s.text, "\n"):
		return "there is no PEM " + want + " (is the < missing before the file name?)"
	}
	return "there is no PEM " + want
}

// blocks splits s at its PEM headers. pem.Decode passes over what it cannot decode, which
// would leave a hole in a chain that nobody notices; here it is an error.
func (s source) blocks() ([]*pem.Block, error) {
	var blocks []*pem.Block
	for rest := []byte(s.text); ; {
		start := bytes.Index(rest, []byte("-----BEGIN "))
		if start < 0 {
			return blocks, nil
		}
		rest = rest[start:]
		end := bytes.Index(rest[1:], []byte("-----BEGIN "))
		if end < 0 {
			end = len(rest)
		} else {
			end++
		}
		b, _ := pem.Decode(rest[:end])
		if b == nil {
			return nil, s.errorf("PEM block %d is damaged", len(blocks)+1)
		}
		blocks = append(blocks, b)
		rest = rest[end:]
	}
}

// checkDH reads ssl_dh, of which nothing is used.
func checkDH(text string) error {
	s := source{"ssl_dh", text}
	blocks, err := s.blocks()
	if err != nil {
		return err
	}
	for _, b := range blocks {
		if b.Type == "DH PARAMETERS" || b.Type == "X9.42 DH PARAMETERS" {
			return nil
		}
	}
	return s.errorf("there are no PEM DH parameters")
}

// privateKey returns the first private key in s.
func privateKey(s source, password string) (crypto.Signer, error) {
	blocks, err := s.blocks()
	if err != nil {
		return nil, err
	}
	for _, b := range blocks {
		var key any
		der := b.Bytes
		switch {
		case b.Type == "ENCRYPTED PRIVATE KEY":
			if der, err = s.open(password, func() ([]byte, error) { return decryptPKCS8(der, password) }); err == nil {
				key, err = x509.ParsePKCS8PrivateKey(der)
			}
		case !strings.HasSuffix(b.Type, "PRIVATE KEY"):
			continue
		case b.Headers["DEK-Info"] != "":
			der, err = s.open(password, func() ([]byte, error) {
				//lint:ignore SA1019 keys that were encrypted so are still about, and OpenSSL takes them
				return x509.DecryptPEMBlock(b, []byte(password))
			})
		}
		if err != nil {
			return nil, err
		}
		switch {
		case key != nil:
		case b.Type == "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(der)
		case b.Type == "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(der)
		case b.Type == "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(der)
		default:
			return nil, s.errorf("a %s cannot be used here (want RSA, ECDSA or Ed25519)", strings.ToLower(b.Type))
		}
		if err != nil {
			return nil, s.errorf("the private key cannot be read: %w", err)
		}
		switch key := key.(type) {
		case *rsa.PrivateKey:
			return key, nil
		case *ecdsa.PrivateKey:
			return key, nil
		case ed25519.PrivateKey:
			return key, nil
		}
		return nil, s.errorf("such a private key cannot be used here (want RSA, ECDSA or Ed25519)")
	}
	return nil, s.errorf("%s", s.nothing("private key"))
}

// open decrypts a private key, with errors that do not show it.
func (s source) open(password string, decrypt func() ([]byte, error)) ([]byte, error) {
	if password == "" {
		return nil, s.errorf("the private key is encrypted, but ssl_key_password is not set")
	}
	der, err := decrypt()
	switch {
	case errors.Is(err, errPassword) || errors.Is(err, x509.IncorrectPasswordError):
		return nil, s.errorf("the private key cannot be decrypted (is ssl_key_password wrong?)")
	case err != nil:
		return nil, s.errorf("the private key cannot be decrypted: %w", err)
	}
	return der, nil
}

// chooser returns the function that picks one of several certificates: that which the
// client's list of signature algorithms names first and which suits the connection, as
// OpenSSL does. Names in certificates play no part.
func chooser(certs []tls.Certificate) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		anyName := *hello
		anyName.ServerName = ""
		fits := make([]bool, len(certs))
		for i := range certs {
			fits[i] = anyName.SupportsCertificate(&certs[i]) == nil
		}
		for _, scheme := range hello.SignatureSchemes {
			for i := range certs {
				if fits[i] && signs(certs[i].PrivateKey, scheme) {
					return &certs[i], nil
				}
			}
		}
		for i := range certs {
			if fits[i] {
				return &certs[i], nil
			}
		}
		return &certs[0], nil
	}
}

// signs says whether scheme is made with keys like this one.
func signs(key crypto.PrivateKey, scheme tls.SignatureScheme) bool {
	switch key.(type) {
	case *ecdsa.PrivateKey:
		return scheme == tls.ECDSAWithP256AndSHA256 || scheme == tls.ECDSAWithP384AndSHA384 ||
			scheme == tls.ECDSAWithP521AndSHA512 || scheme == tls.ECDSAWithSHA1
	case ed25519.PrivateKey:
		return scheme == tls.Ed25519
	}
	return !signs((*ecdsa.PrivateKey)(nil), scheme) && scheme != tls.Ed25519
}
