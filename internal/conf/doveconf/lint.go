package doveconf

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf"
	"dovetail/internal/conf/settings"
)

// What check adds to Dovecot's own errors: what the two programs of this project do not
// do, secrets that others can read, and certificates that will not do.

// A place is the settings of the root or of one filter, in either dialect.
type scopeOf struct {
	names []string // of local_name around it; nil outside
	proto string   // of protocol around it
	get   func(name string) (value string, at hcl.Range, path string, ok bool)
	all   func(yield func(name, value string, at hcl.Range, file bool))
}

// A subject is a configuration to look at.
type subject struct {
	scopes   []scopeOf // the root first
	services []service
	value    func(name string) string // of the root, with defaults
	later    bool                     // 2.4
}

// A service is one of the two that this project has programs for.
type service struct {
	name, executable string
	limit            string // vsz_limit as set; "" if it is not
	at               hcl.Range
}

// ours are the services whose programs this project replaces.
var ours = []string{"submission", "submission-login"}

func subject23(c *conf.Config) subject {
	v, err := c.View(conf.Filter{})
	s := subject{value: func(name string) string {
		if err != nil {
			return ""
		}
		return v.Value(name)
	}}
	for _, scope := range append([]*conf.Scope{c.Root}, c.Filters...) {
		p := scopeOf{}
		if scope.Match.LocalName != nil {
			p.names = strings.Fields(*scope.Match.LocalName)
		}
		if scope.Match.Protocol != nil {
			p.proto = *scope.Match.Protocol
		}
		p.get = func(name string) (string, hcl.Range, string, bool) {
			set, ok := scope.Get(name)
			if !ok || set.Last == nil {
				return "", hcl.Range{}, "", false
			}
			return set.Value, set.Last.Range.Range, set.Last.Path, true
		}
		p.all = func(yield func(string, string, hcl.Range, bool)) { walk23(scope.Block, yield) }
		s.scopes = append(s.scopes, p)
	}
	for _, name := range ours {
		if b := c.Root.Block.Block("service", name); b != nil {
			sv := service{name: name, executable: b.Value("executable"), at: b.Pos().Range}
			if l, ok := b.Get("vsz_limit"); ok {
				sv.limit, sv.at = l.Value, l.Last.Range.Range
			}
			s.services = append(s.services, sv)
		}
	}
	return s
}

func walk23(b *conf.Block, yield func(string, string, hcl.Range, bool)) {
	for _, s := range b.Settings {
		yield(s.Key, s.Value, s.Last.Range.Range, s.Last.Form == conf.FromFile)
	}
	for _, c := range b.Blocks {
		walk23(c, yield)
	}
}

func subject24(c *conf.Config24) subject {
	s := subject{later: true, value: func(name string) string {
		v, _ := c.Find(c.Root, name)
		return v
	}}
	var scopes func(n *conf.Node, names []string, proto string)
	scopes = func(n *conf.Node, names []string, proto string) {
		if n.Type == "local_name" {
			names = []string{n.Name}
		}
		if n.Type == "protocol" {
			proto = n.Name
		}
		p := scopeOf{names: names, proto: proto}
		p.get = func(name string) (string, hcl.Range, string, bool) {
			set, ok := n.Get(name)
			if !ok {
				return "", hcl.Range{}, "", false
			}
			if set.Last == nil {
				return set.Value, set.Seen.Range, "", true
			}
			return set.Value, set.Seen.Range, set.Last.Path, true
		}
		p.all = func(yield func(string, string, hcl.Range, bool)) { walk24(n, yield) }
		s.scopes = append(s.scopes, p)
		for _, child := range n.Children {
			if child.Kind == conf.ClientNode {
				scopes(child, names, proto)
			}
		}
	}
	scopes(c.Root, nil, "")
	for _, name := range ours {
		if n := c.Root.Child("service", name); n != nil {
			sv := service{name: name, executable: n.Value("service_executable")}
			if len(n.Open) > 0 {
				sv.at = n.Open[0].Range
			}
			if l, ok := n.Get("service_vsz_limit"); ok {
				sv.limit, sv.at = l.Value, l.Seen.Range
			}
			s.services = append(s.services, sv)
		}
	}
	return s
}

func walk24(n *conf.Node, yield func(string, string, hcl.Range, bool)) {
	for _, s := range n.Settings {
		file := s.Last != nil && s.Last.Form == conf.FromFile
		if len(s.Items) == 0 {
			yield(s.Row.Name, s.Value, s.Seen.Range, file)
		}
		for _, i := range s.Items {
			yield(i.Key, i.Value, s.Seen.Range, file)
		}
	}
	for _, c := range n.Children {
		if c.Kind != conf.ClientNode {
			walk24(c, yield)
		}
	}
}

