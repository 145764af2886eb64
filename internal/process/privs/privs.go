package privs

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Apply gives up what r says, in the order groups, chroot, user, and checks that it is
// gone (clause P1.4.2). Ids that are Unset stay: a process whose UID is Unset is still
// root afterwards. A process that is not root can become nothing else: Apply then only
// checks that it already is what r asks for.
func (r Restrict) Apply() error {
	id := ids{uid: r.UID, gid: r.GID, groups: r.ExtraGroups, chroot: r.Chroot}
	return id.become()
}

// An Identity is the user whose mail a worker handles, as the userdb tells it (clause
// P1.4.3).
type Identity struct {
	UID, GID    uint32
	ExtraGroups []uint32 // besides GID
	Chroot      string   // absolute path; "" is none
	Home        string   // working directory, inside Chroot; "" or not to be entered: "/"
}

// ErrRoot: no mail user is root.
var ErrRoot = errors.New("the user's uid is 0")

// Drop makes every thread of the process the user, and checks that there is no way back.
// After an error other than ErrRoot the process may be half-way and must end. A process
// that is not root only checks that it already is the user.
func (id Identity) Drop() error {
	if id.UID == 0 || id.UID == Unset || id.GID == Unset {
		return ErrRoot
	}
	all := ids{uid: id.UID, gid: id.GID, groups: id.ExtraGroups, chroot: id.Chroot}
	if err := all.become(); err != nil {
		return err
	}
	if id.Home != "" && os.Chdir(id.Home) == nil {
		return nil
	}
	return os.Chdir("/")
}

// ids is what to become. Ids may be Unset.
type ids struct {
	uid, gid uint32
	groups   []uint32 // besides gid
	chroot   string
}

func (t ids) become() error {
	if os.Geteuid() != 0 {
		return t.already()
	}
	if t.gid != Unset {
		if err := syscall.Setgid(int(t.gid)); err != nil {
			return fmt.Errorf("setgid(%d): %w", t.gid, err)
		}
	}
	if t.gid != Unset || t.uid != Unset || len(t.groups) > 0 {
		list := make([]int, 0, len(t.groups)+1)
		list = append(list, os.Getegid())
		for _, g := range t.groups {
			list = append(list, int(g))
		}
		if err := syscall.Setgroups(list); err != nil {
			return fmt.Errorf("setgroups(%v): %w", list, err)
		}
	}
	if t.chroot != "" {
		if err := syscall.Chroot(t.chroot); err != nil {
			return fmt.Errorf("chroot(%s): %w", t.chroot, err)
		}
		if err := syscall.Chdir("/"); err != nil {
			return fmt.Errorf("chdir(/) in %s: %w", t.chroot, err)
		}
	}
	if t.uid == Unset {
		return nil
	}
	if err := syscall.Setuid(int(t.uid)); err != nil {
		return fmt.Errorf("setuid(%d): %w", t.uid, err)
	}
	return t.check()
}

// check tells whether root is gone for good.
func (t ids) check() error {
	if uid, euid := os.Getuid(), os.Geteuid(); uid != int(t.uid) || euid != int(t.uid) {
		return fmt.Errorf("uid is %d and effective uid %d after setuid(%d)", uid, euid, t.uid)
	}
	if t.gid != Unset {
		if gid, egid := os.Getgid(), os.Getegid(); gid != int(t.gid) || egid != int(t.gid) {
			return fmt.Errorf("gid is %d and effective gid %d after setgid(%d)", gid, egid, t.gid)
		}
	}
	if t.uid == 0 {
		return nil
	}
	// One thread is enough to ask: they are alike, and after an error the process ends.
	if _, _, err := syscall.RawSyscall(syscall.SYS_SETUID, 0, 0, 0); err == 0 {
		return errors.New("root rights are not gone: setuid(0) worked")
	}
	if t.gid != Unset && t.gid != 0 {
		if _, _, err := syscall.RawSyscall(syscall.SYS_SETGID, 0, 0, 0); err == 0 {
			return errors.New("root's group is not gone: setgid(0) worked")
		}
	}
	return nil
}

// already tells whether a process without rights is what it should become. Groups cannot
// be changed, and are what the master, or the user who started it, gave.
func (t ids) already() error {
	uid, gid := os.Geteuid(), os.Getegid()
	switch {
	case t.uid != Unset && int(t.uid) != uid:
		return fmt.Errorf("running as uid %d, which cannot become uid %d", uid, t.uid)
	case t.gid != Unset && int(t.gid) != gid:
		return fmt.Errorf("running as gid %d, which cannot become gid %d", gid, t.gid)
	case t.chroot != "":
		return fmt.Errorf("running as uid %d, which cannot chroot to %s", uid, t.chroot)
	}
	return nil
}
