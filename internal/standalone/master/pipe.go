package master

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dovetail/internal/process/privs"
)

const noID = privs.Unset

// A pipe is a pipe whose ends the master both keeps, so that neither end breaks when a
// child does. The zero pipe is not open.
type pipe struct {
	r, w int
	made bool
}

// makePipe makes a pipe; flags are for both ends. Children get what is put into their
// table of descriptors, and nothing else.
func makePipe(flags int) (pipe, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], flags|unix.O_CLOEXEC); err != nil {
		return pipe{}, fmt.Errorf("pipe() failed: %w", err)
	}
	return pipe{p[0], p[1], true}, nil
}

func (p *pipe) open() bool { return p.made }

func (p *pipe) close() {
	if p.made {
		unix.Close(p.r)
		unix.Close(p.w)
		*p = pipe{}
	}
}

// makeNotifyFile makes the file without a name whose offset tells login processes whether
// all of them are full (clause P1.7.3).
func (g *generation) makeNotifyFile() (int, error) {
	f, err := os.CreateTemp(g.cfg.BaseDir, "login-master-notify")
	if err != nil {
		return -1, err
	}
	defer f.Close()
	if err := os.Remove(filepath.Join(f.Name())); err != nil {
		return -1, err
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("dup() failed: %w", err)
	}
	return fd, nil
}
