package conf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf/settings"
)

// Checks of our own, for standalone: what it does not do is an error at start that names
// the setting, never ignored. Dovecot says none of this (Report.Text is empty).

func (p *parser) ownFail(at hcl.Range, text, detail string) {
	p.ownAdd(hcl.DiagError, at, text, detail)
}

func (p *parser) ownWarn(at hcl.Range, text, detail string) {
	p.ownAdd(hcl.DiagWarning, at, text, detail)
}

func (p *parser) ownAdd(sev hcl.DiagnosticSeverity, at hcl.Range, text, detail string) {
	if p.said(text, at) {
		return
	}
	level := "Fatal"
	if sev == hcl.DiagWarning {
		level = "Warning"
	}
	p.add(&hcl.Diagnostic{
		Severity: sev, Summary: text, Detail: detail, Subject: subject(Range{Range: at}),
		Extra: &Report{Level: level, AtEnd: true},
	})
}

// own runs the checks for the settings outside filters, and those of values for every
// filter of this service.
func (p *parser) own() {
	v, err := p.cfg.view(request{})
	if err != nil {
		return // reported by check
	}
	p.drivers()
	p.unsupported()
	p.keyFiles()
	p.listeners(v)
	p.users(v)
	p.relay()
	p.pluginNames()
	p.burl()
	if !slices.Contains(v.Protocols(), "submission") && !p.failedAt("protocols: ", v.Range("protocols")) {
		p.ownFail(v.Range("protocols"), "protocols does not contain submission", "Standalone serves this protocol only: `protocols = submission`.")
	}
	if p.opt.Also != nil {
		for _, d := range p.opt.Also(p.cfg) {
			if d.Subject != nil && p.failedOn(*d.Subject) {
				continue
			}
			if d.Extra == nil {
				d.Extra = &Report{Level: "Fatal", AtEnd: true}
			}
			p.add(d)
		}
	}
}

// scopes calls f for the root and every filter that can concern the submission service,
// with the settings that each sets itself.
func (p *parser) scopes(f func(*Scope)) {
	f(p.cfg.Root)
	submission := "submission"
	for _, s := range p.cfg.Filters {
		m := Match{Protocol: s.Match.Protocol}
		if m.matchesService(request{service: &submission}) {
			f(s)
		}
	}
}

var (
	passDrivers = []string{"passwd-file", "static"}
	userDrivers = []string{"passwd-file", "static", "prefetch"}
)

func (p *parser) drivers() {
	p.scopes(func(s *Scope) {
		for _, typ := range []string{"passdb", "userdb"} {
			have := passDrivers
			if typ == "userdb" {
				have = userDrivers
			}
			for _, b := range s.Of(typ) {
				d, ok := b.Get("driver")
				if !ok || d.Value == "" || slices.Contains(have, d.Value) {
					continue
				}
				p.ownFail(d.Last.Range.Range, fmt.Sprintf("%s: driver %s is not supported by standalone", typ, d.Value),
					fmt.Sprintf("Standalone has %s. With any other driver run the two programs under Dovecot (drop-in).", list(have)))
			}
		}
	})
}

