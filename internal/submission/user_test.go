package submission

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dovetail/internal/dovecot/authmaster"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/testkit/need"
)

// made makes the user of the auth service's fields, written "a=b c", with the settings conf,
// written the same.
func made(t *testing.T, fields, conf string) (*user, error) {
	t.Helper()
	answer := authmaster.User{Name: "al@example.org"}
	for f := range strings.FieldsSeq(fields) {
		k, v, has := strings.Cut(f, "=")
		answer.Fields = append(answer.Fields, tabline.Field{Key: k, Value: v, HasValue: has})
	}
	base := map[string]string{}
	for f := range strings.FieldsSeq(conf) {
		k, v, _ := strings.Cut(f, "=")
		base[k] = v
	}
	u, f := newUser(answer)
	return u, u.apply(f, func(name string) (string, bool) {
		v, ok := base[name]
		return v, ok
	}, nil, "machine.test", nil)
}

// TestIdentity: who a process may become, and in what directories.
func TestIdentity(t *testing.T) {
	t.Parallel()
	need.Root(t)
	for _, c := range []struct {
		name, fields, conf string
		uid, gid           uint32
		home, chroot       string
		err                string // part of it
	}{
		{name: "numbers", fields: "uid=1001 gid=1002 home=/h", uid: 1001, gid: 1002, home: "/h"},
		{name: "names", fields: "uid=daemon gid=daemon", conf: "first_valid_uid=1", uid: 1, gid: 1},
		{name: "from the settings", conf: "mail_uid=1001 mail_gid=1002", uid: 1001, gid: 1002},
		{name: "userdb wins", fields: "uid=1003 gid=1004", conf: "mail_uid=1001 mail_gid=1002", uid: 1003, gid: 1004},
		{name: "no uid", fields: "gid=1002", err: "User is missing UID"},
		{name: "no gid", fields: "uid=1002", err: "User is missing GID"},
		{name: "root", fields: "uid=0 gid=1", err: "userdb returned 0 as uid"},
		{name: "root by name", fields: "uid=root gid=1", conf: "first_valid_uid=0", err: "not allowed for root"},
		{name: "system user", fields: "uid=499 gid=1002", err: "Mail access for users with UID 499 not permitted (see first_valid_uid in config file, uid from userdb lookup)."},
		{name: "high user", fields: "uid=5001 gid=1002", conf: "last_valid_uid=5000", err: "UID 5001 not permitted"},
		{name: "low group", conf: "first_valid_gid=100 mail_gid=99 mail_uid=1001", err: "GID 99 not permitted (see first_valid_gid in config file, gid from mail_gid setting)."},
		{name: "unknown user", fields: "uid=no-such-user gid=1", err: "Unknown UNIX UID user: no-such-user (from userdb lookup)"},
		{name: "unknown group", fields: "uid=1001 gid=no-such-group", err: "Unknown UNIX GID group: no-such-group (from userdb lookup)"},
		{name: "unknown further group", fields: "uid=1001 gid=1001", conf: "mail_access_groups=no-such-group", err: "(in mail_access_groups setting)"},
		{name: "not a number", fields: "uid=-1 gid=1", err: "Unknown UNIX UID user: -1"},
		{name: "number too large", fields: "uid=4294967296 gid=1", err: "Unknown UNIX UID user"},
		{name: "relative home", fields: "uid=1001 gid=1001 home=h", err: "Relative home directory paths not supported: h"},
		{name: "home of the settings", fields: "uid=1001 gid=1001", conf: "mail_home=/mail/%d/%n", uid: 1001, gid: 1001, home: "/mail/example.org/al"},
		{name: "chroot not allowed", fields: "uid=1001 gid=1001 chroot=/srv", err: "userdb returned invalid chroot directory: /srv (see valid_chroot_dirs setting)"},
		{name: "chroot allowed", fields: "uid=1001 gid=1001 chroot=/srv/al home=/", conf: "valid_chroot_dirs=/var:/srv", uid: 1001, gid: 1001, chroot: "/srv/al", home: "/"},
		{name: "chroot in the home", fields: "uid=1001 gid=1001 home=/srv/./al", conf: "valid_chroot_dirs=/srv", uid: 1001, gid: 1001, chroot: "/srv", home: "/al"},
		{name: "such a home without permission", fields: "uid=1001 gid=1001 home=/srv/./al", uid: 1001, gid: 1001, home: "/srv/./al"},
		{name: "chroot of the settings", fields: "uid=1001 gid=1001 home=/srv/al/box", conf: "mail_chroot=/srv/%n/.", uid: 1001, gid: 1001, chroot: "/srv/al", home: "/box"},
		{name: "that is the home", fields: "uid=1001 gid=1001 home=/srv/al", conf: "mail_chroot=/srv/%n/.", uid: 1001, gid: 1001, chroot: "/srv/al", home: "/"},
		{name: "chdir", fields: "uid=1001 gid=1001 home=/h chdir=/d", uid: 1001, gid: 1001, home: "/d"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, err := made(t, c.fields, c.conf)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if id := u.identity; id.UID != c.uid || id.GID != c.gid || id.Home != c.home || id.Chroot != c.chroot {
				t.Errorf("got %+v", id)
			}
		})
	}
}

// TestFields: what the auth service says is the user's settings, or about the user.
func TestFields(t *testing.T) {
	t.Parallel()
	who := "uid=1001 gid=1001 "
	if os.Geteuid() != 0 {
		who = ""
	}
	u, err := made(t, who+"auth_user=boss auth_token=t0ken admin=y nice=3 "+
		"submission_relay_host=r.example submission_max_recipients=7 submission_logout_format+=%u plugin/a=1 b=2 c", "hostname=h.example")
	if err != nil {
		t.Fatal(err)
	}
	if u.authUser != "boss" || u.token != "t0ken" || !u.admin || u.nice != 3 {
		t.Errorf("who: %+v", u)
	}
	if u.set.RelayHost != "r.example" || u.set.MaxRecipients != 7 || u.set.LogoutFormat != "in=%i out=%o%u" || u.hostname != "h.example" {
		t.Errorf("settings: %+v", u.set)
	}
	if u.plugin["a"] != "1" || u.plugin["b"] != "2" || u.plugin["c"] != "yes" {
		t.Errorf("plugin: %v", u.plugin)
	}

	for fields, want := range map[string]string{
		"submission_max_recipients=many":   "submission_max_recipients",
		"submission_relay_max_idle_time=0": "must not be 0",
		"submission_max_recipients+=1":     "'+' can only be used for strings",
	} {
		if _, err := made(t, who+fields, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", fields, err)
		}
	}
	if u, err := made(t, who, ""); err != nil || u.hostname != "machine.test" {
		t.Errorf("without a hostname: %v, %v", u, err)
	}
}

// A group may have very many members; a line that cannot be read is no missing group.
func TestLongGroupLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "group")
	write := func(octets int) {
		t.Helper()
		text := "everybody:x:100:" + strings.Repeat("member,", octets/7) + "\nstaff:x:101:\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(200 << 10)
	for name, want := range map[string]uint32{"everybody": 100, "staff": 101, "7": 7} {
		if n, err := lookupID(path, name, "unknown: "); n != want || err != nil {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	if _, err := lookupID(path, "nobody", "unknown: "); err == nil || err.Error() != "unknown: nobody" {
		t.Error(err)
	}
	write(maxDatabaseLine)
	if _, err := lookupID(path, "staff", "unknown: "); !errors.Is(err, bufio.ErrTooLong) {
		t.Error(err)
	}
}
