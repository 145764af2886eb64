package rules

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The packages make the users that `make install` has a sysusers file for: their one script
// calls systemd-sysusers when dpkg or rpm has installed them, also below another root, and
// says it when there is none.
func TestPackageMakesUsers(t *testing.T) {
	const script = "packaging/postinstall.sh"
	spec, err := os.ReadFile("../../packaging/nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(spec), "\nscripts:\n  postinstall: "+script+"\n") {
		t.Errorf("nfpm.yaml does not have %s", script)
	}
	dir := t.TempDir()
	made := filepath.Join(dir, "made")
	if err := os.WriteFile(filepath.Join(dir, "systemd-sysusers"), []byte("#!/bin/sh\necho \"$@\" >"+made+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name string
		args []string
		env  []string
		want string // what systemd-sysusers is called with, "" not at all
		says string
	}{
		{"dpkg installs", []string{"configure"}, []string{"PATH=" + dir}, "dovetail.conf", ""},
		{"dpkg installs a newer one", []string{"configure", "0.1.0"}, []string{"PATH=" + dir}, "dovetail.conf", ""},
		{"dpkg installs below /image", []string{"configure"}, []string{"PATH=" + dir, "DPKG_ROOT=/image"}, "--root=/image dovetail.conf", ""},
		{"rpm installs", []string{"1"}, []string{"PATH=" + dir}, "dovetail.conf", ""},
		{"rpm installs a newer one", []string{"2"}, []string{"PATH=" + dir}, "dovetail.conf", ""},
		{"dpkg gives up", []string{"abort-upgrade", "0.1.0"}, []string{"PATH=" + dir}, "", ""},
		{"no systemd", []string{"configure"}, []string{"PATH=/nowhere"}, "", "there is no systemd-sysusers"},
	} {
		os.Remove(made)
		cmd := exec.Command("/bin/sh", append([]string{"../../" + script}, x.args...)...)
		cmd.Env = x.env
		out, err := cmd.CombinedOutput()
		got, _ := os.ReadFile(made)
		if err != nil || strings.TrimSpace(string(got)) != x.want || x.says == "" != (len(out) == 0) || !strings.Contains(string(out), x.says) {
			t.Errorf("%s: %v, called with %q, said %q", x.name, err, got, out)
		}
		if file := x.want[strings.LastIndexByte(x.want, ' ')+1:]; file != "" && !slices.Contains(installed, "lib/sysusers.d/"+file) {
			t.Errorf("%s: %s is not installed", x.name, file)
		}
	}
}
