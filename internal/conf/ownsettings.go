package conf

import (
	"slices"
	"strings"

	"dovetail/internal/conf/settings"
)

// Settings that are ours alone begin with dovetail_. Under Dovecot they stand in plugin
// { }; standalone takes them at the root, too.

// OwnPrefix begins the names of these settings.
const OwnPrefix = "dovetail_"

// Own are these settings. What they do stands with package settings.
var Own = settings.Own

// withOwn is a Schema with our own settings at the root.
type withOwn struct{ Schema }

// Setting is part of Schema.
func (w withOwn) Setting(path string) (Known, bool) {
	if strings.HasPrefix(path, OwnPrefix) {
		for _, s := range Own {
			if s.Name == path {
				return Known{Default: s.Default, Type: s.Type, Enum: s.Enum, Normalise: s.Normalise}, true
			}
		}
	}
	return w.Schema.Setting(path)
}

// Settings is part of Schema.
func (w withOwn) Settings(path string) []string {
	names := w.Schema.Settings(path)
	if path != "" {
		return names
	}
	names = slices.Clone(names)
	for _, s := range Own {
		names = append(names, s.Name)
	}
	return names
}
