package master

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/privs"
)

// A Config is what the master runs. It is complete: users are numbers, paths absolute,
// defaults filled in. Nothing in it changes once a master has it.
type Config struct {
	BaseDir, StateDir string // absolute; StateDir may be ""
	ConfigFile        string // absolute, what the config service reads
	InstanceName      string // stands in argv[0] of children
	Version           string // DOVECOT_VERSION for children; "" with version_ignore
	Protocols         []string
	ShutdownClients   bool
	ImportEnvironment []string // NAME or NAME=value
	LogDebug          string
	Hostname          string // of the machine; HostDomain is its full name
	HostDomain        string
	LogEnv            []string // settings of the log service, NAME=value
	LogFiles          []string // what they name: log_path, info_log_path, debug_log_path
	// Unprivileged: everything runs as the user who starts it, nothing changes its owner,
	// and there are no chroots.
	Unprivileged bool
	LoginGID     uint32 // of the login directories; privs.Unset is the master's
	Services     []Service
}

// A Type is what a service is to the master (clause C19.1).
type Type int

const (
	Plain    Type = iota
	Log           // gets all log pipes; always one process
	Settings      // the config service
	Anvil         // gets the anvil pipes; lives through reloads
	Login         // gets the login notify file
	Startup       // one process from the start
	Worker
)

// A Service is one service block, with the processes it may have.
type Service struct {
	Name    string
	Type    Type
	Command []string // the program's path and its arguments
	// Own: a program of this project. It gets a control channel, and VSZLimit bounds its
	// data only (clause P1.4.7).
	Own                bool
	UID, GID, PrivGID  uint32 // privs.Unset is not set
	ExtraGIDs          []uint32
	Chroot             string // absolute, or ""
	DropPrivBeforeExec bool
	ProcessMinAvail    uint32
	ProcessLimit       uint32        // at least 1
	ClientLimit        uint32        // at least 1; of one process, at most ServiceCount
	ServiceCount       uint32        // 0: a process serves any number of clients
	IdleKill           time.Duration // Never
	VSZLimit           uint64        // bytes; 0: no limit
	Listeners          []Listener    // unix, fifo, inet, in that order
}

// Never is the IdleKill of a service whose idle processes stay.
const Never = time.Duration(1<<63 - 1)

// A Kind is what a listener is.
type Kind int

const (
	Unix Kind = iota
	FIFO
	Inet
)

// A Listener is one socket, or a FIFO.
type Listener struct {
	Kind Kind
	masterproto.Listener

	// Unix and FIFO:
	Path     string // absolute
	Mode     uint32 // of the file
	UID, GID uint32 // of the file; privs.Unset is the master's

	// Inet:
	Addr      netip.AddrPort
	Address   string // as in the configuration, for messages
	ReusePort bool

	Ref any // the caller's, to find its place in the configuration
}

// String is how messages name a listener: "listen(127.0.0.1, 587)".
func (l Listener) String() string {
	if l.Kind == Inet {
		return fmt.Sprintf("listen(%s, %d)", l.Address, l.Addr.Port())
	}
	return l.Path
}

// A ListenError is a listener that cannot be opened.
type ListenError struct {
	Service  string
	Listener Listener
	Err      error // "... failed: ..."
}

func (e *ListenError) Error() string { return fmt.Sprintf("service(%s): %v", e.Service, e.Err) }
func (e *ListenError) Unwrap() error { return e.Err }

// maxDescriptors bounds the listeners of one service: they are descriptors of a child.
const maxDescriptors = masterproto.MaxListeners

// check finds what would make the master misbehave. The settings themselves were checked
// by whoever made the Config; this catches a Config that is not one.
func (c *Config) check() error {
	if !filepath.IsAbs(c.BaseDir) {
		return fmt.Errorf("base_dir: %q is not an absolute path", c.BaseDir)
	}
	seen := map[string]bool{}
	types := map[Type]string{}
	for i := range c.Services {
		s := &c.Services[i]
		switch {
		case seen[s.Name]:
			return fmt.Errorf("service(%s): there are two", s.Name)
		case len(s.Command) == 0 || !filepath.IsAbs(s.Command[0]):
			return fmt.Errorf("service(%s): executable is not an absolute path", s.Name)
		case s.ProcessLimit == 0 || s.ClientLimit == 0:
			return fmt.Errorf("service(%s): a limit is 0", s.Name)
		case len(s.Listeners) > maxDescriptors:
			return fmt.Errorf("service(%s): more than %d listeners", s.Name, maxDescriptors)
		case s.Chroot != "" && s.DropPrivBeforeExec:
			return fmt.Errorf("service(%s): drop_priv_before_exec=yes can't be used with chroot", s.Name)
		}
		seen[s.Name] = true
		if s.Type == Log || s.Type == Settings || s.Type == Anvil {
			if types[s.Type] != "" {
				return fmt.Errorf("service(%s): service %s has the same type", s.Name, types[s.Type])
			}
			types[s.Type] = s.Name
		}
	}
	if types[Log] == "" {
		return errors.New("log service not specified")
	}
	if c.configSocket() == "" {
		return errors.New("config service has no unix_listener")
	}
	return nil
}

// configSocket is where children ask for settings.
func (c *Config) configSocket() string {
	for i := range c.Services {
		if c.Services[i].Type == Settings {
			for _, l := range c.Services[i].Listeners {
				if l.Kind == Unix {
					return l.Path
				}
			}
		}
	}
	return ""
}

// restrict returns who a process of the service is to become.
func (s *Service) restrict(unprivileged bool) privs.Restrict {
	if unprivileged {
		return privs.Restrict{UID: privs.Unset, GID: privs.Unset, PrivGID: privs.Unset}
	}
	return privs.Restrict{UID: s.UID, GID: s.GID, PrivGID: s.PrivGID, ExtraGroups: s.ExtraGIDs, Chroot: s.Chroot}
}
