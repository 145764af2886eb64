package command

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dovetail/internal/standalone/master"
	"dovetail/internal/usermask"

	"golang.org/x/sys/unix"
)

// answering listens at path and answers lines by their first words: what a master or an
// anvil would say.
func answering(t *testing.T, path, greeting string, answers map[string]string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends when the listener is closed
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends when the client leaves
				defer nc.Close()
				fmt.Fprint(nc, greeting)
				for in := bufio.NewScanner(nc); in.Scan(); {
					if word, _, _ := strings.Cut(in.Text(), "\t"); word != "VERSION" {
						fmt.Fprint(nc, answers[word])
					}
				}
			}()
		}
	}()
}

// Workers tell anvil who they are, and one that somebody has taken over tells it what it
// likes. Root ends nothing but what the master has started.
func TestKickEndsNoStranger(t *testing.T) {
	dir, err := os.MkdirTemp("", "kick")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var procs []*exec.Cmd
	for range 3 {
		cmd := exec.Command("sleep", "600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
		procs = append(procs, cmd)
	}
	worker, stranger, imap := procs[0], procs[1], procs[2]
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	dump := ""
	for _, p := range []*exec.Cmd{worker, stranger, imap, gone} {
		dump += fmt.Sprintf("submission/192.0.2.7/alice\t%d\t1\n", p.Process.Pid)
	}
	answering(t, filepath.Join(dir, "anvil"), "", map[string]string{"CONNECT-DUMP": dump + "\n"})
	answering(t, filepath.Join(dir, master.AdminSocket), "VERSION\tmaster-server\t1\t0\n", map[string]string{
		"KICK":           "+0\n",
		"PROCESS-STATUS": fmt.Sprintf("submission\t%d\t0\t1\t0\t0\t0\nimap\t%d\t0\t1\t0\t0\t0\n\n", worker.Process.Pid, imap.Process.Pid),
	})
	// Nobody proxies: the ipc service has no process, which this master does not tell apart.
	answering(t, filepath.Join(dir, "ipc"), "", map[string]string{"proxy": "+\n"})
	conf := filepath.Join(dir, "dovecot.conf")
	if err := os.WriteFile(conf, []byte("base_dir = "+dir+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	var out, errs strings.Builder
	c := &call{stdout: &out, stderr: &errs, config: conf}
	if n, err := c.kick(usermask.Mask{User: "alice"}, false); n != 1 || err != nil {
		t.Errorf("%d sessions, %v", n, err)
	}
	if out.String() != "kicked 1 session of: alice\n" {
		t.Errorf("stdout %q", out.String())
	}
	for _, p := range []*exec.Cmd{stranger, imap} {
		if line := fmt.Sprintf("Error: not kicked: anvil has process %d for alice, but that is no process of submission\n", p.Process.Pid); !strings.Contains(errs.String(), line) {
			t.Errorf("stderr %q lacks %q", errs.String(), line)
		}
	}
	if n := strings.Count(errs.String(), "\n"); n != 2 {
		t.Errorf("stderr has %d lines: %q", n, errs.String())
	}
	if err := worker.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("the worker: %v", err)
	}
	for _, p := range []*exec.Cmd{stranger, imap} {
		// A signal that had been sent would have ended it: its status could be had.
		if pid, err := unix.Wait4(p.Process.Pid, nil, unix.WNOHANG, nil); pid != 0 || err != nil {
			t.Errorf("process %d has ended (%v)", pid, err)
		}
	}
}
