package logd

import (
	"path/filepath"
	"slices"
)

// Settings say where lines go. They are Dovecot's settings of the same names (clause
// C19.5).
type Settings struct {
	Path      string // log_path: "syslog" (or ""), /dev/stderr, /dev/stdout, or a file
	InfoPath  string // info_log_path: the same; "" is Path
	DebugPath string // debug_log_path: the same; "" is InfoPath
	Timestamp string // log_timestamp: a strftime format
	Facility  string // syslog_facility: "mail"
	Instance  string // instance_name: stands before lines of syslog
	JSON      bool   // dovetail_log_format = json
}

const syslogPath = "syslog"

// variables are the settings in the environment of the log process, which does not ask
// the config process.
var variables = []struct {
	name  string
	field func(*Settings) *string
}{
	{"LOG_PATH", func(s *Settings) *string { return &s.Path }},
	{"INFO_LOG_PATH", func(s *Settings) *string { return &s.InfoPath }},
	{"DEBUG_LOG_PATH", func(s *Settings) *string { return &s.DebugPath }},
	{"LOG_TIMESTAMP", func(s *Settings) *string { return &s.Timestamp }},
	{"SYSLOG_FACILITY", func(s *Settings) *string { return &s.Facility }},
	{"INSTANCE_NAME", func(s *Settings) *string { return &s.Instance }},
}

const formatVariable = "DOVETAIL_LOG_FORMAT"

// FromEnv reads the variables that Environ makes. get is os.Getenv.
func FromEnv(get func(string) string) Settings {
	var s Settings
	for _, v := range variables {
		*v.field(&s) = get(v.name)
	}
	s.JSON = get(formatVariable) == "json"
	return s
}

// Environ returns the settings as variables, NAME=value, in the order of Dovecot's master.
func (s Settings) Environ() []string {
	var env []string
	for _, v := range variables {
		env = append(env, v.name+"="+*v.field(&s))
	}
	if s.JSON {
		env = append(env, formatVariable+"=json")
	}
	return env
}

// paths returns the three places, with what is empty replaced.
func (s Settings) paths() (main, info, debug string) {
	main, info, debug = s.Path, s.InfoPath, s.DebugPath
	if main == "" {
		main = syslogPath
	}
	if info == "" {
		info = main
	}
	if debug == "" {
		debug = info
	}
	return main, info, debug
}

// Files returns the files that the settings name, each once.
func (s Settings) Files() []string {
	var files []string
	main, info, debug := s.paths()
	for _, p := range []string{main, info, debug} {
		if filepath.IsAbs(p) && standardFile(p) < 0 && !slices.Contains(files, p) {
			files = append(files, p)
		}
	}
	return files
}

// standardFile returns the descriptor that a path stands for; -1 for an ordinary file.
// It is used as it is: opening /dev/stderr can be forbidden to one who may write to it.
func standardFile(path string) int {
	switch path {
	case "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1":
		return 1
	case "/dev/stderr", "/dev/fd/2", "/proc/self/fd/2":
		return 2
	}
	return -1
}
