package tlsconf

import (
	"crypto/tls"
	"fmt"
	"strings"
)

// curve returns the group with an OpenSSL name; ok says that OpenSSL knows it. A group
// that is not available here has id 0.
func curve(name string) (id tls.CurveID, ok bool) {
	switch strings.ToLower(name) {
	case "x25519":
		return tls.X25519, true
	case "p-256", "prime256v1", "secp256r1":
		return tls.CurveP256, true
	case "p-384", "secp384r1":
		return tls.CurveP384, true
	case "p-521", "secp521r1":
		return tls.CurveP521, true
	case "x25519mlkem768":
		return tls.X25519MLKEM768, true
	case "secp256r1mlkem768":
		return tls.SecP256r1MLKEM768, true
	case "secp384r1mlkem1024":
		return tls.SecP384r1MLKEM1024, true
	case "x448", "ed448", "k-163", "k-233", "k-283", "k-409", "k-571", "b-163", "b-233", "b-283", "b-409", "b-571", "p-192", "p-224",
		"prime192v1", "mlkem512", "mlkem768", "mlkem1024", "sm2":
		return 0, true
	}
	for _, family := range []string{"ffdhe", "secp", "sect", "brainpool", "wap-wsg-", "c2pnb", "c2tnb"} {
		if rest, ok := strings.CutPrefix(strings.ToLower(name), family); ok && rest != "" {
			return 0, true
		}
	}
	return 0, false
}

// parseCurves reads ssl_curve_list: names separated by colons (or, as from OpenSSL 3.5 on,
// by slashes), each perhaps with ? (no error if unknown) and * (a hint) before it. An
// empty list leaves the choice to crypto/tls.
func parseCurves(list string) (ids []tls.CurveID, warnings []string, err error) {
	if list == "" {
		return nil, nil, nil
	}
	for name := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ':' || r == '/' }) {
		optional := false
		for name != "" && (name[0] == '?' || name[0] == '*') {
			optional = optional || name[0] == '?'
			name = name[1:]
		}
		switch id, ok := curve(name); {
		case !ok && optional:
		case !ok:
			return nil, nil, fmt.Errorf("ssl_curve_list: unknown curve %q", name)
		case id == 0:
			warnings = append(warnings, "ssl_curve_list: curve "+name+" is not available here")
		default:
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, nil, fmt.Errorf("ssl_curve_list: none of the curves in %q is available here "+
			"(these are: X25519MLKEM768, X25519, P-256, P-384, P-521)", list)
	}
	return ids, warnings, nil
}
