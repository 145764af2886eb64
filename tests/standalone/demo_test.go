package standalone

import (
	"bufio"
	"fmt"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/need"
)

// demo is `dovetail demo args...` with a temporary directory of its own, as the caller or
// as another user.
func demo(t *testing.T, as uint32, args ...string) (cmd *exec.Cmd, tmp string) {
	t.Helper()
	tmp, err := os.MkdirTemp("", "dt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	if err := os.Chmod(tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(binaries(t), append([]string{"demo"}, args...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TMPDIR=" + tmp, "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if as != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: as, Gid: as}
	}
	return cmd, tmp
}

// left returns what a demo has left behind.
func left(tmp string) (bad []string) {
	bad, _ = filepath.Glob(tmp + "/*")
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), tmp) {
			bad = append(bad, fmt.Sprintf("%s %q", p, b))
		}
	}
	return bad
}

// One message from end to end; as root, too, where it is run as nobody.
func TestDemoOnce(t *testing.T) {
	for name, as := range map[string]uint32{"caller": 0, "nobody": nobody} {
		t.Run(name, func(t *testing.T) {
			if as != 0 {
				need.Root(t)
			}
			cmd, tmp := demo(t, as, "-once")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range []string{
				"The relay got, from <demo@example.org> for <friend@example.net>:",
				"Received: from ", "with ESMTPSA", "Subject: Hello from Dovetail", "which wrote it here.",
			} {
				if !strings.Contains(string(out), want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if bad := left(tmp); len(bad) > 0 {
				t.Errorf("left behind: %q", bad)
			}
		})
	}
}

// What the demo shows is true: a client that follows it gets its message to the relay.
// Ctrl-C ends everything.
func TestDemo(t *testing.T) {
	cmd, tmp := demo(t, 0)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	lines := make(chan string)
	go func() { // ends with the demo
		defer close(lines)
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			lines <- sc.Text()
		}
	}()
	var text strings.Builder
	awaits := func(what string) []string {
		t.Helper()
		re := regexp.MustCompile(what)
		for end := time.After(patience); ; {
			select {
			case line, ok := <-lines:
				if !ok {
					t.Fatalf("ended before %s:\n%s", what, text.String())
				}
				text.WriteString(line + "\n")
				if m := re.FindStringSubmatch(line); m != nil {
					return m
				}
			case <-end:
				t.Fatalf("no %s:\n%s", what, text.String())
			}
		}
	}
	port := awaits(`^  port +(\d+) `)[1]
	user := awaits(`^  user +(\S+)`)[1]
	password := awaits(`^  password +(\S+)`)[1]
	awaits(`curl --url smtp://127\.0\.0\.1:` + port + ` --ssl-reqd`)
	awaits(`swaks --server`)
	awaits(`openssl s_client`)
	awaits(`^Ctrl-C ends everything`)
	err = smtp.SendMail("127.0.0.1:"+port, smtp.PlainAuth("", user, password, "127.0.0.1"), "a@example.org", []string{"b@example.net"}, []byte("Subject: x\r\n\r\ny\r\n"))
	if err == nil {
		t.Error("a certificate that nobody vouches for was accepted")
	}
	// Without TLS, which package smtp and the server allow between two ends of one machine.
	c, err := smtp.Dial("127.0.0.1:" + port)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return c.Auth(smtp.PlainAuth("", user, password, "127.0.0.1")) },
		func() error { return c.Mail("a@example.org") },
		func() error { return c.Rcpt("b@example.net") },
		func() error {
			w, err := c.Data()
			if err == nil {
				fmt.Fprint(w, "Subject: x\r\n\r\ny\r\n")
				err = w.Close()
			}
			return err
		},
		c.Quit,
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	awaits(`^The relay got a message from a@example\.org for b@example\.net: `)
	_ = cmd.Process.Signal(syscall.SIGINT)
	for line := range lines {
		text.WriteString(line + "\n")
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, text.String())
	}
	if bad := left(tmp); len(bad) > 0 {
		t.Errorf("left behind: %q", bad)
	}
}