func list(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

// unsupportedSettings change what the user gets, and standalone does not have them. A
// setting at its default is no error.
var unsupportedSettings = map[string]string{
	"auth_policy_server_url": "There is no policy server client.",
	"auth_use_winbind":       "There is no NTLM.",
	"auth_krb5_keytab":       "There is no Kerberos.",
	"login_access_sockets":   "There is no tcpwrap service. Use `allow_nets` in the passdb, or a firewall.",
	"login_plugins":          "Plug-ins are Dovecot's and cannot be loaded.",
	"ssl_crypto_device":      "There are no crypto engines.",
}

func (p *parser) unsupported() {
	p.scopes(func(s *Scope) {
		for _, set := range s.Settings {
			why, ok := unsupportedSettings[set.Key]
			if k, known := p.schema.Setting(set.Key); !ok || known && set.Value == k.Default {
				continue
			}
			p.ownFail(set.Last.Key.Range, set.Key+" is not supported by standalone", why)
		}
		if m, ok := s.Get("auth_mechanisms"); ok {
			p.mechanisms(m)
		}
	})
}

// OwnMechanisms are the SASL mechanisms that standalone has.
var OwnMechanisms = []string{"PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "EXTERNAL", "ANONYMOUS"}

func (p *parser) mechanisms(set *Setting) {
	for _, w := range strings.Fields(set.Value) {
		if !slices.Contains(OwnMechanisms, strings.ToUpper(w)) {
			p.ownFail(set.Last.Range.Range, fmt.Sprintf("auth_mechanisms: %s is not supported by standalone", w), "It has "+list(OwnMechanisms)+". With any other mechanism run the two programs under Dovecot (drop-in).")
		}
	}
}

// keyFiles checks keys and certificates: that they can be read and belong together.
func (p *parser) keyFiles() {
	p.scopes(func(s *Scope) {
		if ssl, ok := s.Get("ssl"); ok && ssl.Value == "no" {
			return
		}
		for _, name := range []string{"ssl_cert", "ssl_key", "ssl_ca", "ssl_alt_cert", "ssl_alt_key", "ssl_client_cert", "ssl_client_key"} {
			p.sslFile(s, name)
		}
		if set, ok := s.Get("ssl_client_ca_file"); ok && set.Value != "" {
			if _, err := os.Stat(set.Value); err != nil {
				p.ownFail(set.Last.Range.Range, fmt.Sprintf("ssl_client_ca_file: can't open %s: %s", set.Value, reason(err)), "A file with the certificates of authorities.")
			}
		}
		cert, ok1 := s.Get("ssl_cert")
		key, ok2 := s.Get("ssl_key")
		pass, protected := s.Get("ssl_key_password")
		if ok1 && ok2 && p.opt.Expand && (!protected || pass.Value == "") && cert.Value != "" && key.Value != "" &&
			isPEM(cert.Value) && isPEM(key.Value) {
			if _, err := tls.X509KeyPair([]byte(cert.Value), []byte(key.Value)); err != nil {
				p.ownFail(key.Last.Range.Range, "ssl_cert and ssl_key do not make a pair: "+strings.TrimPrefix(err.Error(), "tls: "),
					"The key must be the one of the first certificate in ssl_cert.")
			}
		}
	})
	v, err := p.cfg.view(request{})
	if err == nil && v.Value("ssl") != "no" && (v.Value("ssl_cert") == "" || v.Value("ssl_key") == "") {
		p.ownWarn(v.Range("ssl"), "ssl is on, but ssl_cert or ssl_key is not set", "TLS is not offered to clients that no filter gives a certificate.")
	}
	p.minProtocol()
}

// sslFile is one setting whose value is the content of a file.
func (p *parser) sslFile(s *Scope, name string) {
	set, ok := s.Get(name)
	if !ok || set.Value == "" {
		return
	}
	at := set.Last.Range.Range
	if set.Last.Form != FromFile {
		if strings.HasPrefix(set.Value, "/") {
			p.ownFail(at, name+" is the name of a file, not its content", fmt.Sprintf("Write `%s = <%s`.", name, set.Value))
		} else if !isPEM(set.Value) {
			p.ownFail(at, name+" is not in PEM form", fmt.Sprintf("Write `%s = <file`.", name))
		}
		return
	}
	if !p.opt.Expand {
		// The value was not read: at least see whether it could be.
		if _, _, err := p.readFile(set.Last.Path); err != nil {
			p.ownFail(at, fmt.Sprintf("%s: Can't open file %s: %s", name, set.Last.Path, reason(err)), "")
		}
		return
	}
	if !isPEM(set.Value) {
		p.ownFail(at, fmt.Sprintf("%s: %s is not in PEM form", name, set.Last.Path), "The file must hold `-----BEGIN ...-----` blocks.")
		return
	}
	if strings.HasSuffix(name, "_key") {
		return
	}
	if block, _ := pem.Decode([]byte(set.Value)); block != nil && block.Type == "CERTIFICATE" {
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			p.ownFail(at, fmt.Sprintf("%s: %s has a broken certificate: %v", name, set.Last.Path, err), "")
		}
	}
}

func isPEM(s string) bool { return strings.Contains(s, "-----BEGIN ") }

var minProtocols = []string{"ANY", "LATEST", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}

func (p *parser) minProtocol() {
	p.scopes(func(s *Scope) {
		set, ok := s.Get("ssl_min_protocol")
		if !ok {
			return
		}
		switch at := set.Last.Range.Range; {
		case !slices.Contains(minProtocols, set.Value):
			p.ownFail(at, "ssl_min_protocol: unknown protocol "+set.Value, "One of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3, LATEST, ANY.")
		case set.Value == "SSLv3":
			p.ownFail(at, "ssl_min_protocol: SSLv3 is not supported", "TLSv1.2 or TLSv1.3 is right today.")
		}
	})
}

// listeners checks addresses, and that no two listeners take the same port.
func (p *parser) listeners(v *View) {
	type place struct {
		addr netip.AddrPort
		name string
	}
	var taken []place
	for _, s := range v.Services() {
		if s.Name != "submission-login" {
			continue
		}
		if len(s.Inet) == 0 {
			p.ownWarn(s.Range, "service submission-login has no inet_listener", "Nobody can connect.")
		}
		for _, l := range s.Inet {
			if l.Port == 0 {
				continue
			}
			at, name := l.Range, l.Name
			if at.Filename == "" {
				at = v.Range("listen")
			}
			for _, a := range l.Address {
				var addr netip.Addr
				switch a {
				case "*":
					addr = netip.IPv4Unspecified()
				case "::", "[::]":
					addr = netip.IPv6Unspecified()
				default:
					ip, ok := settings.ParseAddr(a)
					if !ok {
						host, err := p.resolveName(a)
						if err != nil {
							p.ownFail(at, fmt.Sprintf("inet_listener %s: %s is neither an address nor a host that is known", name, a), "Addresses are separated by blanks or commas; `*` and `::` are all of IPv4 and IPv6.")
							continue
						}
						ip = host
					}
					addr = ip
				}
				here := place{netip.AddrPortFrom(addr, l.Port), name}
				for _, o := range taken {
					if o.addr == here.addr || o.addr.Port() == l.Port && o.addr.Addr().Is4() == addr.Is4() &&
						(o.addr.Addr().IsUnspecified() || addr.IsUnspecified()) {
						if p.failedAt("duplicate listener: ", at) {
							break
						}
						p.ownFail(at, fmt.Sprintf("inet_listener %s: %s is already taken by inet_listener %s", name, here.addr, o.name), "Each address and port can be listened on once.")
						break
					}
				}
				taken = append(taken, here)
			}
			if l.SSL && v.Value("ssl") == "no" {
				p.ownFail(at, fmt.Sprintf("inet_listener %s has ssl=yes, but ssl is no", name), "Such a listener would be skipped.")
			}
		}
	}
}

// ourServices are those that standalone starts.
var ourServices = []string{"submission-login", "submission", "auth", "anvil", "config", "log", "dns-client", "ipc"}

// users checks the users and groups of our services and of their sockets, and that the
// programs are ours.
func (p *parser) users(v *View) {
	for _, s := range v.Services() {
		if !v.Enabled(s) || !slices.Contains(ourServices, s.Name) {
			continue
		}
		c := people{p, v, s}
		c.check(s.At("user"), "user", s.User)
		c.check(s.At("group"), "group", s.Group)
		for _, g := range s.ExtraGroups {
			c.check(s.At("extra_groups"), "group", g)
		}
		for _, l := range s.Unix {
			if l.Mode != 0 {
				c.check(l.Range, "user", l.User)
				c.check(l.Range, "group", l.Group)
			}
		}
		p.commandLine(v, s)
	}
}

// people checks the users and groups of one service.
type people struct {
	p *parser
	v *View
	s Service
}

func (c people) check(at hcl.Range, kind, name string) {
	exists := c.p.opt.User
	if kind == "group" {
		exists = c.p.opt.Group
	}
	if name == "" || exists(name) {
		return
	}
	for _, def := range []string{"default_login_user", "default_internal_user", "default_internal_group"} {
		if at.Filename != "" || c.v.Value(def) != name {
			continue
		}
		if kind == "user" {
			return // said by the checks that Dovecot has, too
		}
		c.p.ownFail(c.v.Range(def), def+" doesn't exist: "+name, "The name of a group of this system.")
		return
	}
	c.p.ownFail(at, fmt.Sprintf("service(%s): there is no %s %s", c.s.Name, kind, name), "The system knows no such name.")
}

// relay checks where mail goes.
func (p *parser) relay() {
	some := false
	p.scopes(func(s *Scope) {
		if set, ok := s.Get("submission_relay_host"); ok && set.Value != "" {
			some = true
		}
		if set, ok := s.Get("submission_relay_max_idle_time"); ok && set.Value == "0" {
			p.ownFail(set.Last.Range.Range, "submission_relay_max_idle_time can't be 0", "A time such as 29 mins.")
		}
		if set, ok := s.Get("login_source_ips"); ok {
			for _, w := range words(strings.TrimPrefix(set.Value, "?")) {
				if _, ok := settings.ParseAddr(w); !ok {
					p.ownFail(set.Last.Range.Range, fmt.Sprintf("login_source_ips: %s is not an address", w), "")
				}
			}
		}
		for _, name := range []string{"login_trusted_networks", "haproxy_trusted_networks"} {
			if set, ok := s.Get(name); ok {
				for _, w := range words(set.Value) {
					if _, bad := parseNet(w, noHosts); bad != "" {
						p.ownFail(set.Last.Range.Range, fmt.Sprintf("%s: %s is not a network", name, w), "ADDRESS or ADDRESS/BITS, such as 10.0.0.0/8; separated by blanks or commas.")
					}
				}
			}
		}
		for _, name := range []string{"rawlog_dir", "submission_relay_rawlog_dir", "login_proxy_rawlog_dir"} {
			if set, ok := s.Get(name); ok && set.Value != "" && !strings.Contains(set.Value, "%") && !filepath.IsAbs(set.Value) && !strings.HasPrefix(set.Value, "~") {
				p.ownWarn(set.Last.Range.Range, name+" is a relative path", "It is looked up wherever the process happens to be.")
			}
		}
	})
	if !some {
		p.ownWarn(hcl.Range{}, "submission_relay_host is not set", "Sessions will fail after login, unless the user database gives submission_relay_host.")
	}
}

// noHosts is a resolver for places where host names are not allowed.
func noHosts(context.Context, string) (netip.Addr, error) {
	return netip.Addr{}, errors.New("not an address")
}

// resolveName is one look-up with the timeout of clause C10.2.
func (p *parser) resolveName(host string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	return p.opt.Resolve(ctx, host)
}

// pluginNames finds settings of ours in plugin { } that do not exist or have a wrong
// value. Nobody else uses such names.
func (p *parser) pluginNames() {
	var names []string
	for _, s := range Own {
		names = append(names, s.Name)
	}
	p.scopes(func(s *Scope) {
		b := s.Block.Block("plugin", "")
		if b == nil {
			return
		}
		for _, set := range b.Settings {
			if !strings.HasPrefix(set.Key, "dovetail_") {
				continue
			}
			k, ok := p.schema.Setting(set.Key)
			if !ok {
				detail := "There is no setting of this name."
				if near := closest(set.Key, names); near != "" {
					detail = fmt.Sprintf("Did you mean `%s`?", near)
				}
				p.ownFail(set.Last.Key.Range, "Unknown setting: plugin { "+set.Key, detail)
			} else if _, err := k.Normalise(set.Value); err != nil {
				p.ownFail(set.Last.Range.Range, err.Error(), rightValue(set.Key, k, set.Last))
			}
		}
	})
}

// failedOn says whether an error points at the line where at begins.
func (p *parser) failedOn(at hcl.Range) bool {
	for _, d := range p.diags {
		if d.Severity == hcl.DiagError && d.Subject != nil && d.Subject.Filename == at.Filename && d.Subject.Start.Line == at.Start.Line {
			return true
		}
	}
	return false
}

// failedAt says whether an error that begins with start points at the range at.
func (p *parser) failedAt(start string, at hcl.Range) bool {
	for _, d := range p.diags {
		if strings.HasPrefix(d.Summary, start) && d.Subject != nil && *d.Subject == at {
			return true
		}
	}
	return false
}
