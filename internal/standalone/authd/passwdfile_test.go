package authd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/process/event"
	"dovetail/internal/testkit/need"
)

func TestPasswdLine(t *testing.T) {
	s := &Server{}
	for line, want := range map[string]string{
		"a":                            "a  false -1 -1 no-userdb  []",
		"a:":                           "a  true -1 -1 no-userdb  []",
		"a:p":                          "a p true -1 -1 no-userdb  []",
		"a:p:":                         "a p true -1 -1 no-userdb  []",
		"a:p::":                        "a p true -1 -1 userdb  []",
		"a:p:1:2:g:/h:s:x=1 y  z=2:3":  "a p true 1 2 userdb /h [{x 1} {y } {z 2:3}]",
		"a:p:1:2:g:/h:s::mbox:/m":      "a p true 1 2 userdb /h [{userdb_mail mbox:/m}]",
		"a:p:1:2:g:/h:s::":             "a p true 1 2 userdb /h []",
		"a:hash[13]":                   "a {CRYPT}hash true -1 -1 no-userdb  []",
		"a:hash[34]":                   "a {PLAIN-MD5}hash true -1 -1 no-userdb  []",
		"a:{PLAIN}x[13]":               "a {PLAIN}x[13] true -1 -1 no-userdb  []",
		"a:$1$x[13]":                   "a $1$x[13] true -1 -1 no-userdb  []",
		"a:[34]":                       "a [34] true -1 -1 no-userdb  []",
		"a:p:nosuchuser":               "error User a has invalid UID 'nosuchuser'",
		"a:p:0:0":                      "error User a has invalid UID '0'",
		"a:p:1:nosuchgroup":            "error User a has invalid GID 'nosuchgroup'",
		"a:secret[56]":                 "error User a has invalid password",
		"a:p:root":                     "error User a has invalid UID 'root'",
		"a:p:4294967295:1":             "a p true 4294967295 1 userdb  []",
		"a:p:4294967296:1":             "error User a has invalid UID '4294967296'",
		"\xff:p":                       "\xff p true -1 -1 no-userdb  []",
		"a:p:::::allow_nets=::1,local": "a p true -1 -1 userdb  [{userdb_mail 1,local}]", // one colon too few
		"a:p::::::allow_nets=::1":      "a p true -1 -1 userdb  [{allow_nets ::1}]",
	} {
		name, u, err := parsePasswdLine(line, true, s)
		userdb := "userdb"
		if u.noUserdb {
			userdb = "no-userdb"
		}
		got := fmt.Sprintf("%s %s %v %d %d %s %s %v", name, u.password, u.hasPassword, u.uid, u.gid, userdb, u.home, u.extra)
		if err != nil {
			got = "error " + err.Error()
		}
		if got != want {
			t.Errorf("%q:\ngot  %s\nwant %s", line, got, want)
		}
	}
}

// Bad lines cost themselves alone, and are said once for each time the file changes.
func TestPasswdFileBounds(t *testing.T) {
	dir := shortTemp(t)
	path := filepath.Join(dir, "users")
	text := strings.Repeat("x", 2*maxPasswdLine) + ":p\n" + "alice:p\r\n" + "bob:" + strings.Repeat("p", maxPasswdLine-10) + "\nlast:p"
	writeFile(t, path, text)
	var log memory
	s := &Server{log: event.New(&log, "", false), protocols: []*auth{{set: &protocol{}}}}
	db := s.passwdDB(path, false)
	db.open()
	r := &request{srv: s, auth: s.protocols[0], ctx: context.Background()}
	for range 3 {
		table, err := db.defFile.current(r)
		if err != nil {
			t.Fatal(err)
		}
		if len(table.users) != 3 || table.users["alice"].password != "p" || table.users["last"].password != "p" {
			t.Errorf("%d users", len(table.users))
		}
	}
	if got := log.get(); len(got) != 1 || !strings.HasSuffix(got[0], "line 1 has more than 65536 bytes") {
		t.Errorf("%q", got)
	}
}

// A file that is replaced, rewritten, or becomes something else while logins go on is
// never half there.
func TestPasswdFileChanges(t *testing.T) {
	s, _ := newServer(t, Options{}, `
passdb {
  driver = passwd-file
  args = scheme=PLAIN @DIR@/users
}
`, [2]string{"users", "alice:old\n"})
	defer s.Close()
	path := s.passwd[0].path
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		c := dial(t, s, "login", 100+i)
		wg.Add(1)
		go func() { // ends with stop
			defer wg.Done()
			defer c.close()
			for id := 1; ; id++ {
				select {
				case <-stop:
					return
				default:
				}
				if got := c.ask(plainAuth(id, "alice", "old")); !strings.HasPrefix(got, "OK") {
					t.Errorf("login %d: %q", id, got)
					return
				}
				c.write(fmt.Sprintf("CANCEL\t%d", id))
			}
		}()
	}
	for i := range 50 {
		temp := path + ".new"
		writeFile(t, temp, fmt.Sprintf("# %d\nalice:old\n", i))
		if err := os.Rename(temp, path); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	c := dial(t, s, "login", 99)
	defer c.close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := c.ask(plainAuth(1, "alice", "old")); got != "FAIL\t1\tuser=alice\tcode=temp_fail" {
		t.Errorf("a fifo: %q", got)
	}
}

