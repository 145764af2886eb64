package conf

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/testkit/need"
)

// The files that Debian's packages install load as they are. They are read where the
// package puts them.
func TestDebianTree(t *testing.T) {
	found := false
	for _, path := range []string{"/usr/share/dovecot/dovecot.conf", "/etc/dovecot/dovecot.conf"} {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		found = true
		c, diags := Load(path, Options{})
		for _, d := range diags {
			t.Errorf("%s: %v", path, d)
		}
		v, err := c.View(Filter{Service: "submission", RemoteIP: netip.MustParseAddr("192.0.2.1")})
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Files) < 2 || v.Value("auth_mechanisms") != "plain" || len(v.Passdbs()) == 0 {
			t.Errorf("%s: %d files, %q, %d passdbs", path, len(c.Files), v.Value("auth_mechanisms"), len(v.Passdbs()))
		}
	}
	if !found {
		need.Missing(t, "Dovecot's packages")
	}
}

// One service, from the built-in block and the file, with defaults put in.
func TestServices(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dovecot.conf")
	file(t, path, `protocols = submission
listen = 127.0.0.1, [::1]
default_client_limit = 77
default_login_user = nobody
default_idle_kill = 2 mins
service submission-login {
  vsz_limit = 512M
  service_count = 0
  process_min_avail = 3
  idle_kill = 1 hours
  inet_listener submissions {
    address = 192.0.2.1 192.0.2.2
    port = 465
    ssl = yes
  }
  inet_listener submission {
    haproxy = yes
  }
}
service mine {
  executable = /bin/mine -x
  unix_listener mine {
    mode = 0
  }
}
`)
	c, diags := Load(path, Options{NoChecks: true})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	v, err := c.View(Filter{})
	if err != nil {
		t.Fatal(err)
	}
	services := map[string]Service{}
	for _, s := range v.Services() {
		services[s.Name] = s
	}
	login := services["submission-login"]
	if login.User != "nobody" || login.Chroot != "login" || login.ClientLimit != 77 || login.ServiceCount != 0 || login.ProcessLimit != 100 ||
		login.VSZLimit != 512<<20 || login.IdleKill.Hours() != 1 || login.Range.Start.Line != 6 || login.At("vsz_limit").Start.Line != 7 {
		t.Errorf("%+v", login)
	}
	if l := login.Inet; len(l) != 2 || l[0].Name != "submission" || l[0].Port != 587 || !l[0].HAProxy || !slices.Equal(l[0].Address, []string{"127.0.0.1", "[::1]"}) ||
		l[1].Port != 465 || !l[1].SSL || len(l[1].Address) != 2 {
		t.Errorf("%+v", l)
	}
	if s := services["submission"]; s.ClientLimit != 1 || s.ProcessLimit != 1024 || s.IdleKill.Minutes() != 2 || s.VSZLimit != 256<<20 ||
		!slices.Equal(s.ExtraGroups, []string{"dovecot"}) || s.Unix[0].Path != "login/submission" || s.Unix[0].Mode != 0o666 || s.Range.Filename != "" {
		t.Errorf("%+v", s)
	}
	if s := services["anvil"]; s.IdleKill != Never || s.User != "dovecot" || v.Enabled(s) != true || v.Enabled(services["imap"]) {
		t.Errorf("%+v", s)
	}
	if s := services["mine"]; s.Executable != "/bin/mine -x" || s.Unix[0].Mode != 0 {
		t.Errorf("%+v", s)
	}
	if len(v.Services()) != len(Dovecot23().Services())+1 {
		t.Errorf("%d services", len(v.Services()))
	}
}

// What one client gets: filters in their order, lists with the most specific first.
func TestView(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dovecot.conf")
	file(t, path, `hostname = global
plugin {
  a = global
  b = global
}
passdb {
  driver = static
}
protocol submission {
  hostname = protocol
  passdb first {
    driver = passwd-file
    args = /x
  }
  plugin {
    a = protocol
    c = protocol
  }
}
local 192.0.2.0/24 {
  login_greeting = local
}
local_name *.example.org {
  recipient_delimiter = name
}
`)
	c, diags := Load(path, Options{})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	v, err := c.View(Filter{Service: "submission", LocalIP: netip.MustParseAddr("::ffff:192.0.2.9"), LocalName: "MX.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"hostname": "protocol", "login_greeting": "local", "recipient_delimiter": "name", "plugin/a": "protocol", "plugin/b": "global", "plugin/c": "protocol", "listen": "*, ::", "service/auth/client_limit": "0", "service/submission/service_count": "1"} {
		if got := v.Value(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if _, set := v.Get("listen"); set || v.Range("hostname").Start.Line != 10 {
		t.Errorf("listen set: %v; hostname stands in %v", set, v.Range("hostname"))
	}
	dbs := v.Passdbs()
	if len(dbs) != 2 || dbs[0].Name != "first" || dbs[0].Get("driver") != "passwd-file" || dbs[1].Get("driver") != "static" || dbs[1].Get("deny") != "no" || dbs[0].At("args").Start.Line != 13 {
		t.Errorf("%+v", dbs)
	}
	var keys []string
	for _, kv := range v.Plugin() {
		keys = append(keys, kv.Key)
	}
	if strings.Join(keys, " ") != "a c b" {
		t.Errorf("plugin %v", keys)
	}
	if !v.UsesLocal || v.UsesRemote || !v.UsedLocal || v.UsedRemote {
		t.Errorf("%+v", v)
	}
	// The Config itself is as before.
	if v, err = c.View(Filter{}); err != nil || v.Value("hostname") != "global" || len(v.Passdbs()) != 1 || len(v.Plugin()) != 2 {
		t.Errorf("%+v, %v", v, err)
	}
}
