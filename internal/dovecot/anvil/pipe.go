package anvil

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/tabline"
)

// pipeTimeout is how long an anvil process that does not read can hold a session.
const pipeTimeout = 5 * time.Second

// ErrTooLong: the names are too long for a line. Nothing was sent.
var ErrTooLong = errors.New("anvil: line of more than 1024 bytes")

// A Pipe reports sessions on descriptor 3. Any goroutine may use it. The nil Pipe reports
// nothing, as when no master started the process.
type Pipe struct {
	f  *os.File // the pipe opened once more, non-blocking; nil: fd itself has to do
	fd int      // lent
}

// NewPipe is to be called while the process is root, if it ever was. It opens the pipe
// behind fd, which it lends, once more: the descriptor itself is blocking, and shared with
// every process, so that its mode cannot be changed. Where the pipe cannot be opened (no
// /proc, a process that never was root) fd is written to when it has room.
func NewPipe(fd int) (*Pipe, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("anvil pipe: descriptor %d: %w", fd, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, fmt.Errorf("anvil pipe: descriptor %d is no pipe", fd)
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		f = nil
	}
	return &Pipe{f, fd}, nil
}

// Close closes what NewPipe opened.
func (p *Pipe) Close() error {
	if p == nil || p.f == nil {
		return nil
	}
	return p.f.Close()
}

// Connect says that the process pid serves a session of i from now on. A session without
// IP is not counted, and not reported (clause P6.2).
func (p *Pipe) Connect(pid int, i Ident) error { return p.session("CONNECT", pid, i) }

// Disconnect says that such a session has ended.
func (p *Pipe) Disconnect(pid int, i Ident) error { return p.session("DISCONNECT", pid, i) }

func (p *Pipe) session(verb string, pid int, i Ident) error {
	if p == nil || i.IP == "" {
		return nil
	}
	return p.write(tabline.Append(nil, verb, strconv.Itoa(pid), i.String()))
}

// write writes one line in one write, which a pipe takes whole or not at all.
func (p *Pipe) write(line []byte) error {
	if len(line) > MaxLine {
		return ErrTooLong
	}
	var err error
	if p.f == nil {
		err = p.writeShared(line)
	} else if err = p.f.SetWriteDeadline(time.Now().Add(pipeTimeout)); err == nil {
		_, err = p.f.Write(line)
	}
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err // the path is of /proc
		}
		return fmt.Errorf("anvil pipe: %w", err)
	}
	return nil
}

// writeShared writes to the blocking descriptor when there is room for a line, which only
// another process that writes at the same moment can take away.
func (p *Pipe) writeShared(line []byte) error {
	for end := time.Now().Add(pipeTimeout); ; {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, int(max(0, time.Until(end)).Milliseconds()))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0:
			return os.ErrDeadlineExceeded
		}
		for {
			if _, err = unix.Write(p.fd, line); err != unix.EINTR {
				return os.NewSyscallError("write", err)
			}
		}
	}
}
