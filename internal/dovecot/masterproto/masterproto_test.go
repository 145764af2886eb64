package masterproto

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/process/privs"
)

// environ reads a /proc/<pid>/environ that was copied from a process of the real master.
func environ(t testing.TB, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// What the real master passes is understood, and a master built on this package passes
// the same.
func TestEnvironmentOfRealMaster(t *testing.T) {
	version, err := os.ReadFile("testdata/version")
	if err != nil {
		t.Fatal(err)
	}
	common := Env{
		ServiceCount: 1, ClientLimit: 1, IdleKill: 60, LogService: true,
		ConfigFile: "/srv/dovecot/run/config", Version: strings.TrimSpace(string(version)),
		PreserveEnvs: strings.Fields("NOTIFY_SOCKET LISTEN_FDS LISTEN_PID TZ CORE_OUTOFMEM CORE_ERROR LISTEN_PID LISTEN_FDS NOTIFY_SOCKET"),
		Restrict:     privs.Restrict{UID: privs.Unset, GID: privs.Unset, PrivGID: privs.Unset},
	}
	login, worker := common, common
	login.ServiceName, worker.ServiceName = "submission-login", "submission"
	login.ProcessLimit, worker.ProcessLimit = 100, 1024
	worker.ProcessMinAvail = 1
	login.StatsWriter, worker.StatsWriter = "stats-writer", "/srv/dovecot/run/stats-writer"
	login.Restrict.Chroot = "/srv/dovecot/run/login"
	login.Listeners = []Listener{
		{Name: "extra-sock"}, {Name: "extra-fifo"},
		{Name: "submission"}, {Name: "submission"},
		{Name: "submissions", SSL: true},
		{Name: "proxied", SSL: true, HAProxy: true},
	}
	worker.Listeners = []Listener{{Name: "submission"}}

	for file, want := range map[string]Env{
		"testdata/login.environ":      login,
		"testdata/submission.environ": worker,
	} {
		recorded := environ(t, file)
		got, err := ParseEnv(recorded)
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		// What differs from one machine, or start, to the next.
		if got.Generation == 0 || got.Hostname == "" || got.HostDomain == "" {
			t.Errorf("%s: %+v", file, got)
		}
		want.Generation, want.Hostname, want.HostDomain = got.Generation, got.Hostname, got.HostDomain
		r, w := &got.Restrict, &want.Restrict
		if isLogin := got.ServiceName == "submission-login"; isLogin && (r.UID == privs.Unset || r.GID == privs.Unset) || !isLogin && len(r.ExtraGroups) != 1 {
			t.Errorf("%s: %+v", file, r)
		}
		w.UID, w.GID, w.ExtraGroups = r.UID, r.GID, r.ExtraGroups
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", file, got, want)
		}
		if built := got.Append(nil); !slices.Equal(built, recorded) {
			t.Errorf("%s: a master would pass\n%q\nrecorded\n%q", file, built, recorded)
		}
	}
}

func TestEnvironmentIsChecked(t *testing.T) {
	good := environ(t, "testdata/submission.environ")
	for _, c := range []struct{ name, value, want string }{
		{"CLIENT_LIMIT", "0", "environment: CLIENT_LIMIT is 0"},
		{"CLIENT_LIMIT", "4294967296", `environment: CLIENT_LIMIT: "4294967296" is not a number`},
		{"GENERATION", "", `environment: GENERATION: "" is not a number`},
		{"SOCKET_COUNT", "2", "environment: SOCKET_COUNT is 2, but there is no SOCKET1_SETTINGS"},
		{"SOCKET_COUNT", "1025", "environment: SOCKET_COUNT is 1025, at most 1024 are served"},
		{"RESTRICT_SETUID", "root", `environment: RESTRICT_SETUID: "root" is not a numeric id`},
		{"RESTRICT_SETUID", "4294967295", `environment: RESTRICT_SETUID: "4294967295" is not a numeric id`},
		{"RESTRICT_SETEXTRAGROUPS", "1,,2", `environment: RESTRICT_SETEXTRAGROUPS: "" is not a numeric id`},
		{"RESTRICT_CHROOT", "login", `environment: RESTRICT_CHROOT: "login" is not an absolute path`},
	} {
		env := append([]string{c.name + "=" + c.value}, good...) // the first one counts
		if _, err := ParseEnv(env); err == nil || err.Error() != c.want {
			t.Errorf("%s=%s: got %v, want %s", c.name, c.value, err, c.want)
		}
	}
	if _, err := ParseEnv([]string{"PATH=/bin"}); !errors.Is(err, ErrNotChild) {
		t.Errorf("without DOVECOT_CHILD_PROCESS: %v", err)
	}
}

// SERVICE_COUNT and IDLE_KILL may be missing: without limit, never.
func TestAbsentLimits(t *testing.T) {
	e, err := ParseEnv([]string{"DOVECOT_CHILD_PROCESS=1", "GENERATION=7", "CLIENT_LIMIT=5", "SOCKET_COUNT=0"})
	if err != nil || e.ServiceCount != 0 || e.IdleKill != Never || len(e.Listeners) != 0 {
		t.Errorf("got %+v, %v", e, err)
	}
}

