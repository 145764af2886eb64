package authd

import (
	"strings"
	"testing"
	"testing/synctest"

	"dovetail/internal/process/event"
)

// Any field may be a password. What is wrong with one is said without its value, and
// without what a variable's name would quote of it.
func TestFieldsAreNotQuoted(t *testing.T) {
	const secret = "hunter8"
	for _, conf := range []string{
		"passdb {\n driver = static\n args = password=hunter8 =x\n}\n",
		"passdb {\n driver = static\n args = password=x\n default_fields = pass=x =hunter8\n}\n",
		onePassdb + "userdb {\n driver = static\n args = uid=1 password=hunter8 =\n}\n",
	} {
		set, err := load(t, shortTemp(t), conf)
		if err == nil {
			_, err = New(set, Options{Log: event.New(&memory{}, "", false)})
		}
		if err == nil || !strings.Contains(err.Error(), ": key must not be empty") || strings.Contains(err.Error(), secret) {
			t.Errorf("%s\ngot %v", conf, err)
		}
	}

	synctest.Test(t, func(t *testing.T) { // for the time that failures take
		s, log := newServer(t, Options{}, `
passdb {
  driver = passwd-file
  args = scheme=PLAIN username_format=%n @DIR@/users
  username_filter = *@file
}
passdb {
  driver = static
  args = password=hunter8%{zz}
  username_filter = *@password
}
passdb {
  driver = static
  args = password=x pass=50%{hunter8
  username_filter = *@args
}
passdb {
  driver = static
  args = password=x
  default_fields = pass=%{hunter8}
  username_filter = *@default
}
passdb {
  driver = static
  args = password=x
  override_fields = pass=%{if;hunter8;>;1;a}
  username_filter = *@override
}
userdb {
  driver = passwd-file
  args = username_format=%n @DIR@/users
}
`, [2]string{"users", "pass:x::::::pass=hunter8%{zz}\nlong:x::::::pass=50%{hunter8\nuser:x:1:1::::userdb_pass=hunter8%{zz}\n"})
		defer s.Close()
		c := dial(t, s, "login", 7)
		for i, user := range []string{"pass@file", "long@file", "user@file", "a@password", "a@args", "a@default", "a@override"} {
			if got := c.ask(plainAuth(i+1, user, "x")); !strings.HasSuffix(got, "\tuser="+user+"\tcode=temp_fail") {
				t.Errorf("%s: %q", user, got)
			}
		}
		c.close()
		m := dial(t, s, "auth-master", 0)
		if got := m.ask("USER\t1\tuser\tservice=submission"); got != "FAIL\t1" {
			t.Error(got)
		}
		m.close()
		lines := log.get()
		for _, l := range lines {
			if strings.Contains(l, secret) || !strings.Contains(l, ": Failed to expand ") || !strings.Contains(l, "pass") {
				t.Error(l)
			}
		}
		if len(lines) != 8 {
			t.Errorf("%d lines: %q", len(lines), lines)
		}
	})
}
