package proxy

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/tlsfiles"
)

// jwt makes a token for a user that is signed with the key.
func jwt(user, key string) string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	text := part(`{"alg":"HS256","typ":"JWT"}`) + "." + part(fmt.Sprintf(`{"sub":%q,"iat":%d,"exp":%d}`, user, time.Now().Unix()-60, time.Now().Unix()+3600))
	h := hmac.New(sha256.New, []byte(key))
	h.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// Each mechanism, against backends that others wrote and against ours: right, and refused.
func TestMechanisms(t *testing.T) {
	const key = "a key that both know"
	ca := tlsfiles.NewCA(t, "front CA")
	cert := ca.Issue(t, tlsfiles.Request{CN: "alice", Client: true})
	for _, pair := range []struct{ front, back system.System }{
		{system.OursLogin, system.Dovecot}, {system.Standalone, system.Standalone}, {system.Standalone, system.Dovecot}, {system.Dovecot, system.Standalone},
	} {
		t.Run(pair.front.String()+" before "+pair.back.String(), func(t *testing.T) {
			t.Parallel()
			pair.front.Need(t)
			back := system.Setup{RelayPort: relay.Start(t, relay.Options{}).Port, Config: []string{
				"login_trusted_networks = 127.0.0.1", "ssl_ca = <{dir}/etc/front-ca.pem", "ssl_verify_client_cert = yes", "ssl_require_crl = no", "auth_ssl_username_from_cert = yes",
				"passdb static {", "  driver = static", "  args = nopassword=y", "  mechanisms = external", "}",
			}, Files: map[string]system.File{"etc/front-ca.pem": {Data: string(ca.Cert)}}}
			mechs := "plain login external cram-md5 scram-sha-1 scram-sha-256"
			if pair.back == system.Dovecot { // ours has no database of tokens
				mechs += " xoauth2 oauthbearer"
				back.Config = append(back.Config, "passdb oauth2 {", "  driver = oauth2", "  mechanisms = xoauth2 oauthbearer", "  args = {dir}/etc/oauth2", "}")
				back.Files["etc/oauth2"] = system.File{Data: "introspection_mode = local\nlocal_validation_key_dict = fs:posix:prefix={dir}/etc/keys/\nusername_attribute = sub\n"}
				back.Files["etc/keys/default/HS256/default"] = system.File{Data: encode(key)}
			}
			back.Config = append(back.Config, "auth_mechanisms = "+mechs)
			b := pair.back.Start(t, back)
			lines := []string{}
			ok := map[string]bool{}
			add := func(name, fields string, works bool) {
				name = strings.ToLower(name) // as auth makes all names
				lines = append(lines, fmt.Sprintf("%s:{PLAIN}pw::::::proxy=y host=127.0.0.1 port=%d %s", name, b.Port, fields))
				ok[name] = works
			}
			for _, m := range []string{"PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"} {
				if pair.front == system.Dovecot && m != "PLAIN" && m != "LOGIN" {
					continue // S13.6
				}
				add(m, "proxy_mech="+m+" destuser=alice pass=wonder", true)
				add(m+"-wrong", "proxy_mech="+m+" destuser=alice pass=wrong", false)
				if m != "LOGIN" || pair.back != system.Dovecot { // which takes the name for the password when a certificate has named the user
					add(m+"-tls", "starttls=any-cert proxy_mech="+m+" destuser=alice pass=wonder", true)
				}
			}
			if pair.front != system.Dovecot {
				add("small-letters", "proxy_mech=plain destuser=alice pass=wonder", true)
			}
			add("EXTERNAL", "starttls=any-cert proxy_mech=EXTERNAL destuser=alice pass=", true)
			add("EXTERNAL-clear", "proxy_mech=EXTERNAL destuser=alice pass=", false)
			if strings.Contains(mechs, "oauth") {
				for _, m := range []string{"XOAUTH2", "OAUTHBEARER"} {
					add(m, "proxy_mech="+m+" destuser=alice pass="+jwt("alice", key), true)
					if pair.front != system.Dovecot { // it does not wait for the refusal
						add(m+"-wrong", "proxy_mech="+m+" destuser=alice pass="+jwt("alice", "another key"), false)
					}
				}
			}
			f := &front{t: t, Running: pair.front.Start(t, system.Setup{
				Config: []string{"passdb proxied {", "  driver = passwd-file", "  args = {dir}/etc/proxied", "}", "login_proxy_max_reconnects = 0",
					"ssl_client_cert = <{dir}/etc/client.pem", "ssl_client_key = <{dir}/etc/client.key"},
				Files: map[string]system.File{"etc/proxied": {Data: strings.Join(lines, "\n") + "\n"}, "etc/client.pem": {Data: string(cert.Cert)}, "etc/client.key": {Data: string(cert.Key), Mode: 0o600}},
			})}
			for name, works := range ok {
				c := f.dial(t, client.Options{})
				got := strings.Join(login(c, name), " / ")
				switch {
				case works && got != "235 2.7.0 Logged in.":
					t.Errorf("%s: %s", name, got)
				case !works && !strings.HasPrefix(got, "535 5.7.8 "):
					t.Errorf("%s: %s, want the backend's refusal", name, got)
				}
				c.Close()
			}
		})
	}
}
