package settings

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/need"
)

func none(string) (string, bool) { return "", false }

func TestTableIsSortedAndItsDefaultsAreRight(t *testing.T) {
	for i, s := range table {
		if i > 0 && (s.Name < table[i-1].Name || s.Name == table[i-1].Name && s.Program == table[i-1].Program) {
			t.Errorf("%s is out of order", s.Name)
		}
		if got, err := s.Normalise(s.Default); err != nil || got != s.Default {
			t.Errorf("default %q of %s is printed %q, %v", s.Default, s.Name, got, err)
		}
	}
}

func TestDefaultsOfThePrograms(t *testing.T) {
	login, errs := Decode[Login](none)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	worker, errs := Decode[Submission](none)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if login.SubmissionMaxMailSize != 0 || worker.MaxMailSize != 40<<20 {
		t.Errorf("submission_max_mail_size: login %d, worker %d; want 0 and 40 MiB", login.SubmissionMaxMailSize, worker.MaxMailSize)
	}
	if login.ProxyTimeout != 30*time.Second || login.Greeting != "Dovecot (Debian) ready." || !login.DisablePlaintextAuth || login.BackendCapabilities != nil {
		t.Errorf("%+v", login)
	}
	if worker.RelayPort != 25 || worker.RelayMaxIdleTime != 29*time.Minute || worker.SSL.SSL != "yes" {
		t.Errorf("%+v", worker)
	}
}

func TestDecode(t *testing.T) {
	values := map[string]string{
		"submission_backend_capabilities": "", "submission_relay_connect_timeout": "1500 ms", "submission_max_mail_size": "20 M",
		"submission_relay_port": "2526", "ssl": "required", "submission_relay_trusted": "yes", "first_valid_uid": "x", "submission_relay_ssl": "tls",
	}
	s, errs := Decode[Submission](func(n string) (string, bool) { v, ok := values[n]; return v, ok })
	if s.BackendCapabilities == nil || *s.BackendCapabilities != "" || s.RelayConnectTimeout != 1500*time.Millisecond ||
		s.MaxMailSize != 20<<20 || s.RelayPort != 2526 || s.SSL.SSL != "required" || !s.RelayTrusted {
		t.Errorf("%+v", s)
	}
	if s.FirstValidUID != 500 || s.RelaySSL != "no" {
		t.Errorf("a bad value must leave the default: %d %q", s.FirstValidUID, s.RelaySSL)
	}
	if len(errs) != 2 || errs[0].Error() != "submission_relay_ssl: Invalid value: tls" ||
		errs[1].Error() != "first_valid_uid: Invalid number x: Not a valid number" {
		t.Errorf("errors: %v", errs)
	}
}

// samples of each type; the right column is what doveconf 2.3.19.1 prints, or its error.
var samples = []struct{ name, value, want string }{
	{"auth_debug", "Y", "yes"}, {"auth_debug", "n", "!Invalid boolean value: n (use yes or no)"},
	{"first_valid_uid", "007", "7"}, {"first_valid_uid", "-1", "!Invalid number -1: Number too small"},
	{"first_valid_uid", "-", "!Invalid number -: Not a valid number"}, {"first_valid_uid", "4294967296", "!Invalid number 4294967296: Number too large"},
	{"submission_max_mail_size", "40960 KiB", "40 M"}, {"submission_max_mail_size", "10i", "!Invalid size: 10i"},
	{"submission_max_mail_size", "16777216T", "!Size is too large: 16777216T"}, {"submission_max_mail_size", "1025", "1025 B"},
	{"haproxy_timeout", "90s", "90 secs"}, {"haproxy_timeout", "1mil", "!Milliseconds not supported for this setting: 1mil"},
	{"haproxy_timeout", "120 m", "2 hours"}, {"haproxy_timeout", "1", "!Time interval '1' is missing units (add e.g. 's' for seconds)"},
	{"haproxy_timeout", "4294967296001ms", "!Milliseconds not supported for this setting: 4294967296001ms"},
	{"login_proxy_timeout", "4294968s", "!Time interval is too large: 4294968s"}, {"login_proxy_timeout", "1500 MSECS", "1500 ms"},
	{"login_proxy_timeout", "1y", "!Invalid time interval: 1y"}, {"imap_urlauth_port", "025", "25"},
	{"imap_urlauth_port", "65536", "!Invalid port number 65536"}, {"ssl", "Yes", "!Invalid value: Yes"},
}

func TestNormalise(t *testing.T) {
	for _, x := range samples {
		s, ok := Lookup(x.name)
		if !ok {
			t.Fatalf("no row for %s", x.name)
		}
		got, err := s.Normalise(x.value)
		if err != nil {
			got = "!" + err.Error()
		}
		if got != x.want {
			t.Errorf("%s = %s: %q, want %q", x.name, x.value, got, x.want)
		}
	}
	for v, want := range map[string]string{"0600": "0600", "600": "01130", "0": "00", "040000000000": "00", "01777777777777777777777": "037777777777"} {
		if got, err := Octal.Normalise(v, nil); got != want || err != nil {
			t.Errorf("mode %s: %q %v, want %q", v, got, err, want)
		}
	}
}

func TestParseNetworks(t *testing.T) {
	nets, errs := ParseNetworks("10.1, 192.0.2.77/24\t[2001:db8::1]/64,0x7f.1  example.org 1.2.3.4/33 1.2.3.4/ ::1/128")
	want := []string{"10.0.0.1/32", "192.0.2.0/24", "2001:db8::/64", "127.0.0.1/32", "::1/128"}
	if len(nets) != len(want) || len(errs) != 3 {
		t.Fatalf("%v %v", nets, errs)
	}
	for i, w := range want {
		if nets[i] != netip.MustParsePrefix(w) {
			t.Errorf("%v, want %s", nets[i], w)
		}
	}
	if errs[0].Error() != "Invalid network 'example.org'" {
		t.Error(errs[0])
	}
}

// The table has the defaults of the installed doveconf 2.3, where there is one.
func TestDefaultsAgainstDoveconf(t *testing.T) {
	doveconf := need.Program(t, "doveconf")
	var names []string
	for _, s := range table {
		if s.Program == "" && s.Name != "submission_backend_capabilities" {
			names = append(names, s.Name)
		}
	}
	out, err := exec.Command(doveconf, append([]string{"-d"}, names...)...).Output()
	if err != nil || !strings.HasPrefix(string(out), names[0]) {
		need.Missing(t, "a doveconf of 2.3")
	}
	for i, l := range strings.Split(strings.TrimRight(string(out), "\n"), "\n") {
		s, _ := Lookup(names[i])
		if want := s.Name + " = " + s.Default; l != want {
			t.Errorf("doveconf: %s; here: %s", l, want)
		}
	}
}
