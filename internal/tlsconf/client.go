package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"dovetail/internal/conf/settings"
)

// Client returns the configuration for a connection to host, as Outgoing.To does, for
// those who connect to one host only.
func Client(s settings.SSL, host string, verify bool) (c *tls.Config, warnings []string, err error) {
	o, warnings, err := NewOutgoing(s)
	if err != nil {
		return nil, nil, err
	}
	return o.To(host, verify), warnings, nil
}

// An Outgoing makes configurations for connections to other servers: relays, backends. It
// is immutable and safe for concurrent use.
type Outgoing struct {
	base  *tls.Config
	trust trust
}

// NewOutgoing reads ssl_client_cert and ssl_client_key, ssl_client_ca_file and ssl_ca, and
// takes down ssl_client_ca_dir, in which files are read during each handshake: those that
// OpenSSL would read. If none of the three is set, the system's authorities are trusted.
// (ssl_require_crl is about clients and does nothing here, as in Dovecot 2.3.21.)
func NewOutgoing(s settings.SSL) (*Outgoing, []string, error) {
	// crypto/tls knows neither such directories nor host names in the subject, so the
	// checks are all in verify.
	o := &Outgoing{base: &tls.Config{InsecureSkipVerify: true}}
	warnings, err := common(o.base, s)
	if err != nil {
		return nil, nil, err
	}
	if s.ClientCert != "" || s.ClientKey != "" {
		cert, w, err := keyPair(source{"ssl_client_cert", s.ClientCert}, source{"ssl_client_key", s.ClientKey}, s.KeyPassword)
		if err != nil {
			return nil, nil, err
		}
		o.base.Certificates = []tls.Certificate{cert}
		warnings = append(warnings, w...)
	}
	if s.CA != "" {
		if err := o.trust.add(source{"ssl_ca", s.CA}); err != nil {
			return nil, nil, err
		}
	}
	if s.ClientCAFile != "" {
		if err := o.trust.addFile("ssl_client_ca_file", s.ClientCAFile); err != nil {
			return nil, nil, err
		}
	}
	if s.ClientCADir != "" {
		o.trust.dirs = strings.Split(s.ClientCADir, ":") // as SSL_CERT_DIR
	}
	if s.CA == "" && s.ClientCAFile == "" && s.ClientCADir == "" {
		o.trust.system()
	}
	return o, warnings, nil
}

// To returns the configuration for a connection to host, a name or an IP address, which
// the caller owns. With verify the handshake fails unless the host's certificate is for it
// and is trusted; the error is then a *CertError or *HostError. Without verify (any-cert)
// any certificate will do.
func (o *Outgoing) To(host string, verify bool) *tls.Config {
	c := o.base.Clone()
	// An address is not sent as server name: crypto/tls sees to that.
	name := strings.TrimSuffix(host, ".")
	c.ServerName = name
	if verify {
		c.VerifyConnection = func(state tls.ConnectionState) error { return o.verify(state, name) }
	}
	return c
}

func (o *Outgoing) verify(state tls.ConnectionState, host string) error {
	certs := state.PeerCertificates
	if len(certs) == 0 {
		return errors.New("SSL certificate not received")
	}
	roots, others := o.trust.find(certs)
	if _, err := verifyChain(certs, roots, others, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
		return &CertError{Why: verifyError(certs[0], err), Subject: oneline(certs[0].RawSubject), Setting: "ssl_client_ca_* settings?"}
	}
	if !isFor(certs[0], host) {
		return &HostError{host}
	}
	return nil
}

// A HostError says that a trusted certificate is for other hosts.
type HostError struct{ Host string }

func (e *HostError) Error() string {
	return fmt.Sprintf("SSL certificate doesn't match expected host name %s: did not match to any IP or DNS fields", e.Host)
}

// isFor says whether a certificate is for host: one of its DNS names or, if it has none,
// the common name of its subject; or one of its IP addresses.
func isFor(cert *x509.Certificate, host string) bool {
	names := cert.DNSNames
	if len(names) == 0 {
		names = commonNames(cert)
	}
	for _, n := range names {
		if matches(n, host) {
			return true
		}
	}
	ip := net.ParseIP(host)
	for _, a := range cert.IPAddresses {
		if ip != nil && ip.Equal(a) {
			return true
		}
	}
	return false
}

// commonNames of the subject, without those that hold a NUL octet.
func commonNames(cert *x509.Certificate) (names []string) {
	for _, set := range parseName(cert.RawSubject) {
		for _, a := range set {
			if s, ok := text(a.Value); ok && a.Type.String() == "2.5.4.3" && !strings.ContainsRune(s, 0) {
				names = append(names, s)
			}
		}
	}
	return names
}

// matches says whether a host's name fits pattern. A * stands for the whole first label,
// and at least two labels follow it.
func matches(pattern, host string) bool {
	pattern = strings.TrimSuffix(pattern, ".")
	if pattern == "" || host == "" {
		return false
	}
	if strings.EqualFold(pattern, host) {
		return true
	}
	rest, ok := strings.CutPrefix(pattern, "*.")
	if !ok || !strings.Contains(rest, ".") || net.ParseIP(host) != nil {
		return false
	}
	label, domain, ok := strings.Cut(host, ".")
	return ok && label != "" && strings.EqualFold(domain, rest)
}

// verifyChain returns the ways from the first of certs to one of roots.
func verifyChain(certs []*x509.Certificate, roots, others *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) ([][]*x509.Certificate, error) {
	between := others
	if len(certs) > 1 {
		between = others.Clone()
		for _, c := range certs[1:] {
			between.AddCert(c)
		}
	}
	return certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
}

// verifyError tells the reason in OpenSSL's words.
func verifyError(leaf *x509.Certificate, err error) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown) && strings.Contains(err.Error(), "insecure algorithm"):
		return "CA signature digest algorithm too weak"
	case errors.As(err, &unknown) && selfSigned(leaf):
		return "self-signed certificate"
	case errors.As(err, &unknown) && unknown.Cert != nil && unknown.Cert != leaf && selfSigned(unknown.Cert):
		return "self-signed certificate in certificate chain"
	case errors.As(err, &unknown):
		return "unable to get local issuer certificate"
	case errors.As(err, &invalid):
		switch invalid.Reason {
		case x509.Expired:
			if invalid.Cert != nil && time.Now().Before(invalid.Cert.NotBefore) {
				return "certificate is not yet valid"
			}
			return "certificate has expired"
		case x509.NotAuthorizedToSign:
			return "invalid CA certificate"
		case x509.TooManyIntermediates:
			return "path length constraint exceeded"
		case x509.IncompatibleUsage:
			return "unsuitable certificate purpose"
		case x509.CANotAuthorizedForThisName:
			return "permitted subtree violation"
		}
	}
	return err.Error()
}
