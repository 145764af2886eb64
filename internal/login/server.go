package login

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/anvil"
	"dovetail/internal/dovecot/authclient"
	"dovetail/internal/dovecot/config"
	"dovetail/internal/dovecot/dns"
	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/dovecot/stats"
	"dovetail/internal/login/proxy"
	"dovetail/internal/process/event"
	"dovetail/internal/process/service"
	"dovetail/internal/tlsconf"
)

const (
	maxViews  = 256              // settings by address, or by server name, that are remembered
	authAwait = 10 * time.Second // for the auth service: at the start, and before a greeting

	defaultWorker = "submission" // hand-over socket, relative to the chroot
	defaultAuth   = "login"      // auth socket, relative to the chroot

	loginDir = "login" // below base_dir, where the chroot would be
)

// A process is what its sessions share. All fields are set before the first
// session.
type process struct {
	proc   *service.Process
	log    *event.Log
	config *config.Client
	base   *view // settings without regard to the client
	local  bool  // filters by local address or server name exist
	remote bool  // filters by remote address exist
	imap   bool  // this Dovecot has services that BURL can fetch from

	auth  *authclient.Client
	anvil *anvil.Client // nil: the number of sessions is not limited

	stats      *stats.Client // nil: nobody to tell
	authEvents authEvents

	// Options of the command line.
	worker, authPath, rawlogDir string
	implicitTLS                 bool

	outgoing *tlsconf.Outgoing // for backends
	hosts    proxy.Hosts

	dns        *dns.Client
	titles     *titles // nil without verbose_proctitle
	tidier     tidier
	noChunking sync.Once // it has been said of a backend
	noXclient  sync.Once // likewise

	mu          sync.Mutex
	proxied     map[*proxied]*session                // guarded by mu; nil before the first
	proxiedEver uint64                               // guarded by mu
	views       map[addresses]*view                  // guarded by mu
	names       map[netip.Addr]*tlsconf.Names[*view] // guarded by mu: by local address, then server name
}

// host is the machine's full name, which stands where the setting hostname is empty.
func host(e masterproto.Env) string {
	if e.HostDomain != "" {
		return e.HostDomain
	}
	return e.Hostname
}

type addresses struct{ local, remote netip.Addr }

// Program returns the program that package service runs.
func Program() service.Program {
	s := &process{views: map[addresses]*view{}, names: map[netip.Addr]*tlsconf.Names[*view]{}}
	return service.Program{
		Name:        "submission-login",
		About:       "the network-facing half of the submission service",
		Flags:       s.flags,
		Setup:       s.setup,
		DropAtStart: true,
		Start:       s.start,
		Serve:       s.serve,
	}
}

// flags are the options of Dovecot's program (clause P1.1.4).
func (s *process) flags(f *flag.FlagSet) {
	f.StringVar(&s.worker, "l", defaultWorker, "`socket` of the workers")
	f.StringVar(&s.rawlogDir, "R", "", "`directory` for what is said before the login")
	f.BoolVar(&s.implicitTLS, "S", false, "TLS on all listeners")
}

// setup runs as root: it reads settings and keys, and connects to anvil, whose socket is
// root's.
func (s *process) setup(p *service.Process) error {
	s.proc, s.log = p, p.Log
	s.authPath = defaultAuth
	if args := p.Args; len(args) > 0 {
		s.authPath = args[0]
	}
	c, err := config.Dial(p.Env.ConfigFile)
	if err != nil {
		return err
	}
	s.config = c
	if s.stats = stats.Open(p.Context(), p.Env.StatsWriter, p.Name(), p.Log); s.stats != nil {
		p.AtExit(s.stats.Close)
	}
	s.authEvents.begin(s.stats)
	for _, socket := range []string{"login/imap", "token-login/imap-urlauth"} {
		if _, err := os.Stat(socket); err == nil {
			s.imap = true
		}
	}
	a, err := c.Request(s.request())
	if err != nil {
		return err
	}
	s.local, s.remote = a.ServiceUsesLocal, a.ServiceUsesRemote
	v, errs := newView(a, host(p.Env), s.log)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := v.loadTLS(); err != nil {
		return err
	}
	if v.tls != nil && p.Env.ServiceCount == 1 {
		v.tls.SessionTicketsDisabled = true // this process will not be there to take one back
	}
	s.warn(v.warnings)
	s.base = v
	var warnings []string
	if s.outgoing, warnings, err = tlsconf.NewOutgoing(v.set.SSL); err != nil {
		return err
	}
	for _, w := range warnings {
		if strings.HasPrefix(w, "ssl_client_") { // of the others TLS for clients has told
			s.log.Warning("%s", w)
		}
	}
	p.SetShutdownClients(v.set.ShutdownClients)
	if v.set.AuthDebug {
		p.SetDebug(true)
		s.log = p.Log
	}
	if v.set.VerboseProctitle {
		s.titles = newTitles(p.SetTitle)
	}
	if v.set.MaxUserIPConnections > 0 {
		if s.anvil, err = anvil.Dial(p.Context(), "anvil"); err != nil {
			return fmt.Errorf("mail_max_userip_connections: %w", err)
		}
		go s.watchAnvil() // ends when the connection does
	}
	return nil
}

