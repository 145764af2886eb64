// Command dump is a service that tells its first client what its master has given it.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
)

func main() {
	text := report()
	env, err := masterproto.ParseEnv(os.Environ())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(89)
	}
	status := masterproto.Status{PID: int32(os.Getpid()), Generation: env.Generation, Available: env.ClientLimit}
	syscall.Write(masterproto.StatusFD, status.Append(nil))
	clients := make(chan net.Conn)
	for i := range env.Listeners {
		f := os.NewFile(uintptr(masterproto.FirstListenerFD+i), "")
		ln, err := net.FileListener(f)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(89)
		}
		go func() {
			if conn, err := ln.Accept(); err == nil {
				clients <- conn
			}
		}()
	}
	conn := <-clients
	io.WriteString(conn, text)
	conn.Close()
}

// report is what a process can see of the contract (clauses P1.1 to P1.4).
func report() string {
	var b strings.Builder
	fmt.Fprintf(&b, "argv %q\n", os.Args)
	env := os.Environ()
	slices.Sort(env)
	for _, e := range env {
		fmt.Fprintf(&b, "env %s\n", e)
	}
	for fd := range 16 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			continue
		}
		kind := map[uint32]string{
			unix.S_IFCHR: "device", unix.S_IFIFO: "pipe", unix.S_IFREG: "file", unix.S_IFSOCK: "socket", unix.S_IFDIR: "directory",
		}[st.Mode&unix.S_IFMT]
		if kind == "" || ours(fd) {
			continue // the runtime's own
		}
		flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		fdflags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		fmt.Fprintf(&b, "fd %d %s links %d access %d nonblock %v cloexec %v\n", fd, kind, st.Nlink,
			flags&unix.O_ACCMODE, flags&unix.O_NONBLOCK != 0, fdflags&unix.FD_CLOEXEC != 0)
	}
	mask := unix.Umask(0)
	wd, _ := os.Getwd()
	groups, _ := os.Getgroups()
	fmt.Fprintf(&b, "umask %03o\ncwd %s\nuid %d gid %d groups %v\n", mask, wd, os.Getuid(), os.Getgid(), groups)
	for _, r := range []int{unix.RLIMIT_AS, unix.RLIMIT_DATA} {
		var l unix.Rlimit
		unix.Getrlimit(r, &l)
		fmt.Fprintf(&b, "limit %d: %d %d\n", r, l.Cur, l.Max)
	}
	for line := range strings.Lines(read("/proc/self/status")) {
		if strings.HasPrefix(line, "SigBlk") {
			fmt.Fprintf(&b, "%s", line)
		}
		if strings.HasPrefix(line, "SigIgn") { // SIGPIPE only
			var m uint64
			fmt.Sscanf(line, "SigIgn: %x", &m)
			fmt.Fprintf(&b, "SIGPIPE ignored %v\n", m&(1<<(unix.SIGPIPE-1)) != 0)
		}
	}
	return b.String()
}

// ours says whether the Go runtime has opened fd.
func ours(fd int) bool {
	link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return strings.HasPrefix(link, "anon_inode:") || strings.HasPrefix(link, "/sys/") || strings.HasPrefix(link, "/proc/")
}

func read(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}
