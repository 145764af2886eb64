package privs

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"dovetail/internal/testkit/need"
)

// A task is what a child of the test is told to become, and a report what it became.
type task struct {
	Restrict *Restrict
	Identity *Identity
	Twice    *Identity // after Identity
}

type report struct {
	Err     string
	Threads []string // one "uids|gids|groups" a thread, each distinct one once
	Root    []string // names in /
	Dir     string   // working directory
}

const taskVar = "PRIVS_TEST_TASK"

// The test binary is its own child: rights that are gone do not come back.
func TestMain(m *testing.M) {
	if text := os.Getenv(taskVar); text != "" {
		child(text)
		return
	}
	os.Exit(m.Run())
}

func child(text string) {
	var t task
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		panic(err)
	}
	tasks, err := os.Open("/proc/self/task") // before the chroot
	if err != nil {
		panic(err)
	}
	busyThreads()
	var r report
	if t.Restrict != nil {
		err = t.Restrict.Apply()
	}
	if err == nil && t.Identity != nil {
		err = t.Identity.Drop()
	}
	if err == nil && t.Twice != nil {
		err = t.Twice.Drop()
	}
	if err != nil {
		r.Err = err.Error()
	}
	busyThreads() // new ones get what the others have
	r.Threads = threads(tasks)
	entries, _ := os.ReadDir("/")
	for _, e := range entries {
		r.Root = append(r.Root, e.Name())
	}
	r.Dir, _ = os.Getwd()
	json.NewEncoder(os.Stdout).Encode(r)
}

// busyThreads makes eight threads, which stay: their goroutines never end.
func busyThreads() {
	started := make(chan bool)
	for range 8 {
		go func() { // ends with the process
			runtime.LockOSThread()
			started <- true
			select {}
		}()
	}
	for range 8 {
		<-started
	}
}

func threads(tasks *os.File) []string {
	names, err := tasks.Readdirnames(-1)
	if err != nil {
		panic(err)
	}
	if len(names) < 10 {
		panic(fmt.Sprintf("only %d threads", len(names)))
	}
	var all []string
	for _, name := range names {
		fd, err := unix.Openat(int(tasks.Fd()), name+"/status", unix.O_RDONLY, 0)
		if err != nil {
			panic(err)
		}
		buf := make([]byte, 4096)
		n, _ := unix.Read(fd, buf)
		unix.Close(fd)
		var ids []string
		for line := range strings.SplitSeq(string(buf[:n]), "\n") {
			for _, key := range []string{"Uid:", "Gid:", "Groups:"} {
				if v, ok := strings.CutPrefix(line, key); ok {
					ids = append(ids, strings.Join(strings.Fields(v), " "))
				}
			}
		}
		all = append(all, strings.Join(ids, "|"))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// run starts a child as the given user (0 is root) and returns its report.
func run(t *testing.T, as uint32, what task) report {
	t.Helper()
	text, err := json.Marshal(what)
	if err != nil {
		t.Fatal(err)
	}
	// The test binary lies in a directory of root's; others run a copy.
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "privs.test")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Env = []string{taskVar + "=" + string(text)}
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	if as != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: as, Gid: as}}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("child: %v", err)
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return r
}

// The login process: every thread, also a later one, has the user, its group alone, and
// the directory as its root.
func TestLoginProcess(t *testing.T) {
	need.Root(t)
	jail := t.TempDir()
	os.Chmod(jail, 0o755)
	os.WriteFile(filepath.Join(jail, "only-this"), nil, 0o644)
	r := run(t, 0, task{Restrict: &Restrict{UID: 65534, GID: 65533, PrivGID: Unset, Chroot: jail}})
	want := report{
		Threads: []string{"65534 65534 65534 65534|65533 65533 65533 65533|65533"},
		Root:    []string{"only-this"},
		Dir:     "/",
	}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("\n got %+v\nwant %+v", r, want)
	}
}

// The worker: it stays root with what the master says, and then is one user.
func TestWorker(t *testing.T) {
	need.Root(t)
	home := t.TempDir()
	os.Chown(home, 5001, 5002)
	for d := home; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	stays := run(t, 0, task{Restrict: &Restrict{UID: Unset, GID: Unset, PrivGID: Unset, ExtraGroups: []uint32{5003}}})
	if want := []string{"0 0 0 0|0 0 0 0|0 5003"}; !slices.Equal(stays.Threads, want) || stays.Err != "" {
		t.Errorf("at the start: %+v, want %v", stays, want)
	}
	alice := Identity{UID: 5001, GID: 5002, ExtraGroups: []uint32{5003, 5004}, Home: home}
	want := report{
		Threads: []string{"5001 5001 5001 5001|5002 5002 5002 5002|5002 5003 5004"},
		Root:    stays.Root,
		Dir:     home,
	}
	r := run(t, 0, task{Identity: &alice})
	if !reflect.DeepEqual(r, want) {
		t.Errorf("\n got %+v\nwant %+v", r, want)
	}
	// Again as the same user is fine, as another one an error.
	if r := run(t, 0, task{Identity: &alice, Twice: &alice}); r.Err != "" {
		t.Errorf("the same user twice: %s", r.Err)
	}
	bob := Identity{UID: 5009, GID: 5002}
	r = run(t, 0, task{Identity: &alice, Twice: &bob})
	if want := "running as uid 5001, which cannot become uid 5009"; r.Err != want {
		t.Errorf("another user: %q, want %q", r.Err, want)
	}
}