// A dropped is a server that was started as root and is nobody by now, in a process of its
// own. Its only passdb is dir/users.
type dropped struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	br  *bufio.Reader
}

func startDropped(t *testing.T, dir string) *dropped {
	t.Helper()
	d := &dropped{t: t, cmd: exec.Command(os.Args[0], "-test.run=^TestPasswdFileOfRoot$")}
	d.cmd.Env = append(os.Environ(), "AUTHD_TEST_CHILD="+dir)
	d.cmd.Stderr = os.Stderr
	var err error
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.br = bufio.NewReader(out)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

const (
	in       = "OK\t1\tuser=alice"
	mismatch = "FAIL\t1\tuser=alice"
	tempFail = "FAIL\t1\tuser=alice\tcode=temp_fail"
)

// try logs alice in.
func (d *dropped) try(what, pass, want string) {
	d.t.Helper()
	if _, err := io.WriteString(d.in, pass+"\n"); err != nil {
		d.t.Fatal(err)
	}
	got, err := d.br.ReadString('\n')
	if got != want+"\n" {
		d.t.Errorf("%s: got %q, %v; want %q", what, got, err, want)
	}
}

// end expects that the log says why there were temporary failures, and what would help.
func (d *dropped) end() {
	d.t.Helper()
	d.in.Close()
	if err := d.cmd.Wait(); err != nil {
		d.t.Error(err)
	}
}

// rootsFile makes a file that only root can read.
func rootsFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// After root is dropped, a file that only root can read is read again when it was written
// in place; when it was replaced, nobody gets in by the old one.
func TestPasswdFileOfRoot(t *testing.T) {
	if dir := os.Getenv("AUTHD_TEST_CHILD"); dir != "" {
		droppedChild(t, dir)
		return
	}
	need.Root(t)
	dir := shortTemp(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "users")
	rootsFile(t, path, "alice:one\n")
	d := startDropped(t, dir)
	d.try("as it was", "one", in)
	rootsFile(t, path, "alice:second\n")
	d.try("written in place", "second", in)
	d.try("written in place", "one", mismatch)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	rootsFile(t, path, "alice:third\n")
	d.try("replaced", "third", tempFail)
	d.try("replaced", "second", tempFail)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	d.try("made readable", "third", in)
	d.end()
}

// The same in a directory where only root may look: that the file is replaced is seen by
// the old one, in whatever way it went.
func TestPasswdFileInRootsDirectory(t *testing.T) {
	need.Root(t)
	for _, c := range []struct {
		name    string
		replace func(dir, path string) error // leaves a place for a new file
	}{
		{"renamed over", func(_, path string) error {
			rootsFile(t, path+".new", "bob:new\n")
			return os.Rename(path+".new", path)
		}},
		{"removed", func(_, path string) error { return os.Remove(path) }},
		{"renamed", func(_, path string) error { return os.Rename(path, path+"~") }},
		{"renamed and touched", func(_, path string) error {
			if err := os.Rename(path, path+"~"); err != nil {
				return err
			}
			return os.Chtimes(path+"~", time.Time{}, time.Now())
		}},
		{"linked and renamed over", func(_, path string) error {
			rootsFile(t, path+".new", "bob:new\n")
			if err := os.Link(path, path+"~"); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		}},
		{"directory renamed", func(dir, _ string) error {
			if err := os.Rename(dir, dir+".old"); err != nil {
				return err
			}
			return os.Mkdir(dir, 0o700)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			outer := shortTemp(t)
			dir := filepath.Join(outer, "private")
			if err := os.Chmod(outer, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "users")
			rootsFile(t, path, "alice:one\n")
			d := startDropped(t, dir)
			d.try("as it was", "one", in)
			rootsFile(t, path, "alice:second\n")
			d.try("written in place", "second", in)
			d.try("written in place", "one", mismatch)
			if err := c.replace(dir, path); err != nil {
				t.Fatal(err)
			}
			rootsFile(t, path, "bob:new\n")
			for range 2 { // it stays lost
				d.try("taken out", "second", tempFail)
			}
			d.end()
		})
	}
}

// droppedChild answers a login for each line of stdin, after it became nobody.
func droppedChild(t *testing.T, dir string) {
	var log memory
	set := Settings{baseDir: dir, protocols: []*protocol{{
		mechanisms: []string{"PLAIN"}, usernameFormat: "%u", showPassword: "no",
		passdbs: []dbSettings{{driver: "passwd-file", args: "scheme=PLAIN " + dir + "/users", skip: "never",
			resultSuccess: "return-ok", resultFailure: "continue", resultInternalFail: "continue"}},
	}}}
	for i := range set.protocols[0].chars {
		set.protocols[0].chars[i] = true
	}
	s, err := New(set, Options{Log: event.New(&log, "", false)})
	if err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	if err := syscall.Setgroups(nil); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setgid(nobody); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setuid(nobody); err != nil {
		t.Fatal(err)
	}
	c := dial(t, s, "login", 7)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		got := c.ask(plainAuth(1, "alice", in.Text()))
		c.write("CANCEL\t1")
		fmt.Println(got)
	}
	c.close()
	for _, l := range log.get() {
		if strings.Contains(l, "Permission denied (euid=65534") && strings.Contains(l, "`dovetail reload` reads it") {
			os.Exit(0) // without the lines of package testing
		}
	}
	fmt.Fprintf(os.Stderr, "no line about the file: %q\n", log.get())
	os.Exit(1)
}

