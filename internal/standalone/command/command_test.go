package command

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/process/privs"
	"dovetail/internal/standalone/master"
	"dovetail/internal/usermask"

	"github.com/google/go-cmp/cmp"
)

// Processes that several users share are ended only when all of them are meant, or by
// force; those that ended the sessions themselves are left alone.
func TestPlanOfKick(t *testing.T) {
	all := []session{
		{user: "alice", pid: 1, count: 2}, {user: "bob", pid: 1, count: 1},
		{user: "alice", pid: 2, count: 1},
		{user: "carol", pid: 3, count: 1},
		{user: "alice", pid: 4, count: 1, addr: netip.MustParseAddr("::1")}, {user: "alice", pid: 4, count: 3},
	}
	m := usermask.Mask{User: "alice"}
	plan := func(m usermask.Mask, done []int, force bool) (pids []int, counts []int, shared []string) {
		p, shared := planKick(all, m, done, force)
		for _, s := range p {
			pids, counts = append(pids, s.pid), append(counts, s.count)
		}
		return pids, counts, shared
	}
	if pids, counts, shared := plan(m, nil, false); !slices.Equal(pids, []int{2, 4}) || !slices.Equal(counts, []int{1, 4}) || !slices.Equal(shared, []string{"bob"}) {
		t.Errorf("%v %v %v", pids, counts, shared)
	}
	if pids, _, shared := plan(m, nil, true); !slices.Equal(pids, []int{1, 2, 4}) || len(shared) > 0 {
		t.Errorf("by force: %v %v", pids, shared)
	}
	if pids, _, shared := plan(m, []int{1, 4}, false); !slices.Equal(pids, []int{2}) || len(shared) > 0 {
		t.Errorf("with some done: %v %v", pids, shared)
	}
	if pids, _, _ := plan(usermask.Mask{User: "nobody"}, nil, true); len(pids) > 0 {
		t.Errorf("nobody: %v", pids)
	}
}

func TestParseSession(t *testing.T) {
	s, err := parseSession([]string{"submission/192.0.2.7/a/b", "12", "3"})
	want := session{service: "submission", user: "a/b", addr: netip.MustParseAddr("192.0.2.7"), pid: 12, count: 3}
	if err != nil || s != want {
		t.Errorf("%+v %v", s, err)
	}
	if s, err := parseSession([]string{"lmtp/alice", "12", "1"}); err != nil || s.user != "alice" || s.addr.IsValid() {
		t.Errorf("%+v %v", s, err)
	}
	for _, row := range [][]string{{}, {"x"}, {"x", "1", "1"}, {"a/b", "x", "1"}, {"a/b", "0", "1"}, {"a/b", "1", "-1"}} {
		if _, err := parseSession(row); err == nil {
			t.Errorf("%q is accepted", row)
		}
	}
}

func FuzzParseSession(f *testing.F) {
	f.Add("submission/192.0.2.7/alice\t1\t2")
	f.Add("a/b/c/d\t-1\t\t")
	f.Fuzz(func(t *testing.T, line string) {
		s, err := parseSession(strings.Split(line, "\t"))
		if err == nil && strings.ContainsAny(printable(s.user), "\n\x1b\x00") {
			t.Errorf("%q", s.user)
		}
	})
}

