package all

import (
	"slices"
	"testing"

	"dovetail/internal/conf/settings"
)

func TestDefaultsArePrintedAsTheyStand(t *testing.T) {
	for _, tab := range []*Table{V23(), V23Sieve()} {
		for _, r := range tab.Rows {
			if r.Kind == 0 {
				if got, err := r.Normalise(r.Default); err != nil || got != r.Default {
					t.Errorf("%s = %q is printed %q, %v", r.Name, r.Default, got, err)
				}
			} else if _, ok := tab.Row(r.Name + "/" + r.NameAt); r.NameAt != "" && !ok {
				t.Errorf("%s has no setting %s", r.Name, r.NameAt)
			}
		}
	}
}

func TestServicesHaveOnlyKnownSettings(t *testing.T) {
	for _, s := range V23Sieve().Services {
		for _, v := range s.Values {
			path := "service/" + typesOf(v.Path)
			r, ok := V23().Row(path)
			if !ok {
				t.Errorf("service %s: no setting %s", s.Name, path)
			} else if got, err := r.Normalise(v.Value); err != nil || got != v.Value {
				t.Errorf("service %s: %s = %q is printed %q, %v", s.Name, path, v.Value, got, err)
			}
		}
	}
}

// typesOf drops the names of listeners from a path.
func typesOf(path string) string {
	for i := range path {
		for j := i + 1; path[i] == '/' && j < len(path); j++ {
			if path[j] == '/' {
				return path[:i] + path[j:]
			}
		}
	}
	return path
}

// The small table of the daemons and the whole one agree.
func TestProgramsTableAgrees(t *testing.T) {
	for _, s := range settings.Table() {
		r, ok := V23().Row(s.Name)
		if !ok {
			t.Errorf("%s is not in the whole table", s.Name)
		} else if s.Program == "" && (r.Default != s.Default || r.Type != s.Type || len(r.Enum) != len(s.Enum)) {
			t.Errorf("%s: %v %q here, %v %q in the programs' table", s.Name, r.Type, r.Default, s.Type, s.Default)
		}
	}
}

func TestModules(t *testing.T) {
	m := V23().Select("submission")
	for name, want := range map[string]bool{"base_dir": true, "submission_relay_host": true, "mail_location": true, "login_log_format": false} {
		if m.Has(name) != want {
			t.Errorf("-m submission shows %s: %v", name, m.Has(name))
		}
	}
	if m := V23().Select("nosuch"); !m.Has("haproxy_timeout") || m.Has("listen") || !m.HasRoot("master_service") || m.HasRoot("master") {
		t.Errorf("an unknown module shows %v", m)
	}
	var none *Selection
	if !none.Has("x") || !none.HasRoot("y") {
		t.Error("nil is not everything")
	}
	if got, want := V23().Select().Rows(""), V23().Inside(""); !slices.Equal(got, want) {
		t.Error("the order of the tables is not that of the settings")
	}
}
