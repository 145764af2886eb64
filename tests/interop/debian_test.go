package interop

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/tlsfiles"
)

// packaged is where Debian's package has the files that it makes /etc/dovecot of.
const packaged = "/usr/share/dovecot"

// An installation is a Debian machine with Dovecot, as far as Dovecot sees: its own
// /etc/dovecot, /etc/passwd, /etc/shadow, /run, /var/lib/dovecot and /usr/libexec, which are
// mounted over those of this machine for the master and its children alone.
type installation struct {
	t       *testing.T
	dir     string
	port    int // STARTTLS
	tlsPort int
	relay   *relay.Relay
	cert    tlsfiles.Pair
	cmd     *exec.Cmd
	out     bytes.Buffer // read after done
	done    chan struct{}
}

// What every admin sets.
const localConf = `listen = 127.0.0.1
log_path = {dir}/log
hostname = mail.example.test
submission_relay_host = 127.0.0.1
submission_relay_port = {relay}
service submission-login {
  inet_listener submission {
    port = {port}
  }
  inet_listener submissions {
    port = {tlsport}
    ssl = yes
  }
}
service imap-login {
  inet_listener imap {
    port = 0
  }
  inet_listener imaps {
    port = 0
  }
}
`

// mounts are laid over those of the machine.
var mounts = []string{"etc/dovecot", "etc/passwd", "etc/shadow", "run", "var/lib/dovecot", "var/mail", "usr/libexec"}

