package tlsconf

import (
	"os"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/tlsfiles"
)

// Variants of the settings: the same clients get the same version, cipher, key type and
// resumption from us as from the real Dovecot, or are refused by both. Three differences
// are crypto/tls's: of two AES ciphers that both sides have it takes that with 128 bits; it
// has no X448; and without tickets no session is resumed (OpenSSL remembers those of
// TLSv1.2 itself).
func TestAgainstDovecot(t *testing.T) {
	dir, err := os.MkdirTemp("", "dovetail-tls")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ec := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "sub.example.test", Names: []string{"sub.example.test"}})
	ecCert, ecKey := ec.Write(t, dir, "ec")
	rsaCert, rsaKey := writeFile(t, dir, "rsa-cert.pem", read(t, "rsa-cert.pem")), writeFile(t, dir, "rsa-key.pem", read(t, "rsa-key.pem"))
	mozilla := "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:" +
		"ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384"

	clients := [][]string{
		{}, {"-tls1_3"}, {"-tls1_2"}, {"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"},
		{"-tls1_2", "-cipher", "ECDHE+AESGCM"}, {"-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"}, {"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"},
		{"-tls1_2", "-cipher", "ECDHE-RSA-CHACHA20-POLY1305"}, {"-tls1_2", "-cipher", "AES128-SHA"}, {"-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA"},
		{"-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"}, {"-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"},
		{"-tls1_3", "-curves", "P-256"}, {"-tls1_3", "-curves", "P-384"}, {"-tls1_3", "-curves", "X25519"}, {"-tls1_3", "-curves", "X448:X25519"},
		{"-tls1_3", "-sigalgs", "RSA-PSS+SHA256"}, {"-tls1_3", "-sigalgs", "ECDSA+SHA256"}, {"-tls1_3", "-sigalgs", "RSA-PSS+SHA256:ECDSA+SHA256"},
		{"-servername", "sub.example.test"}, {"-servername", "unknown.example"},
		{"-tls1_2", "-fallback_scsv"}, {"-tls1_2", "-reconnect"},
	}
	for _, v := range []struct{ name, conf string }{
		{"defaults", ""},
		{"alternative", "ssl_alt_cert = <" + ecCert + "\nssl_alt_key = <" + ecKey + "\n"},
		{"TLSv1.3 alone", "ssl_min_protocol = TLSv1.3\n"},
		{"TLSv1.1 on", "ssl_min_protocol = TLSv1.1\nssl_cipher_list = ALL:@SECLEVEL=0\n"},
		{"Mozilla's list, no tickets", "ssl_cipher_list = " + mozilla + "\nssl_options = no_ticket\n"},
		{"RSA key exchange, one curve", "ssl_cipher_list = HIGH:!aNULL\nssl_curve_list = P-384\n"},
	} {
		t.Run(v.name, func(t *testing.T) {
			conf := "ssl_cert = <" + rsaCert + "\nssl_key = <" + rsaKey + "\n" + v.conf
			d := instance.Start(t, conf+"ssl = yes\nservice submission-login {\n  inet_listener submissions {\n    port = @PORT:tls@\n    ssl = yes\n  }\n  service_count = 0\n}\n")
			d.Until("the listener is there", func() bool {
				var out string
				sClient(t, &out)(d.Addr("tls"))
				return strings.Contains(out, "New, TLS")
			})
			config := server(t, parse(t, conf))
			for _, args := range clients {
				var theirs, ours string
				sClient(t, &theirs, args...)(d.Addr("tls"))
				serve(t, config, sClient(t, &ours, args...))
				if strings.Contains(conf, "no_ticket") && slices.Contains(args, "-reconnect") {
					if strings.Contains(ours, "Reused") {
						t.Errorf("%q: resumed without a ticket", args)
					}
					continue
				}
				if seen(ours) != seen(theirs) {
					t.Errorf("%q:\nours   %s\ntheirs %s", args, seen(ours), seen(theirs))
				}
			}
		})
	}
}

// seen is what s_client tells of its connections.
func seen(out string) string {
	var parts []string
	for l := range strings.Lines(out) {
		for _, p := range []string{"New, ", "Reused, ", "Peer signature type: "} {
			if strings.HasPrefix(l, p) {
				parts = append(parts, strings.TrimSpace(l))
			}
		}
	}
	return strings.NewReplacer("AES_256_GCM_SHA384", "AES-GCM", "AES_128_GCM_SHA256", "AES-GCM", "AES256-GCM-SHA384", "AES-GCM", "AES128-GCM-SHA256", "AES-GCM",
		"AES256-SHA", "AES-SHA", "AES128-SHA", "AES-SHA").
		Replace(strings.Join(parts, "; "))
}
