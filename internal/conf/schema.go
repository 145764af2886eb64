package conf

import (
	"dovetail/internal/conf/settings"
	"dovetail/internal/conf/settings/all"
)

// A Schema says which settings and sections there are. The paths it takes are types and
// a name joined by '/', without the names of sections: "listen", "service/client_limit",
// "service/inet_listener/port", "passdb/driver". Package settings has the real one;
// tests may bring their own.
type Schema interface {
	// Setting describes a setting. Keys of maps (plugin, dict) are not asked for.
	Setting(path string) (Known, bool)
	// Section describes a type of section; protocol, local, remote and local_name are
	// the language's own and not asked for.
	Section(path string) (Section, bool)
	// Services are the built-in services in Dovecot's order (clause C19.3): blocks with
	// only what differs from the defaults.
	Services() []*Block
	// Settings are the names in the section path ("" for the root), for suggestions.
	Settings(path string) []string
	// Sections are the types of sections in the section path, for suggestions.
	Sections(path string) []string
	// Select are the settings and types of sections at the root that the config service
	// sends for modules, with those of the modules they depend on, and the common ones.
	Select(modules ...string) *all.Selection
}

// Known is what the language needs to know of a setting.
type Known struct {
	Default string // in the form doveconf prints
	Auth    bool   // it is (also) in the auth group: not in local and remote (clause C10.6)
	// Normalise converts a value to the form doveconf prints. The error's text is
	// Dovecot's (clause C11).
	Normalise func(string) (string, error)
	Type      settings.Type
	Enum      []string // of an Enum
}

// A Section is a type of section.
type Section struct {
	Kind Kind
	Key  string // the setting that holds the name: "name", "path"; "" for maps
	Auth bool   // as in Known
}
