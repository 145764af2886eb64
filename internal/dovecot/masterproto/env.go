package masterproto

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/privs"
)

// Never is the IdleKill of a service whose idle processes stay.
const Never = math.MaxUint32

// MaxListeners bounds SOCKET_COUNT.
const MaxListeners = 1024

// ErrNotChild means that no master started this process.
var ErrNotChild = errors.New("DOVECOT_CHILD_PROCESS is not in the environment")

// An Env is what the master says in the environment, which holds nothing else but what
// import_environment lets through (clause P1.2).
type Env struct {
	Generation      uint32
	ServiceName     string // of the service block, "submission-login"
	ClientLimit     uint32 // already the lesser of client_limit and service_count
	ProcessLimit    uint32
	ProcessMinAvail uint32
	ServiceCount    uint32 // clients before the process ends; 0 is without limit
	IdleKill        uint32 // seconds; Never
	ConfigFile      string // path of the config service's socket
	Version         string // of the master: "2.3.19.1"; "" with version_ignore = yes
	Hostname        string
	HostDomain      string // the host's full name
	StatsWriter     string // path of the stats service's socket, relative inside a chroot; "" without
	LogDebug        string // event filter of log_debug
	LogService      bool   // descriptor 2 speaks the log protocol
	Listeners       []Listener
	Restrict        privs.Restrict
	PreserveEnvs    []string // names that may be passed on to children
	SSLKeyPassword  string   // of dovecot -p
	VerboseTitle    bool     // VERBOSE_PROCTITLE, since 2.3.21
	ControlFD       int      // of the control channel of our own master; 0 under Dovecot's
}

// A Listener is one listening descriptor: the word(s) of SOCKET<i>_SETTINGS.
type Listener struct {
	Name    string // last component of a path, or the name of the inet_listener block
	SSL     bool   // TLS from the first octet
	HAProxy bool   // a PROXY header comes before everything
}

// ParseListener parses the value of a SOCKET<i>_SETTINGS: the name and any of the words
// ssl and haproxy, separated by TAB and escaped. Unknown words are ignored.
func ParseListener(value string) Listener {
	words := tabline.Split(value)
	l := Listener{Name: words[0]}
	for _, w := range words[1:] {
		switch w {
		case "ssl":
			l.SSL = true
		case "haproxy":
			l.HAProxy = true
		}
	}
	return l
}

// String returns the value that ParseListener parses.
func (l Listener) String() string {
	s := tabline.Escape(l.Name)
	if l.SSL {
		s += "\tssl"
	}
	if l.HAProxy {
		s += "\thaproxy"
	}
	return s
}

// getter returns a lookup in environ, whose first entry of a name counts.
func getter(environ []string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for _, e := range environ {
			if len(e) > len(name) && e[len(name)] == '=' && e[:len(name)] == name {
				return e[len(name)+1:], true
			}
		}
		return "", false
	}
}

