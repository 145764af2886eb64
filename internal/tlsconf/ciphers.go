package tlsconf

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// defaultCiphers is the default of ssl_cipher_list.
const defaultCiphers = "ALL:!kRSA:!SRP:!kDHd:!DSS:!aNULL:!eNULL:!EXPORT:!DES:!3DES:!MD5:!PSK:!RC4:!ADH:!LOW@STRENGTH"

// A suite is a cipher suite before TLS 1.3, with the words by which an OpenSSL cipher
// string can choose it.
type suite struct {
	id       uint16
	name     string // OpenSSL's
	enc, mac string // mac is empty in suites with AEAD
	bits     int    // of strength
}

// suites are those of crypto/tls, in the order in which OpenSSL would list them.
func suites() []suite {
	return []suite{
		{id: tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, name: "ECDHE-ECDSA-AES256-GCM-SHA384", enc: "AESGCM", bits: 256},
		{id: tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, name: "ECDHE-RSA-AES256-GCM-SHA384", enc: "AESGCM", bits: 256},
		{id: tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, name: "ECDHE-ECDSA-CHACHA20-POLY1305", enc: "CHACHA20", bits: 256},
		{id: tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, name: "ECDHE-RSA-CHACHA20-POLY1305", enc: "CHACHA20", bits: 256},
		{id: tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, name: "ECDHE-ECDSA-AES128-GCM-SHA256", enc: "AESGCM", bits: 128},
		{id: tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, name: "ECDHE-RSA-AES128-GCM-SHA256", enc: "AESGCM", bits: 128},
		{id: tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, name: "ECDHE-ECDSA-AES128-SHA256", enc: "AES", mac: "SHA256", bits: 128},
		{id: tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256, name: "ECDHE-RSA-AES128-SHA256", enc: "AES", mac: "SHA256", bits: 128},
		{id: tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, name: "ECDHE-ECDSA-AES256-SHA", enc: "AES", mac: "SHA1", bits: 256},
		{id: tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, name: "ECDHE-RSA-AES256-SHA", enc: "AES", mac: "SHA1", bits: 256},
		{id: tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, name: "ECDHE-ECDSA-AES128-SHA", enc: "AES", mac: "SHA1", bits: 128},
		{id: tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, name: "ECDHE-RSA-AES128-SHA", enc: "AES", mac: "SHA1", bits: 128},
		{id: tls.TLS_RSA_WITH_AES_256_GCM_SHA384, name: "AES256-GCM-SHA384", enc: "AESGCM", bits: 256},
		{id: tls.TLS_RSA_WITH_AES_128_GCM_SHA256, name: "AES128-GCM-SHA256", enc: "AESGCM", bits: 128},
		{id: tls.TLS_RSA_WITH_AES_128_CBC_SHA256, name: "AES128-SHA256", enc: "AES", mac: "SHA256", bits: 128},
		{id: tls.TLS_RSA_WITH_AES_256_CBC_SHA, name: "AES256-SHA", enc: "AES", mac: "SHA1", bits: 256},
		{id: tls.TLS_RSA_WITH_AES_128_CBC_SHA, name: "AES128-SHA", enc: "AES", mac: "SHA1", bits: 128},
		{id: tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA, name: "ECDHE-ECDSA-RC4-SHA", enc: "RC4", mac: "SHA1", bits: 128},
		{id: tls.TLS_ECDHE_RSA_WITH_RC4_128_SHA, name: "ECDHE-RSA-RC4-SHA", enc: "RC4", mac: "SHA1", bits: 128},
		{id: tls.TLS_RSA_WITH_RC4_128_SHA, name: "RC4-SHA", enc: "RC4", mac: "SHA1", bits: 128},
		{id: tls.TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA, name: "ECDHE-RSA-DES-CBC3-SHA", enc: "3DES", mac: "SHA1", bits: 112},
		{id: tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, name: "DES-CBC3-SHA", enc: "3DES", mac: "SHA1", bits: 112},
	}
}

