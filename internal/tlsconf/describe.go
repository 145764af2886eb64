package tlsconf

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Describe tells version and cipher of a connection in OpenSSL's words, for %k and
// %{ssl_security}: "TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)". It is ""
// before the handshake is complete.
func Describe(state tls.ConnectionState) string {
	if !state.HandshakeComplete {
		return ""
	}
	cipher, used, size := Cipher(state)
	return fmt.Sprintf("%s with cipher %s (%d/%d bits)", Version(state), cipher, used, size)
}

// Version is OpenSSL's name of a connection's protocol version: "TLSv1.2".
func Version(state tls.ConnectionState) string {
	switch state.Version {
	case tls.VersionTLS10:
		return "TLSv1"
	case tls.VersionTLS11:
		return "TLSv1.1"
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	}
	return "unknown"
}

// Cipher returns OpenSSL's name of a connection's cipher, the bits of its strength and
// those of its key.
func Cipher(state tls.ConnectionState) (name string, used, size int) {
	switch state.CipherSuite {
	case tls.TLS_AES_128_GCM_SHA256:
		return "TLS_AES_128_GCM_SHA256", 128, 128
	case tls.TLS_AES_256_GCM_SHA384:
		return "TLS_AES_256_GCM_SHA384", 256, 256
	case tls.TLS_CHACHA20_POLY1305_SHA256:
		return "TLS_CHACHA20_POLY1305_SHA256", 256, 256
	}
	for _, s := range suites() {
		if s.id == state.CipherSuite {
			size = s.bits
			if s.enc == "3DES" {
				size = 168
			}
			return s.name, s.bits, size
		}
	}
	return "unknown", 0, 0
}

// KeyExchange is OpenSSL's name of how a connection's keys were agreed on: "KxECDHE", or
// "KxANY" where the cipher does not say it.
func KeyExchange(state tls.ConnectionState) string {
	switch {
	case state.Version >= tls.VersionTLS13:
		return "KxANY"
	case slices.ContainsFunc(suites(), func(s suite) bool { return s.id == state.CipherSuite && s.is("kRSA") }):
		return "KxRSA"
	}
	return "KxECDHE"
}

// HandshakeError tells why a handshake failed as Dovecot's log lines do: where OpenSSL has
// an error for the case, by its number and name, such as
//
//	SSL_accept() failed: error:0A0000C1:SSL routines::no shared cipher
//
// and otherwise in crypto/tls's own words. function is SSL_accept for a server,
// SSL_connect for a client; under is what the connection runs over, or nil. It is one line
// of printable text, however hostile the peer.
func HandshakeError(err error, function string, under *Transport) string {
	var (
		cert   *CertError
		host   *HostError
		record tls.RecordHeaderError
		op     *net.OpError
		errno  syscall.Errno
	)
	failed := func(code int, text string) string {
		return fmt.Sprintf("%s() failed: error:0A%06X:SSL routines::%s", function, code, text)
	}
	alert := func(n int) string {
		return failed(1000+n, alertName(n)+": SSL alert number "+strconv.Itoa(n))
	}
	switch {
	case err == nil:
		return ""
	case errors.As(err, &cert), errors.As(err, &host):
		return err.Error()
	case errors.As(err, &op) && op.Op == "remote error":
		if v := reflect.ValueOf(op.Err); v.Kind() == reflect.Uint8 {
			return alert(int(v.Uint()))
		}
	case errors.As(err, &op) && op.Op == "local error":
		if under != nil && under.alert.Load() != 0 {
			return alert(int(under.alert.Load()))
		}
		err = op.Err
	case errors.As(err, &record):
		if name := notTLS(record.RecordHeader); name.code != 0 {
			return failed(name.code, name.name)
		}
		err = errors.New("tls: " + record.Msg)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "Connection timed out"
	case errors.As(err, &op) && errors.As(err, &errno):
		return op.Op + "() failed: " + errnoText(errno)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return "Connection closed"
	}
	text := err.Error()
	for _, e := range opensslErrors {
		if strings.HasPrefix(text, e.ours) {
			return failed(e.code, e.name)
		}
	}
	return function + "() failed: " + strings.TrimPrefix(text, "tls: ")
}

// An opensslError is the number of a reason in OpenSSL's SSL library, and its text.
type opensslError struct {
	code int
	name string
}