// The list of proxied sessions, of one login process and of several, with other names of
// users and without.
func TestParseProxied(t *testing.T) {
	alice := session{user: "a\tb", service: "submission", addr: netip.MustParseAddr("192.0.2.7"), count: 1, dest: "[2001:db8::9]:587"}
	for _, c := range []struct {
		lines []string
		want  []session
	}{
		{[]string{"username\tservice\tsrc-ip\tdest-ip\tdest-port"}, nil},
		{[]string{"username\tservice\tsrc-ip\tdest-ip\tdest-port", "a\x01tb\tsubmission\t192.0.2.7\t2001:db8::9\t587"}, []session{alice}},
		{[]string{"username\tuser_x\tservice\tsrc-ip\tdest-ip\tdest-port", "a\x01tb\t\tsubmission\t192.0.2.7\t2001:db8::9\t587",
			"username\tuser_x\tservice\tsrc-ip\tdest-ip\tdest-port", "a\x01tb\t\tsubmission\t192.0.2.7\t2001:db8::9\t587"}, []session{alice, alice}},
	} {
		if got, err := parseProxied(c.lines); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %+v %v", c.lines, got, err)
		}
	}
	for _, bad := range [][]string{{""}, {"username\tservice"}, {"username\tservice\tsrc-ip\tdest-ip\tdest-port", "a\tb"}} {
		if got, err := parseProxied(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func TestFullNameOfHost(t *testing.T) {
	const hosts = "127.0.0.1\tlocalhost\n# 1.1.1.1 wrong.example vm\n127.0.1.1 vm.example.org vm # comment\n::1 other\n"
	for name, want := range map[string]string{"vm": "vm.example.org", "VM": "vm.example.org", "localhost": "localhost", "none": "", "comment": ""} {
		if got := canonical(hosts, name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"*": "0.0.0.0", "::": "::", "[::]": "::", "[::1]": "::1", "192.0.2.1": "192.0.2.1", "2001:db8::5": "2001:db8::5",
	} {
		got, err := addresses(text)
		if err != nil || len(got) != 1 || got[0].String() != want {
			t.Errorf("%s: %v %v", text, got, err)
		}
	}
}

// load makes a configuration ready as on a system without root, where the programs are in
// dir.
func load(t *testing.T, text string) (*Setup, string) {
	t.Helper()
	dir := t.TempDir()
	for _, p := range []string{"dovetail", "submission-login", "submission", "foreign"} {
		if err := os.WriteFile(filepath.Join(dir, p), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(dir, "dovecot.conf")
	text = "protocols = submission\nssl = no\nlisten = 127.0.0.1\nsubmission_relay_host = x\nbase_dir = /run/test\n" +
		"passdb {\n  driver = static\n  args = password=x\n}\n" + text
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, diags := System{Self: filepath.Join(dir, "dovetail")}.Load(conf)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return s, dir
}

func (s *Setup) service(name string) master.Service {
	for _, sv := range s.Master.Services {
		if sv.Name == name {
			return sv
		}
	}
	return master.Service{}
}

// What is started: this project's programs beside dovetail, roles by dovetail itself, and
// what a whole path names.
func TestPrograms(t *testing.T) {
	s, dir := load(t, "default_client_limit = 5\n")
	self := filepath.Join(dir, "dovetail")
	for name, want := range map[string][]string{
		"submission-login": {filepath.Join(dir, "submission-login")},
		"submission":       {filepath.Join(dir, "submission")},
		"auth":             {self, "role", "auth"},
		"anvil":            {self, "role", "anvil"},
		"config":           {self, "role", "config"},
		"log":              {self, "role", "log"},
		"dns-client":       {self, "role", "dns-client"},
		"ipc":              {self, "role", "ipc"},
	} {
		sv := s.service(name)
		if !slices.Equal(sv.Command, want) || !sv.Own || sv.VSZLimit != 0 {
			t.Errorf("%s: %v, own %v, vsz_limit %d", name, sv.Command, sv.Own, sv.VSZLimit)
		}
	}
	if n := len(s.Master.Services); n != 8 {
		t.Errorf("%d services", n)
	}
	if sv := s.service("dns-client"); sv.ClientLimit != resolverClients {
		t.Errorf("dns-client: client_limit %d", sv.ClientLimit)
	}
	s, dir = load(t, "service submission {\n  executable = submission -t9 -D\n  vsz_limit = 64 M\n}\n"+
		"service submission-login {\n  executable = /bin/sh -x\n}\nservice imap {\n  executable = imap\n}\n")
	if sv := s.service("submission"); !slices.Equal(sv.Command, []string{filepath.Join(dir, "submission"), "-t9", "-D"}) || sv.VSZLimit != 64<<20 {
		t.Errorf("%+v", sv)
	}
	if sv := s.service("submission-login"); !slices.Equal(sv.Command, []string{"/bin/sh", "-x"}) || sv.Own || sv.VSZLimit != 256<<20 {
		t.Errorf("%+v", sv)
	}
}

func TestListeners(t *testing.T) {
	s, _ := load(t, `listen = 127.0.0.1, ::1
ssl = yes
service submission-login {
  inet_listener submission {
    port = 10587
    haproxy = yes
  }
  inet_listener submissions {
    port = 10465
    ssl = yes
    reuse_port = yes
    address = *
  }
  inet_listener off {
    port = 0
  }
  fifo_listener f {
    mode = 0600
  }
  unix_listener u {
    mode = 0666
  }
  unix_listener none {
    mode = 0
  }
}
`)
	var got []string
	for _, l := range s.service("submission-login").Listeners {
		got = append(got, strings.TrimSpace(l.Listener.String()+" "+l.String()+" "+l.Addr.String()))
	}
	want := []string{
		"u /run/test/u invalid AddrPort", "f /run/test/f invalid AddrPort",
		"submission\thaproxy listen(127.0.0.1, 10587) 127.0.0.1:10587", "submission\thaproxy listen(::1, 10587) [::1]:10587",
		"submissions\tssl listen(*, 10465) 0.0.0.0:10465",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !s.Master.Unprivileged || s.service("submission-login").UID != privs.Unset {
		t.Error("without root there are users")
	}
}

func TestHelpNamesEveryWord(t *testing.T) {
	var out strings.Builder
	if status := runHelp(&call{stdout: &out}); status != 0 {
		t.Error(status)
	}
	for _, w := range words() {
		if !strings.Contains(out.String(), "dovetail "+w.name) {
			t.Errorf("help does not name %s", w.name)
		}
	}
}