// warn logs what the settings say and TLS here cannot do. A process for one client leaves
// that to debugging: the lines would come with every connection.
func (s *process) warn(warnings []string) {
	log := s.log.Warning
	if s.proc.Env.ServiceCount == 1 {
		log = s.log.Debug
	}
	for _, w := range warnings {
		log("%s", w)
	}
}

// watchAnvil stops new clients when their sessions can no longer be counted.
func (s *process) watchAnvil() {
	<-s.anvil.Done()
	if s.proc.Context().Err() == nil {
		s.log.Error("anvil: Connection lost, no more clients are accepted")
		s.proc.Retire()
	}
}

// start runs without privileges. It waits a while for the auth service, so that the first
// client need not.
func (s *process) start(p *service.Process) error {
	if p.Env.Restrict.Chroot == "" {
		// Without a chroot its sockets have the same names all the same.
		if err := os.Chdir(loginDir); err != nil {
			return err
		}
	}
	if s.rawlogDir != "" {
		if err := unix.Access(s.rawlogDir, unix.W_OK|unix.X_OK); err != nil {
			s.log.Error("access(%s, wx) failed: %s - disabling rawlog", s.rawlogDir, plainError(err))
			s.rawlogDir = ""
		}
	}
	if _, err := os.Stat(dnsClient); !errors.Is(err, os.ErrNotExist) {
		s.dns = dns.NewClient(dnsClient)
	}
	s.auth = authclient.NewClientOver(s.dialAuth, uint32(os.Getpid()), s.log)
	p.AtExit(s.auth.Close)
	p.OnReload(s.auth.Renew) // workers ask the new auth service about users
	ctx, cancel := context.WithTimeout(p.Context(), authAwait)
	defer cancel()
	if err := s.auth.Ready(ctx); err != nil && p.Context().Err() == nil {
		s.log.Warning("Auth process not responding, clients will have to wait")
	}
	return nil
}

func (s *process) dialAuth(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", s.authPath)
	if err != nil {
		return nil, err
	}
	return s.stats.Watch(conn, s.authPath), nil
}

// request asks for what the process needs to know. imap_urlauth_host is among the worker's
// settings; of those the secrets have no business here.
func (s *process) request() config.Request {
	return config.Request{
		Modules: []string{"submission-login", "ssl-server", "submission"}, Service: "submission",
		Exclude: []string{"submission_relay_password", "submission_relay_user", "submission_relay_master_user", "imapc_password", "pop3c_password"},
	}
}

// view returns the settings for a client. After an error nobody can be served from there:
// the general ones may allow what those would not.
func (s *process) view(ips addresses) (*view, error) {
	if !s.local && !s.remote {
		return s.base, nil
	}
	if !s.remote {
		ips.remote = netip.Addr{}
	}
	s.mu.Lock()
	v := s.views[ips]
	s.mu.Unlock()
	if v != nil {
		return v, nil
	}
	v, err := s.ask(ips, "")
	if err != nil {
		s.log.Error("settings for lip=%s rip=%s: %v", ips.local, ips.remote, err)
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.views) >= maxViews {
		clear(s.views)
	}
	s.views[ips] = v
	return v, nil
}

// ask asks the config service for the settings of a client by its addresses and the server
// name that it wants. If they are the general ones, it returns those.
func (s *process) ask(ips addresses, name string) (*view, error) {
	r := s.request()
	r.LocalIP, r.RemoteIP, r.LocalName = ips.local, ips.remote, name
	a, err := s.config.Request(r)
	if err != nil {
		s.proc.Retire() // the connection is closed; a new process has a new one
		return nil, err
	}
	if !a.UsedLocal && !a.UsedRemote {
		return s.base, nil
	}
	v, errs := newView(a, host(s.proc.Env), s.log)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := v.loadTLS(); err != nil {
		return nil, err
	}
	s.warn(v.warnings)
	return v, nil
}

// named returns the settings for a client that asks for a server name.
func (s *process) named(ctx context.Context, ips addresses, name string) (*view, error) {
	if s.remote {
		return s.ask(ips, name)
	}
	s.mu.Lock()
	names := s.names[ips.local]
	if names == nil && len(s.names) < maxViews {
		names = tlsconf.NewNames(maxViews, func(_ context.Context, name string) (*view, error) {
			return s.ask(addresses{local: ips.local}, name)
		})
		s.names[ips.local] = names
	}
	s.mu.Unlock()
	if names == nil {
		return s.ask(ips, name)
	}
	return names.Get(ctx, name)
}

// tlsConfig returns the configuration for the handshake of se, whose settings it replaces
// by those for the server name that the client asks for.
func (s *process) tlsConfig(se *session) *tls.Config {
	if !s.local {
		return se.view.tls
	}
	return tlsconf.ByName(se.view.tls, func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		se.localName = tlsconf.CleanName(hello.ServerName)
		if se.localName == "" {
			return nil, nil
		}
		v, err := s.named(se.ctx, addresses{se.local.Addr(), se.remote.Addr()}, se.localName)
		if err != nil {
			s.log.Error("settings for local_name %s: %v", se.localName, err)
			return nil, errNoSettings
		}
		if v.tls == nil {
			return nil, errNoTLS
		}
		se.view = v
		return v.tls, nil
	})
}
