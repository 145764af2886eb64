package master

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"dovetail/internal/process/event"
	"dovetail/internal/process/privs"
)

// Modes of the directories (clause P0.6).
const (
	baseMode  = 0o755
	loginMode = 0o750
)

// loginDirs are below base_dir and hold the sockets of processes in a chroot.
var loginDirs = []string{"login", "token-login"}

// makeBase makes base_dir, with the mode that Dovecot gives it (clause P0.6).
func makeBase(c *Config, log *event.Log) error {
	if err := mkdirs(c.BaseDir); err != nil {
		return failed("base_dir: making "+c.BaseDir, err)
	}
	st, err := os.Stat(c.BaseDir) // it may be a symbolic link
	switch {
	case err != nil:
		return failed("base_dir: making "+c.BaseDir, err)
	case !st.IsDir():
		return fmt.Errorf("base_dir: %s is not a directory", c.BaseDir)
	case st.Mode()&baseMode != baseMode:
		log.Warning("Fixing permissions of %s to be world-readable", c.BaseDir)
		if err := os.Chmod(c.BaseDir, baseMode); err != nil {
			return failed("base_dir: making "+c.BaseDir, err)
		}
	}
	if err := unix.Access(c.BaseDir, unix.W_OK|unix.X_OK); err != nil {
		return failed("base_dir: access("+c.BaseDir+")", err)
	}
	return nil
}

// makeDirs makes what is in base_dir, with the owners and modes that Dovecot gives (clause
// P0.6), and state_dir. In the login directories it removes sockets nobody listens on; one
// that somebody does is an error (clause P0.7). All errors are returned.
func makeDirs(c *Config, log *event.Log) (errs []error) {
	if c.StateDir != "" && !c.Unprivileged {
		if err := mkdirs(c.StateDir); err != nil {
			errs = append(errs, fmt.Errorf("state_dir: %w", err))
		}
	}
	gid := c.LoginGID
	if c.Unprivileged {
		gid = privs.Unset
	}
	for _, name := range loginDirs {
		dir := filepath.Join(c.BaseDir, name)
		if err := ownDir(dir, loginMode, gid, "login", log); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, removeSockets(dir)...)
	}
	if err := ownDir(filepath.Join(c.BaseDir, "empty"), baseMode, privs.Unset, "empty", log); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// mkdirs makes dir and what is above it, world-readable whatever the umask.
func mkdirs(dir string) error {
	err := os.Mkdir(dir, baseMode)
	if errors.Is(err, fs.ErrNotExist) && dir != "/" {
		if err := mkdirs(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, baseMode)
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	return os.Chmod(dir, baseMode)
}

// ownDir makes dir the master's, with this mode and group, and says so if it was not.
func ownDir(dir string, mode os.FileMode, gid uint32, what string, log *event.Log) error {
	made := false
	if err := os.Mkdir(dir, mode); err == nil {
		made = true
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%s is not a directory", dir)
	}
	wantGID := uint32(os.Getegid())
	if gid != privs.Unset {
		wantGID = gid
	}
	fixed := false
	if uid := uint32(os.Geteuid()); st.Uid != uid || st.Gid != wantGID {
		if err := os.Lchown(dir, int(uid), int(wantGID)); err != nil {
			return err
		}
		fixed = true
	}
	if os.FileMode(st.Mode)&0o7777 != mode {
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
		fixed = true
	}
	if fixed && !made {
		log.Warning("Corrected permissions for %s directory %s", what, dir)
	}
	return nil
}

// removeSockets removes the sockets in dir that nobody listens on.
func removeSockets(dir string) []error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, e := range entries {
		if e.Type()&fs.ModeSocket == 0 || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if alive(path) {
			//lint:ignore ST1005 it begins with a name
			errs = append(errs, fmt.Errorf("Dovetail is already running? Socket already exists: %s", path))
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errs
}

// alive says whether somebody listens on the socket at path. What is there but cannot be
// connected to counts, unless that is because nobody listens.
func alive(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	return err != unix.ECONNREFUSED && err != unix.ENOENT && err != unix.EINVAL // too long a path
}
