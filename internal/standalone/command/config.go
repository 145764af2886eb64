package command

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf"
	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/privs"
	"dovetail/internal/standalone/logd"
	"dovetail/internal/standalone/master"
)

// DefaultConfig is the configuration file that is read without -c.
const DefaultConfig = "/etc/dovecot/dovecot.conf"

const resolveTimeout = 30 * time.Second

// served are the services that standalone starts. All others that Dovecot knows are
// checked and left alone.
var served = []string{"submission-login", "submission", "auth", "anvil", "config", "log", "dns-client", "ipc"}

// resolverClients is how many processes ask one resolver.
const resolverClients = 1000

// roles are those whose program is this one.
var roles = []string{"auth", "anvil", "config", "log", "dns-client", "ipc"}

// A System is where a configuration is to run.
type System struct {
	Self string // path of this program; the others are beside it
	Root bool
}

func thisSystem() (System, error) {
	self, err := os.Executable()
	if err != nil {
		return System{}, err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return System{}, err
	}
	return System{Self: self, Root: os.Geteuid() == 0}, nil
}

// A Setup is a configuration made ready to run.
type Setup struct {
	Master *master.Config
	Log    logd.Settings
	Conf   *conf.Config // for messages
	view   *conf.View
}

// Load reads the configuration at path and makes it ready. If the diagnostics have errors
// it cannot run.
func (sys System) Load(path string) (*Setup, hcl.Diagnostics) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, hcl.Diagnostics{problem(hcl.Range{}, err.Error(), "")}
	}
	cfg, diags := conf.Load(path, conf.Options{Expand: true, Own: true, Also: CheckAuth})
	view, err := cfg.View(conf.Filter{})
	if err != nil || diags.HasErrors() {
		return &Setup{Conf: cfg}, diags
	}
	c := converter{sys: sys, v: view, diags: diags}
	s := &Setup{Conf: cfg, view: view, Log: c.log()}
	s.Master = c.master(abs)
	s.Master.LogEnv = s.Log.Environ()
	if s.Master.Unprivileged = !sys.Root; s.Master.Unprivileged {
		s.Master.LoginGID = privs.Unset
	}
	s.Master.LogFiles = s.Log.Files()
	return s, c.diags
}

// problem is an error at a place in the configuration; the zero Range is nowhere.
func problem(at hcl.Range, text, detail string) *hcl.Diagnostic {
	d := &hcl.Diagnostic{Severity: hcl.DiagError, Summary: text, Detail: detail}
	if at.Filename != "" {
		d.Subject = at.Ptr()
	}
	return d
}

// A converter makes a master's configuration of the settings.
type converter struct {
	sys   System
	v     *conf.View
	diags hcl.Diagnostics
}

func (c *converter) fail(at hcl.Range, text, detail string) {
	c.diags = append(c.diags, problem(at, text, detail))
}

func (c *converter) log() logd.Settings {
	v := c.v
	format, ok := v.Get("plugin/dovetail_log_format")
	if !ok {
		format = v.Value("dovetail_log_format")
	}
	return logd.Settings{
		Path: v.Value("log_path"), InfoPath: v.Value("info_log_path"), DebugPath: v.Value("debug_log_path"),
		Timestamp: v.Value("log_timestamp"), Facility: v.Value("syslog_facility"), Instance: v.Value("instance_name"),
		JSON: format == "json",
	}
}

func (c *converter) master(file string) *master.Config {
	v := c.v
	m := &master.Config{
		BaseDir: dir(v.Value("base_dir")), StateDir: dir(v.Value("state_dir")), ConfigFile: file,
		InstanceName: v.Value("instance_name"), Protocols: v.Protocols(),
		ShutdownClients:   v.Value("shutdown_clients") == "yes",
		ImportEnvironment: strings.Fields(v.Value("import_environment")),
		LogDebug:          v.Value("log_debug"), LoginGID: privs.Unset,
	}
	if v.Value("version_ignore") != "yes" {
		m.Version = masterproto.OwnVersion + "-" + Version
	}
	if !filepath.IsAbs(m.BaseDir) {
		c.fail(v.Range("base_dir"), "base_dir is not an absolute path: "+m.BaseDir, "")
	}
	m.Hostname, m.HostDomain = hostNames()
	for _, s := range v.Services() {
		if !slices.Contains(served, s.Name) || !v.Enabled(s) || s.Executable == "" {
			continue
		}
		sv := c.service(s)
		c.listeners(&sv, s, m.BaseDir)
		if sv.Type == master.Login {
			m.LoginGID = sv.GID
		}
		m.Services = append(m.Services, sv)
	}
	return m
}

func dir(path string) string {
	if len(path) > 1 {
		path = strings.TrimSuffix(path, "/")
	}
	return path
}

var types = map[string]master.Type{
	"": master.Plain, "log": master.Log, "config": master.Settings, "anvil": master.Anvil,
	"login": master.Login, "startup": master.Startup, "worker": master.Worker,
}