// A home that is not there or closed leaves the working directory at /.
func TestHomeIsMissing(t *testing.T) {
	need.Root(t)
	closed := t.TempDir()
	os.Chmod(closed, 0o700)
	for _, home := range []string{"", "/no/such/home", closed} {
		if r := run(t, 0, task{Identity: &Identity{UID: 5001, GID: 5002, Home: home}}); r.Err != "" || r.Dir != "/" {
			t.Errorf("home %q: %+v", home, r)
		}
	}
}

func TestUserChroot(t *testing.T) {
	need.Root(t)
	jail := t.TempDir()
	os.Chmod(jail, 0o755)
	os.Mkdir(filepath.Join(jail, "mail"), 0o755)
	r := run(t, 0, task{Identity: &Identity{UID: 5001, GID: 5002, Chroot: jail, Home: "/mail"}})
	if r.Err != "" || r.Dir != "/mail" || !slices.Equal(r.Root, []string{"mail"}) {
		t.Errorf("%+v", r)
	}
	r = run(t, 0, task{Identity: &Identity{UID: 5001, GID: 5002, Chroot: jail + "/none"}})
	if want := "chroot(" + jail + "/none): no such file or directory"; r.Err != want {
		t.Errorf("%q, want %q", r.Err, want)
	}
}

// No user's mail is root's.
func TestRootIsNoUser(t *testing.T) {
	for _, id := range []Identity{{UID: 0, GID: 5}, {UID: Unset, GID: 5}, {UID: 5, GID: Unset}} {
		if err := id.Drop(); !errors.Is(err, ErrRoot) {
			t.Errorf("%+v: %v", id, err)
		}
	}
}

// Without root nothing can be given up, and what is asked for must already be so: a
// master without root, or drop_priv_before_exec.
func TestWithoutRoot(t *testing.T) {
	need.Root(t) // to become another user
	const me = 5001
	for _, c := range []struct {
		restrict Restrict
		err      string
	}{
		{Restrict{UID: Unset, GID: Unset, ExtraGroups: []uint32{5}}, ""},
		{Restrict{UID: me, GID: me}, ""},
		{Restrict{UID: 5002, GID: me}, "running as uid 5001, which cannot become uid 5002"},
		{Restrict{UID: me, GID: 5002}, "running as gid 5001, which cannot become gid 5002"},
		{Restrict{UID: me, GID: me, Chroot: "/tmp"}, "running as uid 5001, which cannot chroot to /tmp"},
	} {
		if r := run(t, me, task{Restrict: &c.restrict}); r.Err != c.err {
			t.Errorf("%+v: %q, want %q", c.restrict, r.Err, c.err)
		}
	}
}

func TestRestrictVariables(t *testing.T) {
	want := Restrict{UID: 104, GID: 108, PrivGID: 8, ExtraGroups: []uint32{1, 2}, Chroot: "/run/dovecot/login"}
	env := want.AppendEnv(nil)
	if got := fmt.Sprint(env); got != "[RESTRICT_CHROOT=/run/dovecot/login RESTRICT_SETUID=104 RESTRICT_SETGID=108 "+
		"RESTRICT_SETGID_PRIV=8 RESTRICT_SETEXTRAGROUPS=1,2]" {
		t.Error(got)
	}
	got, err := ParseRestrict(func(name string) string {
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				return v
			}
		}
		return ""
	})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	none, err := ParseRestrict(func(string) string { return "" })
	if err != nil || !reflect.DeepEqual(none, Restrict{UID: Unset, GID: Unset, PrivGID: Unset}) || none.AppendEnv(nil) != nil {
		t.Errorf("%+v, %v", none, err)
	}
}

func TestGroupsOf(t *testing.T) {
	const file = "mail:x:8:alice,bob\n# no group\nadm:x:four:alice\nstaff:x:50:bob,alice\nalice:x:1000:\nmail2:x:8:alice\nbroken:x:9\nodd:x:10:alic\n"
	for user, want := range map[string][]uint32{"alice": {8, 50}, "bob": {8, 50}, "carol": nil, "": nil} {
		if got, err := groupsOf(strings.NewReader(file), user); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", user, got, err)
		}
	}
	long := strings.NewReader("g:x:1:" + strings.Repeat("a", maxGroupLine))
	if _, err := groupsOf(long, "a"); err == nil {
		t.Error("a line past the bound is read")
	}
}

func FuzzParseGroups(f *testing.F) {
	f.Add("1,2,3")
	f.Add(",")
	f.Add("4294967295")
	f.Fuzz(func(t *testing.T, list string) {
		groups, err := ParseGroups(list)
		if err != nil {
			return
		}
		again, err := ParseGroups(joinGroups(groups))
		if err != nil || !slices.Equal(again, groups) {
			t.Fatalf("%q: %v, then %v, %v", list, groups, again, err)
		}
	})
}