// lint looks at one configuration.
type lint struct {
	*checker
	subject
	diags hcl.Diagnostics
	files []*conf.File
}

func (l *lint) add(sev hcl.DiagnosticSeverity, at hcl.Range, text, detail string) {
	d := &hcl.Diagnostic{Severity: sev, Summary: text, Detail: detail}
	if at.Filename != "" {
		d.Subject = &at
	}
	for _, have := range l.diags {
		if have.Summary == text && (have.Subject == nil) == (d.Subject == nil) && (d.Subject == nil || *have.Subject == at) {
			return
		}
	}
	l.diags = append(l.diags, d)
}

func (l *lint) warn(at hcl.Range, text, detail string) { l.add(hcl.DiagWarning, at, text, detail) }

func (l *lint) run() {
	if !l.concernsUs() {
		l.secrets()
		l.certificates()
		return
	}
	l.memory()
	l.different()
	l.secrets()
	l.certificates()
}

// concernsUs says whether the submission service runs.
func (l *lint) concernsUs() bool {
	return slices.Contains(strings.Fields(l.value("protocols")), "submission")
}

// leastMemory is the vsz_limit that a program of Go needs: the limit counts address space,
// of which its runtime reserves much more than it uses.
const leastMemory = 1300 << 20

// memory warns of a vsz_limit that is set too low. Where neither it nor the executable is
// set, the programs are Dovecot's, for which the default is right.
func (l *lint) memory() {
	for _, s := range l.services {
		limit, inherited := s.limit, s.limit == "" || strings.HasPrefix(s.limit, "$") || strings.HasPrefix(s.limit, "18446744073709551615")
		if inherited {
			if !strings.Contains(s.executable, "/") {
				continue
			}
			limit = l.value("default_vsz_limit")
		}
		n, err := settings.ParseSize(limit)
		if err != nil || n == 0 || n >= leastMemory {
			continue
		}
		l.warn(s.at, fmt.Sprintf("service(%s): vsz_limit = %s is too small for this project's program", s.name, settings.FormatSize(n)),
			"It needs 1300M of address space to start, of which it uses little. `vsz_limit = 2G`, or 0 for no limit.")
	}
}

// A difference is a setting that the programs here do not heed as Dovecot's do.
type difference struct {
	why string
	// matters says whether a value is one of concern; nil: any but the default.
	matters func(value string) bool
	// only in `protocol submission`, as other protocols may well use it.
	ownOnly bool
}

var differences = map[string]difference{
	"login_plugins":     {why: "Plug-ins are Dovecot's own code; they are not loaded."},
	"mail_plugins":      {why: "The submission service loads no plug-ins.", ownOnly: true},
	"ssl_crypto_device": {why: "There are no crypto engines."},
	"ssl_dh":            {why: "Key exchange is by elliptic curves alone; the parameters are not used."},
	"ssl_server_dh_file": {
		why: "Key exchange is by elliptic curves alone; the parameters are not used.",
	},
	"ssl_options":      {why: "TLS compression does not exist here.", matters: func(v string) bool { return slices.Contains(settings.Words(v), "compression") }},
	"ssl_min_protocol": {why: "The oldest version there is here is TLSv1.", matters: func(v string) bool { return v == "SSLv3" || v == "ANY" }},
}

func (l *lint) different() {
	for _, s := range l.scopes {
		if s.proto != "" && s.proto != "submission" {
			continue
		}
		for name, d := range differences {
			value, at, _, ok := s.get(name)
			if !ok || value == "" || d.ownOnly && s.proto != "submission" || d.matters != nil && !d.matters(value) {
				continue
			}
			l.warn(at, name+" has no effect on this project's submission service", d.why)
		}
	}
}

// secrets warns of passwords and keys in files that everyone can read.
func (l *lint) secrets() {
	open := map[string]bool{}
	for _, f := range l.files {
		open[f.Path] = readableByAll(f.Path)
	}
	said := map[string]bool{}
	for _, s := range l.scopes {
		s.all(func(name, value string, at hcl.Range, file bool) {
			secret := conf.SecretKey(name) && name != "ssl_key" && !strings.HasPrefix(name, "ssl_dh") && !strings.HasSuffix(name, "_key") || conf.HideSecrets(value) != value
			if file || value == "" || !secret || !open[at.Filename] || said[at.Filename] || strings.Contains(value, "%{") {
				return
			}
			said[at.Filename] = true
			l.warn(at, fmt.Sprintf("%s holds a secret, and everyone can read %s", name, at.Filename),
				"Take the right to read away from others, or move the value to a file of its own: `"+name+" = <file`.")
		})
	}
}

// readableByAll says whether a file and the folders to it are open to others.
func readableByAll(path string) bool {
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm()&0o004 == 0 {
		return false
	}
	dir, err := filepath.Abs(path)
	for err == nil && dir != "/" {
		dir = filepath.Dir(dir)
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm()&0o001 == 0 {
			return false
		}
	}
	return true
}

// expiresSoon is how long before its end a certificate is warned of.
const expiresSoon = 14 * 24 * time.Hour

// certificates looks at each certificate with the key that goes with it.
func (l *lint) certificates() {
	if l.value("ssl") == "no" {
		return
	}
	for _, s := range l.scopes {
		for _, names := range [][2]string{{"ssl_cert", "ssl_key"}, {"ssl_alt_cert", "ssl_alt_key"}} {
			if l.later {
				names = [2]string{strings.Replace(names[0], "ssl_", "ssl_server_", 1) + "_file", strings.Replace(names[1], "ssl_", "ssl_server_", 1) + "_file"}
			}
			l.certificate(s, names[0], names[1])
		}
	}
}

func (l *lint) certificate(s scopeOf, certName, keyName string) {
	value, at, path, ok := s.get(certName)
	if !ok || value == "" {
		return
	}
	text := l.content(value, path)
	key, keyAt, keyPath, ok := s.get(keyName)
	if !ok {
		key, keyAt, keyPath, ok = l.scopes[0].get(keyName)
	}
	if ok && keyPath != "" && readableByAll(keyPath) {
		l.warn(keyAt, fmt.Sprintf("%s: everyone can read %s", keyName, keyPath), "A private key is for its owner alone: mode 0600, owner root.")
	}
	cert := leaf(text)
	if cert == nil {
		if len(text) > 0 {
			l.warn(at, fmt.Sprintf("%s: there is no certificate in %s", certName, path), "The file holds `-----BEGIN CERTIFICATE-----` and what follows.")
		}
		return
	}
	date := func(t time.Time) string { return t.UTC().Format("2 January 2006") }
	switch {
	case l.now.After(cert.NotAfter):
		l.warn(at, fmt.Sprintf("%s: the certificate expired on %s", certName, date(cert.NotAfter)), "")
	case l.now.Add(expiresSoon).After(cert.NotAfter):
		l.warn(at, fmt.Sprintf("%s: the certificate expires on %s", certName, date(cert.NotAfter)), "")
	case l.now.Before(cert.NotBefore):
		l.warn(at, fmt.Sprintf("%s: the certificate is valid only from %s", certName, date(cert.NotBefore)), "")
	}
	if keyText := l.content(key, keyPath); ok && len(keyText) > 0 && !strings.Contains(string(keyText), "ENCRYPTED") {
		if _, err := tls.X509KeyPair(text, keyText); err != nil {
			l.add(hcl.DiagError, keyAt, fmt.Sprintf("%s and %s do not make a pair: %s", certName, keyName, strings.TrimPrefix(err.Error(), "tls: ")),
				"The key must be the one of the first certificate.")
		}
	}
	l.hostNames(s, cert, certName, at)
}

// hostNames looks whether the certificate is for the names by which clients come.
func (l *lint) hostNames(s scopeOf, cert *x509.Certificate, certName string, at hcl.Range) {
	names := s.names
	if h := l.value("hostname"); names == nil && h != "" && !strings.Contains(h, "%{") {
		names = []string{h}
	}
	for _, name := range names {
		if cert.VerifyHostname(strings.ReplaceAll(name, "*", "any")) != nil {
			l.warn(at, fmt.Sprintf("%s: the certificate is not for %s", certName, name),
				"It is for "+strings.Join(certNames(cert), ", ")+".")
		}
	}
}

func certNames(cert *x509.Certificate) []string {
	if len(cert.DNSNames) == 0 {
		return []string{"no host name; clients do not look at its common name " + cert.Subject.CommonName}
	}
	return cert.DNSNames
}

// maxPEM bounds a certificate or key file.
const maxPEM = 1 << 20

// content is the text of a value: of 2.3 it is the value itself, of 2.4 a file's.
func (l *lint) content(value, path string) []byte {
	if !l.later {
		if strings.HasPrefix(value, "<") {
			return nil
		}
		return []byte(value)
	}
	if text, ok := strings.CutPrefix(value, "inline:"); ok {
		return []byte(text)
	}
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() > maxPEM {
		return nil
	}
	b, _ := os.ReadFile(path)
	return b
}

// leaf is the first certificate in PEM text.
func leaf(text []byte) *x509.Certificate {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil
		}
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil
			}
			return cert
		}
		text = rest
	}
}