// ParseEnv reads environ, entries NAME=value as os.Environ gives them. ErrNotChild: no
// master made it.
func ParseEnv(environ []string) (Env, error) {
	lookup := getter(environ)
	get := func(name string) string { v, _ := lookup(name); return v }
	if _, ok := lookup("DOVECOT_CHILD_PROCESS"); !ok {
		return Env{}, ErrNotChild
	}
	_, logService := lookup("LOG_SERVICE")
	_, title := lookup("VERBOSE_PROCTITLE")
	e := Env{
		ServiceName:    get("SERVICE_NAME"),
		IdleKill:       Never,
		ConfigFile:     get("CONFIG_FILE"),
		Version:        get("DOVECOT_VERSION"),
		Hostname:       get("DOVECOT_HOSTNAME"),
		HostDomain:     get("DOVECOT_HOSTDOMAIN"),
		StatsWriter:    get("STATS_WRITER_SOCKET_PATH"),
		LogDebug:       get("LOG_DEBUG"),
		LogService:     logService,
		PreserveEnvs:   strings.Fields(get("DOVECOT_PRESERVE_ENVS")),
		SSLKeyPassword: get("SSL_KEY_PASSWORD"),
		VerboseTitle:   title,
	}
	var sockets uint32
	for _, n := range []struct {
		name     string
		required bool
		value    *uint32
	}{
		{"GENERATION", true, &e.Generation},
		{"CLIENT_LIMIT", true, &e.ClientLimit},
		{"PROCESS_LIMIT", false, &e.ProcessLimit},
		{"PROCESS_MIN_AVAIL", false, &e.ProcessMinAvail},
		{"SERVICE_COUNT", false, &e.ServiceCount},
		{"IDLE_KILL", false, &e.IdleKill},
		{"SOCKET_COUNT", true, &sockets},
	} {
		text, ok := lookup(n.name)
		if !ok && !n.required {
			continue
		}
		v, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return e, fmt.Errorf("environment: %s: %q is not a number", n.name, text)
		}
		*n.value = uint32(v)
	}
	if e.ClientLimit == 0 {
		return e, errors.New("environment: CLIENT_LIMIT is 0")
	}
	if sockets > MaxListeners {
		return e, fmt.Errorf("environment: SOCKET_COUNT is %d, at most %d are served", sockets, MaxListeners)
	}
	e.Listeners = make([]Listener, sockets)
	for i := range e.Listeners {
		name := listenerVar(i)
		value, ok := lookup(name)
		if !ok {
			return e, fmt.Errorf("environment: SOCKET_COUNT is %d, but there is no %s", sockets, name)
		}
		e.Listeners[i] = ParseListener(value)
	}
	if text, ok := lookup(ControlEnv); ok {
		fd, err := strconv.ParseUint(text, 10, 16)
		if err != nil || int(fd) < FirstListenerFD+len(e.Listeners) {
			return e, fmt.Errorf("environment: %s: %q is not a descriptor behind the listeners", ControlEnv, text)
		}
		e.ControlFD = int(fd)
	}
	var err error
	e.Restrict, err = privs.ParseRestrict(get)
	return e, err
}

func listenerVar(i int) string { return "SOCKET" + strconv.Itoa(i) + "_SETTINGS" }

// Append adds the variables that ParseEnv reads to environ, in the order of Dovecot's
// master, which puts DOVECOT_PRESERVE_ENVS and the preserved variables before them.
func (e Env) Append(environ []string) []string {
	add := func(name, value string) { environ = append(environ, name+"="+value) }
	num := func(name string, value uint32) { add(name, strconv.FormatUint(uint64(value), 10)) }
	if len(e.PreserveEnvs) > 0 {
		add("DOVECOT_PRESERVE_ENVS", strings.Join(e.PreserveEnvs, " "))
	}
	add("DOVECOT_CHILD_PROCESS", "1")
	add("CONFIG_FILE", e.ConfigFile)
	add("SERVICE_NAME", e.ServiceName)
	num("CLIENT_LIMIT", e.ClientLimit)
	num("PROCESS_LIMIT", e.ProcessLimit)
	num("PROCESS_MIN_AVAIL", e.ProcessMinAvail)
	num("IDLE_KILL", e.IdleKill)
	if e.ServiceCount > 0 {
		num("SERVICE_COUNT", e.ServiceCount)
	}
	num("GENERATION", e.Generation)
	add("DOVECOT_HOSTNAME", e.Hostname)
	add("DOVECOT_HOSTDOMAIN", e.HostDomain)
	if e.Version != "" {
		add("DOVECOT_VERSION", e.Version)
	}
	if e.StatsWriter != "" {
		add("STATS_WRITER_SOCKET_PATH", e.StatsWriter)
	}
	if e.SSLKeyPassword != "" {
		add("SSL_KEY_PASSWORD", e.SSLKeyPassword)
	}
	add("LOG_DEBUG", e.LogDebug)
	if e.VerboseTitle {
		add("VERBOSE_PROCTITLE", "1")
	}
	for i, l := range e.Listeners {
		add(listenerVar(i), l.String())
	}
	if e.LogService {
		add("LOG_SERVICE", "1")
	}
	num("SOCKET_COUNT", uint32(len(e.Listeners)))
	if e.ControlFD > 0 {
		num(ControlEnv, uint32(e.ControlFD))
	}
	return e.Restrict.AppendEnv(environ)
}
