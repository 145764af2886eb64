package tlsconf

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"time"

	"dovetail/internal/conf/settings"
)

// ErrNoCert: a client sent no certificate.
var ErrNoCert = errors.New("no certificate")

// ClientCerts judges the certificates that clients present. It is immutable and safe for
// concurrent use.
type ClientCerts struct {
	roots     *x509.CertPool // self-signed certificates of ssl_ca
	others    *x509.CertPool // intermediate ones
	crls      []crl
	crlNeeded bool
	field     string // object identifier of ssl_cert_username_field
}

// A crl is one certificate revocation list of ssl_ca.
type crl struct {
	list    *x509.RevocationList
	serials map[string]bool // big-endian, of what is revoked
}

// NewClientCerts reads ssl_ca, in which certificates of authorities and their CRLs stand
// in any order, ssl_require_crl and ssl_cert_username_field.
func NewClientCerts(s settings.SSL) (*ClientCerts, []string, error) {
	c := &ClientCerts{roots: x509.NewCertPool(), others: x509.NewCertPool(), crlNeeded: s.RequireCRL}
	var ok bool
	if c.field, ok = fieldOID(s.CertUsernameField); !ok {
		return nil, nil, source{setting: "ssl_cert_username_field"}.errorf(
			"%q is not a field of a certificate's subject (want commonName, x500UniqueIdentifier, ... or an object identifier)", s.CertUsernameField)
	}
	ca := source{"ssl_ca", s.CA}
	if ca.text == "" {
		return nil, nil, ca.errorf("is not set, but ssl_verify_client_cert needs it")
	}
	blocks, err := ca.blocks()
	if err != nil {
		return nil, nil, err
	}
	n := 0
	for _, b := range blocks {
		switch b.Type {
		case "CERTIFICATE", "X509 CERTIFICATE":
			x, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				return nil, nil, ca.errorf("certificate %d: %w", n+1, err)
			}
			if n++; selfSigned(x) {
				c.roots.AddCert(x)
			} else {
				c.others.AddCert(x)
			}
		case "X509 CRL":
			list, err := x509.ParseRevocationList(b.Bytes)
			if err != nil {
				return nil, nil, ca.errorf("CRL %d: %w", len(c.crls)+1, err)
			}
			l := crl{list, make(map[string]bool, len(list.RevokedCertificateEntries))}
			for _, e := range list.RevokedCertificateEntries {
				l.serials[string(e.SerialNumber.Bytes())] = true
			}
			list.RevokedCertificateEntries = nil // serials has what is needed of it
			c.crls = append(c.crls, l)
		}
	}
	if n == 0 {
		return nil, nil, ca.errorf("%s", ca.nothing("certificate"))
	}
	var warnings []string
	if c.crlNeeded && len(c.crls) == 0 {
		warnings = append(warnings, "ssl_require_crl: there is no CRL in ssl_ca, so no client certificate will be valid")
	}
	return c, warnings, nil
}

// Check returns nil if the client of a finished handshake has a valid certificate,
// ErrNoCert if it has none, and otherwise an error with the text of Dovecot's log line.
// A resumed session is checked anew, too.
func (c *ClientCerts) Check(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return ErrNoCert
	}
	leaf := state.PeerCertificates[0]
	now := time.Now()
	chains, err := verifyChain(state.PeerCertificates, c.roots, c.others, x509.ExtKeyUsageClientAuth, now)
	why := ""
	if err != nil {
		why = verifyError(leaf, err)
	} else {
		for _, chain := range chains {
			if why = c.revoked(chain, now); why == "" {
				return nil
			}
		}
	}
	return &CertError{Why: why, Subject: oneline(leaf.RawSubject), Setting: "ssl_ca setting?"}
}

// revoked says what the CRLs have against a chain, which ends with a root: in OpenSSL's
// words; nothing if that is empty. With ssl_require_crl each certificate, the root too,
// needs a current CRL of its issuer. Without, those that are there are heeded.
func (c *ClientCerts) revoked(chain []*x509.Certificate, now time.Time) string {
	for i, x := range chain {
		issuer := chain[min(i+1, len(chain)-1)]
		found, why := false, ""
		for _, l := range c.crls {
			if !bytes.Equal(canonical(l.list.RawIssuer), canonical(x.RawIssuer)) {
				continue
			}
			switch {
			case l.list.CheckSignatureFrom(issuer) != nil:
				why = "CRL signature failure"
				continue
			case l.serials[string(x.SerialNumber.Bytes())]:
				return "certificate revoked"
			case now.Before(l.list.ThisUpdate):
				why = "CRL is not yet valid"
			case !l.list.NextUpdate.IsZero() && now.After(l.list.NextUpdate):
				why = "CRL has expired"
			case unknownCritical(l.list):
				why = "unhandled critical CRL extension"
			default:
				found = true
			}
		}
		if c.crlNeeded && !found {
			if why == "" {
				why = "unable to get certificate CRL"
			}
			return why
		}
	}
	return ""
}

// unknownCritical says whether a CRL has an extension that limits what it is about. Such
// ones (issuing distribution point, delta) are not understood here.
func unknownCritical(l *x509.RevocationList) bool {
	for _, e := range l.Extensions {
		if e.Critical {
			return true
		}
	}
	return false
}

// Username returns what stands in the field ssl_cert_username_field of the client's
// certificate, the first one, for auth's cert_username; "" if there is none, or one with a
// NUL octet. It means nothing unless Check returned nil.
func (c *ClientCerts) Username(state tls.ConnectionState) string {
	if len(state.PeerCertificates) == 0 {
		return ""
	}
	for _, set := range parseName(state.PeerCertificates[0].RawSubject) {
		for _, a := range set {
			if a.Type.String() != c.field {
				continue
			}
			name := string(a.Value.Bytes)
			if strings.ContainsRune(name, 0) {
				return ""
			}
			return name
		}
	}
	return ""
}

// A CertError says why a peer's certificate is not accepted.
type CertError struct {
	Why     string // in OpenSSL's words
	Subject string // of the certificate
	Setting string // where to look, such as "ssl_ca setting?"
}

func (e *CertError) Error() string {
	return "Received invalid SSL certificate: " + e.Why + ": " + e.Subject + " (check " + e.Setting + ")"
}