// install lays out an installation with one of our snippets and starts it. edits change files of the
// package: name, old text, new text.
func install(t *testing.T, snippet string, edits ...[3]string) *installation {
	t.Helper()
	need.Root(t)
	dovecot := need.Dovecot(t)
	unshare := need.Program(t, "unshare")
	if out, err := exec.Command(unshare, "-m", "true").CombinedOutput(); err != nil {
		need.Missing(t, "mount namespaces: "+string(out))
	}
	if _, err := os.Stat(packaged + "/conf.d/10-master.conf"); err != nil {
		need.Missing(t, "the files of Debian's dovecot-core in "+packaged)
	}
	dir, err := os.MkdirTemp("", "dt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	port := system.Hold(t)
	i := &installation{t: t, dir: dir, port: system.Hold(t).Number, tlsPort: system.Hold(t).Number, done: make(chan struct{}),
		relay: relay.Start(t, relay.Options{Listener: port.Listen(t)}),
		cert:  tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "mail.example.test", Names: []string{"mail.example.test"}})}
	for _, name := range []string{"etc/dovecot/conf.d", "etc/dovecot/private", "run/dovecot", "var/lib/dovecot", "var/mail", "usr/libexec/dovetail"} {
		i.must(os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	i.must(os.Chmod(dir, 0o755))
	i.must(os.Chmod(filepath.Join(dir, "var/mail"), 0o777|os.ModeSticky))
	i.tree(edits)
	i.write("etc/dovecot/local.conf", strings.NewReplacer("{dir}", dir, "{relay}", strconv.Itoa(port.Number), "{port}", strconv.Itoa(i.port), "{tlsport}", strconv.Itoa(i.tlsPort)).Replace(localConf), 0o644)
	i.write("etc/dovecot/private/dovecot.pem", string(i.cert.Cert), 0o644)
	i.write("etc/dovecot/private/dovecot.key", string(i.cert.Key), 0o600)
	text, err := os.ReadFile("../../conf.d/" + snippet)
	i.must(err)
	i.write("etc/dovecot/conf.d/"+snippet, string(text), 0o644)
	for _, name := range []string{"submission-login", "submission"} {
		program, err := os.ReadFile(system.Binary(t, name))
		i.must(err)
		i.write("usr/libexec/dovetail/"+name, string(program), 0o755)
	}
	i.users(dovecot)
	script := "set -e\n"
	for _, m := range mounts {
		script += fmt.Sprintf("mount --bind %s/%s /%s\n", dir, m, m)
	}
	i.cmd = exec.Command(unshare, "-m", "sh", "-c", script+"exec "+dovecot.Dovecot+" -F")
	i.cmd.Stdout, i.cmd.Stderr = &i.out, &i.out
	i.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	i.must(i.cmd.Start())
	go func() { // ends with the master, which stop ends
		defer close(i.done)
		_ = i.cmd.Wait()
	}()
	t.Cleanup(i.stop)
	i.eventually("the start", func() bool {
		pid, err := os.ReadFile(dir + "/run/dovecot/master.pid")
		return err == nil && len(pid) > 0
	})
	return i
}

func (i *installation) must(err error) {
	i.t.Helper()
	if err != nil {
		i.t.Fatal(err)
	}
}

func (i *installation) write(name, text string, mode os.FileMode) {
	i.t.Helper()
	i.must(os.WriteFile(filepath.Join(i.dir, name), []byte(text), mode))
	i.must(os.Chmod(filepath.Join(i.dir, name), mode))
}

// tree copies the package's files, with the edits.
func (i *installation) tree(edits [][3]string) {
	i.t.Helper()
	i.must(filepath.WalkDir(packaged, func(path string, e fs.DirEntry, err error) error {
		name, _ := filepath.Rel(packaged, path)
		if err != nil || e.IsDir() || name != "dovecot.conf" && !strings.HasPrefix(name, "conf.d/") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text := string(b)
		for _, x := range edits {
			if x[0] == name {
				if !strings.Contains(text, x[1]) {
					i.t.Fatalf("%s: the package's file has no %q", name, x[1])
				}
				text = strings.ReplaceAll(text, x[1], x[2])
			}
		}
		i.write("etc/dovecot/"+name, text, 0o644)
		return nil
	}))
}

// users adds accounts to the machine's, with homes below the directory: anna and bert, who
// are users of the system, and vmail, who owns the mail of virtual ones.
func (i *installation) users(dovecot need.Binaries) {
	i.t.Helper()
	hash, err := exec.Command(dovecot.Doveadm, "pw", "-s", "SHA512-CRYPT", "-p", "wonder").Output()
	i.must(err)
	_, crypt, _ := strings.Cut(strings.TrimSpace(string(hash)), "}")
	passwd, err := os.ReadFile("/etc/passwd")
	i.must(err)
	shadow, err := os.ReadFile("/etc/shadow")
	i.must(err)
	for n, name := range []string{"anna", "bert", "vmail"} {
		home := fmt.Sprintf("%s/home/%s", i.dir, name)
		i.must(os.MkdirAll(home, 0o755))
		i.must(os.Chown(home, 12101+n, 12101+n))
		passwd = fmt.Appendf(passwd, "%s:x:%d:%[2]d::%s:/bin/sh\n", name, 12101+n, home)
		shadow = fmt.Appendf(shadow, "%s:%s:19000:0:99999:7:::\n", name, crypt)
	}
	i.write("etc/passwd", string(passwd), 0o644)
	i.write("etc/shadow", string(shadow), 0o640)
	i.write("etc/dovecot/users", "anna@example.test:{SHA512-CRYPT}"+crypt+"\nbert@example.test:{SHA512-CRYPT}"+crypt+"\n", 0o644)
}

func (i *installation) log() string {
	text, _ := os.ReadFile(i.dir + "/log")
	return string(text)
}

func (i *installation) eventually(what string, ok func() bool) {
	i.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		select {
		case <-i.done:
			i.t.Fatalf("the master has ended, while waiting for %s:\n%s%s", what, i.out.String(), i.log())
		default:
		}
		if time.Now().After(end) {
			i.t.Fatalf("still waiting for %s\nlog:\n%s", what, i.log())
		}
	}
}

func (i *installation) stop() {
	tree := leak.Tree(i.cmd.Process.Pid)
	_ = i.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-i.done:
	case <-time.After(patience):
		_ = i.cmd.Process.Kill()
		<-i.done
		i.t.Errorf("the master does not stop")
	}
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		left := 0
		for _, pid := range tree {
			if syscall.Kill(pid, 0) == nil {
				left++
			}
		}
		if left == 0 || time.Now().After(end) {
			break
		}
	}
	if i.t.Failed() {
		i.t.Logf("log:\n%s%s", i.out.String(), i.log())
	}
}