// is says whether an OpenSSL word stands for this suite among others.
func (s *suite) is(word string) bool {
	switch word {
	case "ALL":
		return true
	case "HIGH":
		return s.enc != "RC4" && s.enc != "3DES"
	case "MEDIUM":
		return s.enc == "RC4" || s.enc == "3DES"
	case "kEECDH", "kECDHE", "EECDH", "ECDHE":
		return strings.HasPrefix(s.name, "ECDHE-")
	case "kRSA":
		return !strings.HasPrefix(s.name, "ECDHE-")
	case "RSA": // key exchange and authentication
		return !strings.HasPrefix(s.name, "ECDHE-")
	case "aRSA":
		return !strings.Contains(s.name, "ECDSA")
	case "aECDSA", "ECDSA":
		return strings.Contains(s.name, "ECDSA")
	case "AES":
		return s.enc == "AES" || s.enc == "AESGCM"
	case "AES128":
		return (s.enc == "AES" || s.enc == "AESGCM") && s.bits == 128
	case "AES256":
		return (s.enc == "AES" || s.enc == "AESGCM") && s.bits == 256
	case "AESGCM", "CHACHA20", "3DES", "RC4":
		return s.enc == word
	case "CBC":
		return s.enc == "AES" || s.enc == "3DES"
	case "SHA", "SHA1":
		return s.mac == "SHA1"
	case "SHA256":
		return s.mac == "SHA256"
	case "TLSv1.2":
		return s.mac != "SHA1"
	case "TLSv1", "TLSv1.0":
		return s.mac == "SHA1" && s.is("ECDHE")
	case "SSLv3":
		return s.mac == "SHA1" && s.is("kRSA")
	case "FIPS":
		return s.enc == "AES" || s.enc == "AESGCM" || s.enc == "3DES"
	}
	return s.name == word
}

// absent are OpenSSL's words for ciphers that crypto/tls does not have, or that nobody has
// any more.
const absent = " COMPLEMENTOFALL COMPLEMENTOFDEFAULT LOW EXP EXPORT EXPORT40 EXPORT56 eNULL NULL aNULL kDHE kEDH DHE EDH ADH kDH kDHr kDHd DH " +
	"AECDH kECDH kECDHe kECDHr ECDH aECDH aDSS DSS aDH aNULL AESCCM AESCCM8 ARIA ARIA128 ARIA256 ARIAGCM CAMELLIA CAMELLIA128 " +
	"CAMELLIA256 DES RC2 IDEA SEED MD5 SHA384 PSK kPSK kECDHEPSK kDHEPSK kRSAPSK aPSK SRP kSRP aSRP GOST aGOST aGOST01 kGOST GOST94 GOST89MAC " +
	"SUITEB128 SUITEB128ONLY SUITEB128C2 SUITEB192 STREEBOG256 SSLv2 "

// parts are what the names of OpenSSL's suites consist of.
const parts = " ECDHE DHE ECDH EDH RSA ECDSA DSS PSK SRP ADH AECDH AES128 AES256 AES GCM CCM CCM8 SHA SHA256 SHA384 MD5 CAMELLIA128 CAMELLIA256 " +
	"ARIA128 ARIA256 ARIA CHACHA20 POLY1305 3DES DES CBC CBC3 EDE EDE3 RC4 RC2 IDEA SEED NULL 8 GOST2012 GOST2001 GOST94 GOST89 EXP ANON "

// isAbsent says whether OpenSSL knows word, which is none of the suites here.
func isAbsent(word string) bool {
	if strings.Contains(absent, " "+word+" ") {
		return true
	}
	names := strings.Split(word, "-")
	for _, p := range names {
		if !strings.Contains(parts, " "+p+" ") {
			return false
		}
	}
	return len(names) > 1
}

// parseCiphers reads an OpenSSL cipher string (openssl-ciphers(1)) and returns the suites
// of crypto/tls that it chooses, in its order, never nil. Suites with CBC and SHA-256 are
// chosen by their own names only. Warnings tell of words that should have added something
// and did not. A string without any word that means something is an error.
func parseCiphers(list string) (ids []uint16, warnings []string, err error) {
	all := suites()
	p := cipherParser{all: all, killed: map[uint16]bool{}}
	for rule := range strings.FieldsFuncSeq(list, func(r rune) bool { return strings.ContainsRune(": ,;", r) }) {
		if err := p.rule(rule); err != nil {
			return nil, nil, err
		}
	}
	if !p.known {
		return nil, nil, fmt.Errorf("ssl_cipher_list: %q chooses no cipher", list)
	}
	ids = make([]uint16, len(p.active))
	for i := range p.active {
		ids[i] = p.active[i].id
	}
	if len(p.missing) > 0 {
		p.warnings = append(p.warnings, "ssl_cipher_list: not available here: "+strings.Join(p.missing, ", "))
	}
	return ids, p.warnings, nil
}

