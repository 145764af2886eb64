package tlsconf

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/testkit/need"
)

// Every cipher string chooses what OpenSSL chooses among the suites that both have, but
// for those with CBC and SHA-256, which must be named.
func TestCiphersAsOpenSSL(t *testing.T) {
	openssl := need.Program(t, "openssl")
	choose := func(list string) []string {
		out, err := exec.Command(openssl, "ciphers", list+":@SECLEVEL=0").Output()
		if err != nil {
			return nil
		}
		return strings.Split(strings.TrimSpace(string(out)), ":")
	}
	both := choose("ALL:COMPLEMENTOFALL")
	for _, list := range []string{
		defaultCiphers,
		"ALL", "DEFAULT", "HIGH", "HIGH:!aNULL:!MD5", "ALL:!LOW:!SSLv2:!EXP:!aNULL", "HIGH:!RSA", "HIGH:!kRSA", "HIGH:!aRSA", "HIGH:!ECDSA", "HIGH:!aECDSA",
		"HIGH:!ECDHE", "kEECDH", "EECDH+AESGCM", "EECDH+AESGCM:EDH+AESGCM", "ECDHE+AES", "ECDHE+AES128", "ECDHE+AES256:!SHA1", "AES:-AES128", "AES:-AES128:AES128",
		"AES:!AES128:AES128", "ALL:+RSA", "CHACHA20", "AESGCM", "CBC:!RSA", "SHA1", "SHA256", "SHA384", "SHA", "TLSv1.2", "TLSv1.2:!RSA", "TLSv1", "TLSv1.0", "SSLv3",
		"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:" +
			"ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384",
		"ECDHE-RSA-AES128-SHA256", "AES128-SHA256:AES128-SHA", "AES128-SHA,AES256-SHA", "AES128-SHA AES256-SHA", "AES128-SHA;AES256-SHA",
		"ALL@STRENGTH", "ALL:!AESCCM:@STRENGTH", "kRSA+AESGCM", "kRSA+SHA256", "RSA+AES", "HIGH:!FIPS", "FIPS:!RSA", "NONSENSE:AES128-SHA", "AES128-SHA:nonsense:!kRSA:kRSA",
		"ALL:-ALL:ECDHE-RSA-AES128-GCM-SHA256", "HIGH:MEDIUM", "MEDIUM", "!ALL:AES128-SHA", "AES128:+AES128:!CBC",
		"nonsense", "ALL:@NONSENSE", "!nonsense", "aNULL", "eNULL", "DHE",
	} {
		var want, got []string
		for _, name := range choose(list) {
			is := func(s suite) bool { return s.name == name }
			if i := slices.IndexFunc(suites(), is); i >= 0 && (suites()[i].mac != "SHA256" || strings.Contains(list, name)) {
				want = append(want, name)
			}
		}
		ids, _, err := parseCiphers(list)
		for _, id := range ids {
			name := suites()[slices.IndexFunc(suites(), func(s suite) bool { return s.id == id })].name
			if slices.Contains(both, name) {
				got = append(got, name)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s (%v)\n got %v\nwant %v", list, err, got, want)
		}
		if refused := choose(list) == nil; refused && err == nil && len(got) > 0 {
			t.Errorf("%s: OpenSSL takes no such list", list)
		}
	}
}

func TestCipherWarnings(t *testing.T) {
	for _, c := range []struct {
		list     string
		warnings []string
		err      string
	}{
		{defaultCiphers, nil, ""},
		{"HIGH:!aNULL:!DES", nil, ""},
		{"DHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ARIA", []string{"ssl_cipher_list: not available here: DHE-RSA-AES128-GCM-SHA256, ARIA"}, ""},
		{"FOO:HIGH", []string{`ssl_cipher_list: unknown cipher "FOO"`}, ""},
		{"HIGH:@SECLEVEL=2", []string{"ssl_cipher_list: there are no security levels; @SECLEVEL=2 does nothing"}, ""},
		{"HIGH:@SECLEVEL=9", nil, `ssl_cipher_list: "SECLEVEL=9" is not a security level`},
		{"FOO", nil, `ssl_cipher_list: "FOO" chooses no cipher`},
		{"", nil, `ssl_cipher_list: "" chooses no cipher`},
		{"HIGH:@FOO", nil, `ssl_cipher_list: unknown command "@FOO"`},
	} {
		_, warnings, err := parseCiphers(c.list)
		if c.err != "" {
			if err == nil || err.Error() != c.err {
				t.Errorf("%s: error %v, want %s", c.list, err, c.err)
			}
			continue
		}
		if err != nil || !slices.Equal(warnings, c.warnings) {
			t.Errorf("%s: %v, %q, want %q", c.list, err, warnings, c.warnings)
		}
	}
}

func TestCurves(t *testing.T) {
	for _, c := range []struct {
		list     string
		n        int
		warnings int
		err      string
	}{
		{"", 0, 0, ""},
		{"P-256:X25519", 2, 0, ""},
		{"prime256v1:secp384r1:X448", 2, 1, ""},
		{"?foo:P-521", 1, 0, ""},
		{"foo:P-521", 0, 0, `ssl_curve_list: unknown curve "foo"`},
		{"X448", 0, 0, `ssl_curve_list: none of the curves in "X448" is available here (these are: X25519MLKEM768, X25519, P-256, P-384, P-521)`},
		{"*X25519MLKEM768/P-256", 2, 0, ""},
	} {
		ids, warnings, err := parseCurves(c.list)
		if len(ids) != c.n || len(warnings) != c.warnings || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: %v %q %v", c.list, ids, warnings, err)
		}
	}
}

func FuzzCiphers(f *testing.F) {
	f.Add(defaultCiphers)
	f.Add("EECDH+AESGCM:!x@STRENGTH:+a:@SECLEVEL=1")
	f.Fuzz(func(t *testing.T, list string) {
		ids, _, err := parseCiphers(list)
		if err == nil && ids == nil {
			t.Error("nil would mean crypto/tls's own choice")
		}
		_, _, _ = parseCurves(list)
		_, _ = checkSuites13(list)
	})
}