// notTLS says what OpenSSL makes of a first record's header that is none.
func notTLS(header [5]byte) (e opensslError) {
	switch s := string(header[:]); {
	case s[:4] == "GET " || s[:4] == "POST" || s[:4] == "HEAD" || s[:4] == "PUT ":
		return opensslError{156, "http request"}
	case s == "CONNE":
		return opensslError{155, "https proxy request"}
	case header[1] != 3 && header[0] != 0x80:
		return opensslError{267, "wrong version number"}
	}
	return e
}

// errnoText is what strerror says.
func errnoText(errno syscall.Errno) string {
	s := errno.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}

// opensslErrors are what OpenSSL 3 calls errors of crypto/tls.
var opensslErrors = [...]struct {
	ours string
	opensslError
}{
	{"tls: client offered only unsupported versions", opensslError{258, "unsupported protocol"}},
	{"tls: server selected unsupported protocol version", opensslError{258, "unsupported protocol"}},
	{"tls: no cipher suite supported by both", opensslError{193, "no shared cipher"}},
	{"tls: peer doesn't support any of the certificate's signature algorithms", opensslError{118, "no suitable signature algorithm"}},
	{"tls: no key exchanges supported by both", opensslError{101, "no suitable key share"}},
	{"tls: client using inappropriate protocol fallback", opensslError{373, "inappropriate fallback"}},
	{"tls: unsupported SSLv2 handshake received", opensslError{258, "unsupported protocol"}},
	{"tls: client does not support uncompressed connections", opensslError{187, "no compression specified"}},
	{"tls: client offered only incompatible point formats", opensslError{157, "unsupported elliptic curve"}},
	{"tls: oversized record received", opensslError{198, "packet length too long"}},
	{"tls: invalid signature by the client certificate", opensslError{123, "bad signature"}},
	{"tls: client's Finished message is incorrect", opensslError{149, "digest check failed"}},
	{"tls: invalid client finished hash", opensslError{149, "digest check failed"}},
	{"tls: received unexpected handshake message", opensslError{244, "unexpected message"}},
	{"tls: first record does not look like a TLS handshake", opensslError{244, "unexpected message"}},
	{"tls: bad record MAC", opensslError{281, "decryption failed or bad record mac"}},
	{"tls: unexpected message", opensslError{244, "unexpected message"}},
	{"tls: received record with version", opensslError{267, "wrong version number"}},
}

// alertName is OpenSSL's name of an alert that the peer sent.
func alertName(n int) string {
	if n < len(alertNames) && alertNames[n] != "" {
		return alertNames[n]
	}
	return "reason(" + strconv.Itoa(1000+n) + ")"
}

// alertNames are OpenSSL's; those of SSLv3 keep its name for ever.
var alertNames = [...]string{
	10:  "sslv3 alert unexpected message",
	20:  "sslv3 alert bad record mac",
	21:  "tlsv1 alert decryption failed",
	22:  "tlsv1 alert record overflow",
	30:  "sslv3 alert decompression failure",
	40:  "sslv3 alert handshake failure",
	41:  "sslv3 alert no certificate",
	42:  "sslv3 alert bad certificate",
	43:  "sslv3 alert unsupported certificate",
	44:  "sslv3 alert certificate revoked",
	45:  "sslv3 alert certificate expired",
	46:  "sslv3 alert certificate unknown",
	47:  "sslv3 alert illegal parameter",
	48:  "tlsv1 alert unknown ca",
	49:  "tlsv1 alert access denied",
	50:  "tlsv1 alert decode error",
	51:  "tlsv1 alert decrypt error",
	60:  "tlsv1 alert export restriction",
	70:  "tlsv1 alert protocol version",
	71:  "tlsv1 alert insufficient security",
	80:  "tlsv1 alert internal error",
	86:  "tlsv1 alert inappropriate fallback",
	90:  "tlsv1 alert user cancelled",
	100: "tlsv1 alert no renegotiation",
	109: "tlsv13 alert missing extension",
	110: "tlsv1 unsupported extension",
	111: "tlsv1 certificate unobtainable",
	112: "tlsv1 unrecognized name",
	113: "tlsv1 bad certificate status response",
	114: "tlsv1 bad certificate hash value",
	115: "tlsv1 alert unknown psk identity",
	116: "tlsv13 alert certificate required",
	120: "tlsv1 alert no application protocol",
}