type cipherParser struct {
	all      []suite
	active   []suite
	killed   map[uint16]bool
	known    bool     // some word was one of OpenSSL's
	missing  []string // words of OpenSSL's that added nothing
	warnings []string
}

// rule applies one word, or several joined with +, with !, - or + before them, and with
// @ commands.
func (p *cipherParser) rule(rule string) error {
	rule, command, hasCommand := strings.Cut(rule, "@")
	if rule != "" {
		op := byte(0)
		if strings.IndexByte("!-+", rule[0]) >= 0 {
			op, rule = rule[0], rule[1:]
		}
		p.words(op, rule)
	}
	switch {
	case !hasCommand:
		return nil
	case command == "STRENGTH":
		slices.SortStableFunc(p.active, func(a, b suite) int { return b.bits - a.bits })
		return nil
	case strings.HasPrefix(command, "SECLEVEL="):
		if n, err := strconv.ParseUint(command[len("SECLEVEL="):], 10, 8); err != nil || n > 5 {
			return fmt.Errorf("ssl_cipher_list: %q is not a security level", command)
		}
		p.warnings = append(p.warnings, "ssl_cipher_list: there are no security levels; @"+command+" does nothing")
		return nil
	}
	return fmt.Errorf("ssl_cipher_list: unknown command \"@%s\"", command)
}

func (p *cipherParser) words(op byte, rule string) {
	if rule == "DEFAULT" { // OpenSSL's own, ALL without what is weak
		p.words(op, "ALL")
		p.words('-', "RC4")
		p.words('-', "3DES")
		return
	}
	match := p.all
	for word := range strings.SplitSeq(rule, "+") {
		var both []suite
		for i := range match {
			if match[i].is(word) {
				both = append(both, match[i])
			}
		}
		known := slices.ContainsFunc(p.all, func(s suite) bool { return s.is(word) }) || isAbsent(word)
		p.known = p.known || known
		match = both
		if op == 0 && !known {
			p.warnings = append(p.warnings, fmt.Sprintf("ssl_cipher_list: unknown cipher %q", word))
			return
		}
	}
	if op == 0 && len(match) == 0 {
		p.missing = append(p.missing, rule)
	}
	matches := func(s suite) bool {
		return slices.ContainsFunc(match, func(m suite) bool { return m.id == s.id })
	}
	switch op {
	case '!':
		for _, s := range match {
			p.killed[s.id] = true
		}
		p.active = slices.DeleteFunc(p.active, matches)
	case '-':
		p.active = slices.DeleteFunc(p.active, matches)
	case '+': // to the end, in their order
		var last []suite
		for _, s := range p.active {
			if matches(s) {
				last = append(last, s)
			}
		}
		p.active = append(slices.DeleteFunc(p.active, matches), last...)
	default:
		for _, s := range match {
			if s.mac == "SHA256" && s.name != rule {
				continue // crypto/tls has no countermeasure against Lucky 13 in these: only on demand
			}
			if !p.killed[s.id] && !slices.ContainsFunc(p.active, func(a suite) bool { return a.id == s.id }) {
				p.active = append(p.active, s)
			}
		}
	}
}

// checkSuites13 reads ssl_cipher_suites, the suites of TLS 1.3, which crypto/tls does not
// let one choose.
func checkSuites13(list string) (warnings []string, err error) {
	if list == "" {
		return nil, nil
	}
	for name := range strings.SplitSeq(list, ":") {
		switch name {
		case "TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256":
		case "TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256", "":
		default:
			return nil, fmt.Errorf("ssl_cipher_suites: unknown cipher %q", name)
		}
	}
	return []string{"ssl_cipher_suites: the suites of TLSv1.3 cannot be chosen; the setting does nothing"}, nil
}