// A name with ".." in the middle of a path leads to where it says, not to where a symbolic
// link in front of it would take it.
func TestPasswdFileBehindLink(t *testing.T) {
	s, _ := newServer(t, Options{}, `
passdb {
  driver = passwd-file
  args = scheme=PLAIN username_format=x @DIR@/pw/%d/%n/users
}
`, [2]string{"elsewhere/users", "x:there\n"}, [2]string{"pw/users", "x:here\n"}, [2]string{"elsewhere/deep/a", ""})
	defer s.Close()
	dir, _, _ := strings.Cut(s.passwd[0].path, "/pw/")
	if err := os.Symlink(dir+"/elsewhere/deep", dir+"/pw/link"); err != nil {
		t.Fatal(err)
	}
	c := dial(t, s, "login", 7)
	defer c.close()
	if got := c.ask(plainAuth(1, "..@link", "there")); got != "FAIL\t1\tuser=..@link" {
		t.Error(got)
	}
	if got := c.ask(plainAuth(2, "..@link", "here")); got != "OK\t2\tuser=..@link" {
		t.Error(got)
	}
}

func FuzzPasswdLine(f *testing.F) {
	for _, l := range []string{
		"alice:{PLAIN}apass:5001:5001::/home/alice::userdb_submission_max_recipients=3 userdb_note=a:b", "a:hash[13]", "a:x[56]", "a", "a:p::::::",
		"old:x:5001:5001::/home/old:::mbox:/var/mail/old", "a:p:nosuchuser", ":::::::", "a:p:1:2:g:/h:s:x=1 =2  y",
		":'00000000:00000000",
	} {
		f.Add(l, true)
	}
	s := &Server{}
	f.Fuzz(func(t *testing.T, line string, userdb bool) {
		name, u, err := parsePasswdLine(line, userdb, s)
		if err != nil {
			_, rest, _ := strings.Cut(line, ":")
			pass, _, _ := strings.Cut(rest, ":")
			pass = strings.Trim(pass, "' ") // which errors put around other fields
			if len(pass) > 8 && strings.Contains(err.Error(), pass) && !strings.Contains(name, pass) && strings.Count(line, pass) == 1 {
				t.Fatalf("%q: the password is in the error: %v", line, err)
			}
			return
		}
		if strings.Contains(name, ":") || !userdb && (u.uid >= 0 || u.gid >= 0 || u.home != "") {
			t.Fatalf("%q: %q, %+v", line, name, u)
		}
	})
}

// Whatever a user is called, his file is below the directory of the template.
func FuzzPasswdPath(f *testing.F) {
	for _, user := range []string{"bob@example.org", "daemon@..", "..@..", "@", ".@.", "../x@../..", "..", "x@..x", ".@x/../..", "\x00@\xff"} {
		f.Add(user)
	}
	s := &Server{}
	var dbs []*passwdDB
	for _, rest := range []string{"%d/passwd", "%d", "x%d/%n/passwd", ".%n", "%d/%n/users", "%n%d/../%d/users", "%Ld/%1n/%R{domain}"} {
		dbs = append(dbs, s.passwdDB("/d/pw/"+rest, false))
	}
	f.Fuzz(func(t *testing.T, user string) {
		for _, db := range dbs {
			file, err := db.file(&request{srv: s, user: user})
			if err != nil {
				continue
			}
			if clean := path.Clean(file.path); !strings.HasPrefix(clean, "/d/pw/"+db.begin) {
				t.Errorf("%q: %s is %s", user, db.path, clean)
			}
		}
	})
}
