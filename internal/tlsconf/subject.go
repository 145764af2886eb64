package tlsconf

import (
	"bytes"
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// An attribute is one part of a name in a certificate.
type attribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// attributeSET is a RelativeDistinguishedName; encoding/asn1 knows SETs by that ending.
type attributeSET []attribute

// parseName reads a Name (RFC 5280 section 4.1.2.4), which x509 hands out undecoded.
func parseName(raw []byte) []attributeSET {
	var name []attributeSET
	if rest, err := asn1.Unmarshal(raw, &name); err != nil || len(rest) > 0 {
		return nil
	}
	return name
}

// fields are OpenSSL's short and long names of what subjects consist of.
const fields = " 2.5.4.3:CN:commonName 2.5.4.4:SN:surname 2.5.4.5:serialNumber 2.5.4.6:C:countryName 2.5.4.7:L:localityName" +
	" 2.5.4.8:ST:stateOrProvinceName 2.5.4.9:street:streetAddress 2.5.4.10:O:organizationName 2.5.4.11:OU:organizationalUnitName" +
	" 2.5.4.12:title 2.5.4.13:description 2.5.4.14:searchGuide 2.5.4.15:businessCategory 2.5.4.16:postalAddress 2.5.4.17:postalCode" +
	" 2.5.4.18:postOfficeBox 2.5.4.19:physicalDeliveryOfficeName 2.5.4.20:telephoneNumber 2.5.4.31:member 2.5.4.32:owner" +
	" 2.5.4.41:name 2.5.4.42:GN:givenName 2.5.4.43:initials 2.5.4.44:generationQualifier 2.5.4.45:x500UniqueIdentifier" +
	" 2.5.4.46:dnQualifier 2.5.4.65:pseudonym 2.5.4.72:role 2.5.4.97:organizationIdentifier" +
	" 0.9.2342.19200300.100.1.1:UID:userId 0.9.2342.19200300.100.1.3:mail:rfc822Mailbox 0.9.2342.19200300.100.1.25:DC:domainComponent" +
	" 1.2.840.113549.1.9.1:emailAddress 1.2.840.113549.1.9.2:unstructuredName 1.2.840.113549.1.9.8:unstructuredAddress" +
	" 1.3.6.1.4.1.311.20.2.3:msUPN 1.3.6.1.4.1.311.60.2.1.3:jurisdictionC:jurisdictionCountryName "

// fieldOID returns the identifier of a name that OpenSSL knows, or that is one itself.
func fieldOID(name string) (string, bool) {
	dotted := name != "" && strings.Trim(name, "0123456789.") == "" && name[0] <= '2'
	if parts := strings.Split(name, "."); dotted && len(parts) > 1 && !slices.Contains(parts, "") {
		return name, true
	}
	if name == "" || strings.ContainsAny(name, " :") {
		return "", false
	}
	for f := range strings.FieldsSeq(fields) {
		words := strings.Split(f, ":")
		if slices.Contains(words[1:], name) {
			return words[0], true
		}
	}
	return "", false
}

// shortName is what OpenSSL calls an attribute in a line of text.
func shortName(oid asn1.ObjectIdentifier) string {
	dotted := oid.String()
	for f := range strings.FieldsSeq(fields) {
		if words := strings.SplitN(f, ":", 3); words[0] == dotted {
			return words[1]
		}
	}
	return dotted
}

// oneline is a name as X509_NAME_oneline writes it: /C=FI/CN=x, what is not printable as
// \x and two hex digits. At most 1023 octets.
func oneline(raw []byte) string {
	var b strings.Builder
	for _, set := range parseName(raw) {
		for _, a := range set {
			b.WriteString("/" + shortName(a.Type) + "=")
			for _, c := range a.Value.Bytes {
				if c < ' ' || c > '~' {
					fmt.Fprintf(&b, `\x%02X`, c)
				} else {
					b.WriteByte(c)
				}
			}
		}
	}
	s := b.String()
	return s[:min(len(s), 1023)]
}

// String types that encoding/asn1 has no names for.
const (
	tagVisibleString   = 26
	tagUniversalString = 28
	tagBMPString       = asn1.TagBMPString
)

// nameHash is OpenSSL's hash of a name in its canonical form: the file name under which a
// certificate with this subject stands in a directory.
func nameHash(raw []byte) uint32 {
	sum := sha1.Sum(canonical(raw))
	return binary.LittleEndian.Uint32(sum[:])
}

// canonical returns a name in the form in which OpenSSL compares them: strings in lower
// case and UTF-8, blanks at the ends cut off and others made one, without the outer
// SEQUENCE.
func canonical(raw []byte) []byte {
	var out []byte
	for _, set := range parseName(raw) {
		members := make([][]byte, 0, len(set))
		for _, a := range set {
			v := a.Value
			if s, ok := text(v); ok {
				v = asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(fold(s))}
			}
			m, err := asn1.Marshal(attribute{a.Type, v})
			if err != nil {
				return nil
			}
			members = append(members, m)
		}
		slices.SortFunc(members, bytes.Compare)
		m, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: bytes.Join(members, nil)})
		if err != nil {
			return nil
		}
		out = append(out, m...)
	}
	return out
}

// text decodes the string types.
func text(v asn1.RawValue) (string, bool) {
	if v.Class != asn1.ClassUniversal {
		return "", false
	}
	switch b := v.Bytes; v.Tag {
	case asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String, tagVisibleString:
		return string(b), true
	case asn1.TagT61String: // taken for ISO 8859-1
		r := make([]rune, len(b))
		for i, c := range b {
			r[i] = rune(c)
		}
		return string(r), true
	case tagBMPString:
		u := make([]uint16, len(b)/2)
		for i := range u {
			u[i] = binary.BigEndian.Uint16(b[2*i:])
		}
		return string(utf16.Decode(u)), len(b)%2 == 0
	case tagUniversalString:
		var s []byte
		for ; len(b) >= 4; b = b[4:] {
			s = utf8.AppendRune(s, rune(binary.BigEndian.Uint32(b)))
		}
		return string(s), len(b) == 0
	}
	return "", false
}

// fold lowers ASCII letters and makes blanks one.
func fold(s string) string {
	isBlank := func(r rune) bool { return r == ' ' || r >= '\t' && r <= '\r' }
	s = strings.Join(strings.FieldsFunc(s, isBlank), " ")
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// selfSigned says whether a certificate names itself as its issuer.
func selfSigned(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }
