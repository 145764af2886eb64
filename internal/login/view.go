package login

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"dovetail/internal/conf/settings"
	"dovetail/internal/dovecot/config"
	"dovetail/internal/process/event"
	"dovetail/internal/smtp"
	"dovetail/internal/tlsconf"
)

// A view is the configuration for clients that it makes no difference between. It is
// immutable.
type view struct {
	set      settings.Login
	hostname string
	trusted  []netip.Prefix
	haproxy  []netip.Prefix

	caps         smtp.Cap     // of submission_backend_capabilities
	capsSet      bool         // it is set, perhaps to nothing
	exotic       bool         // exotic-backend
	implicitAuth bool         // implicit-auth-external
	burlServer   bool         // BURL fetches from a server of its own
	elements     []string     // of login_log_format_elements
	access       []string     // sockets of login_access_sockets
	sources      []netip.Addr // of login_source_ips

	tls      *tls.Config // nil with ssl = no
	warnings []string    // about it
	certs    *tlsconf.ClientCerts
}

var workarounds = map[string]bool{
	"whitespace-before-path": true, "mailbox-for-path": true, // the worker's
	"implicit-auth-external": true, "exotic-backend": true,
}

// newView makes a view of what the config service answered. Everything that is wrong is in
// errs; the view is as good as it can be without. Only an error in the TLS settings is
// fatal to a start.
func newView(a config.Answer, hostname string, log *event.Log) (v *view, errs []error) {
	v = &view{hostname: hostname}
	v.set, errs = settings.Decode[settings.Login](a.Get)
	if v.set.Hostname != "" {
		v.hostname = v.set.Hostname
	}
	v.trusted = networks("login_trusted_networks", v.set.TrustedNetworks, log)
	v.haproxy = networks("haproxy_trusted_networks", v.set.HAProxyTrustedNetworks, log)
	if v.set.BackendCapabilities != nil {
		var unknown []string
		v.capsSet = true
		v.caps, unknown = smtp.ParseCapList(*v.set.BackendCapabilities)
		for _, name := range unknown {
			log.Warning("Unknown SMTP capability in submission_backend_capabilities: %s", name)
		}
	}
	for _, w := range settings.Words(strings.ReplaceAll(v.set.ClientWorkarounds, ",", " ")) {
		if !workarounds[w] {
			errs = append(errs, fmt.Errorf("submission_client_workarounds: Unknown workaround: %s", w))
		}
		v.exotic = v.exotic || w == "exotic-backend"
		v.implicitAuth = v.implicitAuth || w == "implicit-auth-external"
	}
	var err error
	if v.sources, err = sourceIPs(v.set.SourceIPs); err != nil {
		errs = append(errs, err)
	}
	if host, _ := a.Get("plugin/dovetail_burl_imap_host"); host != "" {
		v.burlServer = true
	}
	v.elements = strings.Fields(v.set.LogFormatElements)
	v.access = strings.Fields(v.set.AccessSockets)
	return v, errs
}

// networks parses a list; an entry that is none is said once and left out (clause S13.7).
func networks(setting, value string, log *event.Log) []netip.Prefix {
	nets, errs := settings.ParseNetworks(value)
	for _, err := range errs {
		log.Error("%s: %v; the entry is ignored", setting, err)
	}
	return nets
}

// loadTLS fills in the TLS part.
func (v *view) loadTLS() error {
	if v.set.SSL.SSL == "no" {
		return nil
	}
	if v.set.AuthSSLRequireCert || v.set.AuthSSLUserFromCert {
		v.set.VerifyClientCert = true // who needs a certificate asks for it
	}
	c, warnings, err := tlsconf.Server(v.set.SSL)
	if err != nil {
		return err
	}
	if v.set.VerifyClientCert {
		var more []string
		if v.certs, more, err = tlsconf.NewClientCerts(v.set.SSL); err != nil {
			return err
		}
		warnings = append(warnings, more...)
	}
	v.tls, v.warnings = c, warnings
	return nil
}

// isTrusted says whether ip is in login_trusted_networks.
func (v *view) isTrusted(ip netip.Addr) bool { return contains(v.trusted, ip) }

func contains(nets []netip.Prefix, ip netip.Addr) bool {
	ip = ip.Unmap()
	for _, n := range nets {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

var (
	errNoTLS      = errors.New("TLS is not configured (ssl = no)")
	errNoSettings = errors.New("no settings for the server name")
)