// The records of the real login in a session.
func TestStatusRecord(t *testing.T) {
	golden, err := os.ReadFile("testdata/status-login.bin")
	if err != nil {
		t.Fatal(err)
	}
	var again []byte
	var available []uint32
	for rest := golden; len(rest) > 0; rest = rest[StatusSize:] {
		s, err := ParseStatus(rest[:StatusSize])
		if err != nil {
			t.Fatal(err)
		}
		available = append(available, s.Available)
		again = s.Append(again)
	}
	if !bytes.Equal(again, golden) {
		t.Errorf("written again: %x, recorded %x", again, golden)
	}
	if !slices.Equal(available, []uint32{1, 0}) { // service_count = 1: ready, then one client; no record at the end
		t.Errorf("available counts %v", available)
	}
	for n := range StatusSize + 2 {
		if n == StatusSize {
			continue
		}
		if _, err := ParseStatus(make([]byte, n)); err == nil {
			t.Errorf("%d bytes parse", n)
		}
	}
}

// The control channel's packets, both ways.
func TestControl(t *testing.T) {
	order := Order{ControlKick, 7, []string{"al*\tx", "192.0.2.0/24"}}
	b := order.Append(nil)
	if string(b) != "KICK\t7\tal*\x01tx\t192.0.2.0/24" {
		t.Errorf("%q", b)
	}
	if got, err := ParseOrder(b); err != nil || !reflect.DeepEqual(got, order) {
		t.Errorf("%+v %v", got, err)
	}
	for _, bad := range []string{"", "KICK", "KICK\tx", "KICK\t-1\ta", "KICK\t1\t" + strings.Repeat("x", MaxControl)} {
		if o, err := ParseOrder([]byte(bad)); err == nil {
			t.Errorf("%.40q: %+v", bad, o)
		}
	}
	if tag, fields, ready, err := ParseAnswer(AppendAnswer(nil, 7, "3")); tag != 7 || !slices.Equal(fields, []string{"3"}) || ready || err != nil {
		t.Errorf("%d %q %v %v", tag, fields, ready, err)
	}
	if tag, fields, _, err := ParseAnswer(AppendAnswer(nil, 7)); tag != 7 || len(fields) > 0 || err != nil {
		t.Errorf("%d %q %v", tag, fields, err)
	}
	if _, _, ready, err := ParseAnswer([]byte(ControlReady)); !ready || err != nil {
		t.Errorf("READY: %v %v", ready, err)
	}
	if _, _, _, err := ParseAnswer([]byte("x")); err == nil {
		t.Error("x is an answer")
	}
	for _, bad := range []string{"", "x", "6", "8", "70000"} { // 7 and 8 are listeners
		env := []string{"DOVECOT_CHILD_PROCESS=1", "GENERATION=7", "CLIENT_LIMIT=5", "SOCKET_COUNT=2", "SOCKET0_SETTINGS=a", "SOCKET1_SETTINGS=b", ControlEnv + "=" + bad}
		if e, err := ParseEnv(env); err == nil {
			t.Errorf("%s=%q: %+v", ControlEnv, bad, e)
		}
	}
}

func FuzzParseOrder(f *testing.F) {
	f.Add([]byte("KICK\t1\talice\t10.0.0.0/8"))
	f.Add([]byte("LOGS\t18446744073709551615\t/var/log/\x01t"))
	f.Add([]byte("7\t3"))
	f.Add([]byte("READY"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := ParseOrder(b); err == nil {
			if again, err := ParseOrder(o.Append(nil)); err == nil && !reflect.DeepEqual(again, o) {
				t.Fatalf("%q: %+v became %+v", b, o, again)
			}
		}
		if tag, fields, ready, err := ParseAnswer(b); err == nil && !ready {
			if tag2, fields2, _, err := ParseAnswer(AppendAnswer(nil, tag, fields...)); err == nil && (tag2 != tag || !slices.Equal(fields2, fields)) {
				t.Fatalf("%q: %d %q became %d %q", b, tag, fields, tag2, fields2)
			}
		}
	})
}

func FuzzParseEnv(f *testing.F) {
	for _, file := range []string{"testdata/login.environ", "testdata/submission.environ"} {
		f.Add(strings.Join(environ(f, file), "\x00"))
	}
	f.Add("DOVECOT_CHILD_PROCESS=1\x00GENERATION=1\x00CLIENT_LIMIT=1\x00SOCKET_COUNT=1\x00SOCKET0_SETTINGS=\x01t\x01\tssl")
	f.Add("DOVECOT_CHILD_PROCESS=1\x00GENERATION=1\x00CLIENT_LIMIT=1\x00SOCKET_COUNT=0\x00DOVETAIL_CONTROL_FD=9")
	f.Fuzz(func(t *testing.T, text string) {
		e, err := ParseEnv(strings.Split(text, "\x00"))
		if err != nil {
			return
		}
		again, err := ParseEnv(e.Append(nil))
		if err != nil {
			t.Fatalf("%+v does not parse again: %v", e, err)
		}
		if !reflect.DeepEqual(again, e) {
			t.Fatalf("%+v became %+v", e, again)
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte("\x34\x12\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseStatus(b); err == nil && !bytes.Equal(s.Append(nil), b) {
			t.Fatalf("%x became %+v", b, s)
		}
	})
}
