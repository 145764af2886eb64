package tlsconf

import (
	"cmp"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Bounds on what is read for one handshake, and at all.
const (
	maxCAFile  = 64 << 20 // octets of a file with authorities
	maxHashed  = 16       // files xxxxxxxx.0, .1, ... of one directory
	maxTrusted = 64       // certificates looked up for one chain
)

// trust is where a client finds authorities. Of files it keeps the certificates undecoded,
// since a handshake needs one or two of the hundreds in a system's bundle.
type trust struct {
	certs []hashed // sorted by hash
	dirs  []string
}

type hashed struct {
	subject uint32
	der     []byte
}

// add takes the certificates of a setting, of which there must be one.
func (t *trust) add(s source) error {
	blocks, err := s.blocks()
	if err != nil {
		return err
	}
	n := len(t.certs)
	for _, b := range blocks {
		if b.Type != "CERTIFICATE" && b.Type != "X509 CERTIFICATE" && b.Type != "TRUSTED CERTIFICATE" {
			continue
		}
		subject, der, err := subjectOf(b.Bytes)
		if err != nil {
			return s.errorf("certificate %d: %w", len(t.certs)-n+1, err)
		}
		t.certs = append(t.certs, hashed{nameHash(subject), slices.Clone(der)})
	}
	if len(t.certs) == n {
		return s.errorf("%s", s.nothing("certificate"))
	}
	slices.SortStableFunc(t.certs, func(a, b hashed) int { return cmp.Compare(a.subject, b.subject) })
	return nil
}

func (t *trust) addFile(setting, path string) error {
	text, err := readBounded(path, maxCAFile)
	if err != nil {
		return fmt.Errorf("%s: %w", setting, err)
	}
	s := source{setting, string(text)}
	blocks, err := s.blocks()
	if err == nil && len(blocks) == 0 {
		return s.errorf("%s: there is no PEM certificate in it", path)
	}
	return t.add(s)
}

// system trusts what OpenSSL on common systems trusts without being told.
func (t *trust) system() {
	if d := os.Getenv("SSL_CERT_DIR"); d != "" {
		t.dirs = strings.Split(d, ":")
		return
	}
	for _, d := range []string{"/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted/pem/directory-hash"} {
		if _, err := os.Stat(d); err == nil {
			t.dirs = append(t.dirs, d)
		}
	}
}

// subjectOf finds the subject in a certificate without decoding all of it. der is the
// certificate alone, without the trust settings that may follow it.
func subjectOf(b []byte) (subject, der []byte, err error) {
	var outer struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.RawValue
	}
	rest, err := asn1.Unmarshal(b, &outer)
	if err != nil {
		return nil, nil, err
	}
	var field asn1.RawValue
	in := outer.TBS.Bytes
	for i := 0; i < 6; i++ { // version (perhaps), serialNumber, signature, issuer, validity, subject
		if in, err = asn1.Unmarshal(in, &field); err != nil {
			return nil, nil, err
		}
		if i == 0 && field.Class != asn1.ClassContextSpecific {
			i++
		}
	}
	return field.FullBytes, b[:len(b)-len(rest)], nil
}

// find returns the authorities that may have issued certs, directly or not: those that
// are their own issuers as roots, the others beside them.
func (t *trust) find(certs []*x509.Certificate) (roots, others *x509.CertPool) {
	roots, others = x509.NewCertPool(), x509.NewCertPool()
	asked := map[uint32]bool{}
	for todo := slices.Clone(certs); len(todo) > 0 && len(asked) < maxTrusted; todo = todo[1:] {
		hash := nameHash(todo[0].RawIssuer)
		if asked[hash] {
			continue
		}
		asked[hash] = true
		for _, c := range t.named(hash) {
			if selfSigned(c) {
				roots.AddCert(c)
			} else {
				others.AddCert(c)
				todo = append(todo, c)
			}
		}
	}
	return roots, others
}

// named returns the authorities whose name has this hash.
func (t *trust) named(hash uint32) (certs []*x509.Certificate) {
	i, _ := slices.BinarySearchFunc(t.certs, hash, func(h hashed, hash uint32) int { return cmp.Compare(h.subject, hash) })
	for ; i < len(t.certs) && t.certs[i].subject == hash; i++ {
		if c, err := x509.ParseCertificate(t.certs[i].der); err == nil {
			certs = append(certs, c)
		}
	}
	for _, dir := range t.dirs {
		for n := range maxHashed {
			text, err := readBounded(fmt.Sprintf("%s/%08x.%d", dir, hash, n), maxCAFile)
			if err != nil {
				break
			}
			var file trust
			if file.add(source{dir, string(text)}) == nil {
				certs = append(certs, file.named(hash)...)
			}
		}
	}
	return certs
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d octets", path, limit)
	}
	return b, err
}
