// Package tlsconf makes TLS configurations out of Dovecot's ssl_* settings (clause C19.6),
// which are written for OpenSSL: its cipher lists, names of curves and of protocol
// versions, its encrypted keys, CRLs and directories of certificates.
//
//	Server          what this server presents: certificate, alternative certificate
//	NewClientCerts  what is asked of clients: ssl_ca, ssl_verify_client_cert, CRLs
//	NewOutgoing     connections that this server makes, to relays and backends
//	ByName, Names   certificates and settings by the name that a client asks for
//	NewTransport    goes between a connection and crypto/tls: less memory, plain alerts
//	Describe        a connection in OpenSSL's words, for log lines
//	HandshakeError  a failure in OpenSSL's words
//
// What crypto/tls cannot do is a warning, when the connection is as safe without it, or an
// error. Both begin with the setting's name. Warnings are about settings and the same for
// every connection, so that they can be logged once.
//
// The order of ciphers and groups is crypto/tls's own, whatever the settings or the client
// say: AES with 128 bits first, where the machine has instructions for it. There are no
// DHE ciphers, no curves but those of parseCurves, no session cache without tickets, and
// no certificate whose subject holds other than strings. Memory: an idle connection has
// about 8 KiB on the heap, 24 KiB when large records came over it, and its goroutines'
// stacks (4 KiB each if the handshake ran in another goroutine, else 8).
package tlsconf

import (
	"crypto/tls"
	"fmt"
	"strings"

	"dovetail/internal/conf/settings"
)

// Server returns the configuration for connections from clients with the settings s:
// the certificates, versions, ciphers and curves. With ssl_verify_client_cert a client is
// asked for its certificate; whether that is any good is for ClientCerts to say, after
// the handshake, which succeeds in any case (clause S2.10). Of ssl_ca only the names are
// looked at here: its warnings are NewClientCerts's.
func Server(s settings.SSL) (c *tls.Config, warnings []string, err error) {
	if s.Cert == "" {
		return nil, nil, fmt.Errorf("ssl_cert: no certificate is set")
	}
	c = &tls.Config{}
	certs, w, err := serverCertificates(s)
	if err != nil {
		return nil, nil, err
	}
	if len(certs) > 1 { // crypto/tls's own choice among Certificates would look at the names in them
		c.GetCertificate = chooser(certs)
	} else {
		c.Certificates = certs
	}
	warnings = append(warnings, w...)
	w, err = common(c, s)
	if err != nil {
		return nil, nil, err
	}
	warnings = append(warnings, w...)
	if s.PreferServerCiphers && s.CipherList != defaultCiphers {
		warnings = append(warnings, "ssl_prefer_server_ciphers: the order of ssl_cipher_list is not kept; "+
			"among the ciphers that both sides have, the TLS library chooses")
	}
	if s.DH != "" {
		if err := checkDH(s.DH); err != nil {
			return nil, nil, err
		}
		warnings = append(warnings, "ssl_dh: there are no DHE ciphers here; the setting does nothing")
	}
	if s.VerifyClientCert {
		clients, _, err := NewClientCerts(s)
		if err != nil {
			return nil, nil, err
		}
		c.ClientAuth = tls.RequestClientCert
		c.ClientCAs = clients.roots
	}
	return c, warnings, nil
}

// common sets what both directions share.
func common(c *tls.Config, s settings.SSL) (warnings []string, err error) {
	if c.MinVersion, warnings, err = minVersion(s.MinProtocol); err != nil {
		return nil, err
	}
	ciphers, w, err := parseCiphers(s.CipherList)
	if err != nil {
		return nil, err
	}
	warnings = append(warnings, w...)
	c.CipherSuites = ciphers
	if len(ciphers) == 0 && c.MinVersion < tls.VersionTLS13 {
		warnings = append(warnings, "ssl_cipher_list: none of its ciphers is available here; only TLSv1.3 is left")
		c.MinVersion = tls.VersionTLS13
	}
	w, err = checkSuites13(s.CipherSuites)
	if err != nil {
		return nil, err
	}
	warnings = append(warnings, w...)
	if c.CurvePreferences, w, err = parseCurves(s.CurveList); err != nil {
		return nil, err
	}
	warnings = append(warnings, w...)
	for _, word := range settings.Words(s.Options) {
		switch strings.ToLower(word) {
		case "no_ticket":
			c.SessionTicketsDisabled = true
		case "no_compression":
		case "compression":
			warnings = append(warnings, "ssl_options: there is no compression, so connections are not compressed")
		default:
			return nil, fmt.Errorf("ssl_options: unknown flag: '%s'", word)
		}
	}
	if s.CryptoDevice != "" {
		warnings = append(warnings, "ssl_crypto_device: there are no crypto devices; the setting does nothing")
	}
	return warnings, nil
}

// minVersion reads ssl_min_protocol.
func minVersion(name string) (version uint16, warnings []string, err error) {
	switch strings.ToUpper(name) {
	case "ANY", "TLSV1":
		return tls.VersionTLS10, nil, nil
	case "TLSV1.1":
		return tls.VersionTLS11, nil, nil
	case "TLSV1.2":
		return tls.VersionTLS12, nil, nil
	case "TLSV1.3", "LATEST":
		return tls.VersionTLS13, nil, nil
	case "SSLV3":
		return tls.VersionTLS10, []string{"ssl_min_protocol: there is no SSLv3; the lowest version is TLSv1"}, nil
	}
	return 0, nil, fmt.Errorf("ssl_min_protocol: unknown protocol %q (want TLSv1, TLSv1.1, TLSv1.2, TLSv1.3, LATEST or ANY)", name)
}
