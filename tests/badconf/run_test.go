package badconf

import (
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/system"
)

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }

// `dovetail run` says the same of every case, ends with status 89, and leaves nothing
// behind: no process, no directory, no socket.
func TestRun(t *testing.T) {
	for _, p := range []string{"submission-login", "submission"} {
		system.Binary(t, p)
	}
	dovetail := system.Binary(t, "dovetail")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	port := strconv.Itoa(taken.Addr().(*net.TCPAddr).Port)
	files, _ := filepath.Glob("*.conf")
	for _, f := range files {
		name := strings.TrimSuffix(f, ".conf")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "users-unknown" {
				need.Root(t) // nobody else becomes others
			}
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(".")); err != nil {
				t.Fatal(err)
			}
			pair(t, filepath.Join(dir, "key-other.d"), "cert.pem", "key.pem")
			pair(t, filepath.Join(dir, "key-other.d"), "other-cert.pem", "other-key.pem")
			base := dir + "/run"
			edit(t, filepath.Join(dir, "base.part"), func(s string) string {
				return s + "base_dir = " + base + "\nstate_dir = " + dir + "/state\nlog_path = " + dir + "/log\n"
			})
			edit(t, filepath.Join(dir, f), func(s string) string { return strings.ReplaceAll(s, "@PORT@", port) })
			cmd := exec.Command(dovetail, "run", "-F", "-c", f)
			cmd.Dir, cmd.Env = dir, []string{"PATH=/usr/bin:/bin", "NO_COLOR=1"}
			out, _ := cmd.CombinedOutput()
			if status := cmd.ProcessState.ExitCode(); status != 89 {
				t.Errorf("status %d", status)
			}
			want, err := os.ReadFile(name + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(strings.ReplaceAll(string(out), base+"/", "/run/dovecot/"), dir+"/", "")
			if strings.HasPrefix(string(want), "@run ") {
				listen := "service(submission-login): listen(127.0.0.1, " + port + ") failed: Address already in use"
				log, _ := os.ReadFile(dir + "/log")
				if !strings.Contains(got, "error: "+f+" line 4: "+listen) || !strings.Contains(string(log), "master: Error: "+listen) {
					t.Errorf("it says\n%s\nthe log\n%s", got, log)
				}
			} else if d := cmp.Diff(string(want), got); d != "" {
				t.Error(d)
			}
			if name != "port-in-use" { // where the directories are made first
				if _, err := os.Stat(base); err == nil {
					t.Error("a directory was made")
				}
			}
			_ = filepath.WalkDir(base, func(path string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					t.Errorf("left behind: %s", path)
				}
				return nil
			})
		})
	}
}

func edit(t *testing.T, path string, f func(string) string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(f(string(b))), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