// inside runs a command on the installation and returns its output.
func (i *installation) inside(args ...string) string {
	i.t.Helper()
	out, err := exec.Command(need.Program(i.t, "nsenter"), append([]string{"-m", "-t", strconv.Itoa(i.cmd.Process.Pid)}, args...)...).CombinedOutput()
	if err != nil {
		i.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// submit sends a message over STARTTLS, and another over implicit TLS, in a session that it
// leaves open.
func (i *installation) submit(user string) (open *client.Client) {
	i.t.Helper()
	conf := &tls.Config{RootCAs: i.cert.Pool(), ServerName: "mail.example.test"}
	before := len(i.relay.Messages())
	for _, implicit := range []bool{false, true} {
		o, port := client.Options{}, i.port
		if implicit {
			o.TLS, port = conf, i.tlsPort
		}
		c := client.Dial(i.t, fmt.Sprintf("127.0.0.1:%d", port), o)
		c.ExpectCode("220")
		if !implicit {
			c.Do("EHLO client.example.test", "250")
			c.Do("STARTTLS", "220")
			c.StartTLS(conf)
		}
		c.Do("EHLO client.example.test", "250")
		if before == 0 && !implicit { // the auth service answers late
			c.Do("AUTH PLAIN "+plain(user, "wrong"), "535")
		}
		c.Plain(user, "wonder")
		c.Do("MAIL FROM:<anna@example.test>", "250")
		c.Do("RCPT TO:<bob@dest.test>", "250")
		c.Do("DATA", "354")
		c.Do("Subject: x\r\n\r\nof "+user+"\r\n.", "250")
		if implicit {
			open = c
			break
		}
		c.Do("QUIT", "221")
		c.ExpectGone()
	}
	for _, m := range i.relay.WaitMessages(before + 2)[before:] {
		if !strings.HasSuffix(string(m.Data), "\r\nSubject: x\r\n\r\nof "+user+"\r\n") || m.From != "<anna@example.test>" {
			i.t.Errorf("message of %s from %s:\n%s", user, m.From, m.Data)
		}
	}
	return open
}

// An installation of Debian's, with system users or with virtual ones under one uid, goes on
// working when one of the snippets is added, and nothing else.
func TestDebian(t *testing.T) {
	t.Parallel()
	virtual := [][3]string{
		{"conf.d/10-auth.conf", "\n!include auth-system.conf.ext", "\n#!include auth-system.conf.ext"},
		{"conf.d/10-auth.conf", "\n#!include auth-passwdfile.conf.ext", "\n!include auth-passwdfile.conf.ext"},
		{"conf.d/auth-passwdfile.conf.ext", "userdb {\n  driver = passwd-file\n  args = username_format=%u /etc/dovecot/users\n", "userdb {\n  driver = static\n  args = uid=vmail gid=12103 home=/var/mail/%u\n"},
	}
	for _, x := range []struct {
		name, snippet string
		domain        string // of the users
		uid           map[string]int
		edits         [][3]string
	}{
		{"system users, recommended", "95-dovetail.conf", "", map[string]int{"anna": 12101, "bert": 12102}, nil},
		{"system users, as shipped", "95-dovetail-shipped.conf", "", map[string]int{"anna": 12101, "bert": 12102}, nil},
		{"virtual users, recommended", "95-dovetail.conf", "@example.test", map[string]int{"anna": 12103, "bert": 12103}, virtual},
		{"virtual users, dense", "95-dovetail-dense.conf", "@example.test", map[string]int{"anna": 12103, "bert": 12103}, virtual},
	} {
		t.Run(id(x.name), func(t *testing.T) {
			t.Parallel()
			i := install(t, x.snippet, x.edits...)
			if out := i.inside("doveconf", "-n"); strings.Count(out, "executable = /usr/libexec/dovetail/submission") != 2 {
				t.Errorf("doveconf -n:\n%s", out)
			}
			anna, bert := i.submit("anna"+x.domain), i.submit("bert"+x.domain)
			// The processes are ours, with the rights of the user.
			served := map[int]bool{}
			for _, pid := range leak.Tree(i.cmd.Process.Pid) {
				if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); strings.HasSuffix(exe, "/dovetail/submission") {
					var st syscall.Stat_t
					if syscall.Stat(fmt.Sprintf("/proc/%d", pid), &st) == nil {
						served[int(st.Uid)] = true
					}
				}
			}
			for name, uid := range x.uid {
				if !served[uid] {
					t.Errorf("no worker of %s (uid %d): %v", name, uid, served)
				}
				if name += x.domain; !strings.Contains(i.log(), "submission-login: Info: Login: user=<"+name+">") {
					t.Errorf("no login of %s in the log", name)
				}
			}
			i.eventually("doveadm who", func() bool { return strings.Count(i.inside("doveadm", "who"), "submission") == 2 })
			i.inside("doveadm", "kick", "-f", "anna"+x.domain)
			anna.ExpectCode("421 4.3.2")
			if !strings.Contains(x.snippet, "dense") { // where the two share a worker
				bert.Do("QUIT", "221")
			}
		})
	}
}