func (c *converter) service(s conf.Service) master.Service {
	m := master.Service{
		Name: s.Name, Type: types[s.Type], DropPrivBeforeExec: s.DropPrivBeforeExec,
		ProcessMinAvail: s.ProcessMinAvail, ProcessLimit: max(s.ProcessLimit, 1), ClientLimit: max(s.ClientLimit, 1),
		ServiceCount: s.ServiceCount, IdleKill: s.IdleKill, Chroot: dir(s.Chroot),
		UID: privs.Unset, GID: privs.Unset, PrivGID: privs.Unset,
	}
	if s.IdleKill == conf.Never {
		m.IdleKill = master.Never
	}
	c.program(&m, s)
	m.VSZLimit = s.VSZLimit
	if m.Own && s.At("vsz_limit").Filename == "" && c.v.Range("default_vsz_limit").Filename == "" {
		m.VSZLimit = 0 // Dovecot's default is about C programs
	}
	if m.Own && s.Name == "dns-client" && s.At("client_limit").Filename == "" {
		m.ClientLimit = resolverClients // Dovecot's resolves one name at a time
	}
	if m.Chroot != "" && !filepath.IsAbs(m.Chroot) {
		m.Chroot = filepath.Join(dir(c.v.Value("base_dir")), m.Chroot)
	}
	if !c.sys.Root {
		return m
	}
	name := s.User
	if name == "" && s.Name == "log" && m.Own {
		name = c.v.Value("default_internal_user") // it has the files open by then
	}
	m.UID, m.GID = c.user(s.At("user"), name)
	if s.Group != "" {
		m.GID = c.group(s.At("group"), s.Group)
	}
	m.PrivGID = c.group(s.At("privileged_group"), s.PrivilegedGroup)
	for _, g := range s.ExtraGroups {
		if gid := c.group(s.At("extra_groups"), g); gid != privs.Unset {
			m.ExtraGIDs = append(m.ExtraGIDs, gid)
		}
	}
	return m
}

// program finds what to start. A relative name is one of this project's programs, which
// are where this one is; to run another, such as Dovecot's own, its whole path is given.
func (c *converter) program(m *master.Service, s conf.Service) {
	words := strings.Split(s.Executable, " ") // clause P1.1.1
	beside := filepath.Dir(c.sys.Self)
	at := s.At("executable")
	if at.Filename == "" {
		at = s.Range
	}
	switch {
	case filepath.IsAbs(words[0]):
		m.Command, m.Own = words, filepath.Dir(words[0]) == beside
	case slices.Contains(roles, words[0]):
		m.Command, m.Own = append([]string{c.sys.Self, "role"}, words...), true
		return
	default:
		m.Command, m.Own = append([]string{filepath.Join(beside, words[0])}, words[1:]...), true
	}
	if err := executable(m.Command[0]); err != nil {
		c.fail(at, fmt.Sprintf("service(%s): %v", s.Name, err), "The programs are expected beside "+c.sys.Self+", or where `executable` says with the whole path.")
	}
}

func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("access(%s) failed: %s", path, master.Reason(err))
	}
	if st.IsDir() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("access(%s) failed: Permission denied", path)
	}
	return nil
}

// user returns the ids of a user; "" has none.
func (c *converter) user(at hcl.Range, name string) (uid, gid uint32) {
	if name == "" {
		return privs.Unset, privs.Unset
	}
	u, err := user.Lookup(name)
	if err != nil {
		c.fail(at, "User doesn't exist: "+name, "Users are looked up in /etc/passwd.")
		return privs.Unset, privs.Unset
	}
	return number(u.Uid), number(u.Gid)
}

func (c *converter) group(at hcl.Range, name string) uint32 {
	if name == "" {
		return privs.Unset
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		c.fail(at, "Group doesn't exist: "+name, "Groups are looked up in /etc/group.")
		return privs.Unset
	}
	return number(g.Gid)
}

func number(id string) uint32 {
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return privs.Unset
	}
	return uint32(n)
}

func (c *converter) listeners(m *master.Service, s conf.Service, base string) {
	for kind, list := range map[master.Kind][]conf.SocketListener{master.Unix: s.Unix, master.FIFO: s.FIFO} {
		for _, l := range list {
			if l.Mode == 0 {
				continue
			}
			k := master.Listener{
				Kind: kind, Path: l.Path, Mode: l.Mode, UID: privs.Unset, GID: privs.Unset, Ref: l.Range,
				Listener: masterproto.Listener{Name: filepath.Base(l.Path)},
			}
			if !filepath.IsAbs(k.Path) {
				k.Path = filepath.Join(base, k.Path)
			}
			if c.sys.Root {
				k.UID, _ = c.user(l.Range, l.User)
				k.GID = c.group(l.Range, l.Group)
			}
			m.Listeners = append(m.Listeners, k)
		}
	}
	slices.SortStableFunc(m.Listeners, func(a, b master.Listener) int { return int(a.Kind) - int(b.Kind) })
	for _, l := range s.Inet {
		if l.Port == 0 || l.SSL && c.v.Value("ssl") == "no" {
			continue
		}
		at := l.Range
		if at.Filename == "" {
			at = c.v.Range("listen")
		}
		for _, text := range l.Address {
			addrs, err := addresses(text)
			if err != nil {
				c.fail(at, fmt.Sprintf("service(%s): Can't resolve address %s: %v", s.Name, text, err), "")
			}
			for _, a := range addrs {
				m.Listeners = append(m.Listeners, master.Listener{
					Kind: master.Inet, Addr: netip.AddrPortFrom(a, l.Port), Address: text, ReusePort: l.ReusePort, Ref: at,
					Listener: masterproto.Listener{Name: l.Name, SSL: l.SSL, HAProxy: l.HAProxy},
				})
			}
		}
	}
}

// addresses returns what a word of `listen` means.
func addresses(text string) ([]netip.Addr, error) {
	switch text {
	case "*":
		return []netip.Addr{netip.IPv4Unspecified()}, nil
	case "::", "[::]":
		return []netip.Addr{netip.IPv6Unspecified()}, nil
	}
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return []netip.Addr{a}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", text)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("no addresses")
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return found, nil
}
