package urlauth

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sort"
	"strings"
	"syscall"
	"time"

	"dovetail/internal/dovecot/tabline"
)

// A Program is Dovecot's imap, to be run as the user this process is.
type Program struct {
	Path string            // <libexec_dir>/imap
	Env  []string          // see Environment
	Dir  string            // the user's home; / if that is not there
	Log  func(line string) // gets what it writes to its log; nil drops that
}

const (
	childGrace = 5 * time.Second // for it to end when its connection is closed

	maxLogLine = 1000 // octets of a line of its log
)

// Environment returns what imap needs to know when no master runs it: values are the
// settings of its module for the user (a request with modules and service imap on the
// config connection), fields what the userdb said of him, remote and local his addresses.
//
// Fields override settings, or are added to the plugins' (clause P4.6). Nobody here knows
// which is which, so they stand for both: imap passes over names that it does not know.
// master_user is one of them: the acl plugin then goes by that user's rights.
func Environment(values map[string]string, user string, fields tabline.Fields, remote, local string) []string {
	env := map[string]string{}
	for k, v := range values {
		env[strings.ToUpper(k)] = v
	}
	home := ""
	for _, f := range fields {
		key := strings.ToUpper(f.Key)
		if !f.HasValue {
			f.Value = "yes"
		}
		switch f.Key {
		case "home":
			home = f.Value
			continue
		case "mail":
			key = "MAIL_LOCATION"
		case "uid", "gid", "chroot", "system_groups_user", "nice", "auth_token", "auth_user", "auth_mech", "anonymous", "postlogin":
			continue // about the process or the login, not settings
		}
		if strings.ContainsAny(key, "=\x00") || strings.Contains(f.Value, "\x00") || strings.HasPrefix(key, "LD_") {
			continue // no variable, or the dynamic linker's
		}
		if name, ok := strings.CutSuffix(key, "+"); ok {
			if _, isSetting := env[name]; isSetting {
				env[name] += f.Value
			}
			continue
		}
		env[key] = f.Value
		env["PLUGIN/"+key] = f.Value
	}
	// Without a socket for statistics it does not try to reach one.
	for k, v := range map[string]string{"DOVECONF_ENV": "1", "STATS_WRITER_SOCKET_PATH": "", "USER": user, "HOME": home, "IP": remote, "LOCAL_IP": local} {
		env[k] = v
	}
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	sort.Strings(list)
	return list
}

// Exec runs imap as the user in the way of clause P7.13, over one end of a socket pair, and
// returns the other. What comes first on it is the greeting, PREAUTH. The program ends when
// the connection is closed; until then its log is read.
func Exec(p Program) (net.Conn, error) {
	near, far, err := pair()
	if err != nil {
		return nil, err
	}
	if st, err := os.Stat(p.Dir); err != nil || !st.IsDir() {
		p.Dir = "/"
	}
	cmd := exec.Command(p.Path)
	cmd.Env, cmd.Dir, cmd.Stdin, cmd.Stdout = p.Env, p.Dir, far, far
	log, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	far.Close()
	if err != nil {
		near.Close()
		return nil, fmt.Errorf("imap program: %w", err)
	}
	child := &childConn{Conn: near, ended: make(chan struct{})}
	go func() { // ends with the program, which ends with the connection, or is killed
		defer close(child.ended)
		lines := bufio.NewReaderSize(log, maxLogLine)
		for {
			line, err := lines.ReadSlice('\n')
			if s := printable(strings.TrimSpace(string(line))); s != "" && p.Log != nil {
				p.Log(s)
			}
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				break
			}
		}
		_ = cmd.Wait()
	}()
	child.kill = cmd.Process.Kill
	return child, nil
}

// A childConn is the connection to a program, which Close ends.
type childConn struct {
	net.Conn
	ended chan struct{} // closed when the program has ended
	kill  func() error
}

func (c *childConn) Close() error {
	err := c.Conn.Close()
	select {
	case <-c.ended:
	case <-time.After(childGrace):
		_ = c.kill()
		<-c.ended
	}
	return err
}

// pair makes two connected sockets: near for here, far for a child.
func pair() (near net.Conn, far *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[0]), "imap")
	defer f.Close() // near is a copy
	far = os.NewFile(uintptr(fds[1]), "imap")
	if near, err = net.FileConn(f); err != nil {
		far.Close()
	}
	return near, far, err
}
