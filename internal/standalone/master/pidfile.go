package master

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// PIDFile is the name of the file in base_dir that holds the master's pid.
const PIDFile = "master.pid"

// ReadPIDFile returns the pid of the master that runs in baseDir; 0 if there is none. A
// file left behind by one that died counts only as long as another Dovetail or Dovecot
// runs under its pid.
func ReadPIDFile(baseDir string) (int, error) {
	path := filepath.Join(baseDir, PIDFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
	if err != nil || pid <= 0 {
		return 0, nil // Dovecot, too, overrides such a file
	}
	if pid == os.Getpid() || unix.Kill(pid, 0) == unix.ESRCH {
		return 0, nil
	}
	if name := processName(pid); name != "" && name != "dovetail" && name != "dovecot" && !sameProgram(pid) {
		return 0, nil
	}
	return pid, nil
}

// processName returns what the kernel calls a process; "" if it does not say.
func processName(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(b), "\n")
}

// sameProgram says whether pid runs the file that this process runs.
func sameProgram(pid int) bool {
	a, err1 := os.Stat("/proc/self/exe")
	b, err2 := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// A pidFile is the file and the lock on it, which two masters that start at the same time
// cannot both get.
type pidFile struct {
	path  string
	file  *os.File
	stale bool // one who died has left it
}

// lockPIDFile takes the lock. The pid is written later, by write.
func lockPIDFile(baseDir string) (*pidFile, error) {
	running := func(pid int) error {
		name := "Dovetail"
		if processName(pid) == "dovecot" {
			name = "Dovecot"
		}
		return fmt.Errorf("%s is already running with PID %d (read from %s)", name, pid, filepath.Join(baseDir, PIDFile))
	}
	pid, err := ReadPIDFile(baseDir)
	if err != nil {
		return nil, err
	}
	if pid != 0 {
		return nil, running(pid)
	}
	p := &pidFile{path: filepath.Join(baseDir, PIDFile)}
	if p.file, err = os.OpenFile(p.path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(p.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		p.file.Close()
		if err == unix.EWOULDBLOCK {
			//lint:ignore ST1005 it begins with a name
			return nil, fmt.Errorf("Dovetail is already starting (%s is locked)", p.path)
		}
		return nil, fmt.Errorf("flock(%s) failed: %w", p.path, err)
	}
	st, err := p.file.Stat()
	if there, err2 := os.Stat(p.path); err != nil || err2 != nil || !os.SameFile(st, there) {
		p.file.Close()
		//lint:ignore ST1005 it begins with a name
		return nil, fmt.Errorf("Dovetail is already starting, or was a moment ago (%s has gone)", p.path)
	}
	p.stale = err == nil && st.Size() > 0
	return p, nil
}

// write puts this process's pid into the file.
func (p *pidFile) write() error {
	if err := p.file.Truncate(0); err != nil {
		return err
	}
	_, err := p.file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// remove removes the file and gives up the lock.
func (p *pidFile) remove() {
	os.Remove(p.path)
	p.file.Close()
}
